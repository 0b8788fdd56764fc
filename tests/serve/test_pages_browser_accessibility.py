"""That anybody can use the pages, in a real browser: axe-core's findings, phones, keyboards, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browser import Server
from chat_page import SHOTS, SKY, ask, expect, needs_chromium, setting, shot

pytestmark = needs_chromium


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
