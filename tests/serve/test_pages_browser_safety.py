"""Attacks on the pages in a real browser: text that would be code, other sites, a browser without the key."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser import Elsewhere, Server, Watch, elsewhere
from chat_page import PAYLOAD, WORDS, ask, expect, needs_chromium, other_endpoint

pytestmark = needs_chromium


def test_attacks_are_inert(opened: Callable[..., Any]):
    Elsewhere.lines = WORDS
    with elsewhere() as url:
        page = opened("/")
        other_endpoint(page, url)
        ask(page, PAYLOAD + " attack")
        page.reload()
        page.wait_for_selector(".turn.assistant .prose")
        page.wait_for_timeout(300)
        assert page.evaluate("window.hit") is None
        assert page.locator("main :is(img, script, iframe, object, embed, form)").count() == 0
        assert page.locator("main .turn a[href]:not([href^=http])").count() == 0
        assert page.evaluate("[...document.querySelectorAll('main *')].every(e => e.getAttributeNames().every(n => !/^on/.test(n)))")
        expect(page.locator(".turn.user .said")).to_contain_text("<script>window.hit=1</script>")  # as it was typed
        expect(page.locator(".turn.assistant .prose")).to_contain_text("<script>window.hit=1</script>")
        assert "window.hit" in page.title()


def test_other_sites_get_nothing(server: Server, browser: Any):
    import http.client

    def status(**headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/_nicegui_ws/socket.io/?EIO=4&transport=polling", headers=headers)
        return connection.getresponse().status

    assert status(Origin="http://evil.example") == 403
    assert status(Host="evil.example") == 403
    page = browser.new_page()
    page.goto("data:text/html,<title>evil</title>")
    opened = page.evaluate("""u => new Promise(r => { const w = new WebSocket(u); w.onopen = () => r('open'); w.onerror = () => r('refused') })""",
                           server.base.replace("http", "ws") + "/_nicegui_ws/socket.io/?EIO=4&transport=websocket")  # fmt: skip
    assert opened == "refused"
    answer = page.goto(server.base + "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and answer.headers["x-content-type-options"] == "nosniff"
    assert page.goto(server.base + "/c/..%2f..%2fetc%2fpasswd").status in (200, 404) and "root:" not in page.content()
    page.close()


def test_a_base_model_behind_a_key(tmp_path: Path, browser: Any):
    """Of ours, as pretrain writes it: no chat, but everything else; and a browser asks for the key and sends it with all it does."""
    from serve_cases import TOKENIZER, make_lm
    from serve_http import LARGE

    from freedive.inference.folder import save_model_folder

    folder = tmp_path / "dive" / "pretrain"
    save_model_folder(make_lm(LARGE).model, TOKENIZER, folder, TOKENIZER.bos_id)
    (folder / "run.json").write_text('{"stage": "pretrain", "config": {}}')
    server = Server(folder, tmp_path / "conversations", "--api-key", "secret")
    server.start()
    try:
        context = browser.new_context(http_credentials={"username": "anybody", "password": "secret"})
        page = context.new_page()
        watch = Watch(page, server.base)
        page.goto(server.base)
        expect(page.get_by_role("heading", name="A base model")).to_be_visible()
        page.get_by_role("textbox", name="Message dive/pretrain").fill("Hello?")
        page.keyboard.press("Enter")
        expect(page.get_by_text("it does not answer")).to_be_visible()
        assert not list(server.folder.iterdir())
        page.get_by_role("link", name="To the playground").click()
        page.get_by_role("button", name="Go on").click()
        expect(page.locator("[data-dream] [role=status]")).to_contain_text("tokens ·")
        page.goto(server.base + "/model")
        page.get_by_role("button", name="Look").click()
        expect(page.locator(".lens tbody tr")).to_have_count(3)
        context.close()
        assert not watch.problems
        for path, status, kind in (("/", 401, "json"), ("/_nicegui_ws/socket.io/?EIO=4&transport=polling", 401, "json")):
            answer = browser.new_context().request.get(server.base + path)
            assert answer.status == status and kind in answer.headers["content-type"]
        api = browser.new_context(extra_http_headers={"Authorization": "Bearer secret"}).request
        for answer, status in ((api.get(server.base + "/v1/nothing"), 404), (api.get(server.base + "/v1/completions"), 405), (api.post(server.base + "/v1/trace", data={"prompt": "a"}), 200)):
            assert answer.status == status and answer.headers["content-type"].startswith("application/json")  # the API's own words, not a page
        assert api.get(server.base + "/nothing").status == 404
    finally:
        server.kill(signal.SIGINT)
