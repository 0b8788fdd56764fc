"""The engine: many prompts in, completions out, with continuous batching over a paged cache (talk 1.5).

Waiting sequences are admitted when a row and cache blocks for their whole life are free; a sequence that finishes leaves at once. Each
turn runs one flat batch: either the prompts (or chunks of them) of newly admitted sequences, or one token for every running one. The
kernels make each row's result independent of its neighbours, and the random number of a token is a function of (seed, its position), so
a completion depends on the weights, its prompt, its seed and the sampling parameters only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from freedive.model import Batch, Model
from freedive.runs import UserError
from freedive.tokenizer import Tokenizer

from .block_manager import BlockManager, blocks_for


@dataclass(frozen=True)
class Completion:
    """What was sampled for one prompt."""

    ids: list[int]  # the stop id included, if one was sampled
    logprobs: np.ndarray  # float32 [len(ids)], nats, at the sampling temperature before truncation (temperature 0: at 1)
    stopped: bool  # ended by a stop id, not by a limit
    text: str  # without the stop id


@dataclass(frozen=True)
class Params:
    """Sampling parameters of one call."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for ok, text in (
            (self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}, it must be at least 1"),
            (self.temperature >= 0, f"temperature is {self.temperature}, it must not be negative"),
            (self.top_k >= 0, f"top_k is {self.top_k}; 0 turns it off"),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 turns it off)"),
            (0 <= self.min_p < 1, f"min_p is {self.min_p}; it must be at least 0 (off) and below 1"),
        ):
            if not ok:
                raise UserError(text)


class Engine:
    """Generation with one model. The cache is made at the first call and grows when a call needs more."""

    def __init__(self, model: Model, tokenizer: Tokenizer | None = None):
        self.model, self.tokenizer = model, tokenizer
        self._cache, self._manager = None, BlockManager(0)

    def _reserve(self, blocks: int) -> None:
        if self._manager.n < blocks:
            self._cache, self._manager = self.model.new_cache(blocks), BlockManager(blocks)

    def _limits(self, prompts: Sequence[Sequence[int]], p: Params) -> list[int]:
        """Most positions each sequence may take, prompt included."""
        room = self.model.config.max_positions
        for i, prompt in enumerate(prompts):
            if not len(prompt):
                raise UserError(f"prompt {i} has no tokens", hint="begin it with the tokenizer's bos_id")
            if len(prompt) >= room:
                raise UserError(f"prompt {i} has {len(prompt)} tokens; the model has {room} positions", hint="shorten the prompt")
        return [min(len(prompt) + p.max_new_tokens, room) for prompt in prompts]

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 64, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
                 min_p: float = 0.0, stop_ids: Sequence[int] = (), seeds: Sequence[int] | None = None) -> list[Completion]:  # fmt: skip
        """One completion per prompt (lists of ids), in order. seeds: one per prompt (default 0, 1, ...). Raises UserError for prompts that do not fit."""
        p = Params(max_new_tokens, temperature, top_k, top_p, min_p, tuple(stop_ids))
        seeds = list(range(len(prompts))) if seeds is None else list(seeds)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
        limits = self._limits(prompts, p)
        if not prompts:
            return []
        # Blocks for as many rows as can run at once, the longest first: then admission never has to wait for cache.
        rows = min(self.model.max_seqs, self.model.max_tokens, len(prompts))
        self._reserve(sum(sorted((blocks_for(n) for n in limits), reverse=True)[:rows]))
        return _Run(self, prompts, limits, seeds, p, rows).finish()

    def stream(self, prompt: Sequence[int], max_new_tokens: int = 256, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
               stop_ids: Sequence[int] = (), seed: int = 0) -> Iterator[str]:  # fmt: skip
        """The completion's text in pieces of whole characters, as it is sampled."""
        assert self.tokenizer is not None, "streaming text needs a tokenizer"
        p = Params(max_new_tokens, temperature, top_k, top_p, min_p, tuple(stop_ids))
        limits = self._limits([prompt], p)
        self._reserve(blocks_for(limits[0]))
        run, decoder, seen = _Run(self, [prompt], limits, [seed], p, 1), self.tokenizer.stream_decoder(), 0
        try:
            while run.turn():
                for token in run.ids[0][seen:]:
                    if token not in p.stop_ids and (piece := decoder.push(token)):
                        yield piece
                seen = len(run.ids[0])
            if rest := decoder.flush():
                yield rest
        finally:
            run.release()


class _Run:
    """One call of generate: which sequences wait, run and are done. State of running rows is arrays, so a turn is a few NumPy calls."""

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], limits: list[int], seeds: list[int], p: Params, rows: int):
        self.engine, self.prompts, self.limits, self.p = engine, prompts, limits, p
        self.ids: list[list[int]] = [[] for _ in prompts]
        self.logprobs: list[list[float]] = [[] for _ in prompts]
        self.stopped = [False] * len(prompts)
        self.waiting = list(range(len(prompts)))[::-1]
        self.owned: dict[int, list[int]] = {}
        self.width = max(blocks_for(n) for n in limits)
        self.rows = rows
        # running rows: which prompt, positions in the cache, last token, block table, seed
        self.who = np.zeros(0, np.int64)
        self.past = np.zeros(0, np.int32)
        self.last = np.zeros(0, np.int32)
        self.table = np.zeros((0, self.width), np.int32)
        self.seed = np.array([s & (2**64 - 1) for s in seeds], np.uint64)
        self.limit = np.array(limits, np.int32)

    def finish(self) -> list[Completion]:
        try:
            while self.turn():
                pass
        finally:
            self.release()
        tok, stops = self.engine.tokenizer, self.p.stop_ids
        texts = [tok.decode([t for t in ids if t not in stops]) if tok else "" for ids in self.ids]
        return [Completion(i, np.array(l, np.float32), s, t) for i, l, s, t in zip(self.ids, self.logprobs, self.stopped, texts)]

    def release(self) -> None:
        for blocks in self.owned.values():
            self.engine._manager.give_back(blocks)
        self.owned.clear()

    def turn(self) -> bool:
        """Admit and prefill what fits, or decode one token for every running row. False when nothing is left."""
        admitted = []
        while self.waiting and len(self.who) + len(admitted) < self.rows:
            i = self.waiting[-1]
            if blocks_for(self.limits[i]) > self.engine._manager.free:
                break
            self.waiting.pop()
            self.owned[i] = self.engine._manager.take(blocks_for(self.limits[i]))
            admitted.append(i)
        if admitted:
            self._prefill(admitted)
        elif len(self.who):
            self._decode()
        return bool(self.waiting or len(self.who))

    def _tables(self, members: Sequence[int]) -> np.ndarray:
        table = np.zeros((len(members), self.width), np.int32)
        for row, i in enumerate(members):
            table[row, : len(self.owned[i])] = self.owned[i]
        return table

    def _prefill(self, members: list[int]) -> None:
        """Prompts in flat batches of at most max_tokens; a longer prompt comes in chunks, of which only the last one's token counts."""
        model, at = self.engine.model, 0
        done = {i: 0 for i in members}
        while at < len(members):
            pieces, size, end = [], 0, at
            while end < len(members) and size < model.max_tokens and len(pieces) < model.max_seqs:
                i = members[end]
                chunk = self.prompts[i][done[i] : done[i] + model.max_tokens - size]
                pieces.append((i, done[i], chunk))
                size += len(chunk)
                if done[i] + len(chunk) < len(self.prompts[i]):
                    break
                end += 1
            which = [i for i, _, _ in pieces]
            past = np.array([start for _, start, _ in pieces], np.int32)
            lengths = np.array([len(c) for _, _, c in pieces], np.int32)
            tokens = np.concatenate([np.asarray(c, np.int32) for _, _, c in pieces])
            positions = np.concatenate([np.arange(s, s + n, dtype=np.int32) for s, n in zip(past, lengths)])
            cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            table = self._tables(which)
            sampled, logprobs = self._step(tokens, positions, cu, past, table, np.array(which))
            for i, start, chunk in pieces:
                done[i] = start + len(chunk)
            whole = np.array([done[i] == len(self.prompts[i]) for i in which])
            self._accept(np.array(which)[whole], (past + lengths)[whole], table[whole], sampled[whole], logprobs[whole])
            at = end

    def _decode(self) -> None:
        who, past, table = self.who, self.past, self.table
        cu = np.arange(len(who) + 1, dtype=np.int32)
        sampled, logprobs = self._step(self.last, past, cu, past, table, who)
        self.who, self.past, self.last, self.table = who[:0], past[:0], self.last[:0], table[:0]
        self._accept(who, past + 1, table, sampled, logprobs)

    def _step(self, tokens: np.ndarray, positions: np.ndarray, cu: np.ndarray, past: np.ndarray, table: np.ndarray, who: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        S, p = len(who), self.p
        full = lambda value, dtype: np.full(S, value, dtype)
        counters = (past + np.diff(cu)).astype(np.uint64)  # the position of the token being sampled
        return self.engine.model.decode(self.engine._cache, Batch(tokens, tokens, positions, cu), past, table,
                                        temperature=full(p.temperature, np.float32), top_k=full(p.top_k, np.int32), top_p=full(p.top_p, np.float32),
                                        min_p=full(p.min_p, np.float32), seeds=self.seed[who], counters=counters)  # fmt: skip

    def _accept(self, who: np.ndarray, past: np.ndarray, table: np.ndarray, sampled: np.ndarray, logprobs: np.ndarray) -> None:
        """Store sampled tokens; rows that go on join the running ones, the others give their blocks back."""
        ids, lps = self.ids, self.logprobs
        for i, t, l in zip(who.tolist(), sampled.tolist(), logprobs.tolist()):
            ids[i].append(t)
            lps[i].append(l)
        stop = np.isin(sampled, self.p.stop_ids) if self.p.stop_ids else np.zeros(len(who), bool)
        over = stop | (past + 1 >= self.limit[who])
        for i, s in zip(who[over].tolist(), stop[over].tolist()):
            self.stopped[i] = s
            self.engine._manager.give_back(self.owned.pop(i))
        go = ~over
        self.who = np.concatenate([self.who, who[go]])
        self.past = np.concatenate([self.past, past[go]]).astype(np.int32)
        self.last = np.concatenate([self.last, sampled[go]]).astype(np.int32)
        self.table = np.concatenate([self.table, table[go]])
