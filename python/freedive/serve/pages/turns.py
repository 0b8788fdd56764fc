"""How messages look: a question, and an answer that grows, with its reasoning, its tools, its tokens and what can be done with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from nicegui import ui

from .conversations import Node
from .parts import Prose, Tag, TokenView, box, button, copy_text, field, fixed_html, token_items
from .source import said_ids

if TYPE_CHECKING:
    from .chat import Chat

_TOKENS_EVERY = 0.5  # seconds between drawings of the tokens of an answer that grows
_ENDED = {"length": "cut at the longest answer", "stopped": "stopped", "": "interrupted"}


def question(page: Chat, node: Node) -> None:
    """What somebody asked."""
    with box("turn user", data_role="user"):
        said = box("said")
        with said:
            Tag("span", node.text)
        with box("tools"):
            branches(page, node)
            button("Copy", lambda: copy_text(node.text), icon_name="copy", bare=True)
            button("Edit", lambda: editing(page, node, said), icon_name="edit", bare=True)
    page.thread.editors[node.id] = lambda: editing(page, node, said)


def editing(page: Chat, node: Node, said: Tag) -> None:
    """The question as a field; sending it is a new branch."""
    said.clear()
    said.style("width:min(36rem, 80vw); white-space:normal")
    with said:
        area = field("Your question", node.text, lambda _: None, rows=min(8, node.text.count("\n") + 3))
        with box("line").style("margin-top:.5rem"):
            button("Send", lambda text: page.edit(node, text), kind="main", takes=area)
            button("Cancel", lambda: page.thread.redraw(node), kind="second")
    area.on("keydown.enter.exact", js_handler="(e) => { if (!e.isComposing) { e.preventDefault(); e.target.closest('.said').querySelector('button.main').click() } }")
    area.on("keydown.esc", lambda _: page.thread.redraw(node))
    ui.run_javascript(f"document.getElementById('{area.dom_id}')?.focus()")


def branches(page: Chat, node: Node) -> None:
    """Which of the branches this is, with the ones beside it."""
    among = page.versions(node)
    if len(among) < 2:
        return
    at = next(i for i, version in enumerate(among) if node.id in {n.id for n in version})
    with box("branches", "span", role="group", aria_label="Branches"):
        button("Previous branch", lambda: page.choose(among[at - 1][0]), icon_name="left", bare=True, disabled=at == 0)
        Tag("span", f"{at + 1} / {len(among)}")
        button("Next branch", lambda: page.choose(among[at + 1][0]), icon_name="right", bare=True, disabled=at + 1 == len(among))


class Answer:
    """An answer on the page. `update` shows what has come since, `finish` draws it once more and whole."""

    def __init__(self, page: Chat, node: Node, *, paired: bool = False) -> None:
        self.page, self.node, self._tokens_at = page, node, 0.0
        self._drawn_tools: list[tuple[str, str]] = []
        self._view: TokenView | None = None
        chosen = page.c.chosen.get(node.parent) == node.id
        with box("turn assistant" + (" chosen" if paired and chosen else ""), data_role="assistant", data_node=node.id) as self.box:
            if paired or node.source != page.pages.name:
                with box("who"):
                    Tag("span", node.source)
            self._think = Tag("details", "", "think")
            with self._think:
                self._summary = Tag("summary", "Reasoning")
                self._thought = Tag("div", "", "inside")
            self._cards = box()
            self._body = box()
            with self._body:
                self.prose = Prose()
            self._error = box()
            self._foot = box("tools")
        self.update()
        if node.id not in page.running:
            self.finish()

    def update(self) -> None:
        """Cheap: only what is new is sent."""
        node, shown = self.node, self.page.show_reasoning
        self._think.style(f"display:{'block' if node.reasoning else 'none'}")
        if node.reasoning:
            self._thought.set_text(node.reasoning.strip())
            self._summary.set_text("Reasoning" if node.text or node.id not in self.page.running else "Thinking …")
            self._think.attribute("open", shown)
        tools = [(str(t.get("call")), str(t.get("answer"))) for t in node.tools]
        if tools != self._drawn_tools:  # an endpoint sends a call in pieces
            self._drawn_tools = tools
            self._cards.clear()
            with self._cards:
                for tool in node.tools:
                    tool_card(tool)
        if node.id in self.page.open_tokens:
            self._show_tokens()
        else:
            self.prose.show(node.text)
            self.prose.box.classes(add="cursor") if node.id in self.page.running and not node.text else self.prose.box.classes(remove="cursor")

    def _show_tokens(self) -> None:
        now = time.monotonic()
        if self._view is None:
            self._body.clear()
            with self._body:
                self._view = TokenView([], pick=True)
            self._view.on("pick", lambda e: self.page.go_on_from(self.node, e.args))
        elif now - self._tokens_at < _TOKENS_EVERY and self.node.id in self.page.running:
            return
        self._tokens_at = now
        self._view.show(token_items(self.page.pages.tok, self.node.tokens))

    def finish(self) -> None:
        """The whole answer and its tools."""
        node, page = self.node, self.page
        self.update()
        if node.id in page.open_tokens:
            self._tokens_at = 0.0
            self._show_tokens()
        else:
            self.prose.show(node.text, whole=True)
        self._error.clear()
        if node.error:
            with self._error, box("error", role="alert"):
                Tag("span", node.error)
        self._foot.clear()
        with self._foot:
            branches(page, node)
            if node.text:
                button("Copy", lambda: copy_text(node.text), icon_name="copy", bare=True)
            button("Again", lambda: page.again(node), icon_name="again", bare=True)
            if said_ids(page.pages.tok, page.pages.name, node):  # not those of another model that had this name
                pressed = "true" if node.id in page.open_tokens else "false"
                button("Tokens", lambda: page.toggle_tokens(node), icon_name="tokens", aria_pressed=pressed)
                if node.finish in ("length", "stopped", ""):
                    button("Go on", lambda: page.go_on(node), icon_name="on")
            if node.pair and page.c.chosen.get(node.parent) != node.id:
                button("Go on with this one", lambda: page.choose(node), icon_name="on")
            figures = figures_of(node)
            if figures:
                Tag("span", figures, "figures")


def figures_of(node: Node) -> str:
    parts = [_ENDED[node.finish]] if node.finish in _ENDED and not node.error else []
    count = sum(1 for t in node.tokens if t[1] is not None)
    if count:
        parts.append(f"{count:,} token{'s' if count != 1 else ''}")
    if count >= 16 and node.seconds > node.first > 0:  # of fewer it says nothing
        parts.append(f"{(count - 1) / (node.seconds - node.first):.0f} a second")
    if node.first:
        parts.append(f"first after {node.first:.2f} s")
    if node.settings.get("seed") is not None:
        parts.append(f"seed {node.settings['seed']}")
    return " · ".join(parts)


def tool_card(tool: dict[str, Any]) -> None:
    """A call and its answer; text of a model and of a tool, set as text."""
    answer = tool.get("answer")
    failed = isinstance(answer, str) and (answer.startswith("error:") or "\nerror:" in answer)
    with box("toolcard failed" if failed else "toolcard", data_tool=str(tool.get("tool", ""))):
        with box("name"):
            Tag("span", f"{tool.get('tool') or 'tool'}{' failed' if failed else ''}")
            if isinstance(tool.get("seconds"), (int, float)):
                Tag("span", f"{1000 * tool['seconds']:.0f} ms")
        Tag("pre", str(tool.get("call", "")).strip())
        if isinstance(answer, str):
            Tag("pre", answer.strip() or "(nothing)")


def empty(page: Chat, starts: list[str]) -> None:
    """Before the first message."""
    with box("empty"):
        if page.pages.base:
            Tag("h1", "A base model")
            Tag("p", f"{page.pages.name} has read documents and has never seen a conversation: it goes on with a text, and does not answer. The playground is "
                "made for that.")  # fmt: skip
            fixed_html('<a href="/playground">To the playground</a>')
            return
        Tag("h1", "What would you like to know?")
        Tag("p", f"{page.pages.name} answers, on this machine. Every token it says can be opened up: what else it could have said, and how likely.")
        with box("starts"):
            for text in starts:
                button(text, lambda text=text: page.send(text), kind="")
