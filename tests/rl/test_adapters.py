"""Reward functions written for verl, OpenRLHF and TRL, as their own documentation writes them."""

from __future__ import annotations

import asyncio

import numpy as np

from freedive.rl.adapters import adapted
from freedive.rl.rewards import call, form

ROWS = {"answer": ["4", "5"], "data_source": ["openai/gsm8k"] * 2, "reward_model": [{"style": "rule", "ground_truth": "4"}, {"style": "rule", "ground_truth": "5"}],
        "extra_info": [{"index": 0}, {"index": 1}]}  # fmt: skip


def given(function, completions=("4", "4"), prompts=("2+2", "2+3"), columns=ROWS):
    return call("r", adapted(function), prompts, completions, [[1]] * len(completions), columns)


def test_verl():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        assert data_source == "openai/gsm8k" and isinstance(extra_info["index"], int)
        return {"score": float(solution_str == ground_truth), "acc": 1}

    assert given(compute_score) == [1, 0]
    assert given(lambda solution_str, ground_truth: float(solution_str == ground_truth)) == [1, 0]  # fewer parameters do


def test_openrlhf():
    def reward_func(queries, prompts, labels, **kwargs):
        assert queries == ["2+24", "2+34"]
        scores = np.array([float(q.removeprefix(p) == label) for q, p, label in zip(queries, prompts, labels)])
        return {"rewards": scores, "scores": scores, "extra_logs": {}}

    assert given(reward_func) == [1, 0]


def test_trl():
    async def slow(prompts, completions, completion_ids, answer, **kwargs):
        return [None if c != a else 1.0 for c, a in zip(completions, answer)]

    values = given(slow)
    assert values[0] == 1 and np.isnan(values[1])

    async def few(completions, **kwargs):
        return [1.0] * len(completions)

    async def other(completions, answer):
        return [float(c == a) for c, a in zip(completions, answer)]

    assert given(few) == [1, 1] and given(other) == [1, 0]
    messages = [[{"role": "assistant", "content": "4"}]] * 2
    assert given(lambda prompts, completions, **kwargs: [float(c[0]["content"] == "4") for c in completions], messages) == [1, 1]
    assert given(lambda completions, **kwargs: [1.0] * len(completions)) == given(lambda *a, **k: [1.0, 1.0]) == [1, 1]


def test_the_form_alone():
    texts = ["Answer: 4", "it is 4", "I think. Answer: yes, four", "Answer: 4\nand more", "Answer:"]
    assert form([""] * 5, texts) == [1, 0, 1, 0, 0]


def test_async_functions_of_every_form():
    """They run, and those of verl, which are asked of one completion, wait together."""
    waiting: list[str] = []

    async def compute_score(solution_str, ground_truth):
        waiting.append(solution_str)
        await asyncio.sleep(0)
        assert len(waiting) == 2
        return {"score": float(solution_str == ground_truth)}

    async def reward_func(queries, prompts, labels):
        return {"rewards": np.array([float(q.removeprefix(p) == label) for q, p, label in zip(queries, prompts, labels)])}

    class Grader:
        async def __call__(self, solution_str, ground_truth):
            return None if solution_str != ground_truth else 1.0

    assert given(compute_score) == [1, 0] and given(reward_func) == [1, 0]
    said = given(Grader())
    assert said[0] == 1 and np.isnan(said[1])
