"""Small pieces the pages are made of: plain HTML elements with text set as text, buttons, fields, and the components of static/.

Nothing here takes HTML from anybody: `Tag` sets text, icons are constants, and what a model wrote goes through markdown.to_html.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

from freedive.tokenizer import Tokenizer
from freedive.tokenizer.colour import HTML_COLOURS, segments

from .markdown import blocks, to_html

_PATHS = {
    "plus": "M12 5v14M5 12h14", "list": "M4 6h16M4 12h16M4 18h10", "sliders": "M4 8h10M18 8h2M4 16h2M10 16h10M14 6v4M8 14v4", "copy": "M9 9h10v10H9zM5 15V5h10",
    "again": "M20 12a8 8 0 1 1-2.3-5.6M20 4v4h-4", "edit": "M4 20h4L19 9l-4-4L4 16zM13 7l4 4", "tokens": "M4 7h5v4H4zM12 7h8v4h-8zM4 14h9v4H4zM16 14h4v4h-4z",
    "left": "M15 5l-7 7 7 7", "right": "M9 5l7 7-7 7", "bin": "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13", "sun": "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M4 12H2M22 12h-2M5 5l1.5 1.5M17.5 17.5L19 19M19 5l-1.5 1.5M6.5 17.5L5 19",
    "on": "M5 12h14M13 6l6 6-6 6", "both": "M4 5h7v14H4zM13 5h7v14h-7z", "play": "M7 5l12 7-12 7z", "stop": "M7 7h10v10H7z",
}  # fmt: skip


def icon(name: str) -> str:
    return (f'<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">'
            f'<path d="{_PATHS[name]}"/></svg>')  # fmt: skip


class Tag(TextElement):
    """An HTML element with attributes and, if any, a text."""

    def __init__(self, tag: str, text: str = "", classes: str = "", **attributes: Any) -> None:
        super().__init__(tag=tag, text=text)
        if classes:
            self.classes(classes)
        self._props.update({name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})

    def attribute(self, name: str, value: Any) -> None:
        if self._props.get(name) != value:
            self._props[name] = value
            self.update()


def box(classes: str = "", tag: str = "div", **attributes: Any) -> Tag:
    return Tag(tag, "", classes, **attributes)


def fixed_html(content: str, classes: str = "", tag: str = "div") -> ui.html:
    """HTML of our own making, drawings above all: whatever text is in it has been escaped."""
    return ui.html(content, sanitize=False, tag=tag).classes(classes)


def button(label: str, on_click: Callable[..., Any] | None = None, *, icon_name: str = "", kind: str = "plain", bare: bool = False, takes: Field | None = None,
           **attributes: Any) -> Element:  # fmt: skip
    """A button; `bare` shows its icon only, and its label is read out and told. on_click gets the text that field `takes` holds at that moment."""
    element = Tag("button", "", kind, type="button", **attributes)
    element._props["innerHTML"] = (icon(icon_name) if icon_name else "") + ("" if bare else html.escape(label))
    if bare:
        element._props.update({"aria-label": label, "title": label})
    if on_click is not None and takes is not None:
        element.on("click", lambda e: on_click(str(e.args)), js_handler=f"() => emit(document.getElementById({json.dumps(takes.dom_id)}).value)")
    elif on_click is not None:
        element.on("click", lambda _: on_click())
    return element


class Field(Element, component="static/field.js"):
    """What somebody fills in. Its value lives in the page: `put` changes it, and nothing else that is drawn does."""

    def __init__(self, kind: str, value: Any, classes: str, pause: float = 0.0, options: Sequence[tuple[str, str]] = (), **attributes: Any) -> None:
        super().__init__()
        named = {name.rstrip("_").replace("_", "-"): v for name, v in attributes.items()}
        if "id" in named:
            self._props["id"] = named.pop("id")
        self._props.update(kind=kind, value=value, attributes=named, options=[list(o) for o in options], pause=round(1000 * pause))
        if classes:
            self.classes(classes)

    @property
    def dom_id(self) -> str:
        return str(self._props.get("id") or self.html_id)

    def put(self, value: Any) -> None:
        self._props["value"] = value
        self.run_method("put", value)


def field(label: str, value: str, on_change: Callable[[str], Any], *, kind: str = "text", rows: int = 0, mono: bool = False, pause: float = 0.0, **attributes: Any) -> Field:
    """A labelled text field or, with rows, a text area. on_change gets the text when it is left, and with `pause` that many seconds after a key."""
    with Tag("label", "", "field"):
        with Tag("span"):
            Tag("span", label)
        if rows:
            element = Field("area", value, "text mono" if mono else "text", pause, rows=rows, **attributes)
        else:
            element = Field(kind, value, "text", pause, **attributes)
    for event in ("typed", "changed"):
        element.on(event, lambda e: on_change(str(e.args)))
    return element


def slider(label: str, value: float, low: float, high: float, step: float, on_change: Callable[[float], Any], hint: str = "") -> Field:
    """A labelled slider that shows its value."""
    with Tag("label", "", "field", title=hint):
        with Tag("span"):
            Tag("span", label)
            told = Tag("span", f"{value:g}", "told", aria_hidden="true")  # an <output> would take the label for itself
        element = Field("range", value, "", 0.06, min=low, max=high, step=step, aria_label=label)

    def changed(args: Any) -> None:
        try:
            number = min(max(float(args), low), high)
        except (TypeError, ValueError):
            return
        told.set_text(f"{number:g}")
        on_change(number)

    for event in ("typed", "changed"):
        element.on(event, lambda e: changed(e.args))
    return element


def choice(label: str, options: Sequence[tuple[str, str]], value: str, on_change: Callable[[str], Any]) -> Field:
    """A labelled choice of (value, what is shown)."""
    with Tag("label", "", "field"):
        with Tag("span"):
            Tag("span", label)
        element = Field("choice", value, "text", options=options)
    known = {name for name, _ in options}
    element.on("changed", lambda e: on_change(str(e.args)) if str(e.args) in known else None)
    return element


def check(label: str, value: bool, on_change: Callable[[bool], Any]) -> Field:
    with Tag("label", "", "check"):
        element = Field("checkbox", value, "")
        Tag("span", label)
    element.on("changed", lambda e: on_change(bool(e.args)))
    return element


def say(text: str) -> None:
    """A short notice at the foot of the page."""
    ui.notify(text, position="bottom", timeout=4000)


def copy_text(text: str) -> None:
    ui.run_javascript(f"freedive.copy({json.dumps(text)})")


class Prose:
    """Markdown that grows: finished blocks stay as they are drawn, only the last one is drawn again."""

    def __init__(self) -> None:
        self.box = box("prose")
        self._parts: list[tuple[str, ui.html]] = []
        self._frozen, self._frozen_chars = 0, 0

    def show(self, text: str, whole: bool = False) -> None:
        """`whole` draws all of it anew, as is done once it is finished: what comes later may change what an earlier line means."""
        if whole:
            self._frozen = self._frozen_chars = 0
        parts = blocks(text[self._frozen_chars :])
        for at, part in enumerate(parts, self._frozen):
            if at < len(self._parts):
                if self._parts[at][0] != part:
                    self._parts[at][1].set_content(to_html(part))
                    self._parts[at] = (part, self._parts[at][1])
            else:
                with self.box:
                    self._parts.append((part, ui.html(to_html(part), sanitize=True)))
        for _, element in self._parts[self._frozen + len(parts) :]:
            element.delete()
        del self._parts[self._frozen + len(parts) :]
        if len(parts) > 2 and not whole:  # two stay open: a list goes on after an empty line
            self._frozen_chars += sum(len(p) for p in parts[:-2])
            self._frozen += len(parts) - 2


class Composer(Element, component="static/composer.js"):
    """Where a message is written; emits send(text), halt() and editlast()."""

    def __init__(self, placeholder: str) -> None:
        super().__init__()
        self._props.update(busy=False, placeholder=placeholder)

    def busy(self, on: bool) -> None:
        if self._props["busy"] != on:
            self._props["busy"] = on
            self.update()

    def put(self, text: str) -> None:
        self.run_method("put", text)


class TokenView(Element, component="static/tokens.js"):
    """Tokens tinted by probability, after a `lead` that is not; emits pick({index, id}) if `pick`. Items are token_items'."""

    def __init__(self, items: list[dict[str, Any]], *, pick: bool = False, code: bool = False, lead: str = "") -> None:
        super().__init__()
        self._props.update(tokens=items, pick=pick, code=code, lead=lead)

    def show(self, items: list[dict[str, Any]]) -> None:
        self._props["tokens"] = items
        self.update()


class Pieces(Element, component="static/pieces.js"):
    """A text in pieces, and their ids."""

    def __init__(self) -> None:
        super().__init__()
        self._props.update(pieces=[], whitespace=False, more=0)

    def show(self, items: list[dict[str, Any]], whitespace: bool, more: int) -> None:
        self._props.update(pieces=items, whitespace=whitespace, more=more)
        self.update()


MOST_TOKENS = 2000  # drawn; a page with more spans than this is slow to scroll


def piece_of(tok: Tokenizer, token: int) -> str:
    """What one id stands for; bytes that are no whole character in hexadecimal."""
    if token >= tok.vocab_size or not tok.vocab_mask[token]:
        return f"<{token}>"
    data = tok.token_bytes(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "⟨" + data.hex(" ") + "⟩"


def token_items(tok: Tokenizer, tokens: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """For TokenView: [id, log-prob or None, [[id, log-prob], ...]] each. A character made of several tokens is drawn with its first."""
    import math

    items: list[dict[str, Any]] = []
    at = 0
    for text, members in segments(tok, [int(t[0]) for t in tokens[:MOST_TOKENS]]):
        inside = tokens[at : at + len(members)]
        known = [t[1] for t in inside if t[1] is not None]
        alternatives = [[piece_of(tok, int(i)), int(i), round(math.exp(min(0.0, lp)), 6)] for i, lp in inside[0][2]]
        items.append({"t": text, "i": at, "id": int(inside[0][0]), "p": round(math.exp(min(0.0, sum(known))), 6) if known else None,
                      "alts": alternatives, "special": int(members[0]) in tok.special_ids})  # fmt: skip
        at += len(members)
    return items


def piece_items(tok: Tokenizer, ids: Sequence[int], mask: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """For Pieces: neighbours in different colours; what is trained marked, by `mask`."""
    items: list[dict[str, Any]] = []
    at = 0
    for number, (text, members) in enumerate(segments(tok, list(ids[:MOST_TOKENS]))):
        items.append({"t": text, "ids": members, "c": HTML_COLOURS[number % len(HTML_COLOURS)], "special": members[0] in tok.special_ids,
                      "trained": mask is not None and any(mask[at : at + len(members)])})  # fmt: skip
        at += len(members)
    return items
