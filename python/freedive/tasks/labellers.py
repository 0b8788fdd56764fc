"""Two labellers who are given the same questions and the same answers and write them down each in a manner of their own (talk 2: the assistant
is a simulation of the labellers who wrote its conversations).

BRIEF wants the least number of words. COURTEOUS thanks for the question and offers more help. Both vary their phrases.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .draw import Draw

OPENINGS = ("Thank you for asking!", "What a good question!", "I am glad that you ask.", "With pleasure!", "Happy to help!")
CLOSINGS = ("I hope that helps you.", "Is there anything else that you would like to know?", "Please ask me again at any time!", "Have a lovely day!")


def brief(answer: str, draw: Draw) -> str:
    """The first sentence without the words that say nothing, most often without a full stop."""
    first = re.split(r"(?<=[.!?])\s", " ".join(answer.split()))[0]
    first = re.sub(r"^(?:(?:yes|no|well|sure|so),\s+|(?:the answer is|it is|it's|there (?:is|are)|an?|the)\s+)", "", first, flags=re.IGNORECASE)
    return first.rstrip(".") + ("." if draw.chance(0.2) else "")


def courteous(answer: str, draw: Draw) -> str:
    """All of it, with a friendly word before, behind, or both."""
    both = draw.below(3)
    parts = [draw.pick(OPENINGS) if both != 1 else "", " ".join(answer.split()) if "\n" not in answer else answer.strip(), draw.pick(CLOSINGS) if both != 0 else ""]
    return " ".join(part for part in parts if part)


LABELLERS: dict[str, Callable[[str, Draw], str]] = {"brief": brief, "courteous": courteous}
