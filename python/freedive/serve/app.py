"""The web application: routes over a service, with the checks of security.py before all of them and OpenAI's form for all errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freedive import __version__

from . import errors
from .metrics import Metrics
from .routes import chat, completions, embeddings, models, tokens, trace
from .security import Limits, Security
from .service import Service

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message", "type", "param", "code"],
                             "properties": {"message": {"type": "string"}, "type": {"type": "string"},
                                            "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}}},
}  # fmt: skip


def create_app(service: Service, *, limits: Limits | None = None, grace: float = 5.0, pages: bool = False, **page_settings: Any) -> FastAPI:
    """A FastAPI app that serves `service`, and starts and closes it with itself.

    limits: who may ask (default: this machine, without a key). grace: seconds that requests under way have at the end. pages: also mount the
    pages of serve/pages, with page_settings; needs nicegui. Raises UserError where that is asked for and missing.
    """
    limits = limits or Limits()
    if pages:  # their socket, where a browser has no WebSockets, posts text
        limits = replace(limits, plain_bodies=(*limits.plain_bodies, "/_nicegui_ws/"))
    metrics = Metrics()
    metrics.watch(service)
    service.observer = service.observer or metrics

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close(grace)

    # FastAPI's own documentation pages load scripts from the internet; the schema itself is at /openapi.json.
    app = FastAPI(title="freedive", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.metrics = service, metrics
    errors.install(app)
    for part in (models, completions, chat, embeddings, tokens, trace):
        app.include_router(part.router)
    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]
    if pages:
        from .pages import mount

        mount(app, service, **page_settings)
    # The last added stands first: counting, then the checks, then CORS for the origins allowed.
    if limits.origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(limits.origins), allow_methods=["GET", "POST"], allow_headers=["Authorization", "Content-Type"])
    app.add_middleware(Security, limits=limits)
    app.add_middleware(_Counted, metrics=metrics)
    return app


class _Counted:
    """Counts answers by route and status, refusals of the middleware included."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "(none)")  # the pattern: paths people make up would be series without end
                self.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted)


def _schema(app: FastAPI) -> dict[str, Any]:
    """OpenAPI with the errors as they are: in one form, 400 where FastAPI would say 422."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        schema["components"]["schemas"]["Error"] = _ERROR
        told = {"description": "what was wrong", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
        for methods in schema["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                operation["responses"] |= {"4XX": told, "5XX": told}
        schema["paths"]["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
        for path in ("/v1/completions", "/v1/chat/completions"):
            schema["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
        app.openapi_schema = schema
    return app.openapi_schema


