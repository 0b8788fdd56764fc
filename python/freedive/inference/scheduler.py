"""Continuous batching: who is in the batch, which prompt tokens run in the next call, and who has to leave when the cache is full.

Requests wait in order. One is admitted as soon as a row and blocks for what it has so far are free, at any step. Each call runs the next
token of every decoding row plus as many prompt tokens as the model's capacity leaves, in order of admission; a longer prompt goes on in
the next call. That order also makes shared blocks safe: a request gets prompt tokens only if all of those admitted before it have theirs,
in this call or earlier ones. When blocks run out the request admitted last goes back to the head of the queue, with what it has said;
its keys and values are computed again later, to the same bits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .block_manager import BLOCK, Allocation, BlockManager
from .params import Completion, Params


@dataclass(eq=False)
class Request:
    """One prompt on its way through the engine."""

    prompt: np.ndarray  # int32
    limit: int  # most ids of prompt and completion together
    params: Params = field(default_factory=Params)
    seed: int = 0
    index: int = 0  # in the caller's list
    row: int = -1
    ids: np.ndarray = field(init=False)  # int32: the prompt, and after it what was said before a preemption
    logprobs: np.ndarray = field(init=False)  # float32, of the latter
    computed: int = 0  # of `ids`, how many are in the cache
    cached: int = 0  # of the prompt, how many were there when it was first admitted
    admissions: int = 0
    allocation: Allocation | None = None
    done: Completion | None = None
    work: Any = None  # what the sampler keeps for a request that needs more than the fused draw
    scores: Any = None  # of the prompt, if asked for
    draft: Any = None  # ids guessed ahead come from here
    twin: Request | None = None  # one submitted earlier with the same prompt: the end of its last block is copied instead of computed again
    copied: tuple[int, int] | None = None  # (block, block): to be done before it runs

    def __post_init__(self) -> None:
        self.ids, self.logprobs = self.prompt, np.zeros(0, np.float32)


@dataclass(frozen=True)
class Chunk:
    """Ids [start, stop) of one request, to run in the next call."""

    request: Request
    start: int
    stop: int

    @property
    def completes(self) -> bool:
        return self.stop == len(self.request.ids)


class Scheduler:
    """`rows` requests at once at most, `max_tokens` tokens a call, of them `chunk` of prompts while others decode."""

    def __init__(self, blocks: BlockManager, rows: int, max_tokens: int, chunk: int | None = None):
        self.blocks, self.max_tokens, self.chunk = blocks, max_tokens, chunk or max_tokens
        self.waiting: deque[Request] = deque()
        self.prefilling: deque[Request] = deque()  # admitted, prompt not yet whole in the cache
        self.admitted: OrderedDict[Request, None] = OrderedDict()  # in order
        self._free_rows = list(range(min(rows, max_tokens) - 1, -1, -1))

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.admitted)

    def admit(self) -> list[Request]:
        """Move waiting requests into the batch while rows and blocks last, first come first served."""
        admitted: list[Request] = []
        while self.waiting and self._free_rows:
            request = self.waiting[0]
            if request.twin is not None and request.twin in self.prefilling:
                break  # its prompt is read in the next call; after that it can be had for the copying
            # One block stays for everybody who is about to need one, lest the newcomer be thrown out again at once.
            share = request.params.prompt_logprobs is None or request.scores is not None and request.scores.complete
            allocation = self.blocks.allocate(request.ids, len(self.admitted), share)
            if allocation is None:
                break
            self.waiting.popleft()
            request.allocation, request.row = allocation, self._free_rows.pop()
            request.computed = allocation.shared * BLOCK
            if share:
                self._copy_end(request, allocation)
            request.admissions += 1
            if request.admissions == 1:
                request.cached = request.computed
            self.prefilling.append(request)
            self.admitted[request] = None
            admitted.append(request)
        return admitted

    def _copy_end(self, request: Request, allocation: Allocation) -> None:
        """Whole blocks of a prompt are shared; what lies in the last, which goes on differently in each, is taken over from its twin's."""
        at, twin = (len(request.ids) - 1) // BLOCK, request.twin
        if twin is None or twin.allocation is None or twin.allocation.epoch != allocation.epoch or allocation.shared != at or request.computed == len(request.ids) - 1:
            return
        if len(request.ids) == len(request.prompt) and np.array_equal(request.prompt, twin.prompt):
            request.copied = (twin.allocation.blocks[at], allocation.blocks[at])
            request.computed = len(request.ids) - 1

    def chunks(self, decoding: int) -> list[Chunk]:
        """Prompt tokens for a call that also runs `decoding` tokens of decoding rows; they count as computed from here on."""
        budget = self.max_tokens - decoding
        if decoding:
            budget = min(budget, self.chunk)
        chunks: list[Chunk] = []
        while self.prefilling and budget > 0:
            request = self.prefilling[0]
            stop = min(len(request.ids), request.computed + budget)
            chunks.append(Chunk(request, request.computed, stop))
            budget -= stop - request.computed
            request.computed = stop
            if chunks[-1].completes:
                self.prefilling.popleft()
        return chunks

    def youngest(self) -> Request:
        return next(reversed(self.admitted))

    def leave(self, request: Request, computed: np.ndarray) -> None:
        """The request has ended or been interrupted: its row and blocks are free. `computed`: the ids that are in the cache."""
        assert request.allocation is not None
        behind: list[Request] = []
        if request in self.prefilling:  # those behind it may wait for its blocks: they begin again
            at = self.prefilling.index(request)
            behind = list(self.prefilling)[at + 1 :]
            for _ in range(len(self.prefilling) - at):
                self.prefilling.pop()
        for other in reversed(behind):
            self._free(other, other.ids[: other.computed])
            self.waiting.appendleft(other)
        self._free(request, computed)

    def preempt(self, request: Request, computed: np.ndarray) -> None:
        """Send a request back to the head of the queue."""
        self.leave(request, computed)
        self.waiting.appendleft(request)

    def _free(self, request: Request, computed: np.ndarray) -> None:
        assert request.allocation is not None
        self.blocks.release(request.allocation, computed)
        self._free_rows.append(request.row)
        request.allocation, request.row, request.computed = None, -1, 0
        del self.admitted[request]
