"""One call of the model for everything that runs: the state of the batch, and what a step does with it.

The state is a handful of arrays indexed by row. A step in which nobody ends touches no Python object per row, so Python costs tens of
microseconds a step, whether it decodes one row or 256; requests that ask for more (sampler.py, drafts.py) pay for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from freedive.model import Batch, Model
from freedive.tokenizer import Tokenizer

from . import visits
from .block_manager import BLOCK, BlockManager, blocks_for
from .drafts import NGrams
from .params import Completion
from .scheduler import Chunk, Request, Scheduler

PREFILL_CHUNK = 512  # prompt tokens a call while others decode, so that they do not wait for a long prompt


@dataclass
class Stats:
    """Counters since the engine was made."""

    prompt_tokens: int = 0  # of admitted requests
    cached_tokens: int = 0  # of those, taken from the cache
    prefilled_tokens: int = 0  # run as parts of prompts
    sampled_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of the drafted
    preemptions: int = 0
    calls: int = 0  # of the model
    cache_bytes_per_token: int = 0  # keys and values of all layers, as they are kept


class Loop:
    """The running batch of one model over one cache of `blocks` blocks. Made afresh, so a failed call leaves nothing behind."""

    def __init__(self, model: Model, tokenizer: Tokenizer | None, cache: Any, blocks: int, stats: Stats, steps: int = 1):
        self.steps = steps  # tokens a visit where nothing wants fewer: visits.py
        self.model, self.tokenizer, self.stats, self._cache = model, tokenizer, stats, cache
        self.manager = BlockManager(blocks)
        rows = min(model.max_seqs, model.max_tokens)
        self.scheduler = Scheduler(self.manager, rows, model.max_tokens, PREFILL_CHUNK)
        self.at: dict[int, Request] = {}  # row -> request
        self.visit: visits.Visit | None = None  # asked for and not looked at: until then nobody comes in
        self._drafting = False
        # Per row. `length` counts all ids, prompt included: it is the next token's position, hence its random number.
        self.ids = np.zeros((rows, model.config.max_positions), np.int32)
        self.logprobs = np.zeros((rows, model.config.max_positions), np.float32)
        self.table = np.zeros((rows, blocks_for(model.config.max_positions)), np.int32)
        self.length, self.limit, self.blocks = (np.zeros(rows, np.int32) for _ in range(3))
        self.seed = np.zeros(rows, np.uint64)
        self.temperature, self.top_p, self.min_p = (np.zeros(rows, np.float32) for _ in range(3))
        self.top_k = np.zeros(rows, np.int32)
        self.special = np.zeros(rows, bool)
        self.stops = np.full((rows, 4), -1, np.int32)
        self.count = np.arange(rows + 1, dtype=np.int32)
        self._decode_rows(np.zeros(0, np.int64))

    def so_far(self, request: Request) -> list[int]:
        """Ids sampled for a request until now."""
        if request.done is not None:
            return request.done.ids
        begin = len(request.prompt)
        return (request.ids[begin:] if request.row < 0 else self.ids[request.row, begin : self.length[request.row]]).tolist()

    def news(self, request: Request, seen: int) -> tuple[list[int], list[float]]:
        """Ids sampled for a request after the first `seen`, and their log-probs."""
        begin = len(request.prompt) + seen
        if request.done is not None:
            return request.done.ids[seen:], request.done.logprobs[seen:].tolist()
        if request.row < 0:
            return request.ids[begin:].tolist(), request.logprobs[seen:].tolist()
        end = int(self.length[request.row])
        return self.ids[request.row, begin:end].tolist(), self.logprobs[request.row, begin:end].tolist()

    def cancel(self, request: Request) -> None:
        """Give up a request: its row and blocks are free at once. Nothing happens to one that has ended."""
        if request.done is not None:
            return
        if request.allocation is not None:
            if self.visit is not None:
                self.visit.whole = False
            length = request.computed if request in self.scheduler.prefilling else int(self.length[request.row]) - 1
            ids = self.ids[request.row, :length].copy()
            request.done = self._completion(request, "cancelled")
            self.scheduler.leave(request, ids)
        else:
            request.done = Completion(self.so_far(request), request.logprobs, False, "", "cancelled")
            if request in self.scheduler.waiting:
                self.scheduler.waiting.remove(request)
        self._forget_rows()

    def step(self) -> list[Request]:
        """Run the next call; returns what ended with it."""
        s, stats = self.scheduler, self.stats
        if self.visit is not None and ((ended := visits.look(self)) or len(self.live)):
            return ended
        if s.waiting:
            for request in s.admit():
                self._place(request)
        self._grow()
        drafts = self._drafts() if self._drafting else {}
        live, guessed = self.live, sum(map(len, drafts.values()))
        chunks = s.chunks(len(live) + guessed) if s.prefilling else []
        stats.calls += 1
        if chunks or drafts:
            rows, sampled, tokens, logprobs = self._mixed(chunks, drafts)
        else:
            past = self.length[live] - 1
            if (steps := visits.ahead(self)) > 1:
                self.visit = visits.Visit(self.model.decode_steps(
                    self._cache, steps, self.ids[live, past], past, self.live_table, temperature=self.temperature[live], top_k=self.top_k[live],
                    top_p=self.top_p[live], min_p=self.min_p[live], seeds=self.live_seed, counters=past + 1, stop_ids=self.stops[live],
                    remaining=self.limit[live] - self.length[live],
                ), live, steps)  # fmt: skip
                return visits.look(self)
            batch = Batch(self.ids[live, past], past[:0], past, self.count[: len(live) + 1])
            tokens, logprobs = self._call(batch, past, self.live_table, live, self.live_seed, past + 1, None)
            rows = sampled = live
        if not len(rows):
            return []
        if self.special[rows].any():
            tokens, logprobs = self._specially(rows, sampled if chunks or drafts else self.count[: len(rows)], tokens, logprobs)
        if drafts:
            return self._accept(rows, tokens, logprobs, drafts, chunks)
        return self._append(rows, tokens, logprobs, bool(chunks))

    def _append(self, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, decode_all: bool) -> list[Request]:
        """One new token for each of `rows`, which all decode from now on unless they end with it."""
        at = self.length[rows]
        self.ids[rows, at], self.logprobs[rows, at] = tokens, logprobs
        self.length[rows] = at + 1
        self.stats.sampled_tokens += len(rows)
        stopped = (self.stops[rows] == tokens[:, None]).any(axis=1)
        for i in np.flatnonzero(self.special[rows]):
            work = self.at[int(rows[i])].work
            if work is not None and work.push(int(tokens[i])):
                stopped[i] = True
        over = stopped | (at + 1 >= self.limit[rows])
        if not over.any():
            if decode_all:
                self._decode_rows(rows)
            return []
        self._decode_rows(rows[~over])
        return [self._finish(self.at[row], stop) for row, stop in zip(rows[over].tolist(), stopped[over].tolist())]

    def _mixed(self, chunks: list[Chunk], drafts: dict[int, list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A call that also runs prompt chunks or guesses. Returns rows that got a token, the places in the batch it was sampled after, the
        tokens and their log-probs; a row with guesses comes once for each place."""
        live = self.live.tolist()
        parts = [np.array([self.ids[r, self.length[r] - 1], *drafts.get(r, [])], np.int32) for r in live]
        past = [int(self.length[r]) - 1 for r in live]
        rows = list(live)
        for c in chunks:
            rows.append(c.request.row)
            parts.append(c.request.ids[c.start : c.stop])
            past.append(c.start)
            self.stats.prefilled_tokens += c.stop - c.start
        sizes = np.array([len(p) for p in parts], np.int32)
        cu_seqlens = np.concatenate([self.count[:1], np.cumsum(sizes, dtype=np.int32)])
        tokens = np.concatenate(parts)
        positions = np.concatenate([np.arange(p, p + n, dtype=np.int32) for p, n in zip(past, sizes.tolist())])
        row_of: list[int] = []
        places: list[int] = []
        for i, row in enumerate(rows):
            if i < len(live):
                row_of += [row] * len(parts[i])
                places += range(cu_seqlens[i], cu_seqlens[i + 1])
            elif chunks[i - len(live)].completes:
                row_of.append(row)
                places.append(cu_seqlens[i + 1] - 1)
        batch = Batch(tokens, tokens[:0], positions, cu_seqlens)
        who, where = np.array(row_of or rows[:1], np.int64), np.array(places or [len(tokens) - 1], np.int32)
        drawn = self._call(batch, np.array(past, np.int32), self.table[rows], who, self.seed[who], positions[where] + 1, where)
        if any(c.request.scores is not None and not c.request.scores.complete for c in chunks):
            self._score_prompts(chunks, cu_seqlens[len(live) :])
        n = len(row_of)
        return who[:n], where[:n], drawn[0][:n], drawn[1][:n]

    def _call(
        self, batch: Batch, past: np.ndarray, table: np.ndarray, rows: np.ndarray, seeds: np.ndarray, counters: np.ndarray,
        where: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        return self.model.decode(
            self._cache, batch, past, table, temperature=self.temperature[rows], top_k=self.top_k[rows], top_p=self.top_p[rows],
            min_p=self.min_p[rows], seeds=seeds, counters=counters, **({} if where is None else {"rows": where}),
        )  # fmt: skip

    def _specially(self, rows: np.ndarray, where: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of requests that need more than the fused draw."""
        tokens, logprobs = tokens.copy(), logprobs.copy()
        chosen = [i for i in np.flatnonzero(self.special[rows]) if self.at[int(rows[i])].work.needs_logits]
        for begin in range(0, len(chosen), 16):  # logits of a large vocabulary are half a megabyte a row
            part = chosen[begin : begin + 16]
            for i, logits in zip(part, self.model.logits(where[part])):
                request, row = self.at[int(rows[i])], int(rows[i])
                tokens[i], logprobs[i] = request.work.choose(
                    logits, self.model.vocab_mask, request.seed, int(self.length[row]), int(tokens[i]), float(logprobs[i])
                )
        return tokens, logprobs

    def _score_prompts(self, chunks: list[Chunk], begins: np.ndarray) -> None:
        for c, begin in zip(chunks, begins.tolist()):
            scores = c.request.scores
            if scores is None or scores.complete:
                continue
            for at in range(c.start, c.stop, min(16, self.model.max_seqs)):
                places = np.arange(at, min(c.stop, at + min(16, self.model.max_seqs)))
                for position, logits in zip(places.tolist(), self.model.logits((places - c.start + begin).astype(np.int32))):
                    scores.add(position, logits, self.model.vocab_mask)

    # ---- guesses ---------------------------------------------------------------------------------------------------

    def _drafts(self) -> dict[int, list[int]]:
        """row -> ids guessed for it. Guesses take what is left of the call's capacity, and blocks that nobody else wants."""
        room = min(self.model.max_seqs - len(self.scheduler.admitted), self.model.max_tokens - len(self.live))
        out: dict[int, list[int]] = {}
        for row in self.live.tolist():
            request = self.at[row]
            if not request.params.speculate or request.work is not None or room <= 0:
                continue
            length = int(self.length[row])
            if request.draft is None:
                request.draft = NGrams(self.ids[row, :length])
            request.draft.extend(self.ids[row, len(request.draft) : length].tolist())
            # the last of the guessed is never needed beyond the limit; positions must lie in blocks the row has
            most = min(request.params.speculate, room, int(self.limit[row]) - length - 1)
            guess = request.draft.guess(most)
            while guess and length - 1 + len(guess) >= self.blocks[row] * BLOCK:
                if self.manager.free <= len(self.scheduler.admitted) or not self._add_block(request):
                    guess = guess[: int(self.blocks[row]) * BLOCK - length]
            if guess:
                out[row], room = guess, room - len(guess)
        return out

    def _accept(self, rows: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, drafts: dict[int, list[int]], chunks: list[Chunk]) -> list[Request]:
        """Keep of each row's samples those that came after right guesses, and the one after them."""
        ended: list[Request] = []
        going: list[int] = []
        begin = 0
        while begin < len(rows):
            row = int(rows[begin])
            guess = drafts.get(row, [])
            over = False
            for j in range(len(guess) + 1):
                one = slice(begin + j, begin + j + 1)
                finished = self._append(rows[one], tokens[one], logprobs[one], False)
                ended += finished
                over = bool(finished)
                if over or j == len(guess) or int(tokens[begin + j]) != guess[j]:
                    self.stats.accepted_tokens += j
                    break
            self.stats.drafted_tokens += len(guess)
            if not over:
                going.append(row)
            begin += len(guess) + 1
        self._decode_rows(np.array(going, np.int64))
        return ended

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _decode_rows(self, rows: np.ndarray) -> None:
        """From now on these rows decode. What changes only with this list is gathered here."""
        self.live, self.live_table, self.live_seed = rows, self.table[rows], self.seed[rows]

    def _forget_rows(self) -> None:
        """Rows whose requests have left the batch decode no longer."""
        held = {r.row for r in self.scheduler.admitted}
        if any(row not in held for row in self.live.tolist()):
            self._decode_rows(np.array([row for row in self.live.tolist() if row in held], np.int64))

    def _place(self, request: Request) -> None:
        assert request.allocation is not None
        row, p, n = request.row, request.params, len(request.ids)
        if request.copied is not None:
            self.model.copy_block(self._cache, *request.copied)
            request.copied = None
        self.at[row] = request
        self.ids[row, :n], self.length[row], self.limit[row] = request.ids, n, request.limit
        self.logprobs[row, len(request.prompt) : n] = request.logprobs
        self.table[row, : len(request.allocation.blocks)] = request.allocation.blocks
        self.blocks[row], self.seed[row] = len(request.allocation.blocks), request.seed
        self.temperature[row], self.top_k[row], self.top_p[row], self.min_p[row] = p.temperature, p.top_k, p.top_p, p.min_p
        self.special[row] = request.work is not None
        self._drafting |= p.speculate > 0
        if len(p.stop_ids) > self.stops.shape[1]:
            self.stops = np.pad(self.stops, ((0, 0), (0, len(p.stop_ids) - self.stops.shape[1])), constant_values=-1)
        self.stops[row] = -1
        self.stops[row, : len(p.stop_ids)] = p.stop_ids
        if request.admissions == 1:
            self.stats.prompt_tokens += n
            self.stats.cached_tokens += request.cached

    def _grow(self) -> None:
        """A block for every decoding row whose next position needs one; where there is none, the request admitted last has to wait."""
        short = self.live[(self.length[self.live] - 1) // BLOCK >= self.blocks[self.live]] if len(self.live) else self.live
        if not len(short):
            return
        for row in short.tolist():
            request = self.at[row]
            while request.row == row and not self._add_block(request):
                victim = self.scheduler.youngest()
                self._preempt(victim)
        self._forget_rows()
        self._decode_rows(self.live)

    def _add_block(self, request: Request) -> bool:
        assert request.allocation is not None
        block = self.manager.append(request.allocation)
        if block is None:
            return False
        self.table[request.row, self.blocks[request.row]] = block
        self.blocks[request.row] += 1
        return True

    def _preempt(self, request: Request) -> None:
        self.stats.preemptions += 1
        if request in self.scheduler.prefilling:
            computed = request.ids[: request.computed]
        else:
            row, length = request.row, int(self.length[request.row])
            request.ids = self.ids[row, :length].copy()
            request.logprobs = self.logprobs[row, len(request.prompt) : length].copy()
            computed = request.ids[: length - 1]
        self.scheduler.preempt(request, computed)

    def _finish(self, request: Request, stopped: bool) -> Request:
        request.done = self._completion(request, "stop" if stopped else "length")
        self.scheduler.leave(request, self.ids[request.row, : self.length[request.row] - 1].copy())
        return request

    def _completion(self, request: Request, reason: str) -> Completion:
        row, begin, work = request.row, len(request.prompt), request.work
        ids = self.ids[row, begin : self.length[row]].tolist()
        text = ""
        if self.tokenizer is not None:
            if work is not None and work.text is not None:
                work.text.rest()
                text = work.text.text
            else:
                text = self.tokenizer.decode(ids[:-1] if ids and ids[-1] in request.params.stop_ids else ids)
        scores = request.scores
        alternatives = bool(scores is not None and request.params.prompt_logprobs)
        return Completion(
            ids, self.logprobs[row, begin : self.length[row]].copy(), reason == "stop", text, reason,
            work.top if work is not None else [], scores.logprobs if scores is not None else None, scores.top if alternatives else None,
            request.cached,
        )  # fmt: skip
