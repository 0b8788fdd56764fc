"""Best-fit packing: which sequences share a micro-batch.

A flat batch has no padding, so what packing fills is the micro-batch's capacity: full ones make every optimizer step see the same number of
tokens, and waste none of the memory taken. Sequences come in the epoch's random order; each goes into the open bin that it leaves least room in
(best fit), and of more than OPEN bins the fullest is closed. Who shares a bin changes no gradient: attention stays within a sequence.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np

from freedive.model import Batch
from freedive.runs import UserError

from .loader import ORDER_STREAM, MicroBatch, Source

OPEN = 64  # bins that wait for something that fits


def best_fit(lengths: Sequence[int], capacity: int, most: int) -> list[list[int]]:
    """Indices 0, 1, .. of `lengths`, in that order, into bins of at most `capacity` tokens and `most` sequences. ValueError for one that fits none."""
    closed: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room, number) of the open bins, sorted
    bins: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"a sequence of {length} tokens does not fit into {capacity}")
        at = bisect.bisect_left(rooms, (length, -1))
        room, number = rooms.pop(at) if at < len(rooms) else (capacity, len(closed) + len(bins))
        held = bins.setdefault(number, [])
        held.append(i)
        if room == length or len(held) == most:
            closed.append(bins.pop(number))
        else:
            bisect.insort(rooms, (room - length, number))
        if len(rooms) > OPEN:
            closed.append(bins.pop(rooms.pop(0)[1]))
    return closed + [bins[number] for _, number in rooms]


class PackedLoader:
    """Like SequenceLoader: micro-batches of each optimizer step, a function of the seed and the step. micro_tokens is their capacity, and a step
    has as many as make up batch_tokens."""

    def __init__(self, source: Source, batch_tokens: int, micro_tokens: int, max_seqs: int, seed: int):
        self.source, self.seed, self.max_seqs = source, seed, max_seqs
        self.capacity, self.per_step = micro_tokens, max(1, round(batch_tokens / micro_tokens))
        self.epoch, self.cursor = 0, 0
        self._begin()

    def _begin(self) -> None:
        n = self.source.begin_epoch(self.epoch)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, ORDER_STREAM], counter=[0, 0, 0, self.epoch]))
        order = rng.permutation(n)
        lengths = [len(self.source.get(int(i))[0]) for i in order]
        longest = max(lengths)
        if longest > self.capacity:
            raise UserError(f"a sequence of {longest} tokens is longer than a micro-batch of {self.capacity}", hint="raise --micro-tokens")
        packed = best_fit(lengths, self.capacity, self.max_seqs)
        self.bins = [order[np.array(packed[int(i)])] for i in rng.permutation(len(packed))]
        self.tokens = sum(lengths)

    @property
    def fill(self) -> float:
        """Tokens of this epoch, as part of what its micro-batches could hold."""
        return self.tokens / (len(self.bins) * self.capacity)

    @property
    def steps_per_epoch(self) -> float:
        return len(self.bins) / self.per_step

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "cursor": self.cursor}

    def load_state(self, state: dict[str, Any]) -> None:
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self._begin()

    def next_step(self) -> list[MicroBatch]:
        """The micro-batches of the next optimizer step."""
        step = []
        for _ in range(self.per_step):
            if self.cursor >= len(self.bins):
                self.epoch, self.cursor = self.epoch + 1, 0
                self._begin()
            examples = [self.source.get(int(i)) for i in self.bins[self.cursor]]
            self.cursor += 1
            step.append(MicroBatch(Batch.pack((i, t) for i, t, _ in examples), np.concatenate([w for _, _, w in examples])))
        return step
