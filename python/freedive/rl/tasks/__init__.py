"""Practice problems that check themselves: `--task NAME` or `--task NAME:key=value,key=value`.

A task makes rows {"prompt", "answer", "meta": {"task": NAME, ...}} and judges replies to them. Whether a problem is practised or held out is a
hash of its question, so no seed and no size can mix the two. Checkers are lenient about form (extract.py): what is measured is whether the
answer is right.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from freedive.runs import UserError
from freedive.tasks.draw import Draw

from . import gym, numbers, texts

Row = dict[str, Any]
TRIES = 50  # draws for each problem wanted: a task with few different problems is told, not searched for ever
STREAM = 81


@dataclass(frozen=True)
class Task:
    """`make(draw, **settings)` gives a row without meta.task; `check(reply, row)` 1 for right, 0 for wrong, or a part; `lacking(meta)` says what of a
    row's meta the checker needs and does not find."""

    make: Callable[..., Row]
    check: Callable[[str, Row], float]
    about: str
    lacking: Callable[[dict[str, Any]], str] = lambda meta: ""


TASKS = {
    "arithmetic": Task(numbers.arithmetic, numbers.check_number, "sums and products: terms=2, digits=2, operations=+-*"),
    "countdown": Task(numbers.countdown, numbers.check_countdown, "reach a number with all of some numbers and + - * /: numbers=3, largest=20", numbers.lacking_countdown),
    "parity": Task(numbers.parity, texts.check_text, "even or odd number of ones in bits: length=12"),
    "sorting": Task(numbers.sorting, numbers.check_list, "put numbers in order: count=4, largest=99"),
    "letters": Task(texts.letters, numbers.check_number, "how often a letter is in a word: shortest=3, longest=8"),
    "reverse": Task(texts.reverse, texts.check_text, "a word backwards: shortest=3, longest=10"),
}


def task_rows(spec: str, seed: int, n: int, split: str) -> list[Row]:
    """`n` different problems of "train" or "held_out". Raises UserError for a task or setting that is not there, or with too few problems."""
    name, _, tail = spec.partition(":")
    if name == "reasoning_gym":
        return _chosen(spec, gym.stream(tail, seed, split), n, split)
    if name == "gsm8k":
        return texts.gsm8k_rows(tail, n, split)
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}", hint=f"tasks: {', '.join(TASKS)}, gsm8k:FILE, reasoning_gym:FAMILY (pip install 'freedive[rl]')")
    settings = _settings(name, tail)
    draw = Draw(seed, STREAM + (split != "train"))

    def stream() -> Iterator[Row]:
        while True:
            row = TASKS[name].make(draw, **settings)
            yield {**row, "meta": {**row.get("meta", {}), "task": name}}

    return _chosen(spec, stream(), n, split)


def held_out(question: str) -> bool:
    """A fifth of all questions, by a hash."""
    return hashlib.sha256(question.encode()).digest()[0] % 5 == 0


def _chosen(spec: str, rows: Iterator[Row], n: int, split: str) -> list[Row]:
    out: dict[str, Row] = {}
    for tried, row in enumerate(rows):
        if held_out(row["prompt"]) == (split != "train"):
            out.setdefault(row["prompt"], row)
        if len(out) == n:
            return list(out.values())
        if tried > TRIES * n + 1000:
            break
    raise UserError(f"the task {spec} has only {len(out)} different problems to be {'practised' if split == 'train' else 'held out'}, and {n} are asked for",
                    hint="make it larger (NAME:key=value), or ask for fewer: --task-size, --eval-size")  # fmt: skip


def check(reply: str, row: Row) -> float:
    """What a reply to a task's row is worth. Raises UserError for a row of no task."""
    name = (row.get("meta") or {}).get("task", "")
    row = {**row, "answer": str(row.get("answer"))}  # of a file it may be a number
    if name == "reasoning_gym":
        return gym.check(reply, row)
    if name == "gsm8k":
        return texts.check_gsm8k_row(reply, row)
    if name not in TASKS:
        raise UserError(f"the row's meta.task is {name!r}; the reward `task` judges: {', '.join(TASKS)}, gsm8k, reasoning_gym")
    return float(TASKS[name].check(reply, row))


def lacking(meta: dict[str, Any]) -> str:
    """Why rows with this meta cannot be judged by `check`, as a sentence; "" where they can."""
    name = meta.get("task")
    if name not in (*TASKS, "gsm8k", "reasoning_gym"):
        return f"meta.task is {name!r:.40}; tasks: {', '.join(TASKS)}, gsm8k, reasoning_gym"
    return gym.lacking(meta) if name == "reasoning_gym" else TASKS[name].lacking(meta) if name in TASKS else ""


def _settings(name: str, tail: str) -> dict[str, Any]:
    """The settings of "key=value,key=value", as the task's parameters have them."""
    known = {p.name: p.default for p in inspect.signature(TASKS[name].make).parameters.values() if p.default is not p.empty}
    return parsed(f"the task {name}", tail, known)


def parsed(what: str, tail: str, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """ "key=value,key=value" as a dict; values take the type of `known`, or the one they look like."""
    out: dict[str, Any] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals or known is not None and key not in known:
            raise UserError(f"{what} has no setting {part!r}", hint=f"settings: {', '.join(f'{k}={v}' for k, v in (known or {}).items())}" if known else "NAME:key=value,key=value")
        kind = type(known[key]) if known is not None else None
        try:
            out[key] = kind(value) if kind is not None else gym.guessed(value)
        except ValueError:
            raise UserError(f"{what}: {key} is {value!r}, it must be {'a whole number' if kind is int else 'a number'}") from None
    return out
