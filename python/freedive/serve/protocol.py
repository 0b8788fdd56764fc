"""Bounds on what comes before a body: uvicorn waits for a request's headers as long as a client likes, and takes as many as it sends.

security.py bounds bodies, from within the application; headers never get that far. So the protocol that reads them is uvicorn's with a clock: a
connection has some seconds to say a whole request's headers, from its opening or from the first byte of the next request, and some bytes. In
between, uvicorn's own timeout_keep_alive counts.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from .errors import APIError, respond

SECONDS, BYTES = 10.0, 64 << 10
_REASONS = {408: "Request Timeout", 431: "Request Header Fields Too Large"}


class Limited:
    """Goes before one of uvicorn's two readers of HTTP (h11's, httptools'), whose `cycle` is a request with whole headers."""

    seconds, most = SECONDS, BYTES
    cycle: Any
    transport: Any
    loop: asyncio.AbstractEventLoop

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._clock: asyncio.TimerHandle | None = None
        self._waiting_bytes = 0  # of headers that are not whole

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_done()
        super().connection_lost(exc)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        whole = before is None or not before.more_body  # then these bytes belong to the next request
        if before is None or before.response_complete:
            self._start_clock()
        super().data_received(data)  # type: ignore[misc]
        if self.cycle is not before:  # made when headers are whole
            self._headers_done()
        elif whole:
            self._waiting_bytes += len(data)
            if self._waiting_bytes > self.most:
                self._refuse(431, f"the request's headers are larger than {self.most:,} bytes")

    def handle_websocket_upgrade(self, *arguments: Any) -> None:
        self._headers_done()
        super().handle_websocket_upgrade(*arguments)  # type: ignore[misc]

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self.seconds, self._late)

    def _headers_done(self) -> None:
        self._waiting_bytes = 0
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        self._clock = None
        if self._waiting_bytes:
            self._refuse(408, f"the request's headers did not arrive within {self.seconds:g} seconds")
        else:  # nothing was said: browsers open connections in advance
            self.transport.close()

    def _refuse(self, status: int, told: str) -> None:
        self._headers_done()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # not into the middle of an answer
            body = respond(APIError(status, told)).body
            head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()



class HeaderLimits(Limited, AutoHTTPProtocol):  # type: ignore[valid-type, misc]
    """For uvicorn.Config(http=HeaderLimits): the reader that uvicorn would take, httptools' where it is installed."""
