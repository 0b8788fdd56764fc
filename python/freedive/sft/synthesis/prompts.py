"""What the writing model is asked. A change of these words changes VERSION, which every row carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VERSION = "1"
Message = dict[str, Any]

TASKS = """Come up with new tasks for an assistant. Each can be done in words alone, needs nothing but what it says, and is of another kind than the others.

{examples}

Write {count} more, numbered {first} to {last}. Write the tasks only, not the answers."""
NEXT = """Below is a conversation between a user and an assistant. Write what the user says next: one or two sentences that go deeper, ask for more, or turn to something close by. \
Write the user's words only.

{conversation}"""


def new_tasks(examples: Sequence[str], count: int) -> list[Message]:
    """A request for `count` tasks unlike the examples."""
    listed = "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(examples, 1))
    first = len(examples) + 1
    return [{"role": "user", "content": TASKS.format(examples=listed, count=count, first=first, last=first + count - 1)}]


def next_turn(messages: Sequence[Message], persona: str) -> list[Message]:
    """A request to the simulated user (UltraChat, arXiv:2305.14233, has two models talk to each other)."""
    spoken = "\n\n".join(f"{'User' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in messages)
    system = [{"role": "system", "content": persona}] if persona else []
    return [*system, {"role": "user", "content": NEXT.format(conversation=spoken)}]


def users_words(reply: str) -> str:
    """A simulated user's reply without the name before it, and up to where it begins to speak for the assistant."""
    text = reply.strip()
    for name in ("User:", "**User:**", "user:"):
        text = text.removeprefix(name).strip()
    for name in ("\nAssistant:", "\n**Assistant:**", "\nUser:"):
        text = text.split(name)[0].strip()
    return text.strip('"').strip()


def answer(messages: Sequence[Message], persona: str) -> list[Message]:
    """The conversation as the assistant is given it; the labeller's sheet is its system message, and no part of the row."""
    return [*([{"role": "system", "content": persona}] if persona else []), *messages]
