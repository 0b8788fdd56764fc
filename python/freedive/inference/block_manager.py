"""The paged cache's books: which blocks of 32 positions are free, and which full prompt blocks several sequences share.

The one idea: a sequence takes every block it can ever need when it is admitted, so a running sequence never waits and nothing is
thrown out half-way. Blocks filled by a prompt alone are remembered by their content (a trie: parent block and 32 ids), and a later
sequence that begins with the same ids reads them instead of computing them again. Same ids at the same positions give the same
bits, so sharing changes nothing but time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freedive import _core

BLOCK: int = _core.KV_BLOCK  # positions per block


def blocks_for(positions: int) -> int:
    """Blocks that hold this many positions."""
    return -(-positions // BLOCK)


@dataclass(frozen=True)
class Allocation:
    blocks: list[int]  # in order of position
    shared: int  # the first so many were taken over from other sequences, contents included


class BlockManager:
    """Hands out block numbers 0 .. n-1: a free list with reference counts."""

    def __init__(self, n: int):
        self.n = n
        self._free = list(range(n - 1, -1, -1))  # a stack: low numbers first
        self._references = [0] * n
        self._known: dict[tuple[int, bytes], int] = {}  # (parent block or -1, the block's ids) -> block
        self._key: list[tuple[int, bytes] | None] = [None] * n

    @property
    def free(self) -> int:
        return len(self._free)

    def allocate(self, prompt: np.ndarray, positions: int) -> Allocation | None:
        """Blocks for `positions` positions that begin with `prompt` (int32); None if not enough are free.

        The blocks that the prompt fills count as known from now on: whoever takes them over must run after their owner's prompt,
        or in the same call (a call writes all its keys and values before it reads any). The prompt's last id is never shared,
        since somebody must compute the hidden state that predicts what follows.
        """
        shared: list[int] = []
        parent, fillable = -1, (len(prompt) - 1) // BLOCK
        for j in range(fillable):
            found = self._known.get((parent, _ids(prompt, j)))
            if found is None:
                break
            shared.append(found)
            parent = found
        need = blocks_for(positions) - len(shared)
        if need > len(self._free):
            return None
        for block in shared:
            self._references[block] += 1
        blocks = shared + [self._take() for _ in range(need)]
        for j in range(len(shared), fillable):
            key, parent = (parent, _ids(prompt, j)), blocks[j]
            self._known[key], self._key[parent] = parent, key
        return Allocation(blocks, len(shared))

    def release(self, allocation: Allocation) -> None:
        """Give the blocks back; those that nobody else holds become free and their content is forgotten."""
        for block in reversed(allocation.blocks):  # children before parents: a known block's parent is always held
            if self._references[block] < 1:
                raise RuntimeError(f"cache block {block} was given back twice")
            self._references[block] -= 1
            if self._references[block] == 0:
                key, self._key[block] = self._key[block], None
                if key is not None:
                    del self._known[key]
                self._free.append(block)

    def _take(self) -> int:
        block = self._free.pop()
        self._references[block] = 1
        return block


def _ids(prompt: np.ndarray, j: int) -> bytes:
    return prompt[j * BLOCK : (j + 1) * BLOCK].tobytes()
