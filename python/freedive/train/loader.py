"""From sequences to flat batches, deterministically: what step k trains on depends on the seed and k only, so a resumed run goes on
exactly where it stopped.

A source gives, for each epoch, a list of sequences (ids, targets, weights). The loader visits them in an order drawn for the epoch and
lays them end to end until `batch_tokens` would be exceeded: no padding, nothing cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from freedive.model import Batch
from freedive.runs import UserError

OFFSET_STREAM, ORDER_STREAM, REPLAY_STREAM, BLEND_STREAM = 11, 12, 13, 14
Example = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids int32 [L], targets int32 [L] (-1 = none), weights float32 [L]


class Sliceable(Protocol):
    """Token ids, all in memory or not."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: slice, /) -> np.ndarray: ...


class Source(Protocol):
    def begin_epoch(self, epoch: int) -> int:
        """Prepare an epoch; returns how many sequences it has."""

    def get(self, i: int) -> Example: ...


@dataclass(frozen=True)
class MicroBatch:
    """What one forward takes: a flat batch and the weight of each of its targets (float32 [N])."""

    batch: Batch
    weights: np.ndarray


class Documents:
    """Pretraining: documents cut into windows of at most `context` tokens, at a place drawn anew each epoch.

    Every document is bos, its tokens, and bos again as the last target: that is how the model learns where documents begin and end. With
    bos = None (plain streams, such as one book read by characters) only the text's own tokens are there.
    """

    def __init__(self, documents: Sequence[np.ndarray], context: int, bos: int | None, seed: int):
        if bos is not None:
            edge = np.array([bos], np.int32)
            documents = [np.concatenate([edge, d.astype(np.int32), edge]) for d in documents if len(d)]
        else:
            documents = [d.astype(np.int32) for d in documents if len(d) > 1]
        if not documents:
            raise UserError("no document has a token to learn from", hint="give more text")
        ends = np.cumsum([len(d) for d in documents])
        self._set(np.concatenate(documents), np.concatenate([[0], ends[:-1]]), ends - 1, context, seed)

    def _set(self, ids: Sliceable, first: np.ndarray, last: np.ndarray, context: int, seed: int) -> None:
        self.ids, self.first, self.last = ids, first, last  # of each document the places of its first and last token, edges included
        self.context, self.seed = context, seed
        self._windows: np.ndarray = np.zeros((0, 2), np.int64)

    @classmethod
    def mapped(cls, ids: Sliceable, first: np.ndarray, last: np.ndarray, context: int, seed: int) -> Documents:
        """Documents with their edges, lying in `ids` already (a memory map): document i is ids[first[i] : last[i] + 1]."""
        self = cls.__new__(cls)
        self._set(ids, first, last, context, seed)
        return self

    @property
    def n_targets(self) -> int:
        """Tokens predicted in one epoch."""
        return int((self.last - self.first).sum())

    def begin_epoch(self, epoch: int) -> int:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, OFFSET_STREAM], counter=[0, 0, 0, epoch]))
        windows = []
        for a, b in zip(self.first.tolist(), self.last.tolist()):
            targets = b - a
            first = int(rng.integers(1, self.context + 1)) if targets > self.context else targets
            cuts = [a, *range(a + first, b, self.context), b]
            windows += list(zip(cuts[:-1], cuts[1:]))
        self._windows = np.array(windows, np.int64)
        return len(windows)

    def get(self, i: int) -> Example:
        a, b = self._windows[i].tolist()
        ids = np.asarray(self.ids[a : b + 1]).astype(np.int32, copy=False)
        return ids[:-1], ids[1:], np.ones(b - a, np.float32)


class Rows:
    """Fixed sequences, such as conversations rendered with their loss mask."""

    def __init__(self, rows: Sequence[Example]):
        if not rows:
            raise UserError("there is no row to train on")
        self.rows = rows

    @staticmethod
    def from_masked(ids: Sequence[int], mask: Sequence[int]) -> Example:
        """mask[i] = 1 means ids[i] is learned; shifted here to the predicting position."""
        tokens = np.asarray(ids, np.int32)
        weights = np.asarray(mask, np.float32)[1:]
        return tokens[:-1], np.where(weights > 0, tokens[1:], -1).astype(np.int32), weights

    @property
    def n_tokens(self) -> int:
        return sum(len(r[0]) for r in self.rows)

    def begin_epoch(self, epoch: int) -> int:
        return len(self.rows)

    def get(self, i: int) -> Example:
        return self.rows[i]


class Blend:
    """Several sets of rows, each a given part of every epoch's tokens. An epoch is as long as all rows together; a set goes through its rows in one
    random order after another, on from where the epoch before stopped, so none is seen twice before all were seen once.
    """

    def __init__(self, parts: Sequence[Sequence[Example]], weights: Sequence[float], seed: int):
        if not parts or not all(len(p) for p in parts):
            raise UserError("there is no row to train on")
        self.parts, self.seed = parts, seed
        sizes = [sum(len(r[0]) for r in part) for part in parts]
        wanted = [w / sum(weights) * sum(sizes) for w in weights]
        self.counts = [max(1, round(want / size * len(part))) for want, size, part in zip(wanted, sizes, parts, strict=True)]  # rows an epoch
        self.n_tokens = round(sum(size / len(part) * count for size, part, count in zip(sizes, parts, self.counts, strict=True)))
        self._chosen: list[Example] = []

    def begin_epoch(self, epoch: int) -> int:
        self._chosen = []
        for number, (part, count) in enumerate(zip(self.parts, self.counts, strict=True)):
            at, end = epoch * count, (epoch + 1) * count
            while at < end:
                turn = at // len(part)
                rng = np.random.Generator(np.random.Philox(key=[self.seed, BLEND_STREAM], counter=[0, 0, number, turn]))
                upto = min(end, (turn + 1) * len(part))
                order = rng.permutation(len(part))[at - turn * len(part) : upto - turn * len(part)]
                self._chosen += [part[int(i)] for i in order]
                at = upto
        return len(self._chosen)

    def get(self, i: int) -> Example:
        return self._chosen[i]


class Mixture:
    """Rows, and beside them windows of documents, drawn anew each epoch, so that they are `share` of the epoch's tokens: replay of
    pretraining text while fine-tuning, against forgetting. The windows come in the documents' own random order, epoch after epoch.

    0 <= share < 1. Raises UserError when there is nothing to replay.
    """

    def __init__(self, rows: Sequence[Example] | Rows | Blend, documents: Documents, share: float, seed: int):
        self.rows = rows if isinstance(rows, (Rows, Blend)) else Rows(rows)
        self.documents, self.seed, self._rows = documents, seed, 0
        self.replayed = round(share / (1 - share) * self.rows.n_tokens)  # tokens an epoch
        self._chosen: list[Example] = []

    @property
    def n_tokens(self) -> int:
        """Of one epoch, about: the last window may go over."""
        return self.rows.n_tokens + self.replayed

    def begin_epoch(self, epoch: int) -> int:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, REPLAY_STREAM], counter=[0, 0, 0, epoch]))
        self._chosen, tokens = [], 0
        while tokens < self.replayed:
            for i in rng.permutation(self.documents.begin_epoch(epoch)):
                self._chosen.append(self.documents.get(i))
                tokens += len(self._chosen[-1][0])
                if tokens >= self.replayed:
                    break
        self._rows = self.rows.begin_epoch(epoch)
        return self._rows + len(self._chosen)

    def get(self, i: int) -> Example:
        return self.rows.get(i) if i < self._rows else self._chosen[i - self._rows]


class SequenceLoader:
    """Batches of at most `batch_tokens` tokens for each optimizer step, in micro-batches of at most micro_tokens and max_seqs."""

    def __init__(self, source: Source, batch_tokens: int, micro_tokens: int, max_seqs: int, seed: int):
        self.source, self.batch_tokens, self.micro_tokens, self.max_seqs, self.seed = source, batch_tokens, micro_tokens, max_seqs, seed
        self.epoch, self.cursor = 0, 0
        self._begin()

    def _begin(self) -> None:
        n = self.source.begin_epoch(self.epoch)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, ORDER_STREAM], counter=[0, 0, 0, self.epoch]))
        self._order = rng.permutation(n)

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "cursor": self.cursor}

    def load_state(self, state: dict[str, Any]) -> None:
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self._begin()

    def next_step(self) -> list[MicroBatch]:
        """The micro-batches of the next optimizer step; at least one sequence."""
        micro: list[list[Example]] = [[]]
        step_tokens = micro_used = 0
        while True:
            if self.cursor >= len(self._order):
                self.epoch, self.cursor = self.epoch + 1, 0
                self._begin()
            example = self.source.get(self._order[self.cursor])
            length = len(example[0])
            if length > self.micro_tokens:
                raise UserError(f"a sequence of {length} tokens is longer than a micro-batch of {self.micro_tokens}", hint="raise --micro-tokens")
            if step_tokens and step_tokens + length > self.batch_tokens:
                break
            if micro[-1] and (micro_used + length > self.micro_tokens or len(micro[-1]) == self.max_seqs):
                micro.append([])
                micro_used = 0
            micro[-1].append(example)
            step_tokens, micro_used, self.cursor = step_tokens + length, micro_used + length, self.cursor + 1
        return [MicroBatch(Batch.pack((i, t) for i, t, _ in m), np.concatenate([w for _, _, w in m])) for m in micro]
