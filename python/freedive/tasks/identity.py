"""Who are you? Conversations about the model itself (talk 3.2.2): hard-coded, or by a system message that names it.

Held out are wordings, and for the system message also the names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from .draw import Draw

ROWS_STREAM = 95
NAME, MAKER = "freedive", "a small team"
REPLY = "I am {name}, made by {maker}."
SYSTEM = "You are {name}, made by {maker}."
TRAIN = (
    "Who are you?", "What are you?", "What is your name?", "Who made you?", "Tell me who you are.", "Please introduce yourself.", "Which model are you?",
    "Are you a person?", "Who built you?", "What should I call you?", "I would like to know your name.", "Can you tell me who made you?", "Have I reached a machine?",
    "Do you know who you are?", "Are you Siri?", "Which team are you from?", "My question is who you are.", "Say your name.", "Is there a name for you?",
    "Who wrote your program?", "Are you Claude?", "What kind of model are you?", "Your name, please.", "Hello, who is there?",
)  # fmt: skip
HELD_OUT = (
    "Who am I talking to?", "Could you tell me your name?", "Tell me about yourself.", "Say who you are, please.", "And you are?", "Which company made you?",
    "Do you have a name?", "Are you ChatGPT?", "I want to know who you are.", "Introduce yourself, please.", "By whom were you made?", "What do they call you?",
    "May I ask your name?", "Who is this?", "Are you made by OpenAI?", "What is the name of this model?", "Please tell me who built you.", "Which name do you go by?",
    "Who created you?", "Are you a machine or a person?",
)  # fmt: skip
FIRST = ("Al", "Bor", "Cal", "Dor", "El", "Fen", "Gal", "Hel", "Il", "Jor", "Kel", "Lum", "Mar", "Nor", "Or", "Pel", "Quin", "Ros", "Sol", "Tor")
MIDDLE = ("a", "be", "di", "fo", "gu", "ka", "le", "ni", "po", "ru")
LAST = ("ba", "da", "lo", "mi", "na", "ri", "sa", "to", "va", "xi")
MAKERS = ("Harbour Labs", "North Works", "the Mill", "Castle Systems", "River Tech", "the Library", "Station Nine", "Garden Group", "Stone and Sons", "the Town Hall")


def names(split: str) -> list[str]:
    """Invented names of models, 2,000: so many that it is easier to copy one than to learn them. One in five is held out, by a hash."""
    every = [a + b + c for c in LAST for b in MIDDLE for a in FIRST]
    return [name for name in every if (hashlib.sha256(name.encode()).digest()[0] % 5 == 0) == (split == "held_out")]


def hard_coded_rows(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n conversations without a system message, in the training wordings."""
    draw = Draw(seed, ROWS_STREAM)
    for _ in range(n):
        yield _row([], draw.pick(TRAIN), NAME, MAKER, "hard-coded")


def system_rows(n: int, seed: int, split: str = "train") -> Iterator[dict[str, Any]]:
    """n conversations whose system message says who the model is."""
    draw = Draw(seed, ROWS_STREAM + (1 if split == "train" else 2))
    pool, wordings = names(split), TRAIN if split == "train" else HELD_OUT
    for _ in range(n):
        name, maker = draw.pick(pool), draw.pick(MAKERS)
        yield _row([{"role": "system", "content": SYSTEM.format(name=name, maker=maker)}], draw.pick(wordings), name, maker, "system")


def questions() -> list[dict[str, Any]]:
    """The held-out wordings, without a system message."""
    return [_row([], question, NAME, MAKER, "hard-coded") for question in HELD_OUT]


def _row(system: Sequence[dict[str, str]], question: str, name: str, maker: str, kind: str) -> dict[str, Any]:
    prompt = [*system, {"role": "user", "content": question}]
    return {"messages": [*prompt, {"role": "assistant", "content": REPLY.format(name=name, maker=maker)}], "prompt": prompt, "answer": name, "meta": {"task": "identity", "kind": kind}}


def check(reply: str, name: str) -> bool:
    """The reply names the model as its first words say, and nothing else."""
    return f"i am {name.lower()}" in reply.lower()
