"""Held-out problems: pass@1, pass@k without bias, and how sure they are.

pass@k = 1 - C(n-c, k) / C(n, k) of a problem with c right answers among n (arXiv:2107.03374), averaged over problems; its interval resamples
problems, since answers to one are not independent. The same seeds at every evaluation: two evaluations differ by the weights alone. An answer of which
the reward says nothing (None) is in no mean; how many they are is `unjudged`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from freedive.eval.statistics import interval, share
from freedive.objectives import pass_at_k
from freedive.runs import Artefact, json_line

from .problems import Problem
from .rewards import RIGHT
from .rollouts import Rollout

EVAL_STREAM = 32
AT_ONCE = 256  # problems

Solve = Callable[[Sequence[Problem], int, Sequence[int]], list[Rollout]]  # problems, answers to each, seeds -> rewarded rollouts


def evaluate(solve: Solve, problems: list[Problem], samples: int, seed: int) -> tuple[dict[str, Any], list[Rollout]]:
    """({"pass@1", "reward", "mean_length"} and, with several samples, "pass@2", "pass@4"... and intervals, the rollouts).

    NaN where nothing was judged; a problem of fewer than k judged answers is not in pass@k. "unjudged" is there where it is not 0.
    """
    outs: list[Rollout] = []
    for at in range(0, len(problems), AT_ONCE):
        part = problems[at : at + AT_ONCE]
        seeds = [(seed + 1) * 7_000_003 + (EVAL_STREAM << 40) + (j << 32) + at + i for i in range(len(part)) for j in range(samples)]
        outs += solve(part, samples, seeds)
    rewards = np.array([r.reward for r in outs]).reshape(-1, samples)
    known = np.isfinite(rewards)
    right, judged = (rewards >= RIGHT).sum(1), known.sum(1)  # of each problem; NaN >= RIGHT is False
    found: dict[str, Any] = {"mean_length": sum(r.length for r in outs) / len(outs), "reward": float(rewards[known].mean()) if known.any() else np.nan}
    if not known.all():
        found["unjudged"] = int((~known).sum())
    if samples == 1:
        told = share([bool(x) for x in right[judged > 0]])
        return found | {"pass@1": np.nan if told["share"] is None else told["share"], "pass@1_interval_95": told["interval_95"]}, outs
    k = 1
    while k <= samples:
        of_problem = [pass_at_k(int(n), int(c), k) for n, c in zip(judged, right) if n >= k]
        found[f"pass@{k}"] = float(np.mean(of_problem)) if of_problem else np.nan
        found[f"pass@{k}_interval_95"] = interval(of_problem)
        k *= 2
    return found, outs


def keep_shown(artefact: Artefact, step: int, problems: Sequence[Problem], rollouts: Sequence[Rollout], samples: int, show: int) -> None:
    """The first answer to each of the first `show` problems, one line each in trajectories.jsonl: the same questions over the whole training."""
    for problem, r in list(zip(problems, rollouts[::samples]))[:show]:
        line = {"step": step, "prompt": problem.row["prompt"], "text": r.text, "length": r.length, "stopped": r.stopped, "reward": None if np.isnan(r.reward) else r.reward}
        artefact.append("trajectories.jsonl", json_line(line | ({"messages": r.messages} if r.messages else {})))


def scalars(found: dict[str, Any]) -> dict[str, float]:
    """Without intervals: for a line of metrics.jsonl."""
    return {k: v for k, v in found.items() if not isinstance(v, list)}
