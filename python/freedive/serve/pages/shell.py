"""What all pages share: the bar with their names, the look, the theme; and what they know of the server they belong to."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nicegui import ui

from freedive.tokenizer import Tokenizer

from .conversations import Store
from .markdown import highlight_css
from .parts import Tag, box, button, fixed_html

STATIC = Path(__file__).parent / "static"
PAGES = (("/", "Chat"), ("/playground", "Playground"), ("/tokenizer", "Tokenizer"), ("/model", "Model"))
_BRAND = '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" aria-hidden="true"><path d="M3 6c3-2 6-2 9 0s6 2 9 0"/><path d="M5 12c2.4-1.6 4.7-1.6 7 0s4.600 1.600 7 0" opacity=".7"/><path d="M8 18c1.400-1 2.700-1 4 0s2.600 1 4 0" opacity=".45"/></svg>'

BRAND_ICON = _BRAND.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ').replace("currentColor", "#0a6a8c")


@dataclass(frozen=True)
class Pages:
    """What the pages are about."""

    service: Any  # serve.service.Service
    store: Store
    base: bool  # the model knows no turns: chat is for others
    remote: bool  # other endpoints may be asked from here

    @property
    def name(self) -> str:
        return str(self.service.name)

    @property
    def model(self) -> Any:
        return self.service.lm.model

    @property
    def tok(self) -> Tokenizer:
        return self.service.lm.tokenizer


@contextmanager
def frame(pages: Pages, here: str, title: str) -> Iterator[None]:
    """The page around what is put inside."""
    with framed(PAGES, here, title, pages.name, f"the model served here: {pages.name}"):
        yield


@contextmanager
def framed(links: Sequence[tuple[str, str]], here: str, title: str, chip: str, chip_told: str, script: str = "") -> Iterator[None]:
    """The page around what is put inside: a bar with links to its sister pages and, in a chip, what they are about. script: a file of static/, besides."""
    ui.page_title(f"{title} · freedive")
    ui.add_head_html(f"<style>{_css()}</style><script>{_script()}{(STATIC / script).read_text('utf-8') if script else ''}</script>")
    fixed_html('<a class="skip" href="#content">Skip to content</a>')
    with box("bar", "header"):
        with Tag("a", "", "brand", href="/", aria_label=f"freedive: {links[0][1].lower()}"):
            fixed_html(_BRAND + "<span>freedive</span>", tag="span").style("display:flex;align-items:center;gap:.5rem")
        with box("", "nav", aria_label="Pages"):
            for path, name in links:
                Tag("a", name, href=path, **({"aria_current": "page"} if path == here else {}))
        box("grow")
        Tag("span", chip, "chip", title=chip_told)
        button("Light or dark", icon_name="sun", bare=True).on("click", js_handler="() => freedive.toggle()")
    with box("", "main", id="content", tabindex="-1"):
        yield


def _css() -> str:
    return (STATIC / "style.css").read_text("utf-8") + highlight_css()


def _script() -> str:
    return (STATIC / "page.js").read_text("utf-8")


def head(title: str, text: str) -> None:
    """A page's title and what it is good for."""
    with box("head"):
        Tag("h1", title)
        Tag("p", text)


def escaped(text: str) -> str:
    return html.escape(text)
