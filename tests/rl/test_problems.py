"""Which problems a step practises: with dynamic sampling (DAPO) only such as the model gets right now and then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from freedive.rl.problems import Practice, Problem, practise
from freedive.rl.rollouts import Rollout

G = 4


def problems(kinds: Sequence[str]) -> list[Problem]:
    """always: all completions are right; never: none; sometimes: every second one"""
    return [Problem({"prompt": f"{i}", "kind": kind}, [i]) for i, kind in enumerate(kinds)]


def practised(kinds: Sequence[str], wanted: int, draws: int, drawn: int = 0) -> tuple[Practice, list[int]]:
    """And the number of each completion that was sampled, which keys its seed."""
    numbers: list[int] = []

    def solve(chosen: Sequence[Problem], first: int) -> list[Rollout]:
        numbers.extend(range(first, first + len(chosen) * G))
        right = {"always": [1.0] * G, "never": [0.0] * G, "sometimes": [0.0, 1.0] * (G // 2)}
        return [Rollout(p.ids, [7], np.zeros(1, np.float32), "", True, 0, reward) for p in chosen for reward in right[p.row["kind"]]]

    return practise(solve, problems(kinds), list(range(len(kinds))), drawn, wanted, G, draws), numbers


@given(st.lists(st.sampled_from(["always", "never", "sometimes"]), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 5), st.integers(0, 20))
def test_what_a_step_keeps(kinds: list[str], wanted: int, draws: int, drawn: int):
    practice, numbers = practised(kinds, wanted, draws, drawn)
    made = (practice.drawn - drawn) // wanted
    assert practice.drawn == drawn + made * wanted and 1 <= made <= draws
    assert numbers == list(range(made * wanted * G))  # no two completions of a step share a seed
    assert 1 <= len(practice.problems) <= wanted and len(practice.rollouts) == G * len(practice.problems)
    assert [r.prompt_ids for r in practice.rollouts] == [p.ids for p in practice.problems for _ in range(G)]
    seen = [kinds[(drawn + i) % len(kinds)] for i in range(made * wanted)]
    assert practice.metrics["frac_reward_zero_std"] == np.mean([k != "sometimes" for k in seen])  # of all that was drawn
    alive = [k for k in seen if k == "sometimes"]
    if draws == 1 or not alive:
        assert len(practice.problems) == wanted
    else:
        assert [p.row["kind"] for p in practice.problems] == alive[:wanted]
        assert made == draws or len(alive) >= wanted


def test_one_draw_is_the_order_itself():
    practice, _ = practised(["always", "never", "sometimes", "never"], 3, 1, drawn=3)
    assert [p.ids for p in practice.problems] == [[3], [0], [1]] and practice.drawn == 6


def test_dynamic_sampling_in_a_run(tmp_path: Path):
    """dapo draws again where the reward is the same for all, and what it drew is logged; a resumed run is covered by the stages' tests."""
    from freedive.pretrain import stage as pretrain
    from freedive.rl import stage as rl

    (tmp_path / "t.txt").write_text("Some text to learn from, again and again. " * 200)
    base = pretrain.run(pretrain.PretrainConfig(text=tmp_path / "t.txt", out=tmp_path / "base", tokenizer="bytes", depth=1, context=32, optimizer="adamw",
                                                batch_tokens=128, micro_tokens=128, steps=2, samples=0, max_positions=64, threads=1))  # fmt: skip
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"{a}", "sure": a % 2}) + "\n" for a in range(8)))
    (tmp_path / "r.py").write_text("def score(prompts, completions, completion_ids, sure):\n    return [-1.0 if s else -float(len(c) % 3) for s, c in zip(sure, completions)]\n")
    out = rl.run(rl.RLConfig(model=base, data=tmp_path / "p.jsonl", out=tmp_path / "rl", reward=f"{tmp_path}/r.py:score", algorithm="dapo", steps=3, prompts_per_step=4,
                             num_generations=4, max_completion_length=8, eval_every=0, threads=1))  # fmt: skip
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(8 <= r["problems_drawn"] <= 16 and r["frac_reward_zero_std"] >= 0.5 for r in rows)
