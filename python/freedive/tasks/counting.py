"""Counting what a model cannot see (talk 3.3.2): dots in a run, which reaches it as a few tokens, and letters in words.

Each is asked in styles, named by a system message so that one model knows them all: "direct" (the number at once), "spelled" (letter by
letter, counting along; words only) and "python" (a call that copies the run into code). Held out are numbers of dots and whole words.
Words are pairs of two nouns, so every piece of a held-out word stands in other words; the letter asked for is drawn so that each count is
about as common as the others, or "one" would be a good guess.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from .draw import Draw
from .tool_rows import with_call

ROWS_STREAM, EVAL_STREAM = 51, 52
LEAST_DOTS, MOST_DOTS = 3, 75  # of training; evaluations keep to ASKED_DOTS
ASKED_DOTS = range(10, 61)
SYSTEM = {"direct": "Answer at once.", "spelled": "Spell the word first.", "python": "Use Python."}
DOTS_ASKED = ("How many dots are in {x} ?", "Count the dots: {x} .", "The number of dots in {x} , please.")
LETTERS_ASKED = ("How many letters {c} are in {w} ?", "Count the letter {c} in {w} .", "How often is {c} in {w} ?")
FIRST = tuple(
    """rain sun moon star wind snow fire water stone wood sand sea river hill rose thorn apple berry honey butter pepper copper silver
    amber timber winter summer harvest shadow feather hollow meadow barrel button ribbon kettle lantern candle marble pebble puddle
    bramble thistle willow cedar maple walnut cotton""".split()
)
SECOND = tuple(
    """flower field house light bridge tower wheel bell book door path stream garden forest market street corner letter paper needle
    basket bottle ladder hammer mirror pillow blanket table barn mill gate yard well pool root leaf bird worm fish cloth""".split()
)
WORDS = tuple(a + b for a in FIRST for b in SECOND)


def split_of(what: str) -> str:
    """ "train" or "held_out", by a hash: one in five is held out."""
    return "held_out" if hashlib.sha256(what.encode()).digest()[0] % 5 == 0 else "train"


def words(split: str) -> list[str]:
    return [word for word in WORDS if split_of(word) == split]


def numbers(split: str) -> list[int]:
    """Numbers of dots; the held-out ones are among ASKED_DOTS."""
    return [n for n in range(LEAST_DOTS, MOST_DOTS + 1) if (split_of(f"{n} dots") == "held_out" and n in ASKED_DOTS) == (split == "held_out")]


def marked(word: str, letter: str) -> str:
    """The letter sought with a 0, then the word spelled out, each such letter with its number: "-o0: -b-o1-o2-k".

    The letter comes first in the form that it has in the spelling, followed by a digit as it will be there: a model compares tokens (" o" is
    not "-o"), and goes on as it went on the last time (dev/LOG.md).
    """
    seen, told = 0, []
    for each in word:
        seen += each == letter
        told.append(f"-{each}{seen}" if each == letter else f"-{each}")
    return f"-{letter}0: {''.join(told)}"


def letter_for(draw: Draw, word: str) -> str:
    """A letter whose count in the word was drawn first, 0 to 3."""
    by_count: dict[int, list[str]] = {}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        by_count.setdefault(min(word.count(letter), 3), []).append(letter)
    return draw.pick(by_count[draw.pick(sorted(by_count))])


def dots_row(n: int, style: str, asked: str) -> dict[str, Any]:
    """One conversation. Spaces around the run keep its tokens the same in question and code."""
    run = "." * n
    return _row(asked.format(x=run), str(n), style, f"' {run} '.count('.')", str(n), {"task": "dots", "dots": n, "split": split_of(f"{n} dots")})


def letters_row(word: str, letter: str, style: str, asked: str) -> dict[str, Any]:
    """One conversation about the count of a letter in a word."""
    answer = str(word.count(letter))
    reply = f"{marked(word, letter)}. Answer {answer}" if style == "spelled" else answer
    meta = {"task": "letters", "word": word, "letter": letter, "split": split_of(word)}
    return _row(asked.format(w=word, c=letter), answer, style, f"' {word} '.count('{letter}')", reply, meta)


def _row(question: str, answer: str, style: str, code: str, reply: str, meta: dict[str, Any]) -> dict[str, Any]:
    prompt = [{"role": "system", "content": SYSTEM[style]}, {"role": "user", "content": question}]
    messages = with_call(prompt, "python", code, answer, answer) if style == "python" else [*prompt, {"role": "assistant", "content": reply}]
    return {"messages": messages, "prompt": prompt, "answer": answer, "meta": {**meta, "style": style}}


def dots_rows(seed: int, each: int, split: str = "train") -> Iterator[dict[str, Any]]:
    """Every number of dots of the split, `each` times in each style."""
    draw = Draw(seed, ROWS_STREAM if split == "train" else EVAL_STREAM)
    for n in numbers(split):
        for style in ("direct", "python"):
            for _ in range(each):
                yield dots_row(n, style, draw.pick(DOTS_ASKED))


def letters_rows(seed: int, n: int, split: str = "train") -> Iterator[dict[str, Any]]:
    """n questions, each in all three styles."""
    draw = Draw(seed, ROWS_STREAM + 10 + (split != "train"))
    pool = words(split)
    for _ in range(n):
        word = draw.pick(pool)
        letter, asked = letter_for(draw, word), draw.pick(LETTERS_ASKED)
        for style in SYSTEM:
            yield letters_row(word, letter, style, asked)


def check(reply: str, answer: str) -> bool:
    """The last number of the reply is the answer."""
    found = re.findall(r"\d+", reply)
    return bool(found) and found[-1] == answer
