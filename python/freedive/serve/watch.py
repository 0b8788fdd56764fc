"""`freedive watch RUN...`: a page with the curves and samples of runs, which follows them while they go on."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from freedive.runs import UserError, check_at_least, option
from freedive.runs.follow import find_runs

from .command import INSTALL, NEEDED, _listen, key_of

PAGE_NEEDS = (*NEEDED, "nicegui", "markdown_it", "mdit_py_plugins", "latex2mathml", "pygments")


@dataclass(frozen=True)
class WatchConfig:
    """Curves and samples of runs, finished or going on, on a page. Ctrl-C ends it; the runs know nothing of it."""

    runs: list[Path] = option(help="folders that training verbs write or wrote, or a folder of such folders", positional=True)
    every: float = option(2.0, "seconds between looks")
    port: int = option(8030, "to listen on, on this machine alone; 0 takes a free one")
    api_key: str | None = option(None, "a password for the page, where others use this machine (better: the environment variable FREEDIVE_API_KEY)")
    open: bool = option(False, "open the page in this machine's browser")


def run(c: WatchConfig) -> int:
    """Serve the page until Ctrl-C; returns the exit code. UserError for folders without a run."""
    check_at_least(c, 0.2, "every")
    check_at_least(c, 0, "port")
    if missing := [n for n in PAGE_NEEDS if importlib.util.find_spec(n) is None]:
        raise UserError(f"the page needs the Python package {missing[0].replace('_', '-')}, which is not installed", hint=INSTALL)
    if not c.runs:
        raise UserError("no run is named", hint="freedive watch runs/base, or the folder of all runs: freedive watch runs")
    runs = find_runs(c.runs)
    key = key_of(c.api_key)
    with _listen("127.0.0.1", c.port) as listening:
        from .local_app import create_local_app, serve_local
        from .pages import watch

        app = create_local_app(lambda: watch.register(runs, c.every), api_key=key)
        where = f"http://127.0.0.1:{listening.getsockname()[1]}"
        print(f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {', '.join(r.name for r in runs)}")
        print(f"open: {where}" + ("" if key is None else ", any name and the key as password"), flush=True)
        if c.open:
            import webbrowser

            webbrowser.open(where)
        serve_local(app, listening)
    return 0
