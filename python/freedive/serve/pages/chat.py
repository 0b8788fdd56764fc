"""The chat page: conversations as trees. A question edited, an answer drawn again, another token chosen: each is a branch beside the old one."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from nicegui import background_tasks, ui

from freedive.inference.tools import Python, Tool
from freedive.runs import UserError

from .calls import form_of
from .conversations import Node, node
from .panel import Elsewhere, sampler
from .parts import Composer, Tag, box, button, check, field, say
from .shell import Pages, frame
from .source import Delta, Settings, chat_prompt, endpoint, local, said_of
from .thread import Thread

_DRAW_EVERY, _SAVE_EVERY = 0.08, 1.0  # seconds
MAX_MESSAGE = 100_000  # characters
_SETTINGS = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float, "max_tokens": int, "stop": str, "tools": bool}
_python: dict[str, Tool] = {}  # one pool of workers for all


def register(pages: Pages) -> None:
    @ui.page("/")
    def new() -> None:
        Chat(pages, "")

    @ui.page("/c/{id}")
    def one(id: str) -> None:
        Chat(pages, id)


class Chat:
    """One browser tab."""

    def __init__(self, pages: Pages, id: str) -> None:
        self.pages, self.settings, self.elsewhere = pages, Settings(), Elsewhere()
        self.running: dict[str, asyncio.Task[None]] = {}  # by node
        self.open_tokens: set[str] = set()
        self.show_reasoning = False
        self.saved = bool(id)
        missing = ""
        try:
            self.c = pages.store.load(id) if id else pages.store.new("")
        except UserError as error:
            self.c, self.saved, missing = pages.store.new(""), False, str(error)
        self._remember_settings()
        with frame(pages, "/", self.c.title if self.saved else "Chat"):
            self._layout()
        self.client = ui.context.client
        self.client.on_delete(self.stop)
        self.draw_list()
        self.draw_thread()
        if missing:
            say(missing)

    # ---- the page --------------------------------------------------------------------------------------------------

    def _layout(self) -> None:
        with box("chat nopanel") as self.root:
            button("Close", self._close_sides, kind="veil", bare=True, tabindex="-1")
            with box("side list", "aside", aria_label="Conversations"):
                with Tag("a", "", "", href="/", data_new_conversation="", style="text-decoration:none"):
                    Tag("span", "+ New conversation", "plain", title="Ctrl-K").style("color:var(--text);font-size:.9rem;padding:.3rem .6rem;display:block")
                self.list = Tag("ul")
            with box("talk", "section", aria_label="Conversation"):
                with box("talkbar"):
                    button("Conversations", lambda: self._side("nolist"), icon_name="list", bare=True)
                    self.title = Tag("div", "", "title")
                    button("Settings", lambda: self._side("nopanel"), icon_name="sliders", bare=True)
                with box("scroll", tabindex="0", role="log", aria_label="Messages", aria_live="off") as scroll:
                    self.thread = Thread(self)
                with box("compose"), box("inner"):
                    self.composer = Composer(f"Message {self.pages.name}")
                    with box("under"):
                        Tag("span", "Enter sends · Shift-Enter makes a line · Esc stops · ↑ edits")
                        self.gauge = Tag("span", "")
            with box("side panel stack", "aside", aria_label="Settings"):
                self._panel()
        self.composer.on("send", lambda e: self.send(str(e.args)))
        self.composer.on("halt", lambda _: self.stop())
        self.composer.on("editlast", lambda _: self._edit_last())
        ui.run_javascript(f"freedive.follow(getHtmlElement({scroll.id})); if (freedive.small()) getHtmlElement({self.root.id}).classList.add('nolist')")

    def _panel(self) -> None:
        Tag("h2", "Settings")
        field("System message", self.c.system, self._system, rows=4, maxlength=MAX_MESSAGE, placeholder="Who the assistant is, and how it should answer")
        sampler(self.settings, self.pages.service.context, lambda: None, tools=bool(form_of(self.pages.tok)))
        check("Show reasoning as it comes", False, self._reasoning)
        if self.pages.remote:
            self.elsewhere.draw(self.pages.name)
        with box("stack"):
            field("Title", self.c.title if self.saved else "", self._retitle, maxlength=200)
            with box("line"):
                button("Download as JSON", self._download, kind="second")

    def _side(self, name: str) -> None:
        ui.run_javascript(f"getHtmlElement({self.root.id}).classList.toggle('{name}')")

    def _close_sides(self) -> None:
        ui.run_javascript(f"getHtmlElement({self.root.id}).classList.add('nolist', 'nopanel')")

    def draw_list(self) -> None:
        self.list.clear()
        with self.list:
            for id, title, _ in self.pages.store.list()[:200]:
                with Tag("li", "", "here" if id == self.c.id else ""):
                    Tag("a", title, href=f"/c/{id}", title=title, **({"aria_current": "true"} if id == self.c.id else {}))
                    button(f"Delete {title}", lambda id=id: self._delete(id), icon_name="bin", bare=True)
        self.title.set_text(self.c.title if self.saved else "New conversation")

    def draw_thread(self) -> None:
        """Draw the branch that is looked at."""
        self.thread.draw()
        self._show_state()

    def _show_state(self) -> None:
        self.composer.busy(bool(self.running))
        last = next((n for n in reversed(self.c.path()) if n.prompt_tokens), None)
        room = self.pages.service.context
        used = last.prompt_tokens + len(last.tokens) if last else 0
        self.gauge.clear()
        self.gauge.set_text(f"{used:,} of {room:,} tokens of context" if used else "")
        if used:
            with self.gauge, Tag("span", "", "gauge", aria_hidden="true"):
                Tag("i").style(f"width:{min(100.0, 100 * used / room):.1f}%")

    # ---- what somebody does ----------------------------------------------------------------------------------------

    def send(self, text: str) -> None:
        text = text.strip()[:MAX_MESSAGE]
        path = self.c.path()
        if not text or self.running:
            return
        if not path:
            self.pages.store.rename(self.c, text)
        self._ask(node(path[-1].id if path else "", "user", text))
        if self.c.nodes and not self.saved:
            self.saved = True
            with self.root:
                ui.navigate.history.replace(f"/c/{self.c.id}")
            self.draw_list()

    def edit(self, old: Node, text: str) -> None:
        if text.strip() and not self.running:
            self._ask(node(old.parent, "user", text.strip()[:MAX_MESSAGE]))

    def again(self, old: Node) -> None:
        if not self.running:
            self._answer(old.parent)

    def go_on(self, old: Node) -> None:
        """The same answer, longer: a branch that begins with all of it."""
        if not self.running:
            self._answer(old.parent, old.tokens, tools=old.tools)

    def go_on_from(self, old: Node, picked: Any) -> None:
        """Another token was chosen: a branch that begins with what stood before it, and that token."""
        if self.running or not isinstance(picked, dict):
            return
        at, id = picked.get("index"), picked.get("id")
        if not isinstance(at, int) or not isinstance(id, int) or not 0 <= at < len(old.tokens):
            return
        found = next((t for t in old.tokens[at][2] if t[0] == id), None)
        if found is None:  # only what was offered
            return
        before = [*old.tokens[:at], [id, found[1], old.tokens[at][2]]]
        self.open_tokens.add("next")
        self._answer(old.parent, before, [t for t in old.tools if isinstance(t.get("at"), int) and t["at"] < at])

    def toggle_tokens(self, one: Node) -> None:
        self.open_tokens ^= {one.id}
        self.draw_thread()

    def choose(self, one: Node) -> None:
        if not self.running:
            self._guarded(lambda: self.pages.store.choose(self.c, one))
            self.draw_thread()

    def stop(self) -> None:
        for task in self.running.values():
            task.cancel()

    def versions(self, one: Node) -> list[list[Node]]:
        """The branches beside a message; two answers that stand side by side are one."""
        out: dict[str, list[Node]] = {}
        for sibling in self.c.children(one.parent):
            out.setdefault(sibling.pair or sibling.id, []).append(sibling)
        return list(out.values())

    def _edit_last(self) -> None:
        last = next((n for n in reversed(self.c.path()) if n.role == "user"), None)
        if last is not None and last.id in self.thread.editors and not self.running:
            self.thread.editors[last.id]()

    def _reasoning(self, on: bool) -> None:
        self.show_reasoning = on
        self.draw_thread()

    def _system(self, text: str) -> None:
        self.c.system = text[:MAX_MESSAGE]
        if self.saved:
            self._guarded(lambda: self.pages.store.rewrite(self.c))

    def _retitle(self, text: str) -> None:
        if self.saved and text.strip():
            self._guarded(lambda: self.pages.store.retitle(self.c, text))
            self.draw_list()

    def _delete(self, id: str) -> None:
        with ui.dialog() as dialog, box("card stack"):
            Tag("h2", "Delete this conversation?")
            Tag("p", "Its file is removed from the disk.", "hint")
            with box("line"):
                button("Delete", lambda: self._deleted(id, dialog), kind="main")
                button("Keep", dialog.close, kind="second")
        dialog.open()

    def _deleted(self, id: str, dialog: Any) -> None:
        dialog.close()
        if id == self.c.id:
            self.stop()
        self.pages.store.delete(id)
        if id == self.c.id:
            with self.root:
                ui.navigate.to("/")
        else:
            self.draw_list()

    def _download(self) -> None:
        body = {"title": self.c.title, "system": self.c.system, "messages": self.c.messages(self.c.path()), "nodes": [asdict(n) for n in self.c.nodes.values()]}
        ui.download.content(json.dumps(body, ensure_ascii=False, indent=1).encode(), f"conversation-{self.c.id[:8]}.json", "application/json")

    # ---- answering -------------------------------------------------------------------------------------------------

    def _ask(self, one: Node) -> None:
        if self._answers() and self._kept(one):
            self._answer(one.id)

    def _answers(self) -> bool:
        """Whether there is anybody who could; a notice if not."""
        if self.pages.base and self.elsewhere.who != "theirs":
            self._say("This is a base model: it does not answer. Try the playground.")
            return False
        return True

    def _kept(self, one: Node, choose: bool = True) -> bool:
        return self._guarded(lambda: self.pages.store.save(self.c, one, choose=choose))

    def _answer(self, parent: str, before: list[list[Any]] | None = None, tools: list[dict[str, Any]] | None = None) -> None:
        """Begin an answer to the message `parent`: ours, another endpoint's, or both beside each other."""
        who = "ours" if before else self.elsewhere.who
        if not self._answers():
            return
        seed = self.settings.seed if self.settings.seed is not None else secrets.randbits(32)
        kept = {name: getattr(self.settings, name) for name in _SETTINGS} | {"seed": seed}
        pair = secrets.token_hex(6) if who == "both" else ""
        made: list[Node] = []
        if who in ("ours", "both"):
            made.append(node(parent, "assistant", source=self.pages.name, settings=kept, pair=pair, tools=list(tools or [])))
        if who in ("theirs", "both"):
            made.append(node(parent, "assistant", source=self.elsewhere.model or "endpoint", settings=kept, pair=pair))
        settings = Settings(**(vars(self.settings) | {"seed": seed}))
        if not all(self._kept(one, choose=one is made[0]) for one in made):
            return
        if "next" in self.open_tokens:
            self.open_tokens = self.open_tokens - {"next"} | {made[0].id}
        for one in made:
            ours = one.source == self.pages.name and one is made[0] and who != "theirs"
            deltas = self._ours(one, settings, before or []) if ours else self._theirs(one, settings)
            self.running[one.id] = background_tasks.create(self._run(one, deltas, bool(before)), name="answer")
        self.draw_thread()
        self.client.run_javascript("freedive.pinned = true")  # what was clicked may be gone

    async def _ours(self, one: Node, settings: Settings, before: list[list[Any]]) -> AsyncGenerator[Delta, None]:
        tools: dict[str, Tool] = {}
        if settings.tools and form_of(self.pages.tok):
            if "python" not in _python:
                _python["python"] = Python()
            tools = _python
        prompt = chat_prompt(self.pages.tok, self.pages.name, self.c.system, self.c.above(one), tools=list(tools))
        async with aclosing(local(self.pages.service, prompt, settings, before=before, tools=tools)) as deltas:
            async for delta in deltas:
                yield delta

    async def _theirs(self, one: Node, settings: Settings) -> AsyncGenerator[Delta, None]:
        messages, e = self.c.messages(self.c.above(one)), self.elsewhere
        async with aclosing(endpoint(e.url, e.key, e.model, messages, settings)) as deltas:
            async for delta in deltas:
                yield delta

    async def _run(self, one: Node, deltas: AsyncGenerator[Delta, None], begun: bool) -> None:
        """Take an answer in, show it and keep it, whatever becomes of it."""
        start = drawn = saved = time.monotonic()
        unsaved = Delta()
        try:
            async with aclosing(deltas) as pieces:
                async for delta in pieces:
                    take(one, delta)
                    unsaved.text += delta.text
                    unsaved.reasoning += delta.reasoning
                    unsaved.tokens += delta.tokens
                    now = time.monotonic()
                    if not one.first and (delta.text or delta.reasoning or delta.tokens) and not (begun and one.tokens == delta.tokens):
                        one.first = round(now - start, 3)
                    if now > drawn:  # at most a fifth of the time is spent on drawing
                        self._drawn(one)
                        drawn = max(now + _DRAW_EVERY, now + 5 * (time.monotonic() - now))
                    if now - saved > _SAVE_EVERY:
                        more = {"text": unsaved.text, "reasoning": unsaved.reasoning, "tokens": unsaved.tokens}
                        self.pages.store.write(self.c, {"kind": "delta", "id": one.id, **more}, sync=False)
                        saved, unsaved = now, Delta()
        except asyncio.CancelledError:
            one.finish = "stopped"
        except UserError as error:
            one.finish, one.error = "error", str(error)
        except Exception as error:  # Busy, Closing, EngineFailure, or a bug: told where the answer would be
            one.finish, one.error = "error", f"{error or type(error).__name__}"
        finally:
            one.seconds = round(time.monotonic() - start, 3)
            if begun and "\ufffd" in one.text:  # a character whose halves were drawn apart
                one.text, one.reasoning = said_of(self.pages.tok, one.tokens)
            self.running.pop(one.id, None)
            self._guarded(lambda: self.pages.store.save(self.c, one, choose=False))
            self._drawn(one, over=True)

    def _drawn(self, one: Node, over: bool = False) -> None:
        view = self.thread.answers.get(one.id)
        if view is None or self.root.is_deleted:
            return
        with self.root:
            view.finish() if over else view.update()
            if over:
                self._show_state()

    def _guarded(self, what: Callable[[], Any]) -> bool:
        """Do something with the disk; False, and a notice, if that fails."""
        try:
            what()
            return True
        except UserError as error:
            self._say(str(error))
            return False

    def _say(self, text: str) -> None:
        if not self.root.is_deleted:
            with self.root:
                say(text)

    def _remember_settings(self) -> None:
        """Those of the last answer."""
        last = next((n for n in reversed(self.c.path()) if n.settings), None)
        for name, kind in _SETTINGS.items():
            value = last.settings.get(name) if last else None
            if isinstance(value, kind) or kind is float and isinstance(value, int):
                setattr(self.settings, name, value)


def take(one: Node, delta: Delta) -> None:
    """Add what came to a message."""
    one.text += delta.text
    one.reasoning += delta.reasoning
    one.tokens += delta.tokens
    one.prompt_tokens = delta.prompt_tokens or one.prompt_tokens
    one.finish = delta.finish or one.finish
    if delta.tool is not None:
        part = delta.tool.get("part")
        same = next((t for t in one.tools if part is not None and t.get("part") == part), None)
        if same is not None:  # an endpoint sends a call in pieces
            same["tool"] += delta.tool["tool"]
            same["call"] += delta.tool["call"]
        else:
            one.tools.append(dict(delta.tool))
