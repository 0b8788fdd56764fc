"""The pages beside the chat, in a real browser with a real model: playground, tokenizer, model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from chat_page import drawn, expect, needs_chromium, setting

pytestmark = needs_chromium


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
