"""The chat page in a real browser, with a real model (SmolLM2-135M-Instruct): streaming, stopping, going on, branches, and what is kept when a tab, a conversation or the
server goes."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser import Server
from chat_page import SKY, ask, drawn, expect, finished, last, needs_chromium, setting

pytestmark = needs_chromium


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
