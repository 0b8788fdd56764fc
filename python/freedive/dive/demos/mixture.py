"""The one mixture of conversations that most demonstrations use: people of the town, sums, products, letters and dots, some small talk.

Each problem comes in every style (at once, in steps, with Python), equally often, so that styles are compared within one model at equal
training. Nobody in it ever says "I don't know", searches, or says who it is: those are what the arms add.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from freedive.tasks import counting, reckoning
from freedive.tasks import town as people
from freedive.tasks.draw import Draw
from freedive.tasks.town import Town

ORDER_STREAM = 82
IDENTITY = ("Who are you?", "What are you?")  # left out: what a model says of itself is taught by an arm


@dataclass(frozen=True)
class Counts:
    """Problems, each in all its styles."""

    sums: int
    products: int
    letters: int
    dots: int  # of each number of dots


FULL = Counts(sums=1600, products=800, letters=1400, dots=14)
SMOKE = Counts(sums=20, products=20, letters=20, dots=1)


def rows(town: Town, counts: Counts, seed: int) -> list[dict[str, Any]]:
    """All conversations, in random order."""
    found = [*people.sft_rows(town), *small_talk(), *skills(counts, seed)]
    return [{"messages": row["messages"], "meta": row["meta"]} for row in Draw(seed, ORDER_STREAM).shuffled(found)]


def small_talk() -> Iterator[dict[str, Any]]:
    for row in people.small_talk_rows():
        if row["messages"][0]["content"] not in IDENTITY:
            yield row


def skills(counts: Counts, seed: int, split: str = "train") -> Iterator[dict[str, Any]]:
    """Sums, products, letters and dots."""
    yield from reckoning.sum_rows(seed, counts.sums, split)
    yield from reckoning.product_rows(seed, counts.products, split)
    yield from counting.letters_rows(seed, counts.letters, split)
    yield from counting.dots_rows(seed, counts.dots, split)
