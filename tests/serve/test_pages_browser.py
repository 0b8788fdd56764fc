"""The pages in a real browser, with a real model (SmolLM2-135M-Instruct): what they do, that they talk to nobody, and that anybody can use them.

Every page that a test opens is watched: a request to another address, an error or warning on the console, a dialog or an answer of 400 and above fails it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nicegui", reason="the pages need nicegui: pip install 'freedive[serve]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install 'freedive[test]'")
from browser import CHROMIUM, ROOT, Elsewhere, Server, Watch, elsewhere  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"no {CHROMIUM}: apt-get install chromium")
SHOTS = ROOT / "build" / "screenshots"
SKY = "Why is the sky blue? Answer in two sentences."
PAYLOAD = "<img src=x onerror=\"window.hit=1\"><script>window.hit=1</script><svg/onload=window.hit=1> [x](javascript:window.hit=1) ![p](http://127.0.0.2:9/pixel.png)"
WORDS = {
    "attack": [{"content": PAYLOAD[:40]}, {"content": PAYLOAD[40:] + r" $\text{<img/src=x/onerror=window.hit=1>}$"}],
    "markdown": [{"content": c} for c in re.findall(r"[\s\S]{1,17}", "The area is $\\pi r^2$.\n\n```python\ndef area(r):\n    return 3.14159 * r**2\n```\n\n| r | area |\n|---|---|\n| 1 | 3.14 |\n\n$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$\n\n- one\n- two\n")],
    "think": [{"reasoning_content": "Let me see. "}, {"reasoning_content": "2 and 2."}, {"content": "It is "}, {"content": "4."}],
    "inline": [{"content": "<th"}, {"content": "ink>Hm, 17 times 3.</thi"}, {"content": "nk>\n\nIt is 51."}],
    "tools": [{"tool_calls": [{"index": 0, "function": {"name": "weather", "arguments": '{"ci'}}]}, {"tool_calls": [{"index": 0, "function": {"arguments": 'ty": "<b>Oslo</b>"}'}}]}],
}  # fmt: skip


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(smollm2, tmp_path_factory.mktemp("conversations"), "--name", "SmolLM2-135M-Instruct")
    one.start()
    yield one
    one.kill(signal.SIGINT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """open(path, **context options) -> a watched page."""
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


def ask(page: Any, text: str, wait: bool = True) -> None:
    before = page.locator(".turn.assistant").count()
    field = page.get_by_role("textbox", name=re.compile("^Message"))
    field.fill(text)
    field.press("Enter")
    expect(page.locator(".turn.assistant")).to_have_count(before + 1)
    if wait:
        finished(page)


def finished(page: Any) -> None:
    expect(page.get_by_role("button", name="Again")).to_have_count(page.locator(".turn.assistant").count(), timeout=40_000)  # comes with the end of an answer
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def shot(page: Any, name: str) -> None:
    """A picture for people, under build/screenshots."""
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(150)
    page.screenshot(path=SHOTS / f"{name}.png")


def setting(page: Any, name: str, value: float) -> None:
    page.get_by_role("slider", name=name).evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})) }", value)
    page.wait_for_timeout(250)


def last(page: Any) -> str:
    return page.locator(".turn.assistant").last.locator(".prose, .toks").first.inner_text().replace("↵", "")


def drawn(tokens: Any, n: int | None = None) -> str:
    """The text of the first n tokens of a token view."""
    return "".join(tokens.all_text_contents()[:n]).replace("↵", "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_anybody_s_way(opened: Callable[..., Any], server: Server, scheme: str):
    """No serious finding of axe-core's, on any page, light or dark; and the pictures."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python: pip install 'freedive[test]'").Axe()
    page = opened("/", color_scheme=scheme)
    look = lambda: axe.run(page, options=None if scheme == "light" else {"runOnly": ["color-contrast"]})  # the rest is the same in the dark
    found = {"empty chat": look()}
    page.get_by_role("button", name="Settings").click()
    setting(page, "Temperature", 0)
    setting(page, "Longest answer", 96)
    ask(page, SKY)
    shot(page, f"chat-{scheme}")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Tokens").click()
    page.locator(".toks .t").nth(11).hover()
    shot(page, f"chat-tokens-{scheme}")
    found["chat"] = look()
    for name, button, ready in (("playground", "Go on", "[data-dream] [role=status]:has-text('tokens ·')"), ("tokenizer", "Numbers", ".pieces .p"), ("model", "Look", ".heads button")):
        page.goto(f"{server.base}/{name}")
        if name == "playground":
            page.get_by_label("Begin with").select_option("Translator, English to French")
        if name == "tokenizer":
            page.get_by_role("combobox", name="Compare with").select_option("bytes")
        page.get_by_role("button", name=button).click()
        page.wait_for_selector(ready, timeout=40_000)
        if name == "model":
            page.evaluate("scrollTo(0, 0)")
            page.wait_for_timeout(150)
            page.screenshot(path=SHOTS / f"model-whole-{scheme}.png", full_page=True)
        shot(page, f"{name}-{scheme}")
        found[name] = look()
    bad = [(name, v["id"], v["impact"], v["nodes"][0]["html"][:200], v["nodes"][0].get("failureSummary", "")[:300])
           for name, result in found.items() for v in result.response["violations"] if v["impact"] in ("serious", "critical")]  # fmt: skip
    assert not bad
    assert page.evaluate("document.body.classList.contains('body--dark')") == (scheme == "dark")


def test_an_answer_streams_and_is_there_after_a_reload(opened: Callable[..., Any]):
    page = opened("/")
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"  # one can type at once
    page.keyboard.type("Why is the sky blue? Explain it at length, step by step.")
    # What stood there at each change: the page keeps it, for whoever looks from outside may look too late.
    page.evaluate("""() => { window.stood = []; new MutationObserver(() => { const p = document.querySelector('.turn.assistant .prose'); if (p) window.stood.push(p.innerText) })
        .observe(document.body, {childList: true, subtree: true, characterData: true}) }""")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.turn.assistant .prose')?.innerText.length > 5")
    finished(page)
    whole = last(page)
    stood = [text for text in dict.fromkeys(page.evaluate("window.stood")) if 5 < len(text) < len(whole) - 5]
    assert len(stood) > 2 and whole.startswith(stood[0].rstrip()) and "\ufffd" not in whole
    expect(page.locator(".figures")).to_contain_text(re.compile(r"\d+ tokens · \d+ a second · first after"))
    assert re.fullmatch(r".*/c/[0-9a-f]{32}", page.url)
    expect(page.locator(".side.list li.here")).to_contain_text("Why is the sky blue?")
    page.reload()
    page.wait_for_selector(".turn.assistant .prose")
    assert last(page) == whole


def test_stop_ends_it_and_go_on_continues_it(opened: Callable[..., Any]):
    page = opened("/")
    ask(page, "Tell a very long story about a lighthouse keeper and the sea.", wait=False)
    page.wait_for_function("document.querySelector('.turn.assistant .prose')?.innerText.length > 40")
    page.keyboard.press("Escape")
    finished(page)
    expect(page.locator(".figures")).to_contain_text("stopped")
    text = last(page)
    page.wait_for_timeout(400)
    assert last(page) == text  # nothing comes after
    page.get_by_role("button", name="Settings").click()
    setting(page, "Longest answer", 16)
    assert page.get_by_role("slider", name="Longest answer").input_value() == "16"  # and stays so, whatever is drawn
    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".branches").last).to_contain_text("2 / 2")
    finished(page)
    assert last(page).startswith(text.rstrip()) and len(last(page)) > len(text)


def test_branches(opened: Callable[..., Any]):
    page = opened("/")
    page.get_by_role("button", name="Settings").click()
    setting(page, "Longest answer", 16)
    setting(page, "Temperature", 1.5)
    ask(page, "Name a fish.")
    first = last(page)
    page.get_by_role("button", name="Again").click()
    expect(page.locator(".turn.assistant .branches")).to_contain_text("2 / 2")
    finished(page)
    second = last(page)
    page.get_by_role("button", name="Previous branch").click()
    expect(page.locator(".turn.assistant .branches")).to_contain_text("1 / 2")
    assert last(page) == first
    page.reload()
    page.wait_for_selector(".turn.assistant .prose")
    assert last(page) == first  # what was looked at is looked at again
    page.get_by_role("textbox", name=re.compile("^Message")).press("ArrowUp")  # the last question, to be edited
    page.get_by_label("Your question").fill("Name a bird.")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.user .branches")).to_contain_text("2 / 2")
    finished(page)
    assert page.locator(".turn.assistant .branches").count() == 0  # a new question has one answer
    page.locator(".turn.user").get_by_role("button", name="Previous branch").click()
    expect(page.locator(".turn.user")).to_contain_text("Name a fish.")
    assert last(page) == first and second


def test_another_token_is_a_branch_that_begins_with_it(opened: Callable[..., Any]):
    page = opened("/")
    page.get_by_role("button", name="Settings").click()
    setting(page, "Longest answer", 48)
    setting(page, "Temperature", 0)
    ask(page, SKY)
    text = last(page)
    page.get_by_role("button", name="Tokens").click()
    tokens = page.locator(".toks .t")
    expect(tokens.first).to_be_visible()
    assert drawn(tokens).split() == text.split()
    tokens.nth(3).hover()
    offered = page.locator(".pop button")
    expect(offered).to_have_count(8)
    shares = [float(t.splitlines()[-1].strip("<%")) for t in offered.all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 102
    before, other = drawn(tokens, 3), offered.nth(1).inner_text().splitlines()[0].replace("·", " ").replace("↵", "\n")
    tokens.nth(3).focus()  # with the keyboard: open, one down, choose
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant .branches")).to_contain_text("2 / 2")
    finished(page)
    page.wait_for_timeout(200)
    assert drawn(tokens).startswith(before + other)
    page.get_by_role("button", name="Previous branch").click()
    expect(page.locator(".turn.assistant .branches")).to_contain_text("1 / 2")
    assert drawn(tokens).split() == text.split()


def other_endpoint(page: Any, url: str, who: str = "theirs") -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_text("Another endpoint").click()
    page.get_by_label("Address").fill(url)
    page.get_by_label("Model", exact=True).fill("scripted")
    page.get_by_label("Key, if it wants one").fill("secret-key")
    page.get_by_label("Who answers").select_option(who)
    page.wait_for_timeout(300)


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


def test_another_endpoint_answers(opened: Callable[..., Any], server: Server):
    Elsewhere.lines, Elsewhere.asked = WORDS, []
    with elsewhere() as url:
        page = opened("/")
        other_endpoint(page, url)
        ask(page, "Show markdown")
        prose = page.locator(".turn.assistant .prose").last
        for inside in ("math", "pre code .k", "table td", "ul li", "math[display=block]"):
            expect(prose.locator(inside).first).to_be_visible()
        ask(page, "think")
        thought = page.locator("details.think:visible").last
        expect(thought.locator(".inside")).to_be_hidden()
        thought.locator("summary").click()
        expect(thought.locator(".inside")).to_have_text("Let me see. 2 and 2.")
        assert last(page) == "It is 4."
        ask(page, "inline")
        assert last(page) == "It is 51."
        expect(page.locator("details.think:visible").last.locator(".inside")).to_have_text("Hm, 17 times 3.")
        ask(page, "Use tools")
        expect(page.locator("[data-tool=weather]")).to_contain_text('{"city": "<b>Oslo</b>"}')
        ask(page, "something unknown")
        expect(page.get_by_role("alert")).to_contain_text("404: no such model <b>here</b>")
        headers, body = Elsewhere.asked[0]
        assert headers["authorization"] == "Bearer secret-key" and body["model"] == "scripted" and body["stream"] is True
        page.get_by_label("Who answers").select_option("both")
        setting(page, "Longest answer", 16)
        page.get_by_role("textbox", name=re.compile("^Message")).fill("Both now: inline")
        page.get_by_role("textbox", name=re.compile("^Message")).press("Enter")
        expect(page.locator(".pairs .turn")).to_have_count(2)
        finished(page)
        expect(page.locator(".pairs .turn .who")).to_have_text(["SmolLM2-135M-Instruct", "scripted"])
        page.get_by_role("button", name="Go on with this one").click()
        expect(page.locator(".pairs .turn.chosen .who")).to_have_text("scripted")
    written = "".join(p.read_text() for p in server.folder.glob("*.jsonl"))
    assert "Both now" in written and "secret-key" not in written
    page.get_by_label("Address").fill("file:///etc/passwd")
    page.wait_for_timeout(300)
    page.get_by_label("Who answers").select_option("theirs")
    ask(page, "x")
    expect(page.get_by_role("alert").last).to_contain_text("is not the address of an endpoint")


@pytest.mark.parametrize("form", ["slots", "json"])
def test_python_is_called_and_shown_as_a_card(browser: Any, tmp_path: Path, form: str):
    """In both forms in which models call: between tokens of ours, and Qwen's JSON."""
    script = Path(__file__).with_name("scripted_pages.py")
    process = subprocess.Popen([sys.executable, str(script), form, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    try:
        base = process.stdout.readline().strip()
        page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
        watch = Watch(page, base)
        page.goto(base)
        page.get_by_role("button", name="Settings").click()
        page.get_by_role("checkbox", name="Python in a sandbox").check()
        setting(page, "Temperature", 0)
        page.get_by_role("button", name="Settings").click()
        ask(page, "What is twice the sum of the numbers below seven?")
        card = page.locator("[data-tool=python]")
        expect(card).to_contain_text("sum(range(7)) * 2")
        expect(card).to_contain_text("42")
        assert last(page).split() == ["It", "is", "42", "é."]
        shot(page, f"chat-python-{form}")
        page.reload()
        expect(card).to_contain_text("42")  # the card is kept
        page.get_by_role("button", name="Tokens").click()
        expect(page.locator(".toks")).to_contain_text("42")
        assert not watch.problems
    finally:
        process.communicate("", timeout=30)
    assert process.returncode == 0


def test_playground(opened: Callable[..., Any]):
    page = opened("/playground")
    page.get_by_label("Begin with").select_option("Opposites")
    expect(page.locator("#prompt")).to_have_value(re.compile("hot -> cold"))
    setting(page, "Longest answer", 16)
    page.get_by_role("button", name="Three times").click()
    expect(page.locator("[data-dream]")).to_have_count(3)
    for told in page.locator("[data-dream] [role=status]").all():
        expect(told).to_contain_text("tokens ·", timeout=30_000)
    card = page.locator("[data-dream]").first
    tokens = card.locator(".toks .t")
    tokens.nth(2).click()
    before, other = drawn(tokens, 2), card.locator(".pop button").nth(1).locator("span").first.inner_text().replace("·", " ").replace("↵", "\n")
    card.locator(".pop button").nth(1).click()
    expect(card.locator("[role=status]")).to_contain_text("tokens ·", timeout=30_000)
    page.wait_for_function("([b, o]) => [...document.querySelectorAll('[data-dream]')[0].querySelectorAll('.t')].map(t => t.textContent.replaceAll('↵', '')).join('').startsWith(b + o)", arg=[before, other])
    page.locator("#prompt").fill("The capital of France is Paris.")
    page.get_by_role("button", name="How likely is this text?").click()
    expect(page.get_by_text("nats a token on average")).to_be_visible()
    paris = page.locator(".toks .t", has_text="Paris")
    paris.hover()
    expect(page.locator(".pop button.taken")).to_contain_text("·Paris")
    page.locator("#prompt").fill("")
    page.get_by_role("button", name="How likely is this text?").click()  # the beginning of a document: no text to judge
    page.wait_for_timeout(300)


def test_tokenizer(opened: Callable[..., Any]):
    page = opened("/tokenizer")
    text = page.get_by_role("textbox", name="Text")
    text.fill("")
    text.press_sequentially("Hello!!! strawberry", delay=40)  # the results are drawn anew meanwhile, and undo nothing of it
    expect(text).to_have_value("Hello!!! strawberry")
    expect(page.locator(".numbers b").first).to_have_text("3")  # as llama.cpp and tiktoken cut it: Hello, !!!, strawberry
    assert page.get_by_test_id("ids").locator(".p").all_inner_texts() == ["19556", "29646", "35199"]
    page.get_by_label("Show white space").check()
    expect(page.get_by_test_id("pieces")).to_have_text("Hello!!!·strawberry")
    page.get_by_label("Compare with").select_option("bytes")
    expect(page.get_by_test_id("pieces")).to_have_count(2)
    expect(page.locator(".numbers b").nth(4)).to_have_text("19")
    page.get_by_label("Compare with").select_option("-")
    page.get_by_role("button", name="Special").click()
    expect(page.locator(".pieces .special")).to_have_count(0)  # typed text is never a special token
    page.get_by_role("button", name="A conversation").click()
    expect(page.locator(".pieces .special").first).to_be_visible()
    trained = "".join(page.locator(".pieces .trained").all_inner_texts())
    assert "2+2" in trained.replace("·", " ") and "What" not in trained
    page.get_by_role("textbox", name="Text").fill('[{"role": "user"')
    expect(page.get_by_role("alert")).to_contain_text("the conversation is not JSON")


def test_model_page(opened: Callable[..., Any]):
    page = opened("/model")
    expect(page.locator(".numbers b").first).to_have_text("134,515,008")
    for shape in ("49,152 × 576", "192 × 576", "1,536 × 576", "576 × 1,536"):
        expect(page.locator(".drawing svg text", has_text=shape).first).to_be_attached()
    page.get_by_role("button", name="Look").click()
    expect(page.locator(".lens tbody tr")).to_have_count(31, timeout=40_000)
    expect(page.locator(".lens tbody tr").first.locator("td").last).to_have_text("·Paris")
    expect(page.locator(".heads button")).to_have_count(9)
    page.get_by_role("combobox", name="Block").select_option("0")
    page.get_by_role("button", name="head 3").click()
    expect(page.get_by_role("img", name="Attention of layer 1, head 3")).to_be_visible()
    assert page.evaluate("document.querySelector('.bighead canvas').getContext('2d').getImageData(0, 0, 1, 1).data[3]") == 255  # the first token sees itself only
    page.get_by_label("A text").fill("")
    page.get_by_role("button", name="Look").click()
    expect(page.get_by_role("alert")).to_contain_text("there is no text")


def test_on_a_phone(opened: Callable[..., Any]):
    page = opened("/", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, device_scale_factor=2)
    shot(page, "phone-empty")
    fits = "document.documentElement.scrollWidth <= innerWidth"
    page.get_by_role("button", name="Settings").tap()
    setting(page, "Longest answer", 32)
    page.locator("button.veil").tap(position={"x": 10, "y": 300})
    ask(page, "Why is the sea salty? Also, " + "a" * 120)
    assert page.evaluate(fits)
    shot(page, "phone-chat")
    page.get_by_role("button", name="Conversations").tap()
    expect(page.locator(".side.list")).to_be_visible()
    assert page.evaluate(fits)
    page.locator("button.veil").tap(position={"x": 350, "y": 300})
    expect(page.locator(".side.list")).to_be_hidden()
    base = page.url.split("/c/")[0]
    for name in ("playground", "tokenizer", "model"):
        page.goto(f"{base}/{name}")
        page.wait_for_selector("h1")
        page.wait_for_timeout(200)
        assert page.evaluate(fits), name
        shot(page, f"phone-{name}")


def test_theme_and_keyboard(opened: Callable[..., Any]):
    page = opened("/tokenizer", color_scheme="light")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate("document.body.classList.contains('body--dark')")
    page.reload()
    page.wait_for_selector("h1")
    page.wait_for_function("document.body.classList.contains('body--dark')")
    page.keyboard.press("Control+k")  # no conversation here: nothing happens
    page.goto(page.url.replace("/tokenizer", "/"))
    page.wait_for_selector(".composer textarea")
    page.keyboard.press("Control+k")
    page.wait_for_selector(".composer textarea")


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


def test_a_long_conversation_is_drawn_from_its_end(opened: Callable[..., Any], server: Server):
    from freedive.serve.pages.conversations import Store, node

    store = Store(server.folder)
    c, parent = store.new("A long talk"), ""
    for i in range(80):
        for role in ("user", "assistant"):
            one = node(parent, role, f"{role} {i}", source="x" if role == "assistant" else "", finish="stop")
            store.save(c, one)
            parent = one.id
    page = opened(f"/c/{c.id}")
    expect(page.locator(".turn")).to_have_count(30)
    expect(page.locator(".turn").last).to_be_in_viewport()
    page.evaluate("document.querySelectorAll('.turn').forEach((e, i) => e.dataset.old = i)")
    ask(page, "Hi.", wait=False)
    page.keyboard.press("Escape")
    finished(page)
    assert page.locator(".turn[data-old]").count() == 30  # what was there was not drawn again
    page.get_by_role("button", name="130 earlier messages").click()
    expect(page.locator(".turn")).to_have_count(62)


def test_a_tab_that_is_closed_stops_its_answer(browser: Any, server: Server):
    import urllib.request

    running = lambda: float(re.search(r"^freedive_sequences_running ([\d.]+)", urllib.request.urlopen(server.base + "/metrics").read().decode(), re.M)[1])
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.base)
    page.get_by_role("button", name="Settings").click()
    setting(page, "Temperature", 0)  # to be sure of a long one
    setting(page, "Longest answer", 4096)
    ask(page, "Count from one to a thousand, in words.", wait=False)
    page.wait_for_function("document.querySelector('.turn.assistant .prose')?.innerText.length > 5")
    assert running() == 1
    context.close()
    until = time.monotonic() + 20
    while running() and time.monotonic() < until:
        time.sleep(0.25)
    assert not running()


def test_a_conversation_deleted_while_it_is_answered_is_gone(opened: Callable[..., Any], server: Server):
    page = opened("/")
    page.get_by_role("button", name="Settings").click()
    setting(page, "Temperature", 0)
    setting(page, "Longest answer", 4096)
    ask(page, "Delete me: tell a very long story about a whale and a ship, with many chapters.", wait=False)
    page.wait_for_function("document.querySelector('.turn.assistant .prose')?.innerText.length > 5")
    page.get_by_role("button", name="Delete Delete me").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.wait_for_url(server.base + "/")
    page.wait_for_timeout(1500)  # the answer's last words would be saved by now
    assert not [f for f in server.folder.glob("*.jsonl") if "Delete me" in f.read_text()]


def test_a_killed_server_has_kept_what_was_said(smollm2: Path, tmp_path: Path, browser: Any):
    first = Server(smollm2, tmp_path)
    first.start()
    page = browser.new_page()
    page.goto(first.base)
    ask(page, "What is 2+2?")
    whole = last(page)
    ask(page, "Tell a very long story about a whale and a ship, with many chapters.", wait=False)
    page.wait_for_function("document.querySelectorAll('.turn.assistant')[1]?.querySelector('.prose').innerText.length > 150", timeout=30_000)
    time.sleep(1.1)  # it is written to the disk every second
    seen, path = last(page), "/c/" + page.url.rsplit("/", 1)[1]
    first.kill()
    page.close()
    second = Server(smollm2, tmp_path)
    second.start()
    try:
        page = browser.new_page()
        page.goto(second.base + path)
        page.wait_for_selector(".turn.assistant .prose")
        assert page.locator(".turn.assistant .prose").first.inner_text() == whole
        assert len(last(page)) > 60 and " ".join(last(page).split())[:60] == " ".join(seen.split())[:60]
        expect(page.locator(".figures").last).to_contain_text("interrupted")
        kept = last(page)
        page.get_by_role("button", name="Go on").click()  # and so it does
        page.wait_for_function("n => [...document.querySelectorAll('.turn.assistant')].at(-1).querySelector('.prose').innerText.length > n + 20", arg=len(kept))
        assert " ".join(last(page).split())[:60] == " ".join(kept.split())[:60]
        page.close()
    finally:
        second.kill(signal.SIGINT)
