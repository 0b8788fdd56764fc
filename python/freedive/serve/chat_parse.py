"""What a model says, token by token, as the parts of an answer: content, reasoning, calls of functions.

The one idea: where a part ends is told by token ids where the vocabulary has marks (<think>, <tool_call>, <|python_start|>), so text that only looks
like a mark stays text. Only for models without such tokens, and only where functions were offered, the marks are looked for in the text.
Nothing a model said is lost: a call that cannot be read comes as content.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from freedive.inference.stops import StopText
from freedive.inference.thinking import THINK, THINK_END
from freedive.inference.tool_json import CALL, CALL_END
from freedive.inference.tool_loop import SLOTS
from freedive.tokenizer import StreamDecoder, Tokenizer

from .chat_form import Offer, can_think


@dataclass
class Part:
    """New text of the content or the reasoning, or one whole call."""

    kind: str  # content, reasoning, call
    text: str = ""  # of a call: its arguments, JSON
    name: str = ""


class Parser:
    """One answer. `push` new ids, `finish` at the end; both give parts. `stopped`: a stop string was met in the content."""

    def __init__(self, tok: Tokenizer, what: Offer, stops: Sequence[str], stop_ids: Sequence[int]):
        self.tok, self.what, self._stop_ids = tok, what, frozenset(stop_ids)
        self._stops = tuple(stops)
        self.kind = "content"
        self.calls = 0
        self.reasoning_tokens = 0
        self._content = StopText(tok, self._stops)
        self._other: StreamDecoder = tok.stream_decoder()  # of reasoning and calls
        self._raw = ""  # the call so far
        self._slot = ""
        self._held, self._searched = "", 0  # content that may begin a mark, in the text form
        self._fresh = {"content": False, "reasoning": False}  # nothing but line ends said since a mark
        self._marks = self._tokens()

    @property
    def stopped(self) -> bool:
        return self._content.stopped

    def _tokens(self) -> dict[int, tuple[str, str]]:
        """id -> (what it does, the function in the slots form)."""
        special = self.tok.special_tokens
        marks: dict[int, tuple[str, str]] = {}
        if can_think(self.tok):
            marks |= {special[THINK]: ("reasoning", ""), special[THINK_END]: ("content", "")}
        if self.what.form == "json":
            marks |= {special[CALL]: ("call", ""), special[CALL_END]: ("end", "")}
        if self.what.form == "slots":
            for name in self.what.functions:
                begin, end = SLOTS[name][:2]
                marks |= {special[begin]: ("call", name), special[end]: ("end", name)}
        return marks

    def push(self, ids: Sequence[int]) -> list[Part]:
        """Take ids, in order; a slot's closing token counts although it ends the completion."""
        parts: list[Part] = []
        for token in ids:
            does, name = self._marks.get(token, ("", ""))
            if does in ("reasoning", "content") and self.kind != "call" and does != self.kind:
                parts += self._switch(does)
            elif does == "call" and self.kind != "call":
                parts += self._switch("call")
                self._slot = name
            elif does == "end" and self.kind == "call" and name == self._slot:
                parts += self._call()
            elif token not in self._stop_ids:
                parts += self._say(token)
        if self.kind == "content":
            parts += self._spoken(self._content.safe())
        return _joined(parts)

    def finish(self) -> list[Part]:
        """The end: what was held back; a call that was not closed is content."""
        parts: list[Part] = []
        if self.kind == "call":
            said = self._raw + self._other.flush()
            opened = SLOTS[self._slot][0] if self._slot else CALL
            parts.append(Part("content", opened + said))
        elif self.kind == "reasoning":
            parts += self._thought(self._other.flush())
        else:
            parts += self._spoken(self._content.rest(), True)
        return _joined(parts)

    def _switch(self, kind: str) -> list[Part]:
        parts = self._spoken(self._content.rest(), True) if self.kind == "content" else self._thought(self._other.flush())
        self.kind, self._raw = kind, ""
        if kind in self._fresh:
            self._fresh[kind] = True
        if kind == "content":
            self._content = StopText(self.tok, self._stops)
        return parts

    def _say(self, token: int) -> list[Part]:
        if self.kind == "content":
            self._content.push(token)
            return []
        piece = self._other.push(token)
        if self.kind == "call":
            self._raw += piece
            return []
        self.reasoning_tokens += 1
        return self._thought(piece)

    def _thought(self, piece: str) -> list[Part]:
        return self._part("reasoning", piece)

    def _part(self, kind: str, piece: str) -> list[Part]:
        if self._fresh[kind]:  # marks stand on lines of their own
            piece = piece.lstrip("\n")
            self._fresh[kind] = not piece
        return [Part(kind, piece)] if piece else []

    def _spoken(self, piece: str, all_of_it: bool = False) -> list[Part]:
        """Content; in the text form calls are looked for in it."""
        if self.what.form != "text":
            return self._part("content", piece)
        parts: list[Part] = []
        self._held += piece
        while self._held:
            at = self._held.find(CALL)
            if at > 0:
                parts += self._part("content", self._held[:at])
                self._held = self._held[at:]
            elif at == 0:
                end = self._held.find(CALL_END, self._searched)
                if end < 0 and not all_of_it:
                    self._searched = max(0, len(self._held) - len(CALL_END))  # a long call is not read again at each token
                    break
                self._searched = 0
                whole = self._held[: end + len(CALL_END)] if end >= 0 else self._held
                self._held = self._held[len(whole) :]
                call = self._read(whole[len(CALL) : -len(CALL_END)]) if end >= 0 else None
                parts.append(call or Part("content", whole))
                self._fresh["content"] = call is not None
            else:
                keep = 0 if all_of_it else next((k for k in range(min(len(CALL) - 1, len(self._held)), 0, -1) if CALL.startswith(self._held[-k:])), 0)
                parts += self._part("content", self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                break
        return parts

    def _call(self) -> list[Part]:
        """A call has been closed by its token."""
        said = self._raw + self._other.flush()
        if self._slot:
            self.calls += 1
            found: Part | None = Part("call", json.dumps({self.what.argument(self._slot): said}, ensure_ascii=False), self._slot)
        else:
            found = self._read(said)
        self.kind, self._raw = "content", ""
        self._content = StopText(self.tok, self._stops)
        self._fresh["content"] = found is not None
        return [found or Part("content", CALL + said + CALL_END)]

    def _read(self, text: str) -> Part | None:
        """A call of an offered function, out of its JSON."""
        try:
            call = json.loads(text)
        except (ValueError, RecursionError):
            return None
        name, given = (call.get("name"), call.get("arguments")) if isinstance(call, dict) else (None, None)
        if name not in self.what.functions or not isinstance(given, dict):
            return None
        self.calls += 1
        return Part("call", json.dumps(given, ensure_ascii=False), name)


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours of one kind as one; calls stay apart."""
    out: list[Part] = []
    for part in parts:
        if out and part.kind == out[-1].kind != "call":
            out[-1].text += part.text
        else:
            out.append(part)
    return out
