"""The reward of a rollout: what each function says of it, times its weight, added up; and what the length costs.

Functions are called on the whole batch in this process, or with a time limit in processes of their own (workers.py). A completion of which no
function says anything has no reward: NaN, and nothing is learned from it. One that did not stop by itself earns nothing (and keeps a
negative reward), or the best way to be paid would be to go on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from freedive.objectives import soft_overlong
from freedive.rlhf.rewards import learned_reward
from freedive.runs import UserError, find_function

from .adapters import adapted
from .environments import TooLong, time_limit
from .rewards import BUILT_IN, Reward, call
from .rollouts import Rollout
from .workers import Workers


class Scorer:
    """Reward functions with weights. timeout 0: no limit, in this process; so are built-in ones that cannot hang."""

    def __init__(self, names: Sequence[str], weights: Sequence[float] = (), *, timeout: float = 0.0, workers: int = 2, overlong: tuple[int, int] | None = None,
                 environment_timeout: float = 0.0, environment: bool = True, missing_eos_penalty: float = 0.0, threads: int | None = None, device: str = "cpu",
                 dtype: str = "auto", loaded: dict[str, Reward] | None = None, max_completion_length: int | None = None):  # fmt: skip
        if weights and len(weights) != len(names):
            raise UserError(f"{len(names)} reward functions and {len(weights)} weights", hint="--reward-weights takes one number for each --reward")
        self.names = list(names)
        self.weights = list(weights) or [1.0] * len(names)
        loaded = {} if loaded is None else loaded  # reward models and judges by name: several scorers share one dict, and each is in memory once
        learned = [None if n in BUILT_IN else loaded.get(n) or learned_reward(n, threads, device, dtype) for n in names]
        loaded |= {n: found for n, found in zip(names, learned) if found is not None}
        self.functions: list[Reward] = [found or adapted(find_function(n, BUILT_IN, "reward")) for n, found in zip(names, learned)]
        self.missing_eos_penalty = missing_eos_penalty  # taken off what a completion that was cut off has
        self.labels = _labels(self.names, self.functions)
        self.environment_timeout = environment_timeout
        self.environment = environment  # whether what an environment gives its rollout counts
        self.max_completion_length = max_completion_length  # a column, for rewards that ask how long a completion may be
        self.overlong = overlong  # (longest completion, tokens before its end where the penalty begins)
        apart = [timeout > 0 and found is None and (n in ("task", "cosine") or n not in BUILT_IN and not n.startswith("freedive.")) for n, found in zip(names, learned)]
        self._workers = [Workers(n, workers, timeout) if a else None for n, a in zip(names, apart)]

    def __call__(self, rollouts: list[Rollout], rows: Sequence[dict[str, Any]], group: int = 1) -> list[Rollout]:
        return self.score(rollouts, rows, group)[0]

    def score(self, rollouts: list[Rollout], rows: Sequence[dict[str, Any]], group: int = 1) -> tuple[list[Rollout], dict[str, float]]:
        """Rollouts with rewards, and metrics by function; `rows` has one entry per rollout, `group` of them in a row are of one prompt.

        Raises UserError when a function fails.
        """
        prompts, completions, ids, columns = _arguments(rollouts, rows)
        if self.max_completion_length is not None:
            columns = {"max_completion_length": [self.max_completion_length] * len(rollouts), "lengths": [r.length for r in rollouts], **columns}
        values: dict[str, list[float]] = {}
        metrics: dict[str, float] = {}
        for label, function, workers in zip(self.labels, self.functions, self._workers, strict=True):
            if workers is None:
                noted: dict[str, list[float]] = {}
                more = {"environments": [r.environment for r in rollouts]} if any(r.environment is not None for r in rollouts) else {}
                given: dict[str, Any] = {**columns, **more, "log_metric": lambda key, value, noted=noted: noted.setdefault(str(key), []).append(float(value)),
                         "log_extra": lambda *a, **k: None, "trainer_state": None}  # fmt: skip
                values[label] = call(label, function, prompts, completions, ids, given)
            else:
                values[label], late = workers.score(prompts, completions, ids, columns, group)
                noted = workers.metrics
                metrics[f"rewards/{label}/timeouts"] = float(late)
                if workers.died:
                    metrics[f"rewards/{label}/died"] = float(workers.died)
            metrics |= {key: math.fsum(v) / len(v) for key, v in noted.items() if v}  # whatever order the processes answered in
        weights = dict(zip(self.labels, self.weights, strict=True))
        if self.environment and any(hasattr(r.environment, "get_reward") for r in rollouts):
            values["environment"] = [_own(r, self.environment_timeout) for r in rollouts]
            weights["environment"] = 1.0
        if self.overlong:
            values["overlong"] = [soft_overlong(r.length, *self.overlong) for r in rollouts]
        return self._summed(rollouts, values, weights, metrics)

    def _summed(self, rollouts: list[Rollout], values: dict[str, list[float]], weights: dict[str, float], metrics: dict[str, float]) -> tuple[list[Rollout], dict[str, float]]:
        out = []
        for i, r in enumerate(rollouts):
            parts = {label: v[i] for label, v in values.items()}
            said = [weights[label] * v for label, v in parts.items() if label != "overlong" and not math.isnan(v)]
            earned = math.fsum(said) if said else math.nan
            if not r.stopped:
                earned = min(earned, 0.0) - self.missing_eos_penalty
            out.append(dataclasses.replace(r, reward=earned + parts.get("overlong", 0.0), parts=parts))
        for label, v in values.items():
            if known := [x for x in v if not math.isnan(x)]:
                metrics[f"rewards/{label}/mean"] = float(np.mean(known))
                metrics[f"rewards/{label}/std"] = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
            if len(known) < len(v):
                metrics[f"rewards/{label}/none"] = (len(v) - len(known)) / len(v)
        return out, metrics

    def silence(self, told: Sequence[dict[str, float]], rollouts: int) -> str:
        """Why no completion has a reward, given the metrics of each `score` and the completions of one: "`score`: 30 timed out, 2 got None"."""
        total = lambda name: round(sum(t.get(name, 0.0) for t in told))
        labels = [*self.labels, *(["environment"] if any("rewards/environment/none" in t for t in told) else [])]
        parts = []
        for label in labels:
            late, died = total(f"rewards/{label}/timeouts"), total(f"rewards/{label}/died")
            counts = ((died, "ended their process"), (late - died, "timed out"), (len(told) * rollouts - late, "got None"))
            parts.append(f"`{label}`: " + ", ".join(f"{n:,} {what}" for n, what in counts if n))
        return "; ".join(parts)

    def close(self) -> None:
        for workers in self._workers:
            if workers is not None:
                workers.close()


def _own(r: Rollout, seconds: float) -> float:
    """What an environment gives its rollout; NaN where it has no reward of its own, or takes too long over it."""
    if not hasattr(r.environment, "get_reward"):
        return math.nan
    try:
        with time_limit(seconds):
            value = r.environment.get_reward()
        number = math.nan if value is None else float(value)
    except TooLong:
        return math.nan
    except Exception as error:
        raise UserError(f"get_reward of the environment {type(r.environment).__name__} failed: {type(error).__name__}: {error}") from error
    if value is not None and not math.isfinite(number):
        raise UserError(f"get_reward of the environment {type(r.environment).__name__} returned {value!r:.60}; it must be a finite number, or None")
    return number


def _arguments(rollouts: Sequence[Rollout], rows: Sequence[dict[str, Any]]) -> tuple[list[Any], list[Any], list[Any], dict[str, list[Any]]]:
    """prompts, completions, completion_ids and the columns; None in a column where a row lacks a key that others have."""
    keys = list(dict.fromkeys(k for r in rows for k in r if k != "prompt"))
    columns: dict[str, list[Any]] = {"seeds": [r.seed for r in rollouts], **{k: [r.get(k) for r in rows] for k in keys}}
    completions = [r.text if isinstance(row["prompt"], str) else (r.messages or [{"role": "assistant", "content": r.text}]) for r, row in zip(rollouts, rows, strict=True)]
    return [r["prompt"] for r in rows], completions, [list(r.ids) for r in rollouts], columns


def _labels(names: Sequence[str], functions: Sequence[Reward]) -> list[str]:
    """A name for each function in the metrics: its own, with a number where two are equal."""
    labels: list[str] = []
    for name, function in zip(names, functions, strict=True):
        first = label = getattr(function, "__name__", name.rpartition(":")[2])
        number = 1
        while label in (*labels, "environment", "overlong"):
            number += 1
            label = f"{first}_{number}"
        labels.append(label)
    return labels
