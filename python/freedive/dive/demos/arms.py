"""The list of demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import identity, labellers, refusals, searching, skills
from .room import Figure, Room


@dataclass(frozen=True)
class Arm:
    """One demonstration: a function from a seed's room to figures."""

    section: str  # of the talk
    title: str
    what: str  # for a reader
    run: Callable[[Room], list[Figure]]
    every_seed: bool = False  # else the first seed only, with intervals
    python: bool = False  # needs the Python tool


ARMS = {
    "refusals": Arm(
        "3.1", "It makes things up, and learns to say no",
        "An assistant that was taught to answer answers everything. Probing finds out what it does not know, and a few conversations teach it to say so, "
        "also of people that no conversation is about. As many refusals attached to random people make it refuse what it knows.",
        refusals.run, every_seed=True,
    ),
    "search": Arm(
        "3.1, 3.2.1", "Knowledge in the parameters and in the context",
        "Whoever it was never told about it can read about: with the page in the question, or by a search that it calls itself, and only where it does not know.",
        searching.run,
    ),
    "identity": Arm(
        "3.2.2", "Who are you?",
        "A model has no self to look into; it says what its conversations say. One conversation in fifty is enough, or a system message.",
        identity.run,
    ),
    "labellers": Arm(
        "2.2", "A simulation of its labeller",
        "Two labellers write down the same answers, each in a manner of their own. A model that learned one's rows sounds like that one, in questions neither has seen.",
        labellers.run,
    ),
    "sums": Arm(
        "3.3.1", "Tokens to think",
        "The same model with the same training adds four numbers at once, and in steps. A token has only so much computation in it.",
        skills.sums,
    ),
    "products": Arm("3.3.1", "Let it use a tool", "A product of two three-digit numbers at once, and by a line of Python.", skills.products, python=True),
    "dots": Arm("3.3.2", "Counting dots", "Sixty dots reach the model as two tokens. It cannot count what it cannot see, but it can copy it into code.", skills.dots, python=True),
    "letters": Arm("3.3.2", "Counting letters", "A word reaches it as a token or two. Spelled out, its letters can be counted; in code, too.", skills.letters, python=True),
}  # fmt: skip
