"""What people do on the chat page, for the tests in a real browser; a module that imports it is skipped where a browser's packages are missing."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

pytest.importorskip("nicegui", reason="the pages need nicegui: pip install 'freedive[serve]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install 'freedive[test]'")
from browser import CHROMIUM, ROOT  # noqa: E402

expect = sync_api.expect
needs_chromium = pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"no {CHROMIUM}: apt-get install chromium")
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


def other_endpoint(page: Any, url: str, who: str = "theirs") -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_text("Another endpoint").click()
    page.get_by_label("Address").fill(url)
    page.get_by_label("Model", exact=True).fill("scripted")
    page.get_by_label("Key, if it wants one").fill("secret-key")
    page.get_by_label("Who answers").select_option(who)
    page.wait_for_timeout(300)
