"""Who may ask, and how much: checks that stand before every route, as one ASGI middleware.

A server on localhost is reachable from every page a browser shows. So the Host must be one of ours (a name of somebody else's that
resolves to 127.0.0.1 is DNS rebinding), an Origin must be the server's own or one allowed, and a body must say it is JSON, which a foreign page
cannot send unasked. The key, where there is one, is asked for on every path but /health, WebSockets included. Bodies are read here, whole,
within a size and a time, so no route ever waits for a client that sends slowly.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import APIError, respond

PUBLIC = ("/health",)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """What the middleware lets through."""

    hosts: tuple[str, ...] = LOOPBACK  # names a Host header may have; "*" is any
    any_address: bool = False  # also any IP address: for a server that listens beyond this machine
    origins: tuple[str, ...] = ()  # besides the server's own
    api_key: str | None = None
    body_bytes: int = 1 << 20
    body_seconds: float = 10.0
    plain_bodies: tuple[str, ...] = ()  # paths below which a body need not be JSON (pages)


class Security:
    """The middleware."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._host(headers)
            self._origin(headers)
            if not self._preflight(scope, headers):
                self._key(scope["path"], headers)
            if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                receive = await self._body(scope, headers, receive)
        except APIError as error:
            await _refuse(error, scope, receive, send)
            return
        except _Gone:
            return
        await self.app(scope, receive, send)

    def _host(self, headers: Headers) -> None:
        names = headers.getlist("host")
        name = _name(names[0]) if len(names) == 1 else None
        if name is None:
            raise APIError(400, "a request needs one Host header", code="invalid_host")
        limits = self.limits
        if "*" not in limits.hosts and name not in limits.hosts and not (limits.any_address and _is_address(name)):
            told = f"this server does not answer to the name {name[:80]!r}; start it with --allow-host {name[:80]} if it is yours"
            raise APIError(403, told, code="host_not_allowed")

    def _origin(self, headers: Headers) -> None:
        for origin in headers.getlist("origin"):
            own = urlsplit(origin).netloc.lower() == headers["host"].lower() and origin.startswith(("http://", "https://"))
            if not own and origin.lower() not in self.limits.origins:
                raise APIError(403, f"pages of {origin[:80]!r} may not use this server; start it with --allow-origin if they are yours", code="origin_not_allowed")

    def _preflight(self, scope: Scope, headers: Headers) -> bool:
        """Whether a browser asks if an allowed page may ask: that question never carries the key."""
        asks = scope.get("method") == "OPTIONS" and "access-control-request-method" in headers
        return asks and headers.get("origin", "").lower() in self.limits.origins

    def _key(self, path: str, headers: Headers) -> None:
        key = self.limits.api_key
        if key is None or path in PUBLIC:
            return
        if not hmac.compare_digest(_given(headers.get("authorization", "")).encode(), key.encode()):
            api = path.startswith("/v1/")
            told = "no API key was given" if "authorization" not in headers else "the API key is wrong"
            hint = "send the header Authorization: Bearer KEY"
            # A browser asks for a password where it is told Basic: so pages work with a key too.
            challenge = "Bearer" if api else 'Basic realm="freedive: any name, the API key as password"'
            raise APIError(401, f"{told}; {hint}", headers={"WWW-Authenticate": challenge})

    async def _body(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        limit = self.limits.body_bytes
        too_large = APIError(413, f"the body is larger than {limit:,} bytes, which is this server's limit", headers={"Connection": "close"})
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > limit:
            raise too_large
        try:
            body = await asyncio.wait_for(_read(receive, limit), self.limits.body_seconds)
        except asyncio.TimeoutError:
            raise APIError(408, f"the body did not arrive within {self.limits.body_seconds:g} seconds", headers={"Connection": "close"}) from None
        if body is None:
            raise too_large
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if body and kind != "application/json" and not any(scope["path"].startswith(p) for p in self.limits.plain_bodies):
            raise APIError(415, f"the body is {kind[:60] or 'of no stated type'}; it must be application/json")
        told = False

        async def replay() -> Message:
            nonlocal told
            if told:
                return await receive()  # http.disconnect, when it comes
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay


class _Gone(Exception):
    """The client left before its request was whole."""


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None if it is larger than `limit`."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


async def _refuse(error: APIError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:100]})
    else:
        await respond(error)(scope, receive, send)


def _name(host: str) -> str | None:
    """The name in a Host header, lower case, without port; None for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for what is no port
    except ValueError:
        return None
    return parts.hostname if parts.hostname and not (parts.path or parts.query or parts.username) else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _given(authorization: str) -> str:
    """The key in an Authorization header: a bearer token, or the password of basic authentication."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode("utf-8", "replace").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def limits_for(host: str, *, hosts: Sequence[str] = (), origins: Sequence[str] = (), **more: Any) -> Limits:
    """Limits of a server that listens on `host`: on loopback it answers to this machine's names only, elsewhere to any address too."""
    beyond = host not in LOOPBACK
    return Limits(tuple(dict.fromkeys((*LOOPBACK, host.lower(), *(h.lower() for h in hosts)))), beyond,
                  tuple(o.lower().rstrip("/") for o in origins), **more)  # fmt: skip
