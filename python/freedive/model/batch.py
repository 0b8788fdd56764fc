"""The flat batch: sequences laid end to end, nothing between them. See the README and docs/contracts.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Batch:
    """N tokens of S sequences, end to end. Entry t of every per-token array is about targets[t], the id that follows tokens[t]; -1 = no target."""

    tokens: np.ndarray  # int32 [N], ids
    targets: np.ndarray  # int32 [N], or [N, K] for K candidates of each token
    positions: np.ndarray  # int32 [N], within the sequence, from 0
    cu_seqlens: np.ndarray  # int32 [S+1]: sequence s is entries cu_seqlens[s] up to cu_seqlens[s+1]; begins with 0, ends with N
    prefixes: np.ndarray | None = None  # int32 [S, 2]: (sequence whose first rows come before this one's, how many of them); (any, 0): none do

    @staticmethod
    def pack(sequences: Iterable[tuple[Ids, Ids]], prefixes: Iterable[tuple[int, int]] | None = None) -> Batch:
        """Lay (ids, targets) pairs end to end. targets[t] is the id that follows ids[t], or -1; both have the same length, at least 1.

        prefixes, a pair (sequence, n) for each: its first n ids come before these here and are not repeated; that sequence stands earlier and has
        no prefix itself. (any, 0): none. What a token sees, and so its log-prob, is as if they were repeated, bit for bit.
        Raises ValueError for a pair of other lengths, prefixes that are not one a sequence, and when there is no sequence.
        """
        ids, targets, positions, lengths = [], [], [], [0]
        before = None if prefixes is None else np.array(list(prefixes), np.int32).reshape(-1, 2)
        for number, (sequence, wanted) in enumerate(sequences):
            start = 0 if before is None or number >= len(before) else int(before[number, 1])
            if len(sequence) != len(wanted) or len(sequence) == 0:
                raise ValueError(f"a sequence has {len(sequence)} ids and {len(wanted)} targets; both must be equal and at least 1")
            ids.append(np.asarray(sequence, np.int32))
            targets.append(np.asarray(wanted, np.int32))
            positions.append(np.arange(start, start + len(sequence), dtype=np.int32))
            lengths.append(len(sequence))
        if not ids:
            raise ValueError("a batch needs at least one sequence")
        if before is not None:
            if len(before) != len(ids):
                raise ValueError(f"{len(ids)} sequences and {len(before)} prefixes")
            before[before[:, 1] == 0, 0] = 0
            if not before.any():  # nothing is shared: attention needs no copies
                before = None
        return Batch(np.concatenate(ids), np.concatenate(targets), np.concatenate(positions), np.cumsum(lengths, dtype=np.int32), before)

    @staticmethod
    def next_token(sequences: Iterable[Sequence[int]]) -> Batch:
        """Every id predicts the next; the last of each sequence has no target. Raises ValueError for an empty sequence, or none."""
        return Batch.pack((s, [*s[1:], -1]) for s in sequences)

    @property
    def n_tokens(self) -> int:
        """N"""
        return len(self.tokens)

    @property
    def n_seqs(self) -> int:
        """S"""
        return len(self.cu_seqlens) - 1


def alike(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> int:
    """How many rows two (ids, targets) pairs begin with alike, without targets: what the second may leave out as a prefix. At least one is its own."""
    n = min(len(first[0]), len(second[0]) - 1)
    differs = (first[0][:n] != second[0][:n]) | (first[1][:n] >= 0) | (second[1][:n] >= 0)
    return int(differs.argmax()) if differs.any() else n
