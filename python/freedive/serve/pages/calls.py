"""Tools on the chat page, in the two forms in which models call them: between tokens of our own within the turn, or as JSON in a turn of its own (Qwen's).

The forms are inference/tool_loop.py's and tool_json.py's. Here they are taken token by token, as an answer streams: which ids are a call's own
words, which calls are due when it stops, and what is put behind them. An answer may also begin in the middle of one (a branch, *Go on*).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freedive.inference.tool_json import ANSWER, ANSWER_END, CALL, CALL_END, answer_turn, between, calls_as_json, opening, parsed, signature
from freedive.inference.tool_loop import SLOTS, offered
from freedive.inference.tools import Tool
from freedive.tokenizer import Tokenizer
from freedive.tokenizer.chat import turn_header

MAX_ANSWER_TOKENS = 512


def form_of(tok: Tokenizer) -> str:
    """How a vocabulary calls Python: slots, json, or "" where it cannot."""
    return "slots" if "python" in offered(tok) else "json" if calls_as_json(tok) else ""


def system_turn(tok: Tokenizer, tools: Sequence[str], system: str) -> list[int]:
    """The ids that a conversation begins with where tools are told of in it: the JSON form. [] otherwise."""
    return opening(tok, [signature(name) for name in tools], system.strip() or None) if tools and form_of(tok) == "json" else []


@dataclass
class Due:
    """A call that is to be run, or what is wrong with it, which the model is told as its answer."""

    tool: str
    text: str
    problem: str | None = None

    def run(self, tools: Mapping[str, Tool]) -> dict[str, Any]:
        """As conversations.Node.tools."""
        began = time.perf_counter()
        answer = f"error: {self.problem}" if self.problem is not None else tools[self.tool](self.text)
        return {"tool": self.tool, "call": self.text, "answer": answer, "seconds": round(time.perf_counter() - began, 4)}


class Calls:
    """No tools: nothing is a call. The others say what differs."""

    ends: frozenset[int] = frozenset()  # ids behind which a call may be due; the engine stops at them
    stops: tuple[str, ...] = ()  # text at which it stops besides
    new_turn = False  # whether what is said after an answer is a turn of its own

    def __init__(self, tok: Tokenizer) -> None:
        self.tok = tok
        # What only tools may write ends an answer, also where none are on.
        self.forged = frozenset(tok.special_tokens[t] for tokens in SLOTS.values() for t in tokens[2:] if t in tok.special_tokens)

    def take(self, token: int) -> bool:
        """Whether a token that was said belongs to a call."""
        return False

    def due(self, last: int) -> list[Due]:
        """The calls to run now that the answer has stopped at the token `last`."""
        return []

    def unfinished(self) -> str:
        """The text of a call that was begun and cannot be run; "" if there is none."""
        return ""

    def over(self) -> None:
        """The calls that were due have been answered."""

    def answered(self, answers: Sequence[str]) -> list[int]:
        """The ids that stand behind the calls that were due."""
        raise NotImplementedError


class SlotCalls(Calls):
    """<|python_start|>code<|python_end|>, and the answer within the same turn."""

    def __init__(self, tok: Tokenizer, tools: Mapping[str, Tool]) -> None:
        super().__init__(tok)
        self._slots = {name: [tok.special(t) for t in SLOTS[name]] for name in tools}
        self._begins = {ids[0]: name for name, ids in self._slots.items()}
        self.ends = frozenset(ids[1] for ids in self._slots.values())
        self._name = ""  # of the call that is open
        self._said: list[int] = []  # in it

    def take(self, token: int) -> bool:
        if self._name:
            if token != self._slots[self._name][1]:
                self._said.append(token)
            return True
        if token in self._begins:
            self._name, self._said = self._begins[token], []
            return True
        return token in self.ends

    def due(self, last: int) -> list[Due]:
        return [Due(self._name, self.tok.decode(self._said))] if self._name and last == self._slots[self._name][1] else []

    def unfinished(self) -> str:
        return SLOTS[self._name][0] + self.tok.decode(self._said) if self._name else ""

    def over(self) -> None:
        self._name = ""

    def answered(self, answers: Sequence[str]) -> list[int]:
        opened, closed = self._slots[self._name][2:]
        self.over()
        return [opened, *self.tok.encode(answers[0])[:MAX_ANSWER_TOKENS], closed]


class JsonCalls(Calls):
    """<tool_call>{"name": ..., "arguments": ...}</tool_call>, any number in a turn; their answers are the next one, and the answer goes on in another."""

    new_turn = True

    def __init__(self, tok: Tokenizer, tools: Mapping[str, Tool]) -> None:
        super().__init__(tok)
        self._tools, self._chat = tools, tok.require_chat()
        self._begin, self._close, self._end = tok.special(CALL), tok.special(CALL_END), tok.special(self._chat.end)
        self.ends = frozenset((self._end,))
        self.forged |= {tok.special_tokens[t] for t in (self._chat.start, ANSWER, ANSWER_END) if t in tok.special_tokens}
        self.stops = () if ANSWER in tok.special_tokens else (ANSWER,)
        self._said: list[int] = []  # in this turn
        self._open = False

    def take(self, token: int) -> bool:
        self._said.append(token)
        inside = self._open or token in (self._begin, self._close)
        self._open = token == self._begin or self._open and token != self._close
        return inside

    def due(self, last: int) -> list[Due]:
        texts = between(self._said, self._begin, self._close) if last == self._end else None
        return [Due(*parsed(self.tok.decode(ids), self._tools)) for ids in texts or ()]

    def unfinished(self) -> str:
        return self.tok.decode(self._said[self._said.index(self._begin) :]) if self._begin in self._said else ""

    def over(self) -> None:
        self._said, self._open = [], False

    def answered(self, answers: Sequence[str]) -> list[int]:
        self.over()
        header = turn_header(self.tok, self._chat, self._chat.assistant)
        return [self._end, *answer_turn(self.tok, answers, MAX_ANSWER_TOKENS), *header]


def calls_of(tok: Tokenizer, tools: Mapping[str, Tool]) -> Calls:
    """For an answer of a model with these tools."""
    if not tools:
        return Calls(tok)
    return SlotCalls(tok, tools) if form_of(tok) == "slots" else JsonCalls(tok, tools)
