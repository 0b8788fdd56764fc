"""Rollouts: sample G completions a prompt, and lay them out as a flat batch for the objective.

Token-in, token-out: what was sampled is trained on, ids and behaviour log-probs as the sampler gave them; text is only a view for the
reward. What a tool or a user put between stays where it is, with mask 0. Entry t of every per-token array is about the token *after* t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from freedive.inference import Engine
from freedive.inference.engine import Params
from freedive.model import Batch

MISTAKES = ("forged", "malformed", "calls", "timeout")  # finish reasons of rollouts that an environment ended: not cut at a limit, and to be learned from


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt."""

    prompt_ids: list[int]
    ids: list[int]  # as sampled, the stop token included; and what tools said between
    logprobs: np.ndarray  # float32 [len(ids)], of the sampler; 0 where the mask is 0
    text: str  # what the model said, without calls
    stopped: bool  # by itself, not at a limit or for a mistake
    seed: int = 0  # what keyed its sampling
    reward: float = 0.0  # NaN: no reward function applied to it
    mask: tuple[int, ...] | None = None  # 1: sampled by the model; None: all
    calls: int = 0  # of tools
    failed_calls: int = 0
    finish_reason: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)  # of several turns: what was said and answered
    environment: Any = None
    parts: dict[str, float] = field(default_factory=dict)  # reward of each function, before weights; NaN where it does not apply

    @property
    def sampled(self) -> np.ndarray:
        """bool [len(ids)]: the model's own."""
        return np.ones(len(self.ids), bool) if self.mask is None else np.asarray(self.mask, bool)

    @property
    def length(self) -> int:
        """Tokens the model said."""
        return len(self.ids) if self.mask is None else sum(self.mask)


def sample(engine: Engine, prompts: Sequence[list[int]], generations: int, max_new_tokens: int, temperature: float, stop_ids: tuple[int, ...],
           seeds: Sequence[int]) -> list[Rollout]:  # fmt: skip
    """`generations` completions of each prompt, those of one prompt next to each other; each prompt is read once."""
    repeated = [p for p in prompts for _ in range(generations)]
    outs = engine.groups(prompts, generations, Params(max_new_tokens, temperature, stop_ids=stop_ids), list(seeds))
    return [Rollout(p, list(o.ids), np.asarray(o.logprobs, np.float32), o.text, o.stopped, s, finish_reason=o.finish_reason)
            for p, o, s in zip(repeated, outs, seeds, strict=True)]  # fmt: skip


@dataclass(frozen=True)
class RolloutBatch:
    """A flat batch of rollouts and what the objective needs, all indexed by the predicting position."""

    batch: Batch
    mask: np.ndarray  # float32 [N], 1 where the target was sampled by the model
    behaviour_logprobs: np.ndarray  # float32 [N]
    advantages: np.ndarray  # float32 [N]


def lay_out(rollouts: Sequence[Rollout], advantages: Sequence[float]) -> RolloutBatch:
    """Prompts and completions end to end. Targets are set on what the model said only, so the head is computed for nothing else.

    A prompt that rollouts next to each other share is there once, with the first of them; its last id begins each of the others.
    """
    sequences, prefixes, mask, behaviour, advantage = [], [], [], [], []
    first = 0
    for number, (r, a) in enumerate(zip(rollouts, advantages, strict=True)):
        ids = [*r.prompt_ids, *r.ids]
        shared = _shared(rollouts, number) if number else 0
        if not shared:
            first = number
        n, p = len(ids) - 1 - shared, len(r.prompt_ids) - 1 - shared
        mine = r.sampled
        m = np.zeros(n, np.float32)
        m[p:] = mine
        b = np.zeros(n, np.float32)
        b[p:] = np.where(mine, r.logprobs, 0)
        targets = np.full(n, -1, np.int32)
        targets[p:] = np.where(mine, np.asarray(r.ids, np.int32), -1)
        sequences.append((ids[shared:-1], targets))
        prefixes.append((first, shared))
        mask.append(m)
        behaviour.append(b)
        advantage.append(np.full(n, a, np.float32))
    batch = Batch.pack(sequences, prefixes)
    return RolloutBatch(batch, np.concatenate(mask), np.concatenate(behaviour), np.concatenate(advantage))


def _shared(rollouts: Sequence[Rollout], number: int) -> int:
    """Ids of the prompt that a rollout need not repeat, where the one before it has the same."""
    own, before = rollouts[number].prompt_ids, rollouts[number - 1].prompt_ids
    if not rollouts[number].ids:  # nothing would be left
        return 0
    return len(own) - 1 if own is before or own == before else 0


def micro_batches(rollouts: Sequence[Rollout], advantages: Sequence[float], max_tokens: int, max_seqs: int) -> list[RolloutBatch]:
    """The step's rollouts in as few flat batches as fit."""
    return [lay_out(rollouts[a:b], advantages[a:b]) for a, b in cuts(rollouts, max_tokens, max_seqs)]


def cuts(rollouts: Sequence[Rollout], max_tokens: int, max_seqs: int) -> list[tuple[int, int]]:
    """(begin, end) of each micro-batch: as many rollouts in a row as fit."""
    out, at = [], 0
    while at < len(rollouts):
        end, size = at, 0
        while end < len(rollouts) and end - at < max_seqs:
            length = len(rollouts[end].prompt_ids) + len(rollouts[end].ids) - 1 - (_shared(rollouts, end) if end > at else 0)
            if end > at and size + length > max_tokens:
                break
            size, end = size + length, end + 1
        out.append((at, end))
        at = end
    return out
