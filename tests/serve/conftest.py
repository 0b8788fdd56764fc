from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'freedive[serve]'")


@pytest.fixture(scope="session")
def served():
    pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install openai")
    from serve_http import Served

    with Served() as s:
        yield s
