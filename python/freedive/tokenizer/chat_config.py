"""The form of a conversation: which special tokens mark a turn. A value only; `chat.py` renders with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatConfig:
    """`<start>role<sep>content<end>`, no newlines between turns: the talk's form. All three are special tokens."""

    start: str = "<|im_start|>"
    sep: str = "<|im_sep|>"
    end: str = "<|im_end|>"
    bos: bool = True  # begin with <|endoftext|>, as every training document does; the talk's o200k example does not
    roles: tuple[str, ...] = ("system", "user", "assistant", "tool")
    assistant: str = "assistant"  # the role which is trained
