"""The page of `freedive label` in a real browser: by keyboard, by mouse, on a phone; blind, offline, safe; and nothing sent is ever lost.

Every page that a test opens is watched: a request to another address, an error or warning on the console, a dialog or an answer of 400 and above fails it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nicegui", reason="the pages need nicegui: pip install 'freedive[serve]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install 'freedive[test]'")
from browser import CHROMIUM, ROOT, Elsewhere, LabelServer, Watch, elsewhere  # noqa: E402

from freedive.sft.labels.store import Labels  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"no {CHROMIUM}: apt-get install chromium")
SHOTS = ROOT / "build" / "screenshots"
ATTACK = "<img src=x onerror=\"window.hit=1\"><script>window.hit=1</script> [x](javascript:window.hit=1) ![p](http://127.0.0.2:9/pixel.png)"
ROWS = [
    {"prompt": "Why do leaves turn red in autumn?", "models": ["secret-one", "secret-two", "secret-three"], "ranks": [0, 1, 2],
     "completions": ["As days grow short, a tree stops making **chlorophyll**, whose green hid the yellow of carotenoids all summer. Some trees also make anthocyanins from the sugar "
                     "left in the leaf, and these are red:\n\n- cool, bright days bring the most red\n- frost ends it",
                     "Because it is cold.",
                     "Leaves turn red because they are sad that summer is over. It was shown in 1953 by Prof. A. Maple, who won a prize for it.\n\n```python\nleaf.colour = \"red\"\n```"]},
    {"prompt": [{"role": "user", "content": "What is H2O?"}, {"role": "assistant", "content": "Water."}, {"role": "user", "content": "And with two Os?"}], "completions": ["Hydrogen peroxide, $H_2O_2$.", ATTACK]},
    {"prompt": ATTACK, "chosen": "I cannot help with that.", "rejected": "Sure!"},
    {"prompt": "Name a river.", "completions": ["The Rhine", "The Nile", "The Amazon", "The Volga"]},
]  # fmt: skip


@pytest.fixture
def label(tmp_path: Path, browser: Any) -> Iterator[Callable[..., tuple[LabelServer, Callable[..., Any]]]]:
    """label(*flags, rows=...) -> (a server, open(path, **context options) -> a watched page)."""
    servers: list[LabelServer] = []
    made: list[tuple[Any, Watch]] = []

    def begin(*flags: str, rows: list[dict[str, Any]] | None = None) -> tuple[LabelServer, Callable[..., Any]]:
        prompts = tmp_path / "prompts.jsonl"
        if not prompts.is_file():
            prompts.write_text("".join(json.dumps(r) + "\n" for r in rows or ROWS))
        server = LabelServer(prompts, tmp_path / "labels", *flags)
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
    for context, _ in made:
        context.close()
    for server in servers:
        if server.process is not None and server.process.poll() is None:
            server.kill(signal.SIGINT)
    assert not [watch.problems for _, watch in made if watch.problems]


def judged(server: LabelServer, who: str = "ada") -> list[dict[str, Any]]:
    path = server.folder / "judgements" / f"{who}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def place(page: Any, told: str) -> None:
    expect(page.locator(".progress > span").first).to_have_text(told)


def chip(page: Any, letter: str) -> Any:
    return page.locator(f"[data-chip={letter}]")


def shot(page: Any, name: str, **how: Any) -> None:
    """A picture for people, under build/screenshots."""
    page.wait_for_timeout(200)
    page.screenshot(path=SHOTS / f"label-{name}.png", **how)


def test_by_keyboard_alone(label: Callable[..., Any]):
    """Ranks with a tie, scores, a note, an ideal answer, sent with Ctrl-Enter: as one line, in ids, with the order shown; then the next prompt."""
    server, opened = label("--labeller", "ada")
    page = opened()
    place(page, "1 of 4")
    labels = Labels(server.folder)
    first = next(iter(labels.items.values()))
    order = labels.order(first.id, "ada")
    shown = [page.locator(f"[data-answer={x}] .prose").inner_text().split()[0] for x in "ABC"]
    assert shown == [next(a.text for a in first.answers if a.id == i).replace("*", "").split()[0] for i in order]
    expect(chip(page, "A")).to_be_focused()  # one can begin at once
    page.keyboard.type("2")
    expect(chip(page, "B")).to_be_focused()
    page.keyboard.type("1c2")  # B first; C by its letter; a tie
    expect(chip(page, "C")).to_have_attribute("aria-label", "Answer C, rank 2")
    page.keyboard.press("ArrowUp")
    expect(chip(page, "C")).to_have_attribute("aria-label", "Answer C, rank 1")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".ranker [aria-live]")).to_have_text("Answer C: rank 2")
    page.get_by_role("group", name="Score of answer B").get_by_role("radio", name="6").focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.get_by_label("Note on answer C").fill("too short")
    area = page.get_by_label("The ideal answer")
    area.focus()
    page.keyboard.type("Chlorophyll goes, **anthocyanins** come.")
    page.keyboard.press("Control+Enter")  # at once: nothing that was typed is missing
    place(page, "2 of 4")
    [one] = judged(server)
    assert one["ranks"] == {order[0]: 1, order[1]: 0, order[2]: 1} and one["order"] == order and one["item"] == first.id
    assert one["text"] == "Chlorophyll goes, **anthocyanins** come." and one["scores"] == {order[1]: 7} and one["answer_notes"] == {order[2]: "too short"}
    assert one["labeller"] == "ada" and 0 < one["seconds"] < 60 and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}Z", one["time"]) and one["guidelines"] == labels.head["guidelines"]
    expect(chip(page, "A")).to_be_focused()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_have_text("A, B have no rank yet")
    page.keyboard.type("12")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_have_text("there is no ideal answer yet")
    assert len(judged(server)) == 1
    page.get_by_role("button", name="Previous prompt").click()
    place(page, "1 of 4")
    expect(area).to_have_value("Chlorophyll goes, **anthocyanins** come.")  # as it was sent
    expect(chip(page, "B")).to_have_attribute("aria-label", "Answer B, rank 1")


def test_nobody_sees_who_wrote_what_and_attacks_are_inert(label: Callable[..., Any]):
    server, opened = label("--labeller", "ada", "--task", "rank")
    page = opened()
    source = page.content() + page.goto(server.base + "/").text()
    page.wait_for_selector("[data-answer=A]")
    source += page.content()
    assert "secret" not in source and not re.search(r"[\"'>]a[0-2][\"'<]", source)  # neither writers, nor ids in the order of the file
    assert any(Labels(server.folder).order(i, "ada") != [a.id for a in item.answers] for i, item in Labels(server.folder).items.items())
    for _ in range(2):
        page.get_by_role("button", name="Next prompt").click()
        page.wait_for_timeout(300)
        assert page.evaluate("window.hit") is None
        assert page.locator("#content :is(img, script, iframe)").count() == 0 and page.locator("#content a[href]:not([href^=http])").count() == 0
    expect(page.locator(".prompt .said")).to_contain_text("<script>window.hit=1</script>")  # as it was written
    page.goto(server.base + "/items")
    expect(page.get_by_role("link", name=re.compile("<img src=x"))).to_be_visible()
    assert page.evaluate("window.hit") is None


def test_mouse_flags_skips_and_second_thoughts(label: Callable[..., Any]):
    server, opened = label("--labeller", "ada", "--task", "rank")
    page = opened()
    rank = lambda n: page.locator(".ranker li").nth(n - 1)
    chip(page, "A").drag_to(rank(3))
    chip(page, "B").drag_to(rank(1))
    chip(page, "C").click()  # or picked up and put down
    rank(1).click()
    expect(rank(1).locator("button")).to_have_text(["B", "C"])
    chip(page, "C").drag_to(page.locator(".tray"))
    expect(page.locator(".tray button")).to_have_text(["C"])
    chip(page, "C").click()
    rank(2).click()
    page.get_by_label("personal data").check()
    page.get_by_label("Notes", exact=True).fill("who is Prof. Maple?")
    page.get_by_role("button", name="Send").click()
    place(page, "2 of 4")
    page.get_by_role("button", name="Skip").click()
    place(page, "3 of 4")
    expect(page.get_by_role("status")).to_have_text("2 done, 1 skipped")
    first, second = judged(server)
    order = first["order"]
    assert first["ranks"] == {order[0]: 2, order[1]: 0, order[2]: 1} and first["flags"] == ["personal data"] and first["notes"] == "who is Prof. Maple?"
    assert second["skipped"] and not second["ranks"]
    page.get_by_role("link", name="Items").click()
    expect(page.locator("tbody tr td:nth-child(4)")).to_have_text(["judged", "skipped", "open", "open"])
    page.get_by_role("link", name="Why do leaves").click()
    place(page, "1 of 4")
    expect(page.get_by_label("personal data")).to_be_checked()
    page.get_by_label("personal data").uncheck()
    chip(page, "A").focus()
    page.keyboard.type("1b2c3")
    page.get_by_role("button", name="Send").click()
    place(page, "3 of 4")
    lines = judged(server)
    assert len(lines) == 3 and lines[0] == first  # what was said before stays on the disk, and counts no more
    last = Labels(server.folder).last("ada")[first["item"]]
    assert last.ranks == {i: n for n, i in enumerate(order)} and not last.flags


def test_a_killed_program_has_lost_nothing_but_the_last_moment(label: Callable[..., Any]):
    server, opened = label("--labeller", "ada", "--task", "both")
    page = opened()
    chip(page, "A").focus()
    page.keyboard.type("123")
    page.get_by_label("The ideal answer").fill("Sent.")
    page.keyboard.press("Control+Enter")
    place(page, "2 of 4")
    page.keyboard.type("2")
    page.get_by_label("The ideal answer").press_sequentially("Half of an ans", delay=20)
    page.wait_for_timeout(900)
    server.process.send_signal(signal.SIGSTOP)  # so that the page cannot say good-bye, nor complain
    page.context.close()
    server.kill()
    again, opened = label("--labeller", "ada")
    page = opened()
    place(page, "2 of 4")
    expect(page.get_by_label("The ideal answer")).to_have_value("Half of an ans")
    expect(chip(page, "A")).to_have_attribute("aria-label", "Answer A, rank 2")
    assert [j["text"] for j in judged(again)] == ["Sent."]
    page.keyboard.type("b1")
    page.get_by_label("The ideal answer").fill("Half of an answer")
    page.keyboard.press("Control+Enter")
    place(page, "3 of 4")
    assert judged(again)[1]["text"] == "Half of an answer" and judged(again)[1]["seconds"] > 0
    assert not json.loads((again.folder / "drafts" / "ada.json").read_text())


def test_to_the_end_and_for_another_task_and_labeller(label: Callable[..., Any]):
    rows = [ROWS[3], {"prompt": "Name a lake.", "chosen": "Lake Garda", "rejected": "Lake Nowhere"}]
    server, opened = label("--labeller", "ada", "--task", "rank", rows=rows)
    page = opened()
    for keys in ("1234", "21"):
        expect(chip(page, "A")).to_be_focused()
        page.keyboard.type(keys)
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(400)
    expect(page.get_by_role("heading", name="All done")).to_be_visible()
    shot(page, "done")
    grace, opened = label("--labeller", "grace", "--task", "write", "--guidelines", str(ROOT / "README.md"))  # beside ada's, who is still at it
    page = opened()
    expect(page.locator("#ideal")).to_be_focused()
    expect(page.get_by_role("complementary", name="Guidelines")).to_contain_text("freedive")
    assert page.locator(".answers, .ranker").count() == 0
    page.keyboard.type("The Danube.")
    page.get_by_text("As it will look").click()
    expect(page.locator("details .prose")).to_have_text("The Danube.")
    page.keyboard.press("Control+Enter")
    place(page, "2 of 2")
    [one] = judged(grace, "grace")
    assert one["text"] == "The Danube." and not one["ranks"] and one["guidelines"] != judged(server)[0]["guidelines"]


def test_sampled_answers(label: Callable[..., Any], smollm2: Path):
    """SmolLM2 and an endpoint take turns; what was sampled is on the disk, and is the same after a restart."""
    Elsewhere.lines = {"river.": [{"content": "The Sc"}, {"content": "ripted"}], "lake.": [{"content": "Lake Script"}]}
    rows = [{"prompt": "Name a river."}, {"prompt": "Name a lake."}, {"prompt": "Name something unknown"}]
    flags = ("--labeller", "ada", "--task", "rank", "--answers", "3", "--max-tokens", "12", "--model", str(smollm2), "--endpoint-model", "scripted")
    with elsewhere() as url:
        server, opened = label(*flags, "--endpoint", url, rows=rows)
        page = opened()
        expect(page.locator("[data-answer]")).to_have_count(3, timeout=40_000)
        items = list(Labels(server.folder).items.values())
        assert sorted(a.source == "scripted" for a in items[0].answers) == [False, False, True] and len({a.text for a in items[0].answers}) == 3
        assert "scripted" not in page.content() and "SmolLM2" not in page.content()
        page.keyboard.type("123")
        page.keyboard.press("Control+Enter")
        place(page, "2 of 3")
        expect(page.locator("[data-answer]")).to_have_count(3, timeout=40_000)
        page.get_by_role("button", name="Next prompt").click()
        words = page.get_by_role("alert").filter(has_text="no such model <b>here</b>")  # the endpoint's own; the sheet's own empty alert may stand beside it
        expect(words).to_have_count(1, timeout=40_000)
        Elsewhere.lines["unknown"] = [{"content": "Now I know"}]
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("[data-answer]")).to_have_count(3, timeout=40_000)
        page.context.close()  # it would complain of a server that is gone
        server.kill(signal.SIGINT)
    before = {i: [a.text for a in item.answers] for i, item in Labels(server.folder).items.items()}
    assert all(len(texts) == 3 for texts in before.values())
    again, opened = label(*flags)  # without the endpoint: all is there already
    page = opened()
    expect(page.locator("[data-answer]")).to_have_count(3)
    assert {i: [a.text for a in item.answers] for i, item in Labels(again.folder).items.items()} == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_anybody_s_way(label: Callable[..., Any], scheme: str):
    """No serious finding of axe-core's; and the pictures."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python: pip install 'freedive[test]'").Axe()
    server, opened = label("--labeller", "ada")
    page = opened(color_scheme=scheme)
    expect(chip(page, "A")).to_be_focused()
    page.keyboard.type("21")
    found = {"label": axe.run(page)}
    page.get_by_role("group", name="Score of answer A").get_by_text("5").click()
    page.locator(".judged").evaluate("e => e.scrollTo(0, 0)")
    shot(page, scheme)
    page.keyboard.press("Control+Enter")
    found["alert"] = axe.run(page)
    page.get_by_role("button", name="Next prompt").click()
    page.wait_for_timeout(300)
    found["a conversation"] = axe.run(page)
    shot(page, f"conversation-{scheme}")
    page.get_by_role("link", name="Items").click()
    page.wait_for_selector("tbody tr")
    found["items"] = axe.run(page)
    shot(page, f"items-{scheme}")
    bad = [(name, v["id"], v["impact"], v["nodes"][0]["html"][:200], v["nodes"][0].get("failureSummary", "")[:300])
           for name, result in found.items() for v in result.response["violations"] if v["impact"] in ("serious", "critical")]  # fmt: skip
    assert not bad
    assert page.evaluate("document.body.classList.contains('body--dark')") == (scheme == "dark")


def test_on_a_phone(label: Callable[..., Any]):
    server, opened = label("--labeller", "ada")
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, device_scale_factor=2)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    expect(page.locator("#guidelines")).to_be_hidden()
    page.get_by_role("button", name="Guidelines").tap()
    expect(page.get_by_role("heading", name="How to judge answers")).to_be_visible()
    shot(page, "phone-guidelines")
    page.locator("button.veil").tap(position={"x": 350, "y": 400})
    expect(page.locator("#guidelines")).to_be_hidden()
    for letter, rank in (("A", 2), ("B", 1), ("C", 2)):
        chip(page, letter).tap()
        page.locator(".ranker li").nth(rank - 1).tap()
    shot(page, "phone", full_page=True)
    page.get_by_label("The ideal answer").fill("Less green, so more red.")
    page.get_by_role("button", name="Send").tap()
    place(page, "2 of 4")
    assert page.evaluate(fits) and page.evaluate("scrollY") == 0
    order = judged(server)[0]["order"]
    assert judged(server)[0]["ranks"] == {order[0]: 1, order[1]: 0, order[2]: 1}
    page.goto(server.base + "/items")
    page.wait_for_selector("tbody tr")
    assert page.evaluate(fits)


def test_a_password(label: Callable[..., Any], browser: Any):
    server, opened = label("--labeller", "ada", "--task", "rank", "--api-key", "secret")
    assert browser.new_context().request.get(server.base + "/").status == 401
    page = opened(http_credentials={"username": "anybody", "password": "secret"})
    expect(chip(page, "A")).to_be_focused()
    page.keyboard.type("123")
    page.keyboard.press("Control+Enter")
    place(page, "2 of 4")
    assert len(judged(server)) == 1


def test_other_sites_get_nothing(label: Callable[..., Any], browser: Any):
    server, _ = label("--labeller", "ada")

    def status(path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status

    socket = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    assert status("/") == 200
    assert [status(p, Host="evil.example") for p in ("/", "/items", socket)] == [403, 403, 403]
    assert status(socket, Origin="http://evil.example") == 403
    page = browser.new_page()
    answer = page.goto(server.base + "/")
    assert "default-src 'self'" in answer.headers["content-security-policy"] and "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    page.goto("data:text/html,<title>evil</title>")
    opened = page.evaluate("""u => new Promise(r => { const w = new WebSocket(u); w.onopen = () => r('open'); w.onerror = () => r('refused') })""",
                           server.base.replace("http", "ws") + "/_nicegui_ws/socket.io/?EIO=4&transport=websocket")  # fmt: skip
    assert opened == "refused"
    page.close()
    assert not judged(server)
