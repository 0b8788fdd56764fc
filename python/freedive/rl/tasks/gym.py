"""Problems of reasoning-gym (106 families, with a checker each): `--task reasoning_gym:FAMILY,key=value`. An extra: pip install 'freedive[rl]'."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from freedive.runs import UserError

from .extract import answer_of

Row = dict[str, Any]
DRAW = 500  # problems of one data set


def _library() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "reasoning_gym":
            raise
        raise UserError("tasks of reasoning-gym need the package", hint="run: pip install 'freedive[rl]'") from None
    return reasoning_gym


def guessed(value: str) -> Any:
    """A setting's value as the number, truth value or text it looks like."""
    try:
        return json.loads(value.lower() if value in ("True", "False") else value)
    except ValueError:
        return value


@functools.lru_cache(maxsize=8)
def _scorer(family: str) -> Any:
    return _library().create_dataset(family, seed=0, size=1)


def stream(tail: str, seed: int, split: str) -> Iterator[Row]:
    """Rows without end. Raises UserError for a family or setting that the library does not have."""
    from . import parsed

    family, _, settings = tail.partition(",")
    library = _library()
    given = parsed(f"reasoning_gym:{family}", settings)
    number = 0
    while True:
        first = seed * 10_000_000 + 5_000_000 * (split != "train") + number * DRAW  # the library seeds problem i of a data set with seed + i
        try:
            dataset = library.create_dataset(family, seed=first, size=DRAW, **given)
        except Exception as error:  # the library's own checks are assertions
            raise UserError(f"reasoning-gym cannot make {tail!r}: {error}"[:300], hint="families and settings: reasoning_gym's gallery; for example reasoning_gym:chain_sum,max_terms=3") from None
        for entry in dataset:
            kept = json.loads(json.dumps(entry, default=str))
            yield {"prompt": entry["question"], "answer": str(entry["answer"]), "meta": {"task": "reasoning_gym", "family": family, "entry": kept}}
        number += 1


def lacking(meta: dict[str, Any]) -> str:
    """What `check` needs of a row's meta and does not find, as a sentence; "" where all is there."""
    wanted = {"family": str, "entry": dict}
    return next((f"meta.{key}, as a row of reasoning-gym has it, is wanted; it is {meta.get(key)!r:.40}" for key, kind in wanted.items() if not isinstance(meta.get(key), kind)), "")


def check(reply: str, row: Row) -> float:
    """The library's own score of the answer in the reply, or 1 where the answer is the right one, word for word without case."""
    found = answer_of(reply)
    if not found:
        return 0.0
    if " ".join(found.lower().split()) == " ".join(str(row["answer"]).lower().split()):
        return 1.0
    try:
        score = float(_scorer(row["meta"]["family"]).score_answer(found, row["meta"]["entry"]))
    except Exception:  # what cannot be read is wrong
        return 0.0
    return score if score >= 0.99 else 0.0  # families give 0.01 for any answer at all: a reward for nothing
