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

    @staticmethod
    def pack(sequences: Iterable[tuple[Ids, Ids]]) -> Batch:
        """Lay (ids, targets) pairs end to end. targets[t] is the id that follows ids[t], or -1; both have the same length, at least 1.

        Raises ValueError for a pair of other lengths, and when there is no sequence.
        """
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
