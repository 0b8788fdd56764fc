"""Random choices that stay the same on every Python and NumPy version: only the raw 64-bit words of Philox are used.

`numpy.random.Generator` promises no stable stream between versions, and the generated pages are compared by their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
BLOCK = 1024  # words fetched at once: a call into NumPy per draw would cost more than the draw


class Draw:
    """A stream of choices that depends on (seed, stream) only."""

    def __init__(self, seed: int, stream: int):
        self._bits = np.random.Philox(key=np.array([seed & (2**64 - 1), stream], dtype=np.uint64))
        self._words: list[int] = []

    def below(self, n: int) -> int:
        """An integer in [0, n). The bias of the modulus is below n / 2**64."""
        if not self._words:
            self._words = self._bits.random_raw(BLOCK).tolist()
        return self._words.pop() % n

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, p: float) -> bool:
        return self.below(2**32) < p * 2**32

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """n different items."""
        return self.shuffled(items)[:n]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result
