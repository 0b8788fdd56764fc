"""Blocks of the paged key-value cache: a free list. One sequence owns its blocks; nothing is shared."""

from __future__ import annotations

from freedive import _core

BLOCK: int = _core.KV_BLOCK  # positions per block


def blocks_for(positions: int) -> int:
    """Blocks that hold this many positions."""
    return -(-positions // BLOCK)


class BlockManager:
    """Hands out block numbers 0 .. n-1."""

    def __init__(self, n: int):
        self.n = n
        self._free = list(range(n - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` blocks nobody else holds. Raises ValueError if there are not as many."""
        if count > len(self._free):
            raise ValueError(f"{count} cache blocks asked for, {len(self._free)} are free")
        taken = self._free[len(self._free) - count :][::-1]
        del self._free[len(self._free) - count :]
        return taken

    def give_back(self, blocks: list[int]) -> None:
        self._free.extend(reversed(blocks))
