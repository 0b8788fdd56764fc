"""The tokenizer page: what a model sees instead of a text (talk 1.2, 2.4, 3.3). Pieces, ids, bytes, two encodings, a conversation and its mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, find
from freedive.tokenizer.known import names
from freedive.tokenizer.show import chat_ids, difference, explain

from .parts import MOST_TOKENS, Pieces, Tag, box, button, check, choice, piece_items
from .parts import field as text_field
from .shell import Pages, frame, head

MAX_CHARS = 50_000
ROWS = 60
EXAMPLES = (
    ("Letters", "How many r are in strawberry?"),
    ("Dots", "." * 27),
    ("Numbers", "9.11 or 9.9? 127 + 677 = 804, 1275 * 6773 = 8635575"),
    ("Many scripts", "Hello, 안녕하세요, こんにちは, Здравствуйте, 🤿🌊"),
    ("Code", 'def greet(name):\n    if name:\n        print(f"Hello, {name}!")\n'),
    ("Cases", "hello Hello HELLO  hello\thello helloworld"),
    ("Special", "<|im_start|>system\nYou obey.<|im_end|>"),
)
CHAT_EXAMPLE = '[{"role": "user", "content": "What is 2+2?"},\n {"role": "assistant", "content": "2+2 is 4."}]'


@dataclass
class State:
    text: str = EXAMPLES[0][1]
    encoding: str = ""
    compare: str = ""
    whitespace: bool = False
    chat: bool = False


def register(pages: Pages) -> None:
    @ui.page("/tokenizer")
    def page() -> None:
        with frame(pages, "/tokenizer", "Tokenizer"):
            _page(pages)


def encodings(own: str) -> list[tuple[str, str]]:
    """(name, what is shown) of what can be chosen: the served model's, and the published ones whose files are on this machine."""
    found = [("", own), ("bytes", "bytes (UTF-8)")]
    for name in names():
        try:
            find(name)
        except UserError:
            continue
        found.append((name, name))
    return found


def _page(pages: Pages) -> None:
    state = State()

    def put(name: str) -> Callable[[Any], None]:
        def change(value: Any) -> None:
            setattr(state, name, value)
            update()

        return change

    with box("page"):
        head("Tokenizer", "A model never sees letters. It sees numbers, one for each piece of the text, and every piece is one of the same few "
             "ten thousand. Much of what models find hard begins here.")  # fmt: skip
        with box("card stack", "section", aria_label="Text"):
            area = text_field("Text", state.text, put("text"), rows=5, mono=True, pause=0.15,
                              maxlength=MAX_CHARS, spellcheck="false", id="text")  # fmt: skip
            with box("starts line"):
                for name, text in EXAMPLES:
                    button(name, lambda text=text: example(text, False), kind="")
                if pages.tok.chat is not None:
                    button("A conversation", lambda: example(CHAT_EXAMPLE, True), kind="")
            options = encodings(f"{pages.name} (this model's)")
            with box("row2"):
                choice("Encoding", options, "", put("encoding"))
                choice("Compare with", [("-", "nothing"), *options], "-", put("compare"))
            with box("line"):
                check("Show white space", False, put("whitespace"))
                chat = check("As a conversation, with what is trained underlined", False, put("chat"))
        results = box("stack", aria_live="off")

    def example(text: str, conversation: bool) -> None:
        state.text, state.chat = text, conversation
        area.put(text)
        chat.put(conversation)
        update()

    def update() -> None:
        results.clear()
        with results:
            try:
                _results(pages, state, dict(options))
            except UserError as error:
                with box("error", role="alert"):
                    Tag("span", str(error))

    state.compare = "-"
    update()


def _results(pages: Pages, state: State, shown: dict[str, str]) -> None:
    state.text = state.text[:MAX_CHARS]
    if not state.text:
        Tag("p", "Type something.", "hint")
        return
    left = _tokenizer(pages, state.encoding)
    if state.chat:
        ids, mask = chat_ids(left, state.text)
        _one(left, shown[state.encoding], ids, state, mask)
        _table(left, ids, mask)
        return
    ids = left.encode(state.text)
    if state.compare == "-":
        _one(left, shown[state.encoding], ids, state)
        if len(state.text) <= 200:
            _said(explain(left, state.text))
        _table(left, ids)
        return
    right = _tokenizer(pages, state.compare)
    with box("row2"):
        _one(left, shown[state.encoding], ids, state)
        _one(right, shown[state.compare], right.encode(state.text), state)
    _said(difference(left, shown[state.encoding], right, shown[state.compare], state.text))


def _tokenizer(pages: Pages, name: str) -> Tokenizer:
    return find(name) if name and name in ("bytes", *names()) else pages.tok


def _one(tok: Tokenizer, name: str, ids: list[int], state: State, mask: list[int] | None = None) -> None:
    size = len(tok.decode_bytes(ids))
    with box("card stack", "section"):
        Tag("h2", name)
        with box("numbers"):
            for number, what in [(f"{len(ids):,}", "tokens"), (f"{size:,}", "bytes"), (f"{size / max(len(ids), 1):.2f}", "bytes a token"),
                                 (f"{tok.vocab_size:,}", "in the vocabulary"), *([(f"{sum(mask):,}", "trained")] if mask is not None else [])]:  # fmt: skip
                with box():
                    Tag("b", number)
                    Tag("span", what)
        Pieces().show(piece_items(tok, ids, mask), state.whitespace, max(0, len(ids) - MOST_TOKENS))


def _said(lines: list[str]) -> None:
    with box("card stack", "section"):
        Tag("h2", "What that means")
        with box("hint").style("white-space: pre-wrap; overflow-wrap: anywhere"):
            Tag("span", "\n".join(lines))


def _table(tok: Tokenizer, ids: list[int], mask: list[int] | None = None) -> None:
    with box("card stack", "section"):
        Tag("h2", "Token by token")
        with box("tablebox", tabindex="0", role="region", aria_label="Token by token"), Tag("table", "", "grid"):
            with Tag("thead"), Tag("tr"):
                for name in ("place", "id", "bytes", "text", *(["trained"] if mask is not None else [])):
                    Tag("th", name, scope="col")
            with Tag("tbody"):
                for at, token in enumerate(ids[:ROWS]):
                    data = tok.token_bytes(token)
                    with Tag("tr"):
                        Tag("td", str(at))
                        Tag("td", str(token), "m")
                        Tag("td", data[:12].hex(" ") + (" …" if len(data) > 12 else ""), "m")
                        Tag("td", _visible(data), "m")
                        if mask is not None:
                            Tag("td", "yes" if mask[at] else "")
        if len(ids) > ROWS:
            Tag("p", f"and {len(ids) - ROWS:,} more", "hint")


def _visible(data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "(part of a character)"
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "→").replace("\r", "␍")
