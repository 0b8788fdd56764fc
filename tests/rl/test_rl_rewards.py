"""Rewards and rollouts: the user's function may fail in any way and the user is told; what a reward of a group means for the update."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from freedive.model import Model, from_depth
from freedive.objectives import PRESETS
from freedive.rl.config import RLConfig
from freedive.rl.rewards import BUILT_IN
from freedive.rl.rollouts import Rollout
from freedive.rl.scoring import Scorer
from freedive.rl.update import Learner
from freedive.runs import UserError, find_function


def rollouts(n: int, stopped: bool = True) -> list[Rollout]:
    return [Rollout([1, 2, 3], [4, 5 + i % 3], np.full(2, -1.0, np.float32), "text", stopped) for i in range(n)]


def rewarded(made: list[Rollout], rows, reward) -> list[Rollout]:
    scorer = Scorer(["coin"])
    scorer.functions, scorer.labels = [reward], [getattr(reward, "__name__", "reward")]
    return scorer(made, rows)


def test_rows_need_not_have_the_same_keys():
    seen = {}

    def reward(prompts, completions, completion_ids, **columns):
        seen.update(columns)
        return [1.0, 0.0]

    rewarded(rollouts(2), [{"prompt": "a", "answer": "1"}, {"prompt": "b", "level": 2}], reward)
    assert {k: v for k, v in seen.items() if not k.startswith("log_") and k != "trainer_state"} == {"answer": ["1", None], "level": [None, 2], "seeds": [0, 0]}


def test_a_reward_gets_the_columns_it_names():
    def named(prompts, completions, completion_ids, answer):
        return [float(a == "1") for a in answer]

    assert [r.reward for r in rewarded(rollouts(2), [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2", "level": 3}], named)] == [1.0, 0.0]


@pytest.mark.parametrize("returned, says", [
    ([1.0], "returned 1$"), ([1.0, float("nan")], "NaN for completion 2"), ([float("inf"), 1.0], "an infinity for completion 1"), (["x", 1.0], "'x' for completion 1"), (None, "returned None"),
    (3.0, "one number, 3.0"), (np.float32(3), "one number"), ("ab", "'ab'"), ({"rewards": [1, 2]}, "rewards"),
])  # fmt: skip
def test_what_is_no_reward_is_said(returned, says):
    with pytest.raises(UserError, match=f"must return one finite number \\(or None\\) per completion, a list of 2; it returned .*{says}" if not says.startswith("returned") else says):
        rewarded(rollouts(2), [{"prompt": "a"}] * 2, lambda *a, **k: returned)


def test_a_reward_that_raises_is_the_users():
    def mine(prompts, completions, completion_ids, answer):  # there is no such column
        return [0.0] * len(prompts)

    with pytest.raises(UserError, match="mine"):
        rewarded(rollouts(2), [{"prompt": "a"}] * 2, mine)


def test_not_stopping_is_never_better_than_stopping():
    value = lambda v: lambda *a, **k: [v, v]
    rows = [{"prompt": "a"}] * 2
    assert [r.reward for r in rewarded(rollouts(2, stopped=False), rows, value(1.0))] == [0.0, 0.0]
    assert [r.reward for r in rewarded(rollouts(2, stopped=False), rows, value(-1.0))] == [-1.0, -1.0]


def test_length_and_repetition_are_rewards_by_name():
    """cosine: short and right is best, short and wrong is worst, at the limit both are in between; repetition: only what was there before costs."""
    said = lambda text, n: Rollout([1], [7] * n, np.zeros(n, np.float32), text, True)
    scorer = Scorer(["cosine"], max_completion_length=10)
    made = [said("Answer: 4", 0), said("Answer: 4", 10), said("Answer: 5", 0), said("Answer: 5", 10), said("Answer: 4", 5)]
    assert [r.reward for r in scorer(made, [{"prompt": "2+2", "answer": "4"}] * 5)] == pytest.approx([1.0, 0.5, -1.0, -0.5, 0.75])
    rows = [{"prompt": "q", "meta": {"task": "parity"}, "answer": "even"}]
    assert scorer([said("Answer: even", 0)], rows)[0].reward == 1.0
    mixed = [*rows, {"prompt": "2+2", "answer": "4", "meta": {"check": "number"}}, {"prompt": "2+2", "answer": "4"}, *rows]  # each row by its own judge
    assert [r.reward for r in scorer([said(t, 0) for t in ("Answer: even", "Answer: 4", "Answer: 5", "Answer: odd")], mixed)] == [1.0, 1.0, -1.0, -1.0]
    both = Scorer(["repetition", "coin"], [0.5, 0.0])
    assert [r.reward for r in both([said("x", 2), said("x", 12), dataclasses.replace(said("x", 3), ids=[1, 2, 3])], [{"prompt": "q"}] * 3)] == pytest.approx([0.0, -0.45, 0.0])
    given = dict(model="m", data="d")
    assert RLConfig(**given, reward=["repetition", "answer"]).judged_by == ["answer"] and RLConfig(**given, reward=["cosine"]).judged_by == ["answer"]
    assert RLConfig(model="m", task=["parity"], reward=["cosine"]).judged_by == ["task"] and RLConfig(**given, reward=["a.py:f", "cosine"]).judged_by == ["a.py:f"]


def test_reward_files(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def score(prompts, completions, completion_ids, **columns):\n    return [0.5] * len(prompts)\n")
    assert find_function(f"{mine}:score", BUILT_IN, "reward")([1], ["x"], [[1]]) == [0.5]
    assert find_function("coin", BUILT_IN, "reward") is BUILT_IN["coin"]


@pytest.mark.parametrize("algo, moves", [("grpo", True), ("rloo", True), ("dr_grpo", False)])
def test_equal_rewards_still_feel_the_kl(algo, moves, tmp_path):
    """With equal rewards only a KL term is left: it must move the weights, and without one nothing may."""
    config = from_depth(1, 32, 64)
    model = Model(config, max_tokens=128, max_seqs=8, threads=1).init(0)
    reference = Model(config, max_tokens=128, max_seqs=8, threads=1, trainable=False)
    reference.load_state({"parameters": model.state()["parameters"], "step_count": np.zeros(1, np.int64)})
    for p in model.parameters.values():
        p += np.random.default_rng(1).normal(0, 0.05, p.shape).astype(np.float32)
    model.touch()
    spec = dataclasses.replace(PRESETS[algo], max_completion_length=8)
    before = model.state()["parameters"]
    c = RLConfig(model=tmp_path, data=tmp_path, num_generations=4, prompts_per_step=1)
    Learner(c, spec, model, reference if spec.beta else None).update([dataclasses.replace(r, reward=1.0) for r in rollouts(4)], 1e-3)
    assert (np.abs(model.state()["parameters"] - before).max() > 0) == moves


def test_a_list_of_all_answers_earns_nothing():
    """What RL found when it was enough that the answer occurs: "GetWeather? FindBus? GetWeather? ..."."""
    from freedive.rl.rewards import answer_match

    said = ["FindBus", "find bus.", "FindBus? GetWeather? FindBus? GetCars?", "GetWeather FindBus", "I would take the bus.\nAnswer: FindBus", "12+3=15", "15 or 16", "Answer: 15."]
    right = ["FindBus", "Find bus", "FindBus", "FindBus", "FindBus", "15", "15", "15"]
    assert answer_match([""] * 8, said, answer=right) == [1, 1, 0, 0, 1, 1, 0, 1]
    assert answer_match([""] * 2, ["so: FindBus", "FindBus."], answer=["FindBus"] * 2, meta=[{"check": "contains"}, {"check": "exact"}]) == [1, 1]
    assert answer_match([""], ["Answer: FindBus"], answer=["FindBus"], meta=[{"check": "exact"}]) == [0]
