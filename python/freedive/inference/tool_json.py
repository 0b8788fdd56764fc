"""Tools for models that write calls as JSON: Qwen2.5 and Qwen3 (their chat templates), and others trained on Hermes' form.

    <tool_call>
    {"name": "python", "arguments": {"code": "12*34"}}
    </tool_call><|im_end|>
    <|im_start|>user
    <tool_response>
    408
    </tool_response><|im_end|>
    <|im_start|>assistant

The one idea: an answer is a turn of its own, and only this loop writes turns. A model cannot open one (<|im_start|> ends its row), so what
it makes up stays within its own words, and a row in which it says <tool_response> there ends too. A prompt with a <tool_response> in it is
taken only up to where this loop wrote it. Tools' names for the mark in their answers are changed. Answers are masked, as in tool_loop.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from freedive.runs import UserError
from freedive.tokenizer import Tokenizer
from freedive.tokenizer.chat_json import ANSWER, ANSWER_END, CALL, CALL_END, MARKS, offering, with_marks

from .engine import Engine, Request
from .params import Completion
from .tool_loop import ToolCall, ToolLoop, _digest, _Row
from .tools import Tool

# name -> (its one argument, what the model is told)
SIGNATURES = {
    "python": ("code", "Run Python and get what it prints and the value of its last expression. No files, no network."),
    "calculator": ("expression", "The value of an expression of numbers with + - * / // % ** and parentheses."),
    "search": ("query", "Search documents for a query."),
}


def calls_as_json(tok: Tokenizer) -> bool:
    """Whether a model's vocabulary is of this kind: ChatML's turns, and tokens around a call."""
    chat = tok.chat
    return chat is not None and chat.form == "turns" and not chat.sep and {CALL, CALL_END} <= tok.special_tokens.keys() and "user" in chat.roles


def signature(name: str) -> dict[str, Any]:
    """A tool as the function schema that the model is shown (OpenAI's)."""
    argument, told = SIGNATURES[name]
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": told, "parameters": parameters}}


def opening(tok: Tokenizer, signatures: Sequence[Mapping[str, Any]], system: str | None = None) -> list[int]:
    """The system turn that offers tools (`signature` gives ours), as the models' template writes it: its <tool_call> are the tokens themselves.
    Names, descriptions and the system message are ordinary text, whatever they hold.
    """
    chat = tok.require_chat()
    told = offering(tok, signatures, system or chat.default_system, f"system{chat.sep_text}")
    bos = [tok.bos_id] if chat.bos else []
    return [*bos, tok.special(chat.start), *told, tok.special(chat.end), *tok.encode(chat.after)]


class JsonToolLoop(ToolLoop):
    """ToolLoop for calls written as JSON. `tools` maps names (python, calculator, search) to what answers."""

    def __init__(self, engine: Engine, tools: Mapping[str, Tool], *, max_calls: int = 8, max_answer_tokens: int = 512):
        tok = engine.tokenizer
        if tok is None or not calls_as_json(tok):
            raise UserError(f"this model's vocabulary has no {CALL} and ChatML turns, so it cannot call tools in JSON")
        if unknown := [name for name in tools if name not in SIGNATURES]:
            raise UserError(f"there is no tool {unknown[0]!r}", hint=f"tools: {', '.join(SIGNATURES)}")
        super().__init__(engine, {}, max_calls=max_calls, max_answer_tokens=max_answer_tokens)
        self.tools, self.chat = dict(tools), tok.require_chat()
        self._start, self._end = {tok.special(CALL): "json"}, {tok.special(CALL_END): "json"}  # what is not shown as text
        forged = (self.chat.start, ANSWER, ANSWER_END)
        self._forged = frozenset(tok.special(t) for t in forged if t in tok.special_tokens)

    def opening(self, system: str | None = None) -> list[int]:
        """The system turn to begin a conversation with."""
        return opening(self.tok, [signature(name) for name in self.tools], system)

    def _check(self, row: _Row) -> None:
        start, begin = self.tok.special(self.chat.start), 0
        for at in [*(i for i, t in enumerate(row.prompt) if t == start and i), len(row.prompt)]:
            if MARKS.search(self.tok.decode(row.prompt[begin:at])) and _digest(row.prompt[:at]) not in self._written:
                raise UserError(f"the turn from position {begin} on holds {ANSWER}, which only a tool may write",
                                hint="give the conversation as messages, or go on with ids that this loop returned")  # fmt: skip
            begin = at

    def _submit(self, row: _Row) -> Request:
        said = sum(row.out.mask)
        stops = {*row.params.stop_ids, self.tok.special(self.chat.end), *self._forged}
        params = replace(row.params, stop_ids=tuple(sorted(stops)), max_new_tokens=row.params.max_new_tokens - said,
                         min_new_tokens=max(0, row.params.min_new_tokens - said),
                         stop=row.params.stop if ANSWER in self.tok.special_tokens else (*row.params.stop, ANSWER))  # fmt: skip
        return self.engine.submit([*row.prompt, *row.out.ids], params, row.seed)

    def _advance(self, row: _Row) -> bool:
        assert row.request is not None and row.request.done is not None
        done, out = row.request.done, row.out
        ids, last = list(done.ids), done.ids[-1] if done.ids and done.stopped else -1
        out.finish_reason = self._reason(done, last)
        if last in self._forged:
            ids.pop()
        elif self._made_up(done, last):
            out.finish_reason = "forged"
            while ids and (ANSWER[:2] in self.tok.decode(ids[-1:]) or MARKS.search(self.tok.decode(ids)) or self._opened(ids)):
                ids.pop()
        out.ids += ids
        out.mask += [1] * len(ids)
        out.logprobs += done.logprobs.tolist()[: len(ids)]
        going = last == self.tok.special(self.chat.end) and self.tok.special(CALL) in ids and self._answer_turn(row, ids)
        if not going:
            out.text = self._spoken(row)
        return going

    def _made_up(self, done: Completion, last: int) -> bool:
        return done.stopped and last not in self.tok.special_ids and ANSWER in self.tok.decode(done.ids)

    def _opened(self, ids: list[int]) -> bool:
        """Whether the text ends within the mark."""
        text = self.tok.decode(ids)
        return any(text.endswith(ANSWER[:n]) for n in range(1, len(ANSWER)))

    def _answer_turn(self, row: _Row, said: list[int]) -> bool:
        """Run the calls of a turn and write their answers as the next one, and the beginning of the one after it."""
        tok, out, chat = self.tok, row.out, self.chat
        texts = between(said, tok.special(CALL), tok.special(CALL_END))
        if texts is None:
            out.finish_reason = "malformed"
            return False
        if len(out.calls) + len(texts) > self.max_calls:
            out.finish_reason = "calls"
            return False
        answers = []
        for ids in texts:
            call = self._run(tok.decode(ids))
            out.calls.append(call)
            answers.append(call.answer)
        self._put(row, answer_turn(tok, answers, self.max_answer_tokens))
        self._put(row, [tok.special(chat.start), *tok.encode(chat.assistant + chat.sep_text)])
        return self._go_on(row)

    def _run(self, text: str) -> ToolCall:
        """One call. What is wrong with it is its answer: the model may put it right."""
        began = time.perf_counter()
        name, given, problem = parsed(text, self.tools)
        if problem is None:
            try:
                answer = self.tools[name](given)
            except Exception as error:  # a tool of the user's: its bug is an answer, not the end of every other row
                answer = f"error: {type(error).__name__}: {error}"
        else:
            answer = f"error: {problem}"
        return ToolCall(name, given, answer, time.perf_counter() - began)


def answer_turn(tok: Tokenizer, answers: Sequence[str], max_answer_tokens: int) -> list[int]:
    """Ids behind the end of a turn with calls: the turn that holds their answers, up to its end."""
    chat = tok.require_chat()
    parts: list[int] = []
    for number, text in enumerate(answers):
        answer = tok.encode(MARKS.sub(r"<\1tool response>", text))[:max_answer_tokens]
        parts += [*with_marks(tok, ("\n" if number else "") + ANSWER + "\n"), *answer, *with_marks(tok, "\n" + ANSWER_END)]
    opened = [*tok.encode(chat.after), tok.special(chat.start), *tok.encode("user" + chat.sep_text), *parts]
    return [*opened, tok.special(chat.end), *tok.encode(chat.after)]


def between(ids: Sequence[int], start: int, end: int) -> list[list[int]] | None:
    """What stands between each start and its end; None if they do not pair."""
    out: list[list[int]] = []
    open_at = -1
    for i, token in enumerate(ids):
        if token == start and open_at < 0:
            open_at = i
        elif token == end and open_at >= 0:
            out.append(list(ids[open_at + 1 : i]))
            open_at = -1
        elif token in (start, end):
            return None
    return out if open_at < 0 else None


def parsed(text: str, tools: Mapping[str, Tool]) -> tuple[str, str, str | None]:
    """(tool, its argument, None), or what is known of a call and what is wrong with it."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        return "", text.strip(), f"the call is not JSON: {str(error)[:100]}"
    name, arguments = (call.get("name"), call.get("arguments")) if isinstance(call, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return "", text.strip(), 'a call is {"name": ..., "arguments": {...}}'
    if name not in tools:
        return name[:40], text.strip(), f"there is no tool {name[:40]!r}; there are: {', '.join(tools)}"
    argument = SIGNATURES[name][0]
    if not isinstance(arguments.get(argument), str):
        return name, text.strip(), f"{name} needs the argument {argument!r}, a text"
    return name, arguments[argument], None
