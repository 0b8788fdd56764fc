"""The servers and the browser that this folder's tests share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Server, Watch


@pytest.fixture(scope="session")
def served():
    """One server for all tests that change nothing about it."""
    pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'freedive[serve]'")
    pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install openai")
    from serve_http import Served

    with Served(context=1024) as s:
        yield s


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`freedive serve` with SmolLM2-135M-Instruct."""
    one = Server(smollm2, tmp_path_factory.mktemp("conversations"), "--name", "SmolLM2-135M-Instruct")
    one.start()
    yield one
    one.kill(signal.SIGINT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """open(path, **context options) -> a watched page: a request to another address, an error or warning on the console, a dialog or an answer of 400 and above fails the test."""
    made: list[tuple[Any, Watch]] = []

    def open_(path: str, **options: Any) -> Any:
        context = browser.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 860}), **options)
        page = context.new_page()
        page.set_default_timeout(30_000)
        made.append((context, Watch(page, server.base)))
        page.goto(server.base + path)
        page.wait_for_selector("main")
        return page

    yield open_
    for context, watch in made:
        context.close()
        assert not watch.problems
