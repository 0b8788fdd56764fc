"""The engine: many prompts in, completions out, with continuous batching over a paged cache (talk 1.5).

A completion depends on the weights, its prompt, its seed and the sampling parameters only. Two things make that so: the kernels
give a row the same bits whatever else is in the batch, and the random number of a token is a function of (seed, its position).

The state of the batch is a handful of arrays indexed by row. A step in which nobody ends touches no Python object per row, so
Python costs tens of microseconds a step, whether it decodes one row or 256.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freedive.model import Batch, Model
from freedive.runs import UserError, available_memory, human_bytes
from freedive.tokenizer import Tokenizer

from .block_manager import BLOCK, BlockManager, blocks_for
from .scheduler import Chunk, Scheduler, Waiting

SEEDS = 2**64  # a seed counts modulo this


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
            (0 <= self.temperature < float("inf"), f"temperature is {self.temperature}, it must not be negative"),
            (0 <= self.top_k < 2**31, f"top_k is {self.top_k}; it must not be negative (0 turns it off)"),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 turns it off)"),
            (0 <= self.min_p < 1, f"min_p is {self.min_p}; it must be at least 0 (off) and below 1"),
        ):
            if not ok:
                raise UserError(text)


class Engine:
    """Generation with one model. Owns one cache, made at the first call and enlarged when a call needs more; one call at a time."""

    def __init__(self, model: Model, tokenizer: Tokenizer | None = None):
        self.model, self.tokenizer = model, tokenizer
        self._cache: Any = None
        self._call = 0  # number of the call that has the cache

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 64, temperature: float = 1.0, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, stop_ids: Sequence[int] = (), seeds: Sequence[int] | None = None,
        on_finish: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:  # fmt: skip
        """One completion per prompt (lists of ids), in order. seeds: one per prompt (default 0, 1, ...), whole numbers modulo 2^64.

        A completion ends with one of stop_ids, after max_new_tokens, or where prompt and completion fill the model's context.
        temperature 0 takes the likeliest token; top_k 0, top_p 1 and min_p 0 are off. `on_finish(index, completion)` is called as each
        ends. Raises UserError for empty prompts, prompts that do not fit, ids outside the vocabulary, and parameters out of range.
        """
        done: list[Any] = [None] * len(prompts)
        seeds = range(len(prompts)) if seeds is None else seeds
        run = self._begin(prompts, Params(max_new_tokens, temperature, top_k, top_p, min_p, tuple(stop_ids)), seeds)
        while run.unfinished:
            for index, ids, logprobs, stopped in run.step():
                text = self.tokenizer.decode(ids[:-1] if stopped else ids) if self.tokenizer else ""
                done[index] = Completion(ids, logprobs, stopped, text)
                if on_finish is not None:
                    on_finish(index, done[index])
        return done

    def stream(
        self, prompt: Sequence[int], max_new_tokens: int = 256, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
        min_p: float = 0.0, stop_ids: Sequence[int] = (), seed: int = 0,
    ) -> Iterator[str]:  # fmt: skip
        """The completion's text in pieces of whole characters, as it is sampled. Parameters and errors as of `generate`.

        A later call on the same engine takes its cache: going on with this stream is then a RuntimeError.
        """
        if self.tokenizer is None:
            raise UserError("streaming gives text, and this engine has no tokenizer", hint="Engine(model, tokenizer)")
        return self._pieces(self._begin([prompt], Params(max_new_tokens, temperature, top_k, top_p, min_p, tuple(stop_ids)), [seed]))

    def _pieces(self, run: _Run) -> Iterator[str]:
        assert self.tokenizer is not None
        decoder, seen = self.tokenizer.stream_decoder(), 0
        while run.unfinished:
            ended = run.step()
            if ended:
                _, ids, _, stopped = ended[0]
                fresh = ids[seen : len(ids) - stopped]
            else:
                fresh = run.so_far(0)[seen:]
            seen += len(fresh)
            for token in fresh:
                if piece := decoder.push(token):
                    yield piece
        if rest := decoder.flush():
            yield rest

    def _begin(self, prompts: Sequence[Sequence[int]], p: Params, seeds: Sequence[int]) -> _Run:
        """Check everything, see to the cache, and queue the prompts."""
        vocab, room = self.model.config.vocab_size, self.model.config.max_positions
        if len(seeds) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds; each prompt needs its own")
        sequences: list[Waiting] = []
        for i, prompt in enumerate(prompts):
            ids = np.asarray(prompt, np.int32)
            if ids.ndim != 1 or not len(ids):
                raise UserError(f"prompt {i} has no tokens", hint="begin it with the tokenizer's bos_id")
            if len(ids) >= room:
                raise UserError(f"prompt {i} has {len(ids)} tokens; the model has {room} positions", hint="shorten the prompt")
            if ids.min() < 0 or ids.max() >= vocab:
                bad = ids.min() if ids.min() < 0 else ids.max()
                raise UserError(f"prompt {i} has the token id {bad}, outside of the model's vocabulary of {vocab}")
            sequences.append(Waiting(i, ids, min(len(ids) + p.max_new_tokens, room)))
        if any(not 0 <= i < vocab for i in p.stop_ids):
            raise UserError(f"stop_ids are {p.stop_ids}; the model's vocabulary has the ids 0 to {vocab - 1}")
        rows = min(self.model.max_seqs, self.model.max_tokens, len(prompts))
        self._reserve([blocks_for(s.limit) for s in sequences], rows)
        self._call += 1
        return _Run(self, sequences, rows, p, np.array([s % SEEDS for s in seeds], np.uint64))

    def _reserve(self, blocks: list[int], rows: int) -> None:
        """Cache for as many rows as can run at once, the longest first, or for what half of the free memory holds if that is less."""
        if not blocks:
            return
        c = self.model.config
        size = 2 * 4 * BLOCK * c.n_layer * c.n_kv_head * c.head_dim
        wanted = sum(sorted(blocks, reverse=True)[:rows])
        have = self._cache.blocks if self._cache is not None else 0
        if wanted <= have:
            return
        affordable = int(available_memory() // 2 // size)
        if max(blocks) > max(affordable, have):
            told = f"a sequence of {max(blocks) * BLOCK} tokens needs {human_bytes(max(blocks) * size)} of cache"
            raise UserError(f"{told}, and {human_bytes(affordable * size)} can be had", hint="lower max_new_tokens")
        if min(wanted, affordable) > have:
            self._cache = self.model.new_cache(min(wanted, affordable))


class _Run:
    """One call of generate or stream: scheduler and state of the rows. Made afresh, so an abandoned call leaves nothing behind."""

    def __init__(self, engine: Engine, sequences: list[Waiting], rows: int, p: Params, seeds: np.ndarray):
        self.engine, self.number, self.prompt_seeds = engine, engine._call, seeds
        self.scheduler = Scheduler(BlockManager(engine._cache.blocks if sequences else 0), rows, engine.model.max_tokens)
        for sequence in sequences:
            self.scheduler.add(sequence)
        self.unfinished = len(sequences)
        self.stop = np.zeros(engine.model.config.vocab_size, bool)
        self.stop[list(p.stop_ids)] = True
        # Per row. `length` counts all ids, prompt included: it is the next token's position, hence its random number.
        self.sequence: dict[int, Waiting] = {}
        self.last, self.length, self.limit = (np.zeros(rows, np.int32) for _ in range(3))
        self.new = np.zeros(rows, np.int64)  # tokens sampled
        self.seed = np.zeros(rows, np.uint64)
        self.table = np.zeros((rows, max((blocks_for(s.limit) for s in sequences), default=0)), np.int32)
        most_new = max((s.limit - len(s.prompt) for s in sequences), default=0)
        self.ids, self.logprobs = np.zeros((rows, most_new), np.int32), np.zeros((rows, most_new), np.float32)
        # The same at every step; sliced to the rows of one.
        self.temperature, self.top_k = np.full(rows, p.temperature, np.float32), np.full(rows, p.top_k, np.int32)
        self.top_p, self.min_p = np.full(rows, p.top_p, np.float32), np.full(rows, p.min_p, np.float32)
        self.count = np.arange(rows + 1, dtype=np.int32)
        self._decode_rows(np.zeros(0, np.int64))

    def _decode_rows(self, rows: np.ndarray) -> None:
        """From now on these rows decode. What changes only with this list is gathered here."""
        self.live, self.live_table, self.live_seed = rows, self.table[rows], self.seed[rows]

    def so_far(self, index: int) -> list[int]:
        """Ids sampled for prompt `index`, which is in the batch."""
        row = next(row for row, sequence in self.sequence.items() if sequence.index == index)
        return self.ids[row, : self.new[row]].tolist()

    def step(self) -> list[tuple[int, list[int], np.ndarray, bool]]:
        """One call of the model; what ended with it, as (prompt index, ids, logprobs, stopped)."""
        if self.engine._call != self.number:
            raise RuntimeError("a later call on this engine took its cache; use one Engine for each stream")
        s = self.scheduler
        if s.waiting:
            self._admit()
        chunks = s.chunks(len(self.live)) if s.prefilling else []
        rows = self.live
        if chunks:
            rows, tokens, logprobs = self._mixed(chunks)
        else:
            past = self.length[rows] - 1
            batch = Batch(self.last[rows], self.last[:0], past, self.count[: len(rows) + 1])
            tokens, logprobs = self._call(batch, past, self.live_table, self.live_seed, past + 1)
        at = self.new[rows]
        self.ids[rows, at], self.logprobs[rows, at], self.last[rows] = tokens, logprobs, tokens
        self.new[rows] = at + 1
        self.length[rows] += 1
        stopped = self.stop[tokens]
        over = stopped | (self.length[rows] >= self.limit[rows])
        if over.any():
            self._decode_rows(rows[~over])
            return self._finish(rows[over], stopped[over])
        if chunks:
            self._decode_rows(rows)
        return []

    def _mixed(self, chunks: list[Chunk]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A call that also runs prompt chunks. Returns the rows that got a token: those decoding, and those whose prompt is whole."""
        n = len(self.live)
        rows = np.concatenate([self.live, np.array([c.sequence.row for c in chunks], np.int64)])
        past = np.concatenate([self.length[self.live] - 1, np.array([c.start for c in chunks], np.int32)])
        length = np.concatenate([past[:n] + 1, np.array([c.stop for c in chunks], np.int32)])
        tokens = np.concatenate([self.last[self.live], *(c.sequence.prompt[c.start : c.stop] for c in chunks)])
        positions = np.concatenate([past[:n], *(np.arange(c.start, c.stop, dtype=np.int32) for c in chunks)])
        cu_seqlens = np.concatenate([self.count[:1], np.cumsum(length - past, dtype=np.int32)])
        batch = Batch(tokens, tokens[:0], positions, cu_seqlens)
        sampled, logprobs = self._call(batch, past, self.table[rows], self.seed[rows], length)
        whole = np.array([True] * n + [c.completes for c in chunks])
        return rows[whole], sampled[whole], logprobs[whole]

    def _call(
        self, batch: Batch, past: np.ndarray, table: np.ndarray, seeds: np.ndarray, counters: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        n = len(past)
        return self.engine.model.decode(
            self.engine._cache, batch, past, table, temperature=self.temperature[:n], top_k=self.top_k[:n], top_p=self.top_p[:n],
            min_p=self.min_p[:n], seeds=seeds, counters=counters,
        )  # fmt: skip

    def _admit(self) -> None:
        for sequence in self.scheduler.admit():
            assert sequence.allocation is not None
            row, blocks = sequence.row, sequence.allocation.blocks
            self.sequence[row] = sequence
            self.length[row], self.limit[row], self.new[row] = len(sequence.prompt), sequence.limit, 0
            self.seed[row] = self.prompt_seeds[sequence.index]
            self.table[row, : len(blocks)] = blocks

    def _finish(self, rows: np.ndarray, stopped: np.ndarray) -> list[tuple[int, list[int], np.ndarray, bool]]:
        ended = []
        for row, stop in zip(rows.tolist(), stopped.tolist()):
            sequence, n = self.sequence.pop(row), self.new[row]
            ended.append((sequence.index, self.ids[row, :n].tolist(), self.logprobs[row, :n].copy(), stop))
            self.scheduler.finish(sequence)
        self.unfinished -= len(ended)
        return ended
