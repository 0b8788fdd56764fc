"""Guessing ahead without a second model (prompt lookup): what followed the last few ids when they came up before, follows again.

Where the guess is right, one call yields several tokens; the engine keeps only what it would have sampled anyway.
"""

from __future__ import annotations

import numpy as np


class NGrams:
    """The ids of one sequence, indexed by every run of 2 to 4 of them."""

    LENGTHS = (4, 3, 2)

    def __init__(self, ids: np.ndarray):
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], tuple[int, int]] = {}  # a run -> where it ended last, and the time before (-1: never)
        self.extend(ids.tolist())

    def extend(self, ids: list[int]) -> None:
        """Append ids."""
        for i in ids:
            self._ids.append(i)
            end = len(self._ids)
            for n in self.LENGTHS:
                if end >= n:
                    run = tuple(self._ids[end - n :])
                    self._after[run] = (end, self._after.get(run, (-1, -1))[0])

    def __len__(self) -> int:
        return len(self._ids)

    def guess(self, most: int) -> list[int]:
        """Up to `most` ids that may come next; none where the last two were never seen together before."""
        for n in self.LENGTHS:
            if len(self._ids) > n and most > 0:
                _, before = self._after.get(tuple(self._ids[-n:]), (-1, -1))
                if before >= 0:
                    return self._ids[before : before + most]
        return []
