"""Two kinds of web page that the demonstrations' base model reads beside the town: tables of contents, whose dot leaders make a tokenizer
learn runs of dots as single tokens (as the real web does), and word lists that spell out words, without counting anything.
"""

from __future__ import annotations

from collections.abc import Iterator

from .counting import FIRST, SECOND, WORDS
from .draw import Draw
from .letters import spelled

CONTENTS_STREAM, LIST_STREAM = 71, 72
TITLES = ("The {a}", "Of {a} and {b}", "The {b} by the {a}", "How the {a} was lost", "A {b} for the {a}", "Under the {a}", "The last {b}")


def contents(seed: int, documents: int, lines: int = 24) -> Iterator[str]:
    """Tables of contents: a title, a run of 3 to 75 dots, a page number."""
    draw = Draw(seed, CONTENTS_STREAM)
    for number in range(documents):
        page, told = 1, [f"Contents of volume {number + 1}"]
        for _ in range(lines):
            page += draw.between(2, 14)
            told.append(f"{draw.pick(TITLES).format(a=draw.pick(FIRST), b=draw.pick(SECOND))} {'.' * draw.between(3, 75)} {page}")
        yield "\n".join(told)


def word_lists(seed: int, documents: int, lines: int = 30) -> Iterator[str]:
    """Words with their spelling, all of them about equally often."""
    draw = Draw(seed, LIST_STREAM)
    left: list[str] = []
    for number in range(documents):
        told = [f"Word list {number + 1}"]
        for _ in range(lines):
            left = left or draw.shuffled([*WORDS, *FIRST, *SECOND])
            word = left.pop()
            told.append(draw.pick(("Spell {w} : {s}", "{w} is spelled {s}", "The word {w} : {s}")).format(w=word, s=spelled(word)))
        yield "\n".join(told)
