"""The messages of a conversation as they stand on the page: the branch that is looked at, of which only what has changed is drawn anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .conversations import Node
from .parts import Tag, box, button
from .turns import Answer, empty, question

if TYPE_CHECKING:
    from .chat import Chat

STARTS = ["Why is the sky blue? Answer in two sentences.", "Write a haiku about the sea.", "How many legs do three spiders have?", "Explain what a token is."]
MORE = 30  # messages drawn at first, and with each click on the earlier ones


class Thread:
    """Drawn messages. `answers` are those that can be updated, by node; `editors` open a question's field."""

    def __init__(self, page: Chat) -> None:
        self.page = page
        self.answers: dict[str, Answer] = {}
        self.editors: dict[str, Callable[[], None]] = {}
        self._turns: list[tuple[Any, Tag, list[str]]] = []  # what it depends on, its element, the ids of its messages
        self._begin = max(0, len(page.c.path()) - MORE)  # of the branch, the first message that is drawn
        with box("thread") as self.box:
            self._above = box()

    def draw(self) -> None:
        path = self.page.c.path()
        self._begin = min(self._begin, max(0, len(path) - 1))
        shown = path[self._begin :]
        keys = [(self._begin, self._looks(one)) for one in shown]
        same = next((i for i, (key, drawn) in enumerate(zip(keys, self._turns)) if key != drawn[0]), min(len(keys), len(self._turns)))
        for _, element, ids in self._turns[same:]:
            element.delete()
            for id in ids:
                self.answers.pop(id, None)
        del self._turns[same:]
        self._above.clear()
        with self._above:
            if not path:
                empty(self.page, STARTS)
            elif self._begin:
                button(f"{self._begin} earlier messages", self._earlier, kind="second")
        with self.box:
            for key, one in zip(keys[same:], shown[same:]):
                with box() as element:
                    self._turns.append((key, element, self._turn(one)))

    def redraw(self, one: Node) -> None:
        """Draw a message anew, and those below it."""
        self._turns = [(None if one.id in ids else key, element, ids) for key, element, ids in self._turns]
        self.draw()

    def _turn(self, one: Node) -> list[str]:
        """Draw a message, and the answer beside it; returns the ids of what was drawn."""
        if one.role == "user":
            question(self.page, one)
            return [one.id]
        pair = self._pair(one)
        with box("pairs") if len(pair) > 1 else box():
            for each in pair:
                self.answers[each.id] = Answer(self.page, each, paired=len(pair) > 1)
        return [n.id for n in pair]

    def _pair(self, one: Node) -> list[Node]:
        return [n for n in self.page.c.children(one.parent) if n.pair == one.pair] if one.pair else [one]

    def _looks(self, one: Node) -> tuple[Any, ...]:
        """What a drawn message depends on, but for words that are still coming."""
        beside = tuple((n.id, n.id in self.page.open_tokens) for n in self._pair(one)) if one.role == "assistant" else ()
        return one.id, beside, tuple(v[0].id for v in self.page.versions(one)), self.page.show_reasoning

    def _earlier(self) -> None:
        self._begin = max(0, self._begin - MORE)
        self.draw()
