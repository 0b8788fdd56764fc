"""Headers of the pages' answers: what a page shows cannot load anything from elsewhere, whatever a model wrote.

Who may ask at all (Host, Origin, key, WebSockets included) is serve/security.py's. The Content-Security-Policy is the last of three walls before
a model's words: markdown.py writes no HTML of theirs, the page runs DOMPurify over what it wrote, and a browser loads nothing from another origin.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Vue compiles templates in the page, which needs unsafe-eval, and NiceGUI starts it from an inline script.
CSP = "; ".join(
    [
        "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", "style-src 'self' 'unsafe-inline'", "img-src 'self' data:",
        "font-src 'self' data:", "connect-src 'self'", "frame-src 'none'", "frame-ancestors 'none'", "object-src 'none'", "base-uri 'none'", "form-action 'self'",
    ]
)  # fmt: skip
_HEADERS = [
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class PageHeaders:
    """ASGI middleware that adds them, where they are not there."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                kept = {name.lower() for name, _ in headers}
                message["headers"] = [*headers, *(h for h in _HEADERS if h[0] not in kept)]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
