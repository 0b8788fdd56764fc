"""Rollouts: sample G completions a prompt, reward them, and lay them out as a flat batch for the objective.

Token-in, token-out: what was sampled is trained on, ids and behaviour log-probs as the sampler gave them; text is only a view for the
reward. Entry t of every per-token array is about the token *after* position t.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freedive.inference import Engine
from freedive.model import Batch
from freedive.runs import UserError

from .rewards import Reward


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt."""

    prompt_ids: list[int]
    ids: list[int]  # as sampled, the stop token included
    logprobs: np.ndarray  # float32 [len(ids)], of the sampler
    text: str
    stopped: bool
    seed: int = 0  # what keyed its sampling
    reward: float = 0.0


def sample(engine: Engine, prompts: Sequence[list[int]], generations: int, max_new_tokens: int, temperature: float, stop_ids: tuple[int, ...],
           seeds: Sequence[int]) -> list[Rollout]:  # fmt: skip
    """`generations` completions of each prompt, those of one prompt next to each other."""
    repeated = [p for p in prompts for _ in range(generations)]
    outs = engine.generate(repeated, max_new_tokens=max_new_tokens, temperature=temperature, stop_ids=stop_ids, seeds=list(seeds))
    return [Rollout(p, list(o.ids), np.asarray(o.logprobs, np.float32), o.text, o.stopped, s) for p, o, s in zip(repeated, outs, seeds, strict=True)]


def rewarded(rollouts: list[Rollout], rows: Sequence[dict[str, Any]], reward: Reward) -> list[Rollout]:
    """Rollouts with rewards; `rows` has one entry per rollout. A completion that did not stop earns nothing (and keeps a negative reward).

    Raises UserError when the reward function fails.
    """
    keys = list(dict.fromkeys(k for r in rows for k in r if k != "prompt"))
    columns = {k: [r.get(k) for r in rows] for k in keys}  # None where a row lacks a key that others have
    columns = _accepted(reward, {"seeds": [r.seed for r in rollouts], **columns})
    name = getattr(reward, "__name__", "reward")
    try:
        values = list(reward([r["prompt"] for r in rows], [r.text for r in rollouts], [r.ids for r in rollouts], **columns))
        numbers = [0.0 if v is None else float(v) for v in values]
    except Exception as error:
        raise UserError(f"the reward {name!r} failed: {type(error).__name__}: {error}", hint="it is called with prompts, completions, completion_ids "
                        f"and the columns of the problems: {', '.join(keys) or 'none'}") from error  # fmt: skip
    if len(numbers) != len(rollouts) or not np.isfinite(numbers).all():
        raise UserError(f"the reward {name!r} must return one finite number per completion; it returned {len(numbers)} for {len(rollouts)}")
    return [dataclasses.replace(r, reward=v if r.stopped else min(0.0, v)) for r, v in zip(rollouts, numbers)]


def _accepted(reward: Reward, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns that the function takes: all with **columns, else those it names."""
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return columns
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return columns
    names = {p.name for p in parameters}
    return {k: v for k, v in columns.items() if k in names}


@dataclass(frozen=True)
class RolloutBatch:
    """A flat batch of rollouts and what the objective needs, all indexed by the predicting position."""

    batch: Batch
    mask: np.ndarray  # float32 [N], 1 where the target was sampled by the model
    behaviour_logprobs: np.ndarray  # float32 [N]
    advantages: np.ndarray  # float32 [N]


def lay_out(rollouts: Sequence[Rollout], advantages: Sequence[float]) -> RolloutBatch:
    """Prompts and completions end to end. Targets are set on completions only, so the head is computed for nothing else."""
    sequences, mask, behaviour, advantage = [], [], [], []
    for r, a in zip(rollouts, advantages, strict=True):
        ids = [*r.prompt_ids, *r.ids]
        n, p = len(ids) - 1, len(r.prompt_ids) - 1
        m = np.zeros(n, np.float32)
        m[p:] = 1.0
        b = np.zeros(n, np.float32)
        b[p:] = r.logprobs
        sequences.append((ids[:-1], [-1] * p + r.ids))
        mask.append(m)
        behaviour.append(b)
        advantage.append(np.full(n, a, np.float32))
    return RolloutBatch(Batch.pack(sequences), np.concatenate(mask), np.concatenate(behaviour), np.concatenate(advantage))


def micro_batches(rollouts: Sequence[Rollout], advantages: Sequence[float], max_tokens: int, max_seqs: int) -> list[RolloutBatch]:
    """The step's rollouts in as few flat batches as fit."""
    out, at = [], 0
    while at < len(rollouts):
        end, size = at, 0
        while end < len(rollouts) and end - at < max_seqs:
            length = len(rollouts[end].prompt_ids) + len(rollouts[end].ids) - 1
            if end > at and size + length > max_tokens:
                break
            size, end = size + length, end + 1
        out.append(lay_out(rollouts[at:end], advantages[at:end]))
        at = end
    return out
