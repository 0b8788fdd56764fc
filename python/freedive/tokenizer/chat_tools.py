"""Tool calls inside an assistant's turn, as our own models write them (talk 3.1):

    <|im_start|>assistant<|im_sep|><|python_start|>12*34<|python_end|><|output_start|>408<|output_end|>It is 408.<|im_end|>

As messages these are three: the assistant's with `tool_calls`, the tool's, the assistant's again. What the assistant says is trained, the
call included; what the tool answered is not. The tokens are special ones, so no text can hold them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from freedive.runs import UserError

from .chat_config import ChatConfig
from .tokenizer import Tokenizer

# tool -> the tokens around its call and around its answer
SLOTS = {
    "python": ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"),
    "search": ("<|search_start|>", "<|search_end|>", "<|results_start|>", "<|results_end|>"),
}
ARGUMENTS = {"python": "code", "search": "query"}  # what a call's only argument is named
Part = tuple[list[int], bool]  # ids, and whether they are trained
_EXAMPLE = '{"type": "function", "function": {"name": "python", "arguments": {"code": "12*34"}}}'


def calls_of(message: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """(tool, text) of each call of a message. Raises UserError for a call that is not in OpenAI's form, or of an unknown tool."""
    calls = message.get("tool_calls") or []
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, Mapping) else (None, None)
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = None
        if name not in SLOTS:
            raise UserError(f"{where} has tool_calls of {name!r:.60}; models of freedive have tokens for {' and '.join(SLOTS)}", hint=f"for example {_EXAMPLE}")
        text = arguments.get(ARGUMENTS[name]) if isinstance(arguments, Mapping) and len(arguments) == 1 else None
        if not isinstance(text, str):
            raise UserError(f"{where} calls {name} with {arguments!r:.60}; its one argument is {ARGUMENTS[name]!r}, a text", hint=f"for example {_EXAMPLE}")
        found.append((name, text))
    return found


def turns(tok: Tokenizer, chat: ChatConfig, messages: Sequence[Mapping[str, Any]], where: str) -> Iterator[tuple[str, list[Part], bool]]:
    """(role, parts, finished) of each turn: messages from a call to the words after its answer are one turn. An unfinished one is the last."""
    parts: list[Part] = []
    pending: str | None = None  # the tool whose answer is due
    for number, message in enumerate(messages, 1):
        here = f"{where}message {number}"
        role, calls = message["role"], calls_of(message, here)
        content = tok.encode(message["content"] or "")
        if pending and role == "tool":
            parts.append(([tok.special(SLOTS[pending][2]), *content, tok.special(SLOTS[pending][3])], False))
            pending = None
            continue
        if parts and (pending or role != chat.assistant):
            due = f"the answer of {pending}" if pending else "what the assistant says to the tool's answer"
            raise UserError(f"{here} is from the {role!r}, and {due} is due", hint='{"role": "tool", "content": "..."}')
        if calls and role != chat.assistant:
            raise UserError(f"{here} has tool_calls and is from the {role!r}", hint="only the assistant calls tools")
        if len(calls) > 1:
            raise UserError(f"{here} makes {len(calls)} calls at once", hint="write one message for each call, each followed by its answer")
        if content or not calls:
            parts.append((content, role == chat.assistant))
        for tool, text in calls:
            if missing := [t for t in SLOTS[tool] if t not in tok.special_tokens]:
                raise UserError(f"{here} calls {tool}, and this model's tokenizer has no {missing[0]}", hint="models trained by freedive have tool tokens")
            parts.append(([tok.special(SLOTS[tool][0]), *tok.encode(text), tok.special(SLOTS[tool][1])], True))
            pending = tool
        if not calls:
            yield role, parts, True
            parts = []
    if parts:
        yield chat.assistant, parts, False


def inside(tok: Tokenizer) -> frozenset[int]:
    """The special tokens that may stand inside an assistant's turn."""
    return frozenset(tok.special_tokens[t] for tokens in SLOTS.values() for t in tokens if t in tok.special_tokens)


def answer_spans(tok: Tokenizer, ids: Sequence[int]) -> list[tuple[int, int]]:
    """(begin, end) of each tool's answer within a turn's ids, its two tokens included."""
    edges = {tok.special_tokens[t[2]]: tok.special_tokens[t[3]] for t in SLOTS.values() if t[2] in tok.special_tokens and t[3] in tok.special_tokens}
    spans, at = [], 0
    while at < len(ids):
        end = at + 1
        if ids[at] in edges:
            end = next((i for i in range(at + 1, len(ids)) if ids[i] == edges[ids[at]]), len(ids) - 1) + 1
            spans.append((at, end))
        at = end
    return spans


def messages_of(tok: Tokenizer, role: str, ids: Sequence[int]) -> list[dict[str, Any]]:
    """A turn's ids as the messages it was rendered from. UserError for tool tokens in no order that `turns` writes."""
    starts = {tok.special_tokens[t[0]]: name for name, t in SLOTS.items() if t[0] in tok.special_tokens}
    messages: list[dict[str, Any]] = []
    said: list[int] = []
    at, ids = 0, list(ids)
    while at < len(ids):
        if ids[at] not in starts:
            if ids[at] in tok.special_ids:
                raise UserError(f"these ids are not a conversation: {tok.decode([ids[at]])} stands where no tool was called")
            said.append(ids[at])
            at += 1
            continue
        name = starts[ids[at]]
        end, text = _until(tok, ids, at, SLOTS[name][1])
        call = {"type": "function", "function": {"name": name, "arguments": {ARGUMENTS[name]: text}}}
        messages.append({"role": role, "content": tok.decode(said), "tool_calls": [call]})
        said, at = [], end
        if at < len(ids):
            if ids[at] != tok.special(SLOTS[name][2]):
                raise UserError(f"these ids are not a conversation: after a call of {name} {SLOTS[name][2]} is due")
            at, text = _until(tok, ids, at, SLOTS[name][3])
            messages.append({"role": "tool", "name": name, "content": text})
    if said or not messages:
        messages.append({"role": role, "content": tok.decode(said)})
    return messages


def _until(tok: Tokenizer, ids: list[int], at: int, closing: str) -> tuple[int, str]:
    """(the place behind the closing token, the text between it and the token at `at`)"""
    try:
        end = ids.index(tok.special(closing), at)
    except ValueError:
        raise UserError(f"these ids are not a conversation: {tok.decode([ids[at]])} has no {closing}") from None
    return end + 1, tok.decode(ids[at + 1 : end])
