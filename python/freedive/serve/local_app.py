"""An app of pages without the API: for programs of one person at this machine (`freedive label`), behind the same checks as the server.

It answers to this machine's names only, whatever it shows comes from this machine, and there is no way to make it listen elsewhere.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from . import errors
from .security import Limits, Security

HOST = "127.0.0.1"


def create_local_app(register: Callable[[], None], services: Sequence[Any] = (), work: Callable[[], Any] | None = None, api_key: str | None = None) -> FastAPI:
    """A FastAPI app with the pages that `register` declares, /health, and nothing else.

    services: started and closed with it. work: makes an async context manager to be open meanwhile. api_key: what a browser asks for as a password, where
    others use this machine too. UserError without nicegui, and the second time in a process.
    """
    from .pages import needed, run_with

    needed()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for service in services:
                service.start()
                stack.push_async_callback(service.close, 0.0)
            if work is not None:
                await stack.enter_async_context(work())
            yield

    app = FastAPI(title="freedive", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(app)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    register()
    run_with(app)
    app.add_middleware(Security, limits=Limits(api_key=api_key, plain_bodies=("/_nicegui_ws/",)))
    return app


def serve_local(app: FastAPI, listening: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    import uvicorn

    from .protocol import HeaderLimits

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, server_header=False, ws_max_size=4 << 20, http=HeaderLimits)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # which uvicorn raises again once it has ended in order
        pass
