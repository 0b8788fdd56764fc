"""What a client of the service holds: the events of its sequences as they come, and the ways in which there are none.

Everything here runs on the event loop's thread but a choice's `request`, `decoder` and `seen`, which are the engine's (service.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from freedive.inference.engine import Request
from freedive.inference.stops import StopText
from freedive.runs import UserError

if TYPE_CHECKING:
    from .service import Service


class Busy(Exception):
    """The queue is full; `retry_after` is seconds to wait before asking again."""

    def __init__(self, message: str, retry_after: int = 1):
        super().__init__(message)
        self.retry_after = retry_after


class Closing(Exception):
    """The service is shutting down, or not started."""


class EngineFailure(Exception):
    """A step of the engine raised: a bug, or no memory. The service goes on; this request is lost."""


class ContextOverflow(UserError):
    """Prompt and completion are longer than the model's context: the counts."""

    def __init__(self, prompt: int, new: int, room: int):
        self.prompt, self.new, self.room = prompt, new, room
        super().__init__(
            f"this model's context is {room} tokens; the request has {prompt + new}: {prompt} in the prompt, {new} for the completion",
            hint="shorten the prompt, or ask for fewer tokens",
        )


@dataclass
class Event:
    """What is new of one choice since its last event."""

    index: int = 0
    ids: list[int] = field(default_factory=list)  # a stop id included
    text: str = ""  # whole characters only, without stop ids and strings and without what may become one
    logprobs: list[float] = field(default_factory=list)  # of each of `ids`, nats, at the sampling temperature
    top_logprobs: list[dict[int, float]] = field(default_factory=list)  # of each of `ids`, the likeliest ids there, with Params.logprobs
    finish_reason: str | None = None  # stop, length, cancelled (the server shut down), deadline; None: more will come
    prompt_logprobs: list[float | None] | None = None  # on a choice's first event, with Params.prompt_logprobs; the first id has none
    prompt_top_logprobs: list[dict[int, float] | None] | None = None
    cached_tokens: int = 0  # prompt ids found in the cache

    def add(self, later: Event) -> None:
        """Append the next event of the same choice."""
        self.ids += later.ids
        self.text += later.text
        self.logprobs += later.logprobs
        self.top_logprobs += later.top_logprobs
        self.finish_reason = later.finish_reason


class Choice:
    """One sequence: its request, and what was already told of it."""

    def __init__(self, stream: Stream, index: int, request: Request, decoder: StopText | None):
        self.stream, self.index, self.request, self.decoder = stream, index, request, decoder
        self.seen = 0
        self.first_at: float | None = None  # time of its first event on the event loop
        self.over = False  # on the event loop: the last event was delivered, or nobody wants more


class Stream:
    """The events of the choices of one prompt, or of several, as they come. Made by `Service.open`; close it, or the engine goes on to the end.

    `async for event in stream`, or `await stream.next(timeout)`, which gives None where nothing came in time.
    """

    def __init__(self, service: Service, prompt_tokens: int, seed: int, deadline: float):
        self.prompt_tokens, self.seed = prompt_tokens, seed
        self._service, self._deadline, self._began = service, deadline, time.monotonic()
        self._choices: list[Choice] = []
        self._pending: deque[Event | Exception] = deque()
        self._ready = asyncio.Event()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        event = await self.next()
        assert event is not None
        return event

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event; those of one choice that came meanwhile as one. None after `timeout` seconds without any.

        Raises StopAsyncIteration when all choices have ended, EngineFailure when the engine failed.
        """
        while not self._pending:
            if all(c.over for c in self._choices):
                raise StopAsyncIteration
            self._ready.clear()
            try:
                await asyncio.wait_for(self._ready.wait(), timeout)
            except asyncio.TimeoutError:
                return None
        event = self._pending.popleft()
        if isinstance(event, Exception):
            self.close()
            raise event
        while self._pending and isinstance(later := self._pending[0], Event) and later.index == event.index:
            event.add(later)
            self._pending.popleft()
        return event

    def cancel(self, index: int) -> None:
        """Give up one choice: its row and blocks are free before the engine's next step. Nothing happens to one that has ended."""
        choice = self._choices[index]
        if not choice.over:
            self._service._forget(choice, "cancelled")

    def close(self) -> None:
        """Give up all choices that have not ended."""
        for choice in self._choices:
            self.cancel(choice.index)

    async def aclose(self) -> None:
        self.close()
