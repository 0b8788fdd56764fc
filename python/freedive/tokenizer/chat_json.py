"""Tool calls as JSON, as ChatML models write them (Qwen2.5, Qwen3, Hermes; for those without tokens of their own for calls, as text):

    <|im_start|>assistant
    <tool_call>
    {"name": "FindBus", "arguments": {"to": "Fresno"}}
    </tool_call><|im_end|>
    <|im_start|>user
    <tool_response>
    [{"leaves": "07:40"}]
    </tool_response><|im_end|>

As messages: `tool_calls` of one from the assistant, and one of the role "tool" for each answer. Calls are trained, answers are not. Where a
vocabulary has the marks as tokens, only those of ours are these tokens; in what people or tools wrote they are plain text, and in answers
<tool_response> is spelt differently, so that none can end early.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from freedive.runs import UserError

from .chat_config import ChatConfig
from .tokenizer import Tokenizer

CALL, CALL_END = "<tool_call>", "</tool_call>"  # single tokens in Qwen's vocabularies
ANSWER, ANSWER_END = "<tool_response>", "</tool_response>"  # in Qwen3's too, plain text in Qwen2.5's
MARKS = re.compile(r"<(/?)tool_response>")
OWN = "<|python_start|>"  # a vocabulary with this writes calls inside of a turn (chat_tools.py)
_BEFORE = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_EXAMPLE = '{"type": "function", "function": {"name": "FindBus", "arguments": {"to": "Fresno"}}}'
Messages = Sequence[Mapping[str, Any]]


def applies(tok: Tokenizer, chat: ChatConfig, messages: Messages, tools: Any = None) -> bool:
    """Whether these messages have tools, and this vocabulary writes calls as JSON."""
    return chat.form == "turns" and OWN not in tok.special_tokens and (bool(tools) or any(m.get("tool_calls") or m["role"] == "tool" for m in messages))


def with_marks(tok: Tokenizer, text: str) -> list[int]:
    """Text of ours as ids, the marks of calls and answers as tokens where the vocabulary has them."""
    ids: list[int] = []
    for part in re.split(r"(</?tool_(?:call|response)>)", text):
        ids += [tok.special(part)] if part in tok.special_tokens else tok.encode(part) if part else []
    return ids


def inside(tok: Tokenizer) -> frozenset[int]:
    """The special tokens that may stand inside of a turn."""
    return frozenset(tok.special_tokens[t] for t in (CALL, CALL_END, ANSWER, ANSWER_END) if t in tok.special_tokens)


def offering(tok: Tokenizer, tools: Sequence[Mapping[str, Any]], system: str, before: str = "") -> list[int]:
    """A system message that offers tools, as the models' template writes it: the <tool_call> it ends with are the tokens themselves. Names,
    descriptions and the system message are ordinary text, whatever they hold.
    """
    listed = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
    head, mark, tail = _AFTER.partition(CALL)
    return [*tok.encode(f"{before}{system}{_BEFORE if system else _BEFORE.lstrip()}{listed}{head}"), *with_marks(tok, mark + tail)]


def tools_of(tools: Any, where: str) -> list[Mapping[str, Any]]:
    """A row's `tools`: a list of function schemas, or that as JSON text. Raises UserError."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except ValueError as error:
            raise UserError(f"{where}tools is not JSON: {error}") from None
    if not isinstance(tools or [], list) or any(not isinstance(t, Mapping) for t in tools or []):
        raise UserError(f"{where}tools must be a list of function schemas", hint='[{"type": "function", "function": {"name": "...", "parameters": {...}}}]')
    return list(tools or [])


def call_of(call: Any, where: str) -> tuple[str, Any]:
    """(name, arguments) of one of a message's tool_calls, in OpenAI's form. Raises UserError."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name, arguments = (function.get("name"), function.get("arguments", {})) if isinstance(function, Mapping) else (None, None)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
        raise UserError(f"{where} has a call {call!r:.80}", hint=f"for example {_EXAMPLE}")
    return name, {k: v for k, v in arguments.items() if v is not None}  # tables fill what other rows have with nulls


def call_text(name: str, arguments: Any) -> str:
    """A call as these models write it."""
    return f"{CALL}\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n{CALL_END}"


def parse_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """(name, arguments) of the first call in what a model said; None where there is none, or it is no JSON object."""
    found = re.search(rf"{CALL}\s*(.*?)\s*(?:{CALL_END}|$)", text, re.S)
    try:
        call = json.loads(found[1]) if found else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not isinstance(call.get("arguments"), dict):
        return None
    return call["name"], call["arguments"]


def turns(tok: Tokenizer, chat: ChatConfig, messages: Messages, tools: Any, where: str) -> list[tuple[str, list[int]]]:
    """(role, ids of the content) of each turn. Answers that follow each other are one turn of the user's."""
    offered = tools_of(tools, where)
    out: list[tuple[str, list[int]]] = []
    if offered:
        own = messages[0]["role"] == "system"
        out.append(("system", offering(tok, offered, messages[0]["content"] if own else chat.default_system)))
        messages = messages[own:]
    elif chat.default_system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": chat.default_system}, *messages]
    answering = False
    for number, message in enumerate(messages, 1):
        role, content, here = message["role"], message.get("content") or "", f"{where}message {number}"
        if role == "tool":
            answer = [*with_marks(tok, f"{ANSWER}\n"), *tok.encode(MARKS.sub(r"<\1tool response>", content)), *with_marks(tok, f"\n{ANSWER_END}")]
            if answering:
                out[-1][1].extend([*tok.encode("\n"), *answer])
            else:
                out.append(("user", answer))
            answering = True
            continue
        answering = False
        calls = message.get("tool_calls") or []
        if calls and role != chat.assistant:
            raise UserError(f"{here} has tool_calls and is from the {role!r}", hint="only the assistant calls tools")
        if not isinstance(calls, list):
            raise UserError(f"{here}: tool_calls must be a list", hint=f"for example [{_EXAMPLE}]")
        ids = tok.encode(content)
        for i, call in enumerate(calls):
            ids += with_marks(tok, ("\n" if content or i else "") + call_text(*call_of(call, here)))
        out.append((role, ids))
    return out
