"""Continuous batching: who is in the batch, and which prompt tokens run in the next call.

Sequences wait in order. One is admitted as soon as a row and its blocks are free, at any step: the rows of sequences that ended are
handed on at once. Each call runs one token of every decoding row plus as many prompt tokens as the model's capacity leaves, in order
of admission; a longer prompt goes on in the next call. That order is also what makes shared blocks safe: a sequence gets prompt
tokens only if all of those admitted before it have theirs, in this call or earlier ones.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from .block_manager import BLOCK, Allocation, BlockManager


@dataclass(eq=False)
class Waiting:
    """One prompt on its way through the engine."""

    index: int  # in the caller's list
    prompt: np.ndarray  # int32
    limit: int  # most ids of prompt and completion together
    row: int = -1
    computed: int = 0  # prompt ids that are in the cache
    allocation: Allocation | None = None


@dataclass(frozen=True)
class Chunk:
    """Prompt ids [start, stop) of one sequence, to run in the next call."""

    sequence: Waiting
    start: int
    stop: int

    @property
    def completes(self) -> bool:
        return self.stop == len(self.sequence.prompt)


class Scheduler:
    """`rows` sequences at once at most, `max_tokens` tokens a call."""

    def __init__(self, blocks: BlockManager, rows: int, max_tokens: int):
        self.blocks, self.max_tokens = blocks, max_tokens
        self.waiting: deque[Waiting] = deque()
        self.prefilling: deque[Waiting] = deque()  # admitted, prompt not yet whole in the cache
        self._free_rows = list(range(min(rows, max_tokens) - 1, -1, -1))

    def add(self, sequence: Waiting) -> None:
        self.waiting.append(sequence)

    def admit(self) -> list[Waiting]:
        """Move waiting sequences into the batch while rows and blocks last, first come first served."""
        admitted: list[Waiting] = []
        while self.waiting and self._free_rows:
            sequence = self.waiting[0]
            # The last id is never fed back, so limit - 1 positions reach the cache.
            sequence.allocation = self.blocks.allocate(sequence.prompt, sequence.limit - 1)
            if sequence.allocation is None:
                break
            sequence.row = self._free_rows.pop()
            sequence.computed = sequence.allocation.shared * BLOCK
            self.waiting.popleft()
            self.prefilling.append(sequence)
            admitted.append(sequence)
        return admitted

    def chunks(self, decoding: int) -> list[Chunk]:
        """Prompt tokens for a call that also decodes a token for each of `decoding` rows; they count as computed from here on."""
        budget = self.max_tokens - decoding
        chunks: list[Chunk] = []
        while self.prefilling and budget:
            sequence = self.prefilling[0]
            stop = min(len(sequence.prompt), sequence.computed + budget)
            chunks.append(Chunk(sequence, sequence.computed, stop))
            budget -= stop - sequence.computed
            sequence.computed = stop
            if chunks[-1].completes:
                self.prefilling.popleft()
        return chunks

    def finish(self, sequence: Waiting) -> None:
        """The sequence has ended: its row and blocks are free."""
        assert sequence.allocation is not None
        self.blocks.release(sequence.allocation)
        self._free_rows.append(sequence.row)
        sequence.allocation, sequence.row = None, -1
