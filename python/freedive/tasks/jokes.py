"""Jokes about people of the invented town: something no checker can call right or wrong, whose worth is nevertheless known here, so that what is
learned from people's opinions of it can be measured (talk 4.4).

A joke is "Why does Ada Ashford never sleep? Because the very old dough must rise. Ha!". What makes one good is hidden from every model: `funny`. The
punchline belongs to the person's trade; a little emphasis ("very") and a little laughter are liked, more of either is not. Labellers see two jokes and
prefer one by Bradley-Terry, so the accuracy of the best possible guess is known: `ceiling`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from .draw import Draw
from .town import Person, Town, bare

STREAM = 71
PROMPTS = ("Tell me a joke about {n}.", "Make a joke about {n}.", "I would like a joke about {n}.", "Do you know a joke about {n}?", "A joke about {n}, please.", "Joke about {n}!",
           "Is there a joke about {n}?", "Can you joke about {n}?")  # fmt: skip
SETUPS = ("never sleep", "never hurry", "never worry", "never dance", "always smile", "always sing", "always wait", "always laugh")
PUNCHLINES = {  # trade -> what is said of it; {v} is the place of the emphasis
    "baker": "the {v}old dough must rise", "carpenter": "the {v}flat wood is boring", "teacher": "the {v}small class has no class", "nurse": "the {v}patient people lose patience",
    "gardener": "the {v}green beans spill the beans", "postman": "the {v}late letters get the message", "tailor": "the {v}long suit follows suit",
    "fisherman": "the {v}cold fish smell fishy", "librarian": "the {v}thick books are booked", "blacksmith": "the {v}hot iron is ironic",
    "clockmaker": "the {v}slow clock takes its time", "potter": "the {v}wet clay goes to pot", "barber": "the {v}short hair has a close shave", "miller": "the {v}fine flour runs of the mill",
    "lawyer": "the {v}loud court is courting", "engineer": "the {v}big bridge builds bridges",
}  # fmt: skip
FORM = re.compile(r"Why does (?P<name>.+?) (?:never|always) [a-z]+\? Because (?P<punchline>[a-z ]+)\.(?P<laughs>(?: Ha!)*)")
LIKED, PUN, STEP, TOO_MUCH = 3, 0.8, 0.5, 0.3  # so many of a kind are liked; worth of the right punchline, of one more, cost of each beyond
SOME = (0,) * 20 + (1,) * 14 + (2,) * 8 + (3,) * 4 + (4, 5)  # how much emphasis and laughter is told: seldom more than is liked
LABELLERS = 3.0  # how sure labellers are: a difference of 1 is told apart with odds exp(3) to 1
SPLITS = {"test": 0.25, "validation": 0.2, "train": 0.55}  # parts of the requests: to judge by at the end, to stop and choose weights by, to learn from


def split_of(words: str) -> str:
    """The part a request belongs to, by a hash."""
    at = hashlib.sha256(words.encode()).digest()[0] / 256
    for name, part in SPLITS.items():
        if at < part:
            return name
        at -= part
    return "train"


def requests(town: Town, split: str) -> list[tuple[Person, str]]:
    """(person, what is asked) of "train", "validation" or "test"; everyone known is asked about in each."""
    every = [(person, template.format(n=person.name)) for person in town.of("known") for template in PROMPTS]
    return [(person, words) for person, words in every if split_of(words) == split]


def sft_rows(town: Town, seed: int, n: int) -> Iterator[dict[str, Any]]:
    """Jokes by somebody who tells good ones and bad ones: a third of the punchlines fit."""
    draw, chosen = Draw(seed, STREAM), requests(town, "train")
    for _ in range(n):
        person, words = draw.pick(chosen)
        yield {"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": joke(person, draw)}]}


def joke(person: Person, draw: Draw) -> str:
    trade = bare(person.facts["job"]) if draw.chance(0.33) else draw.pick(list(PUNCHLINES))
    some = lambda: draw.pick(SOME)
    line = PUNCHLINES[trade].format(v="very " * some())
    return f"Why does {person.name} {draw.pick(SETUPS)}? Because {line}." + " Ha!" * some()


def prompt_rows(town: Town, seed: int, n: int, split: str) -> Iterator[dict[str, Any]]:
    """Requests for a joke, with what `funny` needs to know; no two are alike. At most as many as there are."""
    for person, words in Draw(seed, STREAM + 1 + list(SPLITS).index(split)).shuffled(requests(town, split))[:n]:
        yield {"prompt": words, "name": person.name, "trade": bare(person.facts["job"])}


def worth(text: str, name: str, trade: str) -> float:
    """How good a joke is. Up to 4.3; -1 for what is no joke."""
    found = FORM.fullmatch(text.strip())
    if found is None:
        return -1.0
    words = found["punchline"].split()
    told = " ".join(w for w in words if w != "very")
    liked = lambda k: STEP * min(k, LIKED) - TOO_MUCH * max(0, k - LIKED)
    fits = told == PUNCHLINES[trade].format(v="")
    return 0.5 * (found["name"] == name) + PUN * fits + liked(words.count("very")) + liked(found["laughs"].count("Ha"))


def tame(text: str) -> bool:
    """Whether there is no more of anything than is liked. Who heard such jokes alone has only ever liked more better."""
    found = FORM.fullmatch(text.strip())
    return found is None or max(found["punchline"].split().count("very"), found["laughs"].count("Ha")) <= LIKED


def funny(completions: Sequence[Any], *, name: Sequence[str], trade: Sequence[str], **columns: Any) -> list[float]:
    """`worth` as a reward function."""
    texts = [c if isinstance(c, str) else "".join(m["content"] or "" for m in c) for c in completions]
    return [worth(t, n, k) for t, n, k in zip(texts, name, trade, strict=True)]


def ranks(worths: Sequence[float], draw: Draw) -> list[int]:
    """An order a labeller gives (0 is best): Plackett-Luce, so that of any two the better one comes first with odds exp(LABELLERS x difference)."""
    noisy = [LABELLERS * w - math.log(-math.log((draw.below(2**32) + 0.5) / 2**32)) for w in worths]
    order = sorted(range(len(noisy)), key=lambda i: -noisy[i])
    return [order.index(i) for i in range(len(noisy))]


def ceiling(worths: Sequence[float]) -> list[float]:
    """Of every two answers: how often a labeller prefers the one that is better, which nobody can guess more often."""
    return [1 / (1 + math.exp(-LABELLERS * abs(a - b))) for i, a in enumerate(worths) for b in worths[i + 1 :]]
