"""The list of demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import arena, discovery, identity, labellers, lengths, opinions, refusals, rlvr, searching, skills, teacher
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
    begins: Callable[[Room], Path] = lambda room: room.assistant  # the model that it starts from


BASE: Callable[[Room], Path] = lambda room: room.base


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
    "rlvr": Arm(
        "4.1, 4.2", "Practice",
        "Nobody shows it answers any more: it tries each problem eight times, a program checks what came out, and what was right is made likelier. "
        "As many CPU-seconds of further conversations do not do that, and a coin in place of the checker does not either.",
        rlvr.run, every_seed=True, begins=BASE,
    ),
    "length": Arm(
        "4.2", "It learns to take its time",
        "One answer in ten that it was shown is long, and works the sum out. Practice pays for right answers, not for long ones; the answers grow all the same. "
        "Where it was never shown a long answer, none appears.",
        lengths.run, begins=BASE,
    ),
    "discovery": Arm(
        "4.1, 4.3", "It finds out what a tool is good for",
        "It can call Python when it is told to; where nobody told, one product in twenty that it was shown was left to Python. Practice pays for right answers only; where they cannot be had otherwise, it soon calls Python every time. "
        "A Python that is out of order is not called more often.",
        discovery.run, python=True,
    ),
    "teacher": Arm(
        "4, 4.3", "Better than its teacher",
        "Its demonstrator forgets to carry in six sums of ten. Imitation makes it as good as that, and no better; practice does.",
        teacher.run, begins=BASE,
    ),
    "reward-model": Arm(
        "4.4", "A simulation of its audience",
        "No program can say whether a joke is good. Labellers ranked four jokes at a time, with much noise; a reward model learned to guess what they would say, nearly as well as anybody can.",
        opinions.reward_model, begins=BASE,
    ),
    "preferred": Arm(
        "4.4", "Practice for the reward model",
        "PPO practises for the reward model and is stopped by a monitor that sees what the jokes are really worth; DPO learns the same opinions straight; "
        "and the best of sixteen is chosen without any training.",
        opinions.preferred, begins=BASE,
    ),
    "overdone": Arm(
        "4.4", "It cannot be run for ever",
        "A weak reward model, whose labellers never heard a joke that overdoes it, and nothing that holds the policy: what the reward model says of its jokes goes on rising, what they are worth rises, turns and falls. "
        "The monitor notices, and the weights of the peak are kept.",
        opinions.overdone, every_seed=True, begins=BASE,
    ),
    "arena": Arm(
        "5.2", "Who is better?",
        "The assistant at four ages, and once with too high a temperature, answer the same questions, two at a time; a judge says who is right. Ratings come of that, with intervals. "
        "Gold is who is right about other people.",
        arena.run,
    ),
}  # fmt: skip
