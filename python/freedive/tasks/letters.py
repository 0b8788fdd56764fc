"""Letters of words: spelling and counting. A model that sees tokens cannot see letters; it can learn to write them out first.

Spell baker.                        b-a-k-e-r
How many letters r are in barber?   b-a-r-b-e-r. Answer 2
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from .draw import Draw

ROWS_STREAM = 11
SPELL = ("Spell {w}.", "How do you spell {w}?", "Write {w} letter by letter.")
COUNT = ("How many letters {c} are in {w}?", "Count the letter {c} in {w}.", "How often is {c} in {w}?")
WORDS = tuple(
    """apple barber basket better bottle bridge butter button candle carrot castle cellar cherry circle coffee corner cotton
    dinner doctor dollar dragon elbow engine farmer father feather finger flower forest garden ginger hammer harbour hollow
    honey island jacket kettle kitchen ladder lantern lemon letter lizard lobster marble market meadow middle mirror monkey
    morning mother mountain muffin napkin needle noodle number orange oyster paper parrot pebble pepper picture pillow
    planet pocket potato puddle puppet rabbit ribbon river rubber saddle salad sandal school shadow shutter silver sister
    soldier spider spoon spring square squirrel station strawberry street summer supper table tailor teacher teapot thunder
    ticket timber tomato tower tunnel turtle umbrella valley village violet waffle wagon walnut water whistle willow window
    winter wonder yellow zipper""".split()
)


def split_of(word: str) -> str:
    """ "train" or "held_out", by a hash of the word."""
    return "held_out" if hashlib.sha256(word.encode()).digest()[0] % 5 == 0 else "train"


def words(split: str) -> list[str]:
    return [word for word in WORDS if split_of(word) == split]


def spelled(word: str) -> str:
    return "-".join(word)


def counted(word: str, letter: str) -> str:
    return f"{spelled(word)}. Answer {word.count(letter)}"


def check(reply: str, answer: str, task: str) -> bool:
    """task "spell": the reply spells the word; "count": the number after the last "Answer" is right."""
    if task == "spell":
        return reply.strip().rstrip(".").lower() == answer
    found = re.findall(r"(?:Answer|=)\s*(\d+)", reply)
    return bool(found) and found[-1] == answer


def letter_for(draw: Draw, word: str) -> str:
    """A letter to count: mostly one of the word's, sometimes any."""
    return draw.pick(word) if draw.chance(0.8) else draw.pick("abcdefghijklmnopqrstuvwxyz")


def sft_rows(seed: int, n: int) -> Iterator[dict[str, Any]]:
    """n conversations on training words, half spelling, half counting."""
    draw = Draw(seed, ROWS_STREAM)
    pool = words("train")
    for _ in range(n):
        word, task = draw.pick(pool), draw.pick(("spell", "count"))
        letter = letter_for(draw, word)
        question = draw.pick(SPELL if task == "spell" else COUNT).format(w=word, c=letter)
        reply = spelled(word) if task == "spell" else counted(word, letter)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        yield {"messages": messages, "meta": {"task": task, "word": word, "split": "train"}}


def question_rows(seed: int, n: int, split: str = "held_out") -> Iterator[dict[str, Any]]:
    """n questions on held-out words."""
    draw = Draw(seed, ROWS_STREAM + 1)
    pool = words(split)
    for _ in range(n):
        word, task = draw.pick(pool), draw.pick(("spell", "count"))
        letter = letter_for(draw, word)
        yield {
            "prompt": [{"role": "user", "content": draw.pick(SPELL if task == "spell" else COUNT).format(w=word, c=letter)}],
            "answer": spelled(word) if task == "spell" else str(word.count(letter)),
            "meta": {"task": task, "word": word, "split": split},
        }
