"""One engine for many clients: a thread of its own steps the engine, and asyncio talks to it through queues (talk 1.5, 5.3).

The one idea: nobody but the thread touches the engine, and the thread never waits for anybody. What clients want (begin, give up, run a
function of the model) lies in its inbox and is done between two steps, so a connection that closes frees its row and cache blocks before
the next one. What a step brought goes to the event loop in one piece. The model computes without the interpreter's lock meanwhile.

    async for event in service.stream(ids, Params(max_new_tokens=50), seed=7):
        print(event.text, end="")
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol, TypeVar

from freedive.inference import LM, Engine, Params
from freedive.inference.block_manager import BLOCK
from freedive.inference.engine import Request, sample_seed
from freedive.inference.stops import StopText
from freedive.runs import UserError, available_memory

from .stream import Busy, Choice, Closing, ContextOverflow, EngineFailure, Event, Stream

T = TypeVar("T")
DEADLINE = 600.0  # seconds


class Observer(Protocol):
    """Who wants to count: metrics.py. Called on the event loop's thread."""

    def began(self, prompt_tokens: int) -> None: ...
    def first(self, seconds: float, cached_tokens: int) -> None: ...
    def ended(self, reason: str, tokens: int, seconds_after_first: float) -> None: ...


class Service:
    """A model that answers many at once. `start` inside a running event loop, `await close()` at the end.

    max_queue: sequences that may wait beyond those that run (the model's max_seqs); more raise Busy. deadline: seconds a request may
    take, waiting included. cache_tokens: positions the cache keeps; None: room for 4 whole contexts, or 32,768 positions if that is
    more, within half of the free memory.
    """

    def __init__(
        self, lm: LM, *, name: str, max_queue: int = 64, deadline: float = DEADLINE, cache_tokens: int | None = None, observer: Observer | None = None
    ):
        if max_queue < 0 or not deadline > 0:
            raise UserError(f"max_queue is {max_queue} and deadline {deadline}; they must be at least 0, and above 0")
        self.lm, self.name, self.max_queue, self.deadline, self.observer = lm, name, max_queue, deadline, observer
        self.created = int(time.time())
        model, kept = lm.model, lm.engine.kv_cache_dtype
        # A busy engine cannot enlarge its cache, so a server's has its size from the start. Pages of it that nobody used take no memory.
        self.cache_tokens = cache_tokens or _cache_tokens(model.config.max_positions, model.cache_block_bytes(kept))
        self.engine = lm.engine = Engine(model, lm.tokenizer, cache_tokens=self.cache_tokens, kv_cache_dtype=kept)
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._live: dict[Request, Choice] = {}  # the thread's own
        self._closing = False
        self._calls = 0  # functions of the model that wait for their turn
        self.open_choices = 0  # begun and not ended, on the event loop's side

    # ---- what clients call, on the event loop ----------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Sequences that run at once."""
        return min(self.lm.model.max_seqs, self.lm.model.max_tokens)

    @property
    def running(self) -> bool:
        """Whether requests are taken."""
        return self._thread is not None and self._thread.is_alive() and not self._closing

    @property
    def context(self) -> int:
        """Most tokens of prompt and completion together: the model's positions, or the cache's if it has fewer."""
        return min(self.lm.model.config.max_positions, self.cache_tokens)

    def room(self, prompt: Sequence[int]) -> int:
        """Tokens that fit behind a prompt."""
        return self.context - len(prompt)

    def start(self) -> None:
        """Start the engine's thread; call it where the event loop runs. Nothing happens the second time."""
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._closing = False
            self._thread = threading.Thread(target=self._run, name="freedive-engine", daemon=True)
            self._thread.start()

    async def close(self, grace: float = 0.0) -> None:
        """Take no more requests, let those under way end for `grace` seconds, cancel the rest (finish_reason "cancelled")."""
        if self._thread is None:
            return
        self._closing = True
        until = time.monotonic() + grace
        while self.open_choices and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._inbox.put(("close", None))
        await asyncio.to_thread(self._thread.join)
        self._thread = None

    async def stream(self, prompt: Sequence[int], params: Params, *, seed: int | None = None, n: int = 1) -> AsyncIterator[Event]:
        """Events of n choices of a prompt (ids), until each had one with a finish_reason.

        seed None draws one. Closing the iterator, or cancelling the task that reads it, frees what it holds before the engine's next step.
        Raises as `open`.
        """
        stream = await self.open(prompt, params, seed=seed, n=n)
        try:
            async for event in stream:
                yield event
        finally:
            stream.close()

    async def open(self, prompt: Sequence[int], params: Params, *, seed: int | None = None, n: int = 1, deadline: float | None = None) -> Stream:
        """A Stream of n choices, accepted by the engine: what can be wrong with a request is wrong here, before anything was sent.

        Raises Busy when the queue is full, Closing at the end, ContextOverflow for a prompt and completion beyond the context, UserError as
        Engine.submit.
        """
        return await self.open_all([prompt], params, seed=seed, n=n, deadline=deadline)

    async def open_all(
        self, prompts: Sequence[Sequence[int]], params: Params, *, seed: int | None = None, n: int = 1, deadline: float | None = None
    ) -> Stream:
        """The same for several prompts, all or none: choice j of prompt i has the index i * n + j, and the seed of choice j of any prompt."""
        total = len(prompts) * n
        self._admit(total)
        for prompt in prompts:
            if len(prompt) + params.max_new_tokens > self.context:
                raise ContextOverflow(len(prompt), params.max_new_tokens, self.context)
        seed = secrets.randbits(53) if seed is None else seed  # 53 bits survive any JSON reader
        stream = Stream(self, sum(map(len, prompts)), seed, time.monotonic() + min(deadline or self.deadline, self.deadline))
        self.open_choices += total  # counted before anything is awaited, so that many at once do not all pass
        try:
            prepared = await asyncio.to_thread(self._prepare, prompts, params, seed, n)
            stream._choices = [Choice(stream, i, r, StopText(self.lm.tokenizer, params.stop)) for i, r in enumerate(prepared)]
            assert self._loop is not None
            accepted: asyncio.Future[None] = self._loop.create_future()
            self._inbox.put(("open", (stream._choices, accepted)))
            await accepted
        except BaseException:
            self.open_choices -= sum(not c.over for c in stream._choices) if stream._choices else total
            for choice in stream._choices:
                choice.over = True
                self._inbox.put(("cancel", choice))
            raise
        if self.observer is not None:
            for prompt in prompts:
                self.observer.began(len(prompt))
        return stream

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function of the model between two steps: embeddings, a trace. Everybody waits for it, so keep it short. Raises what it raises."""
        if not self.running or self._loop is None:
            raise Closing("the server is shutting down")
        if self._calls > self.max_queue:
            raise Busy(f"{self._calls} calls of the model are waiting, and {self.max_queue} is the limit")
        done: asyncio.Future[T] = self._loop.create_future()
        self._calls += 1
        self._inbox.put(("call", (function, arguments, done)))
        try:
            return await done
        finally:
            self._calls -= 1

    def _admit(self, n: int) -> None:
        if not self.running:
            raise Closing("the server is shutting down")
        limit = self.rows + self.max_queue
        if n > limit:
            raise UserError(f"{n} sequences were asked for at once; this server takes {limit}", hint="ask for fewer at a time")
        if self.open_choices + n > limit:
            raise Busy(f"{self.open_choices} sequences are running or waiting, and {limit} is the limit", retry_after=1)

    def _prepare(self, prompts: Sequence[Sequence[int]], params: Params, seed: int, n: int) -> list[Request]:
        return [self.engine.prepare(prompt, params, sample_seed(seed, j)) for prompt in prompts for j in range(n)]

    def _forget(self, choice: Choice, reason: str) -> None:
        self._end(choice, reason)
        self._inbox.put(("cancel", choice))

    def _end(self, choice: Choice, reason: str) -> None:
        choice.over = True
        self.open_choices -= 1
        if self.observer is not None:
            after = time.monotonic() - choice.first_at if choice.first_at is not None else 0.0
            self.observer.ended(reason, choice.seen, after)

    def _deliver(self, news: list[tuple[Choice, Event | Exception]]) -> None:
        for choice, event in news:
            if choice.over:
                continue  # closed meanwhile
            if choice.first_at is None:
                choice.first_at = time.monotonic()
                if self.observer is not None and isinstance(event, Event):
                    self.observer.first(choice.first_at - choice.stream._began, event.cached_tokens)
            if isinstance(event, Exception):
                self._end(choice, "error")
            elif event.finish_reason is not None:
                self._end(choice, event.finish_reason)
            choice.stream._pending.append(event)
            choice.stream._ready.set()

    # ---- the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        engine, going = self.engine, True
        while going or self._live:
            try:
                while True:
                    kind, what = self._inbox.get(block=going and not engine.busy)
                    if kind == "close":
                        going = False
                        break
                    self._do(kind, what)
                    if kind == "call" and engine.busy:  # one between two steps, so that many do not hold up who generates
                        break
            except queue.Empty:
                pass
            if not going:
                for choice in list(self._live.values()):
                    engine.cancel(choice.request)
            elif engine.busy:
                self._expire()
                try:
                    engine.step()
                except Exception as error:  # the engine is as new, what it ran is cancelled
                    traceback.print_exc(file=sys.stderr)
                    lost = EngineFailure(f"the engine failed: {type(error).__name__}")
                    self._tell([(c, lost) for c in self._live.values()])
                    self._live.clear()
                    continue
            self._report()
        while True:  # what came too late
            try:
                kind, what = self._inbox.get_nowait()
            except queue.Empty:
                return
            if kind in ("open", "call"):
                self._settle(what[-1], error=Closing("the server is shutting down"))

    def _do(self, kind: str, what: Any) -> None:
        if kind == "cancel":
            self.engine.cancel(what.request)
            self._live.pop(what.request, None)
            return
        *_, future = what
        try:
            if kind == "open":
                choices = what[0]
                self.engine.enqueue([c.request for c in choices])
                self._live.update({c.request: c for c in choices})
                self._settle(future, None)
            else:
                function, arguments, _ = what
                with self.lm.model.lock:
                    self._settle(future, function(*arguments))
        except Exception as error:
            self._settle(future, error=error)

    def _settle(self, future: asyncio.Future[Any], result: Any = None, error: Exception | None = None) -> None:
        def do() -> None:
            if not future.done():  # its task may have been cancelled
                future.set_exception(error) if error is not None else future.set_result(result)

        self._call_soon(do)

    def _expire(self) -> None:
        now = time.monotonic()
        for choice in list(self._live.values()):
            if now > choice.stream._deadline:
                self.engine.cancel(choice.request)

    def _report(self) -> None:
        """Tell what the last step brought."""
        news: list[tuple[Choice, Event | Exception]] = []
        for request, choice in list(self._live.items()):
            event = self._news(choice)
            if event is not None:
                news.append((choice, event))
                if event.finish_reason is not None:
                    del self._live[request]
        self._tell(news)

    def _news(self, choice: Choice) -> Event | None:
        request, seen = choice.request, choice.seen
        done = request.done
        ids, logprobs = self.engine.news(request, seen)
        if not ids and done is None:
            return None
        event = Event(choice.index, ids, "", logprobs)
        if request.work is not None and request.params.logprobs:
            event.top_logprobs = request.work.top[seen : seen + len(ids)]
        if choice.decoder is not None:
            for token in ids:
                if token not in request.params.stop_ids:
                    choice.decoder.push(token)
            event.text = choice.decoder.safe() if done is None else choice.decoder.safe() + choice.decoder.rest()
        if not seen:
            event.cached_tokens = request.cached
            if request.scores is not None:
                event.prompt_logprobs = request.scores.logprobs
                event.prompt_top_logprobs = request.scores.top if request.scores.alternatives else None
        choice.seen += len(ids)
        if done is not None:
            late = done.finish_reason == "cancelled" and time.monotonic() > choice.stream._deadline
            event.finish_reason = "deadline" if late else done.finish_reason
        return event

    def _tell(self, news: list[tuple[Choice, Event | Exception]]) -> None:
        if news:
            self._call_soon(self._deliver, news)

    def _call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the event loop is closed: nobody is there to be told
            pass


def _cache_tokens(context: int, block_bytes: int) -> int:
    affordable = int(available_memory() // 2 // block_bytes) * BLOCK
    wanted = max(4 * context, 32768)
    return max(min(wanted, affordable), BLOCK)
