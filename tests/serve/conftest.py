from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def served():
    """One server for all tests that change nothing about it."""
    pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'freedive[serve]'")
    pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install openai")
    from serve_http import Served

    with Served(context=1024) as s:
        yield s
