"""Server-sent events, and noticing that a client has left while its answer is being made in one piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .errors import APIError, as_api_error, dumps
from .stream import Event, Stream

T = TypeVar("T")
PING_SECONDS = 15.0
DONE = b"data: [DONE]\n\n"


def data(content: Any) -> bytes:
    """One event."""
    return f"data: {dumps(content)}\n\n".encode("utf-8", "replace")


class Answer(StreamingResponse):
    """A stream's events as they come. Whatever becomes of the connection, also before the first piece, the stream is closed with it."""

    def __init__(self, stream: Stream, pieces: AsyncIterator[bytes]):
        # Proxies are asked not to hold pieces back.
        super().__init__(pieces, media_type="text/event-stream; charset=utf-8", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.stream.close()


async def events(stream: Stream, on_event: Callable[[Event], bytes], end: Callable[[], bytes], begin: bytes = b"") -> AsyncIterator[bytes]:
    """What `on_event` makes of each of a stream's events, `end()` and [DONE]; a comment every 15 silent seconds keeps proxies from hanging up.

    An error after the beginning is an event of its own, the last one.
    """
    try:
        if begin:
            yield begin
        while True:
            try:
                event = await stream.next(PING_SECONDS)
            except StopAsyncIteration:
                break
            yield on_event(event) if event is not None else b": ping\n\n"
        yield end() + DONE
    except Exception as error:
        yield data(as_api_error(error).body)


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise APIError(499, "the client left", code="client_left")  # nobody will read it
        return task.result()
    finally:
        for other in (task, gone):
            if not other.done():
                other.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
