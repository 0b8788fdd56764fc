"""What an answer can hold, in a real browser: Markdown, mathematics, thought, calls of tools and of Python, errors; from ours and from another endpoint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import Elsewhere, Server, Watch, elsewhere
from chat_page import WORDS, ask, expect, finished, last, needs_chromium, other_endpoint, setting, shot

pytestmark = needs_chromium


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
