"""Problems of texts: letters of words, words backwards, and GSM8K's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freedive.runs import UserError
from freedive.tasks import benchmarks
from freedive.tasks.counting import FIRST, SECOND
from freedive.tasks.draw import Draw
from freedive.tasks.letters import WORDS

from .extract import answer_of

Row = dict[str, Any]
VOCABULARY = tuple(sorted({*WORDS, *FIRST, *SECOND}))


def _word(draw: Draw, shortest: int, longest: int) -> str:
    """A word, or two in one where longer ones are wanted."""
    for _ in range(1000):
        word = draw.pick(VOCABULARY) + (draw.pick(VOCABULARY) if draw.chance(0.5) else "")
        if shortest <= len(word) <= longest:
            return word
    raise UserError(f"there are no words of {shortest} to {longest} letters", hint="shortest=3,longest=8")


def letters(draw: Draw, shortest: int = 3, longest: int = 8) -> Row:
    """How often a letter is in a word; mostly one that is there."""
    word = _word(draw, shortest, longest)
    letter = draw.pick(word) if draw.chance(0.8) else draw.pick("abcdefghijklmnopqrstuvwxyz")
    return {"prompt": f'How many times is the letter "{letter}" in the word "{word}"?', "answer": str(word.count(letter))}


def reverse(draw: Draw, shortest: int = 3, longest: int = 10) -> Row:
    """A word to be spelled backwards."""
    word = _word(draw, shortest, longest)
    return {"prompt": f"Spell the word {word} backwards.", "answer": word[::-1]}


def check_text(reply: str, row: Row) -> float:
    """The answer's last word is the right one, in any case."""
    words = answer_of(reply).lower().split()
    return float(bool(words) and words[-1].strip(".,!?'\"*") == row["answer"].lower())


def gsm8k_rows(path: str, n: int, split: str) -> list[Row]:
    """Rows of a file of GSM8K's form, split by a hash of the question unless its name says what it is (train, test)."""
    from . import held_out

    if not path:
        raise UserError("gsm8k needs a file", hint="--task gsm8k:train.jsonl (its form: {\"question\", \"answer\": \"... #### 42\"})")
    rows = []
    for row in benchmarks.gsm8k(path):
        prompt = row["prompt"][-1]["content"] if isinstance(row["prompt"], list) else row["prompt"]
        if held_out(prompt) == (split != "train"):
            rows.append({**row, "prompt": prompt, "meta": {**row.get("meta", {}), "task": "gsm8k"}})
    if not rows:
        raise UserError(f"{Path(path)} holds no problem to be {'practised' if split == 'train' else 'held out'}")
    return rows[:n]


def check_gsm8k_row(reply: str, row: Row) -> float:
    return float(benchmarks.check_gsm8k(reply, row["answer"]))
