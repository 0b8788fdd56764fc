"""The flat batch: sequences laid end to end, nothing between them. See the README and docs/contracts.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Batch:
    """tokens, targets, positions: int32 [N] (targets may be [N, K]); cu_seqlens: int32 [S+1]. Entry t is about targets[t]; -1 = no target."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    cu_seqlens: np.ndarray

    @staticmethod
    def pack(sequences: Iterable[tuple[Ids, Ids]]) -> Batch:
        """Lay (ids, targets) pairs end to end. targets[t] is the id that follows ids[t], or -1; both have the same length, at least 1."""
        ids, targets, positions, lengths = [], [], [], [0]
        for sequence, wanted in sequences:
            if len(sequence) != len(wanted) or len(sequence) == 0:
                raise ValueError(f"a sequence has {len(sequence)} ids and {len(wanted)} targets; both must be equal and at least 1")
            ids.append(np.asarray(sequence, np.int32))
            targets.append(np.asarray(wanted, np.int32))
            positions.append(np.arange(len(sequence), dtype=np.int32))
            lengths.append(len(sequence))
        if not ids:
            raise ValueError("a batch needs at least one sequence")
        return Batch(np.concatenate(ids), np.concatenate(targets), np.concatenate(positions), np.cumsum(lengths, dtype=np.int32))

    @staticmethod
    def next_token(sequences: Iterable[Sequence[int]]) -> Batch:
        """Every id predicts the next; the last has no target."""
        return Batch.pack((s, [*s[1:], -1]) for s in sequences)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_seqs(self) -> int:
        return len(self.cu_seqlens) - 1
