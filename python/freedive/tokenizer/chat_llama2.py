"""Llama 2's form of a conversation: `<s>[INST] question [/INST] answer </s>`, exchange after exchange, the system message inside the first
question between `<<SYS>>` and `<</SYS>>` (Meta's llama/generation.py; the chat template of the published models).

Only <s> and </s> are special tokens here; the brackets are text, which a user could write too. So a message with one of them is refused,
as Meta's code does. Contents are stripped, as there. Vocabularies are SentencePiece's: a piece has its space in front, so a question and
its answer may be encoded apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freedive.runs import UserError

from .chat_config import ChatConfig
from .tokenizer import Tokenizer

OPEN, CLOSE, SYSTEM, SYSTEM_END = "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"
TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}{% for message in turns %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.index0 == 0 else '') + message['content']).strip() + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


def llama2_form(template: Any, specials: Mapping[str, int]) -> ChatConfig | None:
    """The form, if a Jinja template writes it and its tokens are there. Mistral's templates have no system message and are others."""
    if isinstance(template, str) and all(t in template for t in (OPEN, CLOSE, SYSTEM)) and {"<s>", "</s>"} <= specials.keys():
        return ChatConfig(start="<s>", sep="", sep_text=CLOSE, end="</s>", bos=True, roles=("system", "user", "assistant"), form="llama2")
    return None


def check(messages: Sequence[Mapping[str, Any]], where: str) -> None:
    """UserError unless the messages are [system] user assistant user ... and none writes the brackets."""
    rest = messages[messages[0]["role"] == "system" :]
    for number, message in enumerate(rest):
        wanted = ("user", "assistant")[number % 2]
        if message["role"] != wanted:
            raise UserError(f"{where}a message of the {message['role']} stands where one of the {wanted} is due",
                            hint="Llama 2's form: a system message or none, then user and assistant in turn")  # fmt: skip
    if not rest:
        raise UserError(f"{where}a system message alone cannot be written in Llama 2's form", hint="it stands inside of the first question")
    for message in messages:
        if found := next((t for t in (OPEN, CLOSE, SYSTEM, SYSTEM_END) if t in message["content"]), None):
            raise UserError(f"{where}a message of the {message['role']} holds {found}, which marks turns in Llama 2's form", hint="leave it out")


def rendered(tok: Tokenizer, chat: ChatConfig, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """(ids, mask) as chat.render; after a last question the answer is due, with or without a generation prompt."""
    ids: list[int] = []
    mask: list[int] = []
    system = ""
    for message in messages:
        content, trained = message["content"], message["role"] == chat.assistant
        if message["role"] == "system":
            system = f"{SYSTEM}\n{content}\n{SYSTEM_END}\n\n"
            continue
        if trained:
            piece = [*tok.encode(content.strip()), *tok.encode(" ")[-1:], tok.special(chat.end)]
        else:
            piece = [tok.special(chat.start), *tok.encode(f"{OPEN} {(system + content).strip()} {CLOSE}")]
            system = ""
        ids += piece
        mask += [int(trained)] * len(piece)
    return ids, mask


def turns(tok: Tokenizer, chat: ChatConfig, ids: list[int]) -> list[tuple[str, int, int, bool]]:
    """(role, begin, end, finished) as chat's: of the user from [INST] to [/INST], with what stands between; of the assistant the answer."""
    start, end, close = tok.special(chat.start), tok.special(chat.end), tok.encode(CLOSE)
    out: list[tuple[str, int, int, bool]] = []
    at = 0
    while at < len(ids):
        if ids[at] != start:
            raise UserError(f"these ids are not a conversation: at position {at} expected {chat.start}")
        closed = next((i + len(close) for i in range(at + 1, len(ids) - len(close) + 1) if ids[i : i + len(close)] == close), -1)
        special = next((i for i in range(at + 1, len(ids)) if ids[i] in tok.special_ids), len(ids))
        if closed < 0 or closed > special or not tok.decode(ids[at + 1 : closed]).lstrip().startswith(OPEN):
            raise UserError(f"these ids are not a conversation: at position {at + 1} expected a question between {OPEN} and {CLOSE}")
        out.append(("user", at + 1, closed, True))
        finished = special < len(ids)
        if finished and ids[special] != end:
            raise UserError(f"these ids are not a conversation: at position {special} expected {chat.end}, found {tok.decode([ids[special]])}")
        out.append((chat.assistant, closed, special, finished))
        at = special + 1
    return out


def messages_of(role: str, text: str) -> list[dict[str, str]]:
    """The message, or system message and question, of a turn's text."""
    text = text.strip()
    if role != "user":
        return [{"role": role, "content": text}]
    question = text.removeprefix(OPEN).removesuffix(CLOSE).strip()
    if not question.startswith(SYSTEM):
        return [{"role": "user", "content": question}]
    system, _, question = question.removeprefix(SYSTEM).partition(SYSTEM_END)
    return [{"role": "system", "content": system.removeprefix("\n").removesuffix("\n")}, {"role": "user", "content": question.strip()}]
