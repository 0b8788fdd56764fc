"""Pages to chat with a model, play with it, and look inside (talk 1.2, 1.4, 1.5, 3, 5.3). Same process as the API, all of it offline.

    mount(app, service)        before the first request; `app` is serve.app's FastAPI

labelling.py is a page of another program's, `freedive label` (serve/label.py), in the same frame and behind the same checks.

Each page is one file: chat.py, playground.py, tokenizer.py, model.py. shell.py is the frame around them, parts.py what they are made of, static/ what
runs in the browser: five Vue components without a build step, and the style sheet. conversations.py keeps what was said. None of them knows a model's words
but as text: see markdown.py and headers.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freedive.runs import UserError

_mounted = False


def mount(app: Any, service: Any, *, conversations: Path | None = None, base: bool = False, remote: bool = True) -> None:
    """Put the pages at / of a FastAPI app, behind the routes it has already.

    conversations: the folder they are kept in (default: XDG's, ~/.local/share/freedive/conversations). base: the model knows no turns, so there
    is no chat with it. remote: the chat page may ask other endpoints, from this machine: not for a server that others use. Who may ask is
    not checked here: serve.app puts serve/security.py before everything. Raises UserError without nicegui, for a folder that cannot be written
    to, and the second time in a process.
    """
    needed()
    from . import chat, model, playground, tokenizer
    from .conversations import Store, default_folder
    from .shell import Pages

    pages = Pages(service, Store(conversations or default_folder()), base or service.lm.tokenizer.chat is None, remote)
    for page in (chat, playground, tokenizer, model):
        page.register(pages)
    run_with(app)


def needed() -> None:
    """UserError without nicegui, and where pages are mounted already."""
    try:
        import nicegui  # noqa: F401
    except ImportError:
        raise UserError("the pages need the Python package nicegui", hint="run: pip install 'freedive[serve]'") from None
    if _mounted:
        raise UserError("pages are mounted once in a process")


def run_with(app: Any) -> None:
    """Put the pages that were registered at / of a FastAPI app, behind its routes; once in a process."""
    global _mounted
    from nicegui import ui

    from .headers import PageHeaders
    from .shell import BRAND_ICON

    ui.run_with(app, title="freedive", favicon=BRAND_ICON, dark=None, language="en-US", tailwind=False, show_welcome_message=False,
                reconnect_timeout=5.0)  # fmt: skip
    app.router.routes[-1] = _behind(app.router.routes[-1], ["/openapi.json", *app.openapi()["paths"]])
    app.add_middleware(PageHeaders)
    _mounted = True


def _behind(mounted: Any, paths: Sequence[str]) -> Any:
    """The mounted pages, which leave the first names of the API's paths to it: what is unknown below /v1 is the API's 404, and not a page."""
    from starlette.routing import Match, Mount

    first = lambda path: (path.split("/") + [""])[1]
    taken = {first(path) for path in paths}

    class Behind(Mount):
        def matches(self, scope: Any) -> Any:
            return (Match.NONE, {}) if first(scope.get("path", "")) in taken else super().matches(scope)

    return Behind(mounted.path, app=mounted.app, name=mounted.name)
