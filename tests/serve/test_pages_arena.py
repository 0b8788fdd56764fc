"""The page of `freedive arena` in a real browser: blind until the vote is on the disk, by keys, with questions of one's own, killed and gone on, on a phone."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nicegui", reason="the pages need nicegui: pip install 'freedive[serve]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install 'freedive[test]'")
from browser import CHROMIUM, ROOT, Server, Watch  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"no {CHROMIUM}: apt-get install chromium")
SHOTS = ROOT / "build" / "screenshots"
SAYS = {"secret-oak": "It is **blue**, by Rayleigh's scattering.", "secret-elm": "<img src=x onerror=\"window.hit=1\"> green", "secret-ash": "I do not know."}


class Streaming(BaseHTTPRequestHandler):
    """Each model has its line; a question that ends in "slowly" is answered when `gate` opens, one in "failing" never."""

    wbufsize = -1
    gate = threading.Event()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        if question.endswith("failing"):
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        words = SAYS[body["model"]].split(" ")
        for i, word in enumerate(words):
            if question.endswith("slowly") and i == 1:
                self.wfile.flush()
                Streaming.gate.wait(30)
            self.wfile.write(b"data: " + json.dumps({"choices": [{"delta": {"content": word + (" " if i + 1 < len(words) else "")}}]}).encode() + b"\n\n")
        self.wfile.write(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')

    def log_message(self, *_: Any) -> None:
        pass


class ArenaServer(Server):
    def words(self) -> list[str]:
        return ["arena", "--port", str(self.port), "--out", str(self.folder), "--voter", "ada"]


@pytest.fixture
def arena(tmp_path: Path, browser: Any) -> Iterator[Callable[..., tuple[ArenaServer, Callable[..., Any]]]]:
    """arena(prompts) -> (a server, open(path, **context options) -> a watched page)."""
    Streaming.gate.clear()
    fake = type("Fake", (ThreadingHTTPServer,), {"request_queue_size": 64})(("127.0.0.1", 0), Streaming)
    threading.Thread(target=fake.serve_forever, daemon=True).start()
    servers: list[ArenaServer] = []
    made: list[tuple[Any, Watch]] = []

    def begin(*prompts: str) -> tuple[ArenaServer, Callable[..., Any]]:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
        players = [f"http://127.0.0.1:{fake.server_port}/v1,model={name}" for name in SAYS]
        server = ArenaServer(file, tmp_path / "arena", *players, *(["--prompts", str(file)] if prompts else []))
        server.start()
        servers.append(server)

        def open_(path: str = "/", **options: Any) -> Any:
            context = browser.new_context(viewport=options.pop("viewport", {"width": 1440, "height": 900}), **options)
            page = context.new_page()
            page.set_default_timeout(20_000)
            made.append((context, Watch(page, server.base)))
            page.goto(server.base + path)
            page.wait_for_selector("main")
            return page

        return server, open_

    yield begin
    Streaming.gate.set()
    for context, _ in made:
        context.close()
    for server in servers:
        if server.process is not None and server.process.poll() is None:
            server.kill(signal.SIGINT)
    fake.shutdown()
    assert not [watch.problems for _, watch in made if watch.problems]


def log(server: ArenaServer) -> list[dict[str, Any]]:
    path = server.folder / "battles.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def said(page: Any, letter: str) -> str:
    return str(page.locator(f"[data-answer={letter}] .prose").inner_text()).strip()


def test_votes_by_keys_blind_until_they_are_kept_and_a_kill_loses_none(arena: Callable[..., Any]):
    server, opened = arena("Why is the sky blue?")
    page = opened()
    expect(page.locator("[data-key='1']")).to_be_enabled()
    content = page.content()
    assert not any(name in content for name in SAYS)  # nothing tells who it is
    left = said(page, "A")
    page.keyboard.press("1")
    expect(page.locator("[data-key='1']")).to_have_attribute("aria-pressed", "true")
    [one] = log(server)
    assert one["winner"] == "model_a" and one["judge"] == "ada" and one["conversation_a"][-1]["content"] == SAYS[one["model_a"]]
    assert left.split()[-1] == SAYS[one["model_a"]].split()[-1]
    assert not any(name in page.content() for name in SAYS)  # its answers stand in the other two battles
    page.keyboard.press("t")  # on second thoughts
    expect(page.locator("[data-key=t]")).to_have_attribute("aria-pressed", "true")
    assert [r["winner"] for r in log(server)] == ["model_a", "tie"]
    page.goto("about:blank")
    server.kill()  # -9
    server.start()
    page = opened()
    expect(page.locator(".progress > span").first).to_have_text("1 of 3 decided")
    for key, winner in (("x", "tie (bothbad)"), ("b", "model_b")):
        expect(page.locator("[data-key='2']")).to_be_enabled()
        page.keyboard.press(key)
        expect(page.locator(f"[data-key={key}], [data-key='{'2' if key == 'b' else key}']").first).to_have_attribute("aria-pressed", "true")
        assert log(server)[-1]["winner"] == winner
        last = log(server)[-1]
        if winner == "model_b":  # the last battle of the question
            for letter, side in (("A", "model_a"), ("B", "model_b")):
                expect(page.locator(f"[data-author={letter}]")).to_have_text(last[side])
            votes = len(log(server))
            page.keyboard.press("1")  # who has seen the names votes no more
            page.wait_for_timeout(200)
            assert len(log(server)) == votes
        else:
            assert not any(name in page.content() for name in SAYS)
        page.keyboard.press("n")
        expect(page.locator("[aria-pressed=true]")).to_have_count(0)  # the next battle is drawn
        expect(page.locator("[data-author=A]")).to_have_count(0)
    expect(page.get_by_role("heading", name="All decided")).to_be_visible()
    assert len({r["id"] for r in log(server)}) == 3 and len({json.dumps(r["conversation_a"]) for r in log(server)} | {json.dumps(r["conversation_b"]) for r in log(server)}) == 3
    assert page.evaluate("window.hit") is None


def test_a_question_of_ones_own_is_written_before_ones_eyes_and_keys_are_letters_there(arena: Callable[..., Any]):
    server, opened = arena()
    page = opened()
    area = page.locator("#question")
    area.fill("Tell me 1 t slowly")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("They are writing")).to_be_visible()
    expect(page.locator("[data-key='1']")).to_be_disabled()
    expect(page.locator("[data-answer=A] .prose")).not_to_have_text("…")  # its first word
    page.locator("#question").focus()
    page.keyboard.type("1t")
    Streaming.gate.set()
    expect(page.locator("[data-key='1']")).to_be_enabled()
    assert page.locator("#question").input_value() == "1t" and not log(server)
    page.locator("[data-key='2']").click()
    expect(page.locator("[data-author=B]")).to_be_visible()
    assert log(server)[0]["winner"] == "model_b" and log(server)[0]["conversation_a"][0]["content"] == "Tell me 1 t slowly"
    page.goto(server.base + "/ratings")
    expect(page.get_by_role("table")).to_contain_text("secret-")
    page.goto(server.base + "/")
    page.locator("[data-ask]").click()
    expect(page.get_by_role("alert").filter(has_text="there is no question yet")).to_be_visible()
    page.locator("#question").fill("failing")
    page.locator("[data-ask]").click()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    content = page.content()
    assert not any(name in content for name in SAYS) and "/v1" not in content and "500" not in page.locator(".votes").inner_text()  # neither the address nor what the service said
    assert len(log(server)) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_clean_by_axe_and_on_a_phone(arena: Callable[..., Any], scheme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python: pip install 'freedive[test]'").Axe()
    server, opened = arena("Why is the sky blue?", "Name a colour.")
    found = {}
    SHOTS.mkdir(parents=True, exist_ok=True)
    for width in (1440, 390):
        page = opened(viewport={"width": width, "height": 844}, color_scheme=scheme)
        expect(page.locator("[data-key='1']")).to_be_enabled()
        found[f"battle {width}"] = axe.run(page)
        page.screenshot(path=SHOTS / f"arena-{scheme}-{width}.png")
        page.locator("[data-key='1']").click()
        expect(page.locator("[data-key='1']")).to_have_attribute("aria-pressed", "true")
        found[f"voted {width}"] = axe.run(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.goto(server.base + "/ratings")
        page.wait_for_selector("table, [role=alert]")
        time.sleep(0.2)
        found[f"ratings {width}"] = axe.run(page)
        page.screenshot(path=SHOTS / f"arena-ratings-{scheme}-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    bad = {where: [(v["id"], v["nodes"][0]["html"][:160]) for v in r.response["violations"] if v["impact"] in ("serious", "critical")] for where, r in found.items()}
    assert not any(bad.values()), bad
