"""The paged cache's books: which blocks of 32 positions are free, and what is in those that were filled.

The one idea: a full block is known by a hash of all ids up to its end (the hash of the block before it, and its own 32 ids), also after
its sequence has ended. A later prompt that begins with the same ids takes the block over instead of computing it: same ids at the same
positions give the same bits, so that changes nothing but time. Blocks nobody holds keep their content until they are needed, the
longest unused first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from freedive import _core

BLOCK: int = _core.KV_BLOCK  # positions per block


def blocks_for(positions: int) -> int:
    """Blocks that hold this many positions."""
    return -(-positions // BLOCK)


@dataclass
class Allocation:
    """The blocks of one sequence."""

    blocks: list[int]  # in order of position
    shared: int  # the first so many were taken over, contents included
    known: int  # the first so many are registered under their content
    epoch: int  # of the weights whose keys and values these are


@dataclass(frozen=True)
class _Content:
    digest: bytes
    ids: bytes  # the block's own; compared on a hit, so that a hash is never believed


class BlockManager:
    """Hands out block numbers 0 .. n-1, with reference counts."""

    def __init__(self, n: int):
        self.n = n
        self._empty = list(range(n - 1, -1, -1))  # a stack: low numbers first
        self._unused: OrderedDict[int, None] = OrderedDict()  # held by nobody, content kept; longest unused first
        self._references = [0] * n
        self._content: list[_Content | None] = [None] * n
        self._known: dict[bytes, int] = {}  # digest -> block
        self._epoch = 0

    @property
    def free(self) -> int:
        """Blocks that can be had: empty ones, and those whose content nobody holds."""
        return len(self._empty) + len(self._unused)

    def match(self, ids: np.ndarray) -> list[int]:
        """Known blocks that begin with `ids` (int32). The last id is never covered: somebody must compute what predicts the next."""
        found: list[int] = []
        digest = b""
        for j in range((len(ids) - 1) // BLOCK):
            part = _part(ids, j)
            digest = _digest(digest, part)
            block = self._known.get(digest)
            content = self._content[block] if block is not None else None
            if block is None or content is None or content.ids != part:
                break
            found.append(block)
        return found

    def allocate(self, ids: np.ndarray, spare: int = 0, share: bool = True) -> Allocation | None:
        """Blocks for the positions of `ids` (int32), known ones first; None unless `spare` more stay free.

        The blocks that `ids` fill are known from now on: whoever takes them over must run after their owner, or in the same call (a call
        writes all its keys and values before it reads any). A sequence that does not share (share=False) computes every block itself.
        """
        shared = self.match(ids) if share else []
        fresh = blocks_for(len(ids)) - len(shared)
        reused = sum(self._references[b] == 0 for b in shared)
        if fresh + reused + spare > self.free:
            return None
        for block in shared:
            self._hold(block)
        allocation = Allocation(shared + [self._take() for _ in range(fresh)], len(shared), len(shared), self._epoch)
        self.register(allocation, ids[: len(ids) - 1])
        return allocation

    def append(self, allocation: Allocation) -> int | None:
        """One more block for a sequence; None if there is none."""
        if not self.free:
            return None
        allocation.blocks.append(self._take())
        return allocation.blocks[-1]

    def register(self, allocation: Allocation, ids: np.ndarray) -> None:
        """Make known what the blocks that `ids` fill hold, or will when their owner has run."""
        if allocation.epoch != self._epoch:
            return
        last = self._content[allocation.blocks[allocation.known - 1]] if allocation.known else None
        digest = last.digest if last else b"" if not allocation.known else None
        for j in range(allocation.known, min(len(ids) // BLOCK, len(allocation.blocks))):
            if digest is None:  # the block before is another's copy: recompute the chain
                digest = b""
                for i in range(j):
                    digest = _digest(digest, _part(ids, i))
            part = _part(ids, j)
            digest = _digest(digest, part)
            block = allocation.blocks[j]
            if digest not in self._known:
                self._known[digest], self._content[block] = block, _Content(digest, part)
            allocation.known = j + 1

    def release(self, allocation: Allocation, computed: np.ndarray) -> None:
        """Give the blocks back. `computed`: the ids whose keys and values they really hold; what was promised beyond is forgotten."""
        self.register(allocation, computed)
        whole = len(computed) // BLOCK
        for j in range(len(allocation.blocks) - 1, -1, -1):  # ends of chains are forgotten before their beginnings
            block = allocation.blocks[j]
            if self._references[block] < 1:
                raise RuntimeError(f"cache block {block} was given back twice")
            if j >= max(whole, allocation.shared):
                self._forget(block)
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._content[block] is not None:
                    self._unused[block] = None
                else:
                    self._empty.append(block)

    def new_weights(self) -> None:
        """The weights have changed: nothing computed so far is worth anything to a later sequence."""
        self._epoch += 1
        for block in list(self._unused):
            self._empty.append(block)
        self._unused.clear()
        self._known.clear()
        self._content = [None] * self.n

    def _hold(self, block: int) -> None:
        if self._references[block] == 0:
            del self._unused[block]
        self._references[block] += 1

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._unused.popitem(last=False)
            self._forget(block)
        self._references[block] = 1
        return block

    def _forget(self, block: int) -> None:
        content, self._content[block] = self._content[block], None
        if content is not None:
            del self._known[content.digest]


def _part(ids: np.ndarray, j: int) -> bytes:
    return ids[j * BLOCK : (j + 1) * BLOCK].tobytes()


def _digest(before: bytes, part: bytes) -> bytes:
    return hashlib.blake2b(before + part, digest_size=16).digest()
