"""The engine: many prompts in, completions out, with continuous batching over a paged cache (talk 1.5).

A completion depends on the weights, its prompt, its seed and the sampling parameters only. Two things make that so: the kernels
give a row the same bits whatever else is in the batch and however its prompt was cut, and the random number of a token is a function of
(seed, its position). So neither neighbours, nor a warm cache, nor a preemption, nor tokens guessed ahead show in what comes out.

This file is the face: what can be asked, and how much cache it takes. loop.py runs the batch, scheduler.py says who is in it, and
block_manager.py keeps the cache's books.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from freedive.model import Model
from freedive.model.model import check_kv_cache_dtype
from freedive.runs import UserError, available_memory, human_bytes
from freedive.tokenizer import Tokenizer

from .block_manager import BLOCK, BlockManager, blocks_for
from .loop import Loop, Stats
from .params import SEEDS, Completion, Params
from .sampler import PromptScores, Work
from .scheduler import Request, Scheduler
from .stops import StopText

__all__ = ["Completion", "Engine", "Params", "Request", "Stats"]


class Engine:
    """Generation with one model. Several threads may ask at once: whoever steps, steps for all. Owns one cache, made at the first request and enlarged when idle and too small.

    cache_tokens fixes its size, in positions; None lets it grow with what is asked for, up to half of the free memory. kv_cache_dtype is what
    keys and values are kept in: "float32", "bfloat16" or "int8"; "auto" is bfloat16 for a model of dtype bfloat16, whose products round them
    to it anyway (the same bits), else float32. Every token attends to keys and values as stored, so whichever it is, a request's bits
    depend on nobody else; only where no rounding is added are they the trainer's.

    steps: how many tokens each row samples, at most, before Python looks at them; None is 1 on the CPU and 8 on a device. It changes no
    token: the device knows stop ids and limits, and does no more for a row that has ended. There the next steps are asked for before the last ones are looked at, unless
    a request waits to come in. One with a grammar, stop strings, logprobs or whatever else needs a look after each token, or guesses (speculate), or still reads its prompt, makes it 1.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer | None = None, *, cache_tokens: int | None = None, kv_cache_dtype: str = "auto", steps: int | None = None):
        if cache_tokens is not None and cache_tokens < 1:
            raise UserError(f"cache_tokens is {cache_tokens}, it must be at least 1")
        if steps is not None and steps < 1:
            raise UserError(f"steps is {steps}, it must be at least 1")
        self._steps = steps or (1 if model.device == "cpu" else 8)
        self.kv_cache_dtype = check_kv_cache_dtype(kv_cache_dtype, model.dtype)
        self.model, self.tokenizer, self.stats = model, tokenizer, Stats()
        self.stats.cache_bytes_per_token = model.cache_block_bytes(self.kv_cache_dtype) // BLOCK
        self._fixed = blocks_for(cache_tokens) if cache_tokens else None
        self._cache: Any = None
        self._weights = model.weight_version
        self._rows = min(model.max_seqs, model.max_tokens)
        self._loop = Loop(model, tokenizer, None, 0, self.stats, self._steps)

    # ---- asking ----------------------------------------------------------------------------------------------------

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 64, temperature: float = 1.0, top_k: int = 0,
        top_p: float = 1.0, min_p: float = 0.0, stop_ids: Sequence[int] = (), seeds: Sequence[int] | None = None,
        on_finish: Callable[[int, Completion], None] | None = None, *, n: int = 1, **more: Any,
    ) -> list[Completion]:  # fmt: skip
        """One completion per prompt (lists of ids), in order. seeds: one per prompt (default 0, 1, ...), whole numbers modulo 2^64.

        A completion ends with one of stop_ids, after max_new_tokens, or where prompt and completion fill the model's context.
        temperature 0 takes the likeliest token; top_k 0, top_p 1 and min_p 0 are off; `more` are the other fields of Params. With n > 1
        each prompt gives n completions, one after the other, the first with the prompt's seed. `on_finish(index, completion)` is called as
        each ends. Raises UserError for empty prompts, prompts that do not fit, ids outside the vocabulary, and parameters out of range.
        """
        if not isinstance(n, (int, np.integer)) or not 1 <= n <= 4096:
            raise UserError(f"n is {n}; it must be 1 to 4096")
        params = Params(max_new_tokens, temperature, top_k, top_p, min_p, tuple(stop_ids), **_tuples(more))
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds; each prompt needs its own")
        if bad := [s for s in seeds if not isinstance(s, (int, np.integer))]:
            raise UserError(f"a seed is {bad[0]!r:.60}, it must be a whole number")
        requests = [self._request(p, params, sample_seed(seeds[i], j), i * n + j, i) for i, p in enumerate(prompts) for j in range(n)]
        self._submit(requests)
        return self._finish(requests, on_finish)

    def groups(self, prompts: Sequence[Sequence[int]], generations: int, params: Params, seeds: Sequence[int]) -> list[Completion]:
        """`generations` completions of each prompt, those of one next to each other, with a seed each: the same as `generate` gives, but each
        prompt is read once. The first of a group reads it; the others share its whole blocks and copy the end. Raises UserError as `generate`.
        """
        requests = [self._request(p, params, seeds[i * generations + j], i * generations + j, i) for i, p in enumerate(prompts) for j in range(generations)]
        if params.prompt_logprobs is None:
            for i, request in enumerate(requests):
                request.twin = requests[i - i % generations] if i % generations else None
        self._submit(sorted(requests, key=lambda r: r.twin is not None))
        return self._finish(requests)

    def _finish(self, requests: list[Request], on_finish: Callable[[int, Completion], None] | None = None) -> list[Completion]:
        """Steps until all of them are done."""
        unfinished = set(requests)
        try:
            while unfinished:
                self.step()
                for request in [r for r in requests if r in unfinished and r.done is not None]:  # another thread's step may have ended some
                    unfinished.remove(request)
                    if on_finish is not None:
                        assert request.done is not None
                        on_finish(request.index, request.done)
        finally:
            for request in unfinished:
                self.cancel(request)
        return [r.done for r in requests if r.done is not None]

    def stream(
        self, prompt: Sequence[int], max_new_tokens: int = 256, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
        min_p: float = 0.0, stop_ids: Sequence[int] = (), seed: int = 0, *, into: list[int] | None = None, **more: Any,
    ) -> Iterator[str]:  # fmt: skip
        """The completion's text in pieces of whole characters, as it is sampled; its ids go `into` a list. Parameters and errors as of
        `generate`.
        """
        if self.tokenizer is None:
            raise UserError("streaming gives text, and this engine has no tokenizer", hint="Engine(model, tokenizer)")
        request = self.submit(prompt, Params(max_new_tokens, temperature, top_k, top_p, min_p, tuple(stop_ids), **_tuples(more)), seed)
        return self._pieces(request, StopText(self.tokenizer, request.params.stop), [] if into is None else into)

    def _pieces(self, request: Request, text: StopText, into: list[int]) -> Iterator[str]:
        seen = 0
        try:
            over = False
            while not over:
                if request.done is None:
                    self.step()
                over = request.done is not None  # a step of somebody else's may have ended it
                ids = self.so_far(request)
                for token in ids[seen:]:
                    if token not in request.params.stop_ids:
                        text.push(token)
                into += ids[seen:]
                seen = len(ids)
                if piece := text.safe():
                    yield piece
            if piece := text.rest():
                yield piece
        finally:
            self.cancel(request)

    def submit(self, prompt: Sequence[int], params: Params | None = None, seed: int = 0) -> Request:
        """Queue a prompt; `step` until its `done` is there. Raises UserError as `generate`."""
        request = self.prepare(prompt, params, seed)
        self._submit([request])
        return request

    def prepare(self, prompt: Sequence[int], params: Params | None = None, seed: int = 0) -> Request:
        """A request that `enqueue` takes: all of the checking, none of the waiting for a step. Raises UserError as `generate`."""
        return self._request(prompt, params or Params(), seed, 0, 0)

    def enqueue(self, requests: Sequence[Request]) -> None:
        """Queue prepared requests, all or none. Raises UserError where the cache cannot hold one of them."""
        self._submit(list(requests))

    def news(self, request: Request, seen: int) -> tuple[list[int], list[float]]:
        """Ids sampled for a request after the first `seen` of them, and their log-probs (nats)."""
        with self.model.lock:
            return self._loop.news(request, seen)

    def cancel(self, request: Request) -> None:
        """Give up a request: its row and blocks are free at once. Nothing happens to one that has ended."""
        with self.model.lock:
            self._loop.cancel(request)

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.busy

    def so_far(self, request: Request) -> list[int]:
        """Ids sampled for a request until now."""
        with self.model.lock:
            return self._loop.so_far(request)

    @property
    def scheduler(self) -> Scheduler:
        return self._loop.scheduler

    @property
    def manager(self) -> BlockManager:
        return self._loop.manager

    def _request(self, prompt: Sequence[int], params: Params, seed: int, index: int, number: int) -> Request:
        vocab, room = self.model.config.vocab_size, self.model.config.max_positions
        ids = np.asarray(prompt)
        if ids.ndim == 0:
            raise UserError(f"prompt {number} is {prompt!r}, not a list of ids", hint="prompts are a list of lists: generate([ids])")
        if ids.ndim != 1 or not len(ids):
            raise UserError(f"prompt {number} has no tokens", hint="begin it with the tokenizer's bos_id")
        if ids.dtype.kind not in "iu":
            raise UserError(f"prompt {number} is not made of token ids", hint="encode text with the tokenizer")
        if len(ids) >= room:
            raise UserError(f"prompt {number} has {len(ids)} tokens; the model has {room} positions", hint="shorten the prompt")
        if ids.min() < 0 or ids.max() >= vocab:
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise UserError(f"prompt {number} has the token id {bad}, outside of the model's vocabulary of {vocab}")
        params.check_ids(vocab)
        if (params.stop or params.grammar is not None) and self.tokenizer is None:
            raise UserError("stop strings and grammars are about text, and this engine has no tokenizer", hint="Engine(model, tokenizer)")
        if params.grammar is not None and self.tokenizer is not None:
            if params.min_new_tokens:
                raise UserError("min_new_tokens and a grammar were both given", hint="the grammar says how long an answer is: a{10,} in a regex")
            params = replace(params, stop_ids=tuple(dict.fromkeys((*params.stop_ids, *self.tokenizer.stop_ids))))  # what ends an answer where its grammar allows
        ids = ids.astype(np.int32)
        request = Request(ids, min(len(ids) + params.max_new_tokens, room), params, seed % SEEDS, index)
        if params.special:
            request.work = Work(params, ids, vocab, self.tokenizer)
        if params.prompt_logprobs is not None:
            request.scores = PromptScores(ids, params.prompt_logprobs)
        return request

    def _submit(self, requests: list[Request]) -> None:
        with self.model.lock:
            if self.model.weight_version != self._weights:
                self._weights = self.model.weight_version
                self.manager.new_weights()
            self._reserve([blocks_for(r.limit) for r in requests])
            for request in requests:
                self.scheduler.add(request)

    def _reserve(self, blocks: list[int]) -> None:
        """Cache for as many rows as can run at once, the longest first, and for one conversation as long as the model's context; or for
        what half of the free memory holds if that is less. Pages of it that are never used cost nothing."""
        if not blocks:
            return
        c, have = self.model.config, self.manager.n
        size = self.model.cache_block_bytes(self.kv_cache_dtype)
        wanted = sum(sorted(blocks, reverse=True)[: self._rows]) + min(len(blocks), self._rows)
        if have and (self.scheduler.busy or wanted <= have or self._fixed):
            if max(blocks) > have:
                told = f"a sequence of {max(blocks) * BLOCK} tokens needs more than the cache's {have * BLOCK}"
                raise UserError(told, hint="lower max_new_tokens, or give the engine more cache_tokens")
            return
        affordable = int(available_memory() // 2 // size)
        target = self._fixed or min(max(wanted, blocks_for(c.max_positions)), affordable)
        if max(blocks) > max(target, have):
            told = f"a sequence of {max(blocks) * BLOCK} tokens needs {human_bytes(max(blocks) * size)} of cache"
            raise UserError(f"{told}, and {human_bytes(max(target, 0) * size)} can be had", hint="lower max_new_tokens, or keep less for each: kv_cache_dtype int8")
        if target > have:
            self._cache = self.model.new_cache(target, self.kv_cache_dtype)
            self._loop = Loop(self.model, self.tokenizer, self._cache, target, self.stats, self._steps)

    def step(self) -> list[Request]:
        """One call of the model for all that is queued and running; returns what ended with it.

        If it fails (out of memory, Ctrl-C) everything queued and running is cancelled, and the engine is as new.
        """
        with self.model.lock:
            if not self.scheduler.busy:
                return []
            loop = self._loop
            try:
                return loop.step()
            except BaseException:
                for request in [*loop.scheduler.waiting, *loop.scheduler.admitted]:
                    request.done = request.done or Completion(loop.so_far(request), np.zeros(0, np.float32), False, "", "cancelled")
                self._loop = Loop(self.model, self.tokenizer, self._cache, loop.manager.n, self.stats, self._steps)
                raise


def sample_seed(seed: int, number: int) -> int:
    """The seed of sample `number` of a prompt; of the first, the prompt's own."""
    return (seed + number * 0x9E3779B97F4A7C15) % SEEDS


def _tuples(more: dict[str, Any]) -> dict[str, Any]:
    if isinstance(more.get("stop"), str):
        more = more | {"stop": (more["stop"],)}
    return {k: tuple(v) if k == "stop" and isinstance(v, (list, set)) else v for k, v in more.items()}
