"""Messages of the API as ids: turns, tools on offer, calls that were made and what they brought (talk 2.4, 3.1).

The one idea: contents are encoded as ordinary text, always; only what stands between them is made of special tokens. So no string in a
message can open a turn, forge a tool's answer or end a conversation. A model is offered functions in the form it knows:

    slots   our models: python(code) and search(query) between tokens of their own; the answer goes on in the same turn (tool_loop.py)
    json    vocabularies with <tool_call>: Qwen's and Hermes' form (tool_json.py)
    text    all others: the same form, spelled out; they were not trained on it, so it takes a forced call to be sure of one
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from freedive.inference import Grammar
from freedive.inference.thinking import THINK, THINK_END
from freedive.inference.tool_json import ANSWER, ANSWER_END, CALL, CALL_END, calls_as_json, opening, with_marks
from freedive.inference.tool_loop import SLOTS, offered
from freedive.tokenizer import Tokenizer, render
from freedive.tokenizer.chat import turn_header

from .asking import one_line
from .errors import APIError
from .schemas import Message, NamedChoice, Tool


@dataclass(frozen=True)
class Offer:
    """Functions a model may call in one answer, and in which form."""

    form: str = "none"  # slots, json, text, none
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> its definition as the API has it
    forced: tuple[str, ...] = ()  # names of which one must be called; () leaves it to the model

    def argument(self, name: str) -> str:
        """The one argument of a function in the slots form."""
        return next(iter(_properties(self.functions[name])), {"python": "code"}.get(name, "query"))


def offer(tok: Tokenizer, tools: Sequence[Tool] | None, choice: str | NamedChoice | None) -> Offer:
    """What of a request's tools the model is offered. Raises APIError for a choice that is not among them, and names given twice."""
    functions: dict[str, dict[str, Any]] = {}
    for at, tool in enumerate(tools or ()):
        if tool.function.name in functions:
            raise APIError(400, f"tools.{at}: there are two functions named {tool.function.name!r}", param="tools")
        functions[tool.function.name] = tool.model_dump(exclude_none=True)
    if not functions:
        if choice not in (None, "none"):
            raise APIError(400, "tool_choice is given, and there are no tools to choose from", param="tool_choice")
        return Offer()
    if isinstance(choice, NamedChoice) and choice.function.name not in functions:
        raise APIError(400, f"tool_choice names {choice.function.name[:64]!r}, which is not among the tools", param="tool_choice")
    if choice == "none":
        return Offer()
    forced = (choice.function.name,) if isinstance(choice, NamedChoice) else tuple(functions) if choice == "required" else ()
    have = offered(tok)
    slots = all(name in have and len(_properties(f)) <= 1 for name, f in functions.items())
    if not slots and tok.require_chat().form == "llama2":
        raise APIError(400, "Llama 2's form of a conversation has no place for tools", param="tools")
    return Offer("slots" if slots else "json" if calls_as_json(tok) else "text", functions, forced)


def _properties(function: dict[str, Any]) -> dict[str, Any]:
    found = (function["function"].get("parameters") or {}).get("properties")
    return found if isinstance(found, dict) else {}


def call_ends(tok: Tokenizer, what: Offer) -> list[int]:
    """Ids that end an answer in a conversation besides the model's own: the end of a call in the slots form, which the client answers, and
    always what only tools may write."""
    forged = {t for tokens in SLOTS.values() for t in tokens[2:]} | {ANSWER, ANSWER_END}
    ends = {SLOTS[name][1] for name in what.functions} if what.form == "slots" else set()
    return sorted(tok.special_tokens[t] for t in forged | ends if t in tok.special_tokens)


def grammar_of(tok: Tokenizer, what: Offer, schema: Any = None) -> Grammar | None:
    """The grammar of a forced call: its marks, a name on offer, arguments of that function's schema; or, with a schema and nothing forced, of a
    call or JSON of that schema. None where neither is asked for. Raises UserError for a bad schema.
    """
    if not what.forced and schema is None:
        return None
    names, answer = what.forced or tuple(what.functions), ""
    if not what.forced:
        answer = f" | answer\nanswer: %json {json.dumps(one_line(schema))}"
    if what.form == "slots":
        pairs = [(tok.special(SLOTS[name][0]), tok.special(SLOTS[name][1])) for name in names]
        return Grammar("lark", "start: " + " | ".join(f"<[{begin}]> TEXT <[{end}]>" for begin, end in pairs) + answer + "\nTEXT: /(.|\\n)+/\n")
    begin, end = (f"<[{tok.special(m)}]>" if what.form == "json" else json.dumps(m) for m in (CALL, CALL_END))
    schemas = [
        {"type": "object", "properties": {"name": {"const": name}, "arguments": what.functions[name]["function"].get("parameters") or {"type": "object"}},
         "required": ["name", "arguments"], "additionalProperties": False}
        for name in names
    ]  # fmt: skip
    calls = "\n".join(f"call{i}: %json {json.dumps(one_line(s))}" for i, s in enumerate(schemas))
    among = " | ".join(f"call{i}" for i in range(len(schemas)))
    return Grammar("lark", f'start: {begin} "\\n" ({among}) "\\n" {end}{answer}\n{calls}\n')


def no_thoughts(tok: Tokenizer) -> list[int]:
    """What an answer without reasoning begins with, for models that think: thoughts that are empty (Qwen3's template). [] for all others."""
    return [tok.special(THINK), *tok.encode("\n\n"), tok.special(THINK_END), *tok.encode("\n\n")] if can_think(tok) else []


def can_think(tok: Tokenizer) -> bool:
    """Whether a vocabulary has tokens around thoughts."""
    return {THINK, THINK_END} <= tok.special_tokens.keys()


def chat_ids(tok: Tokenizer, messages: Sequence[Message], what: Offer, *, generate: bool = True, go_on: bool = False) -> list[int]:
    """The ids of a conversation, up to where the answer begins (generate), or within its last message, which is the assistant's (go_on).

    Raises APIError for messages that cannot follow each other so, UserError for a model without a chat form.
    """
    chat = tok.require_chat()
    if go_on and (messages[-1].role != "assistant" or messages[-1].tool_calls):
        raise APIError(400, "continue_final_message needs a last message of the assistant's, without tool_calls", param="messages")
    _check(messages)
    if unknown := next((r for m in messages if (r := _role(m)) not in chat.roles and r != "tool"), None):
        raise APIError(400, f"this model knows no role {unknown!r}; it knows {', '.join(chat.roles)}", param="messages")
    if chat.form == "llama2":
        turns = [{"role": _role(m), "content": m.text} for m in messages]
        if any(m.role == "tool" or m.tool_calls for m in messages):
            raise APIError(400, "Llama 2's form of a conversation has no place for tools", param="messages")
        ids = render(tok, turns, add_generation_prompt=generate and not go_on)[0]
        return _without_end(tok, ids) if go_on else ids
    rest = list(messages)
    system = rest.pop(0).text if _role(rest[0]) == "system" else None
    if what.form in ("json", "text"):
        ids = opening(tok, list(what.functions.values()), system)
    else:
        ids = [tok.bos_id] if chat.bos else []
        if said := chat.default_system if system is None else system:
            ids += _turn(tok, "system", tok.encode(said))
    slots = _slot_calls(tok, messages)
    at = 0
    while at < len(rest):
        message = rest[at]
        if message.role == "assistant" and slots:
            at = _slot_turn(tok, rest, at, ids, last_open=go_on)
        elif message.role == "tool":
            at = _answers(tok, rest, at, ids)
        else:
            said = message.text
            body = tok.encode(said)
            for call in message.tool_calls or ():
                body += with_marks(tok, ("\n" if body else "") + CALL)
                body += tok.encode("\n" + json.dumps({"name": call.function.name, "arguments": _arguments(call.function.arguments)}, ensure_ascii=False) + "\n")
                body += with_marks(tok, CALL_END)
            ids += _turn(tok, _role(message), body)
            at += 1
            if go_on and at == len(rest):
                return _without_end(tok, ids)
    if generate and not go_on and not (slots and rest and rest[-1].role == "tool"):
        ids += turn_header(tok, chat, chat.assistant)
    return ids


def _check(messages: Sequence[Message]) -> None:
    waiting: set[str] = set()
    for at, message in enumerate(messages):
        where = f"messages.{at}"
        if message.role == "tool":
            if message.tool_call_id not in waiting:
                raise APIError(400, f"{where}: it answers the call {message.tool_call_id!r}, which no message before it made and left open", param="messages")
            waiting.discard(message.tool_call_id)
            continue
        if waiting:
            raise APIError(400, f"{where}: the call {min(waiting)!r} has no answer yet", param="messages")
        if message.role != "assistant" and (message.tool_calls or message.tool_call_id):
            raise APIError(400, f"{where}: only the assistant makes calls, and only tools answer them", param="messages")
        if message.content is None and not message.tool_calls:
            raise APIError(400, f"{where}: it has no content", param="messages")
        for call in message.tool_calls or ():
            if call.id in waiting:
                raise APIError(400, f"{where}: two calls have the id {call.id!r}", param="messages")
            waiting.add(call.id)
    if waiting:
        raise APIError(400, f"the call {min(waiting)!r} has no answer yet: send it as a message of the tool", param="messages")


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _turn(tok: Tokenizer, role: str, body: list[int]) -> list[int]:
    chat = tok.require_chat()
    return [*turn_header(tok, chat, role), *body, tok.special(chat.end), *tok.encode(chat.after)]


def _without_end(tok: Tokenizer, ids: list[int]) -> list[int]:
    """Ids up to where the last turn's content ends."""
    end = tok.special(tok.require_chat().end)
    return ids[: len(ids) - 1 - ids[::-1].index(end)]


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # what a model said, malformed as it was


def _slot_calls(tok: Tokenizer, messages: Sequence[Message]) -> bool:
    """Whether the calls in a conversation are of the slots form: there are some, and each is of a function that has tokens."""
    names = [call.function.name for m in messages for call in m.tool_calls or ()]
    return bool(names) and set(names) <= set(offered(tok))


def _slot_turn(tok: Tokenizer, rest: list[Message], at: int, ids: list[int], last_open: bool) -> int:
    """One turn of ours: what was said, calls, their answers and what was said after them, up to the next message of somebody else."""
    chat = tok.require_chat()
    ids += turn_header(tok, chat, chat.assistant)
    names: dict[str, str] = {}
    first = True
    while at < len(rest) and (rest[at].role == "tool" or rest[at].role == "assistant" and (first or rest[at - 1].role == "tool")):
        message, first = rest[at], False
        if message.role == "assistant":
            ids += tok.encode(message.text)
        calls = message.tool_calls or ()
        answers = {m.tool_call_id: m.text for m in rest[at + 1 : at + 1 + len(calls)]}
        for call in calls:
            names[call.id] = call.function.name
            begin, end, opened, closed = (tok.special(t) for t in SLOTS[call.function.name])
            given = _arguments(call.function.arguments)
            text = next((v for v in given.values() if isinstance(v, str)), "") if isinstance(given, dict) else call.function.arguments
            ids += [begin, *tok.encode(text), end, opened, *tok.encode(answers.get(call.id, "")), closed]
        at += 1 + len(calls)
    if at < len(rest) or rest[-1].role != "tool" and not last_open:
        ids += [tok.special(chat.end), *tok.encode(chat.after)]
    return at


def _answers(tok: Tokenizer, rest: list[Message], at: int, ids: list[int]) -> int:
    """The turn with tools' answers, all that stand together."""
    body: list[int] = []
    while at < len(rest) and rest[at].role == "tool":
        body += with_marks(tok, ("\n" if body else "") + ANSWER)
        body += tok.encode("\n" + rest[at].text + "\n")
        body += with_marks(tok, ANSWER_END)
        at += 1
    ids += _turn(tok, "user", body)
    return at
