"""Conversations as ids with a loss mask: `<|im_start|>role<|im_sep|>content<|im_end|>`, turn after turn (the talk's 2.4.1).

The one idea worth knowing: the renderer writes *ids*, not a string that is tokenised afterwards. So a user's text can't
produce a special token, the mask is right by construction (no searching for turns), and rendering is append-only:
`render(m[:k])` is a prefix of `render(m)`, which keeps a cache of the earlier turns valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freedive.runs import UserError

from . import chat_json, chat_llama2, chat_tools
from .chat_config import ChatConfig
from .tokenizer import Tokenizer

__all__ = ["ChatConfig", "check_mask", "parse", "render", "render_text", "validate"]

Message = Mapping[str, Any]


def render(
    tok: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    *,
    row: int | str | None = None,  # named in error messages
    training: bool = False,  # then a conversation without an assistant is an error
    continued: bool = False,  # these turns follow others: nothing that opens a conversation stands before them
    tools: Any = None,  # function schemas, offered in the system message by models that write calls as JSON
) -> tuple[list[int], list[int]]:
    """Return (ids, mask), equally long. mask[i] == 1: ids[i] is a target of training, i.e. assistant content or its end token.

    Headers, other roles and <|endoftext|> at the start are 0. `add_generation_prompt` opens an assistant's turn. Raises
    UserError.
    """
    chat = tok.require_chat()
    validate(messages, chat, row=row, training=training)
    if chat.form == "llama2":
        if add_generation_prompt and messages[-1]["role"] != "user":
            raise UserError(f"{_where(row)}an answer is asked for, and no question stands last", hint="Llama 2's form: the last message is the user's")
        return chat_llama2.rendered(tok, chat, messages)
    ids: list[int] = [tok.bos_id] if chat.bos and not continued else []
    mask: list[int] = [0] * len(ids)

    def add(piece: list[int], trained: bool) -> None:
        ids.extend(piece)
        mask.extend([int(trained)] * len(piece))

    if chat_json.applies(tok, chat, messages, tools):
        for role, content in chat_json.turns(tok, chat, messages, tools, _where(row)):
            add(turn_header(tok, chat, role), False)
            add(content, role == chat.assistant)
            add([tok.special(chat.end)], role == chat.assistant)
            add(tok.encode(chat.after), False)
        if add_generation_prompt:
            add(turn_header(tok, chat, chat.assistant), False)
        return ids, mask
    if chat.default_system and not continued and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": chat.default_system}, *messages]
    finished = True
    for role, parts, finished in chat_tools.turns(tok, chat, messages, _where(row)):
        add(turn_header(tok, chat, role), False)
        for piece, trained in parts:
            add(piece, trained)
        if finished:
            add([tok.special(chat.end)], role == chat.assistant)
            add(tok.encode(chat.after), False)
    if add_generation_prompt and finished:  # a tool's answer leaves the turn open
        add(turn_header(tok, chat, chat.assistant), False)
    return ids, mask


def render_text(tok: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The rendered conversation as text, for people: encoding this string again gives no special tokens."""
    return tok.decode(render(tok, messages, add_generation_prompt)[0])


def parse(tok: Tokenizer, ids: Sequence[int], allow_unfinished: bool = False) -> list[dict[str, Any]]:
    """Return the messages that `render` made `ids` from; an open assistant header without content is left out.

    A last turn without its end token is an error unless `allow_unfinished`. Raises UserError with the position for anything
    else that isn't a conversation.
    """
    chat = tok.require_chat()
    messages: list[dict[str, Any]] = []
    for role, begin, end, finished in _turns(tok, chat, ids):
        if not finished and begin == end and role == chat.assistant:
            break  # the generation prompt
        if not finished and not allow_unfinished:
            raise _not_a_conversation(len(ids), f"the last turn has no {chat.end}")
        if chat.form == "llama2":
            messages += chat_llama2.messages_of(role, tok.decode(ids[begin:end]))
        elif chat_json.inside(tok):  # calls in the content, as text
            messages.append({"role": role, "content": tok.decode(ids[begin:end])})
        else:
            messages += chat_tools.messages_of(tok, role, ids[begin:end])
    return messages


def check_mask(tok: Tokenizer, ids: Sequence[int], mask: Sequence[int], row: int | str | None = None) -> None:
    """Check a row of a training set from the outside: what is trained is the assistants' content and end tokens, exactly.

    Catches a model that trains on nothing, on the user's words, or never learns to stop (the three commonest masking bugs).
    Raises UserError.
    """
    chat = tok.require_chat()
    where = _where(row)
    if len(ids) != len(mask):
        raise UserError(f"{where}{len(ids)} ids but {len(mask)} mask entries")
    expected = [0] * len(ids)
    for role, begin, end, finished in _turns(tok, chat, ids):
        if role == chat.assistant:
            if finished and not mask[end]:
                raise UserError(f"{where}the {chat.end} at position {end} is not trained: the model would never learn to stop")
            stop = end + int(finished)
            expected[begin:stop] = [1] * (stop - begin)
            for first, last in chat_tools.answer_spans(tok, ids[begin:end]):  # what a tool said is not trained
                expected[begin + first : begin + last] = [0] * (last - first)
    for position, (got, want) in enumerate(zip(mask, expected, strict=True)):
        if int(got) != want:
            token = tok.decode(ids[position : position + 1])
            raise UserError(
                f"{where}mask at {position} ({token!r}) is {int(got)}, not {want}: only the assistant's turns are trained"
            )
    if not any(expected):
        raise UserError(f"{where}no token is trained", hint="every training conversation needs an assistant message")


def validate(messages: Any, chat: ChatConfig, *, row: int | str | None = None, training: bool = False) -> None:
    """Raise UserError, naming the row, unless `messages` is a non-empty list of {"role": known, "content": non-empty text}."""
    where = _where(row)
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise UserError(f"{where}messages must be a list of messages, got {type(messages).__name__}", hint=_EXAMPLE)
    if not messages:
        raise UserError(f"{where}the conversation has no messages", hint=_EXAMPLE)
    for number, message in enumerate(messages, 1):
        here = f"{where}message {number}"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            what = f"has the keys {sorted(map(str, message))}" if isinstance(message, Mapping) else f"is {type(message).__name__}"
            raise UserError(f"{here} {what}; it needs 'role' and 'content'", hint=_EXAMPLE)
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or role not in chat.roles:
            raise UserError(f"{here} has the role {role!r:.60}", hint=f"known roles: {', '.join(chat.roles)}")
        calls = bool(message.get("tool_calls"))
        if calls and chat.form == "llama2":
            raise UserError(f"{here} has tool_calls, and Llama 2's form has none", hint="write the call into the content as text")
        if not isinstance(content, str) and not (calls and content is None):
            raise UserError(f"{here}: content must be text, is {type(content).__name__}")
        if not content and not calls and role != "tool":  # a program may print nothing
            raise UserError(f"{here} ({role}) is empty", hint="leave the message out")
    if chat.form == "llama2":
        chat_llama2.check(messages, where)
    if training and not any(message["role"] == chat.assistant for message in messages):
        raise UserError(f"{where}no message is from the {chat.assistant!r}, so there is nothing to learn", hint=_EXAMPLE)


_EXAMPLE = 'for example [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]'


def turn_header(tok: Tokenizer, chat: ChatConfig, role: str) -> list[int]:
    """The ids that open a role's turn."""
    if not chat.sep:
        return [tok.special(chat.start), *tok.encode(role + chat.sep_text)]
    return [tok.special(chat.start), *tok.encode(role), tok.special(chat.sep), *tok.encode(chat.sep_text)]


def _turns(tok: Tokenizer, chat: ChatConfig, ids: Sequence[int]) -> list[tuple[str, int, int, bool]]:
    """(role, where content begins, where it ends, whether the end token stands there) of each turn."""
    if chat.form == "llama2":
        return chat_llama2.turns(tok, chat, [int(i) for i in ids])
    start, end, after = tok.special(chat.start), tok.special(chat.end), tok.encode(chat.after)
    headers = {role: turn_header(tok, chat, role) for role in chat.roles}
    ids = [int(i) for i in ids]
    at = 0
    if chat.bos:
        if not ids or ids[0] != tok.bos_id:
            raise _not_a_conversation(0, "it does not begin with <|endoftext|>")
        at = 1
    turns = []
    while at < len(ids):
        if ids[at] != start:
            raise _not_a_conversation(at, f"expected {chat.start}")
        fitting = [role for role, header in headers.items() if ids[at : at + len(header)] == header]
        if not fitting:
            role_end = _ordinary_until(tok, ids, at + 1)
            role = tok.decode(ids[at + 1 : role_end])
            if chat.sep and ids[role_end : role_end + 1] != [tok.special(chat.sep)]:
                raise _not_a_conversation(role_end, f"expected {chat.sep} after the role")
            raise _not_a_conversation(at + 1, f"unknown role {role!r:.60}")
        role = max(fitting, key=lambda name: len(headers[name]))
        begin = at + len(headers[role])
        besides = chat_tools.inside(tok) if role == chat.assistant else frozenset()
        content_end = _ordinary_until(tok, ids, begin, besides | chat_json.inside(tok))
        finished = content_end < len(ids)
        if finished and ids[content_end] != end:
            raise _not_a_conversation(content_end, f"expected {chat.end}, found {tok.decode([ids[content_end]])}")
        turns.append((role, begin, content_end, finished))
        at = content_end + 1
        if ids[at : at + len(after)] != after[: len(ids) - at]:
            raise _not_a_conversation(at, f"expected {chat.after!r} after {chat.end}")
        at += len(after)
    return turns


def _ordinary_until(tok: Tokenizer, ids: list[int], at: int, besides: frozenset[int] = frozenset()) -> int:
    while at < len(ids) and (ids[at] not in tok.special_ids or ids[at] in besides):
        at += 1
    return at


def _where(row: int | str | None) -> str:
    return "" if row is None else f"row {row}: " if isinstance(row, int) else f"{row}: "


def _not_a_conversation(position: int, why: str) -> UserError:
    return UserError(f"these ids are not a conversation: at position {position} {why}")
