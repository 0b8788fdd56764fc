"""The form of a conversation: which special tokens mark a turn. A value only; `chat.py` renders with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatConfig:
    """`<start>role<sep>content<end>`, no newlines between turns: the talk's form. All three are special tokens.

    Published models have line ends besides, or instead of sep: ChatML is sep = "", sep_text = after = "\\n" (SmolLM2, Qwen),
    Llama 3 is sep_text = "\\n\\n".
    """

    start: str = "<|im_start|>"
    sep: str = "<|im_sep|>"  # may be "" if there is a sep_text
    end: str = "<|im_end|>"
    bos: bool = True  # begin with <|endoftext|>, as every training document does; the talk's o200k example does not
    roles: tuple[str, ...] = ("system", "user", "assistant", "tool")
    assistant: str = "assistant"  # the role which is trained
    sep_text: str = ""  # plain text between sep and content
    after: str = ""  # plain text after end; never trained
    form: str = "turns"  # or "llama2": questions between [INST] and [/INST], see chat_llama2.py; sep_text is the latter
    default_system: str = ""  # what a conversation without a system message begins with (SmolLM2, Qwen2.5); "" is nothing
