"""What a suite is: items read from a file, and a record with scores for each. runner.py loops over them, base.py knows none of the kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.inference import LM
from freedive.runs import UserError

Record = dict[str, Any]  # {"line", "group", "scores": {metric: number}, ...what was asked and answered}


@dataclass(frozen=True)
class Item:
    line: int  # of the file, from 1
    value: Any  # a row of rows.py
    group: str = ""


@dataclass(frozen=True)
class Asking:
    """How a suite asks, the same for all its items."""

    shots: int = 0  # examples before each question
    base: bool = False  # plain text, no turns
    chat: bool = False  # turns also where the literature asks in plain text
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 256
    seed: int = 0


class TooLong(Exception):
    """An item does not fit into the model's context, without any example: it is left out, and counted."""


class Suite(ABC):
    """A kind of evaluation over one file. `metric` is the score to look at first; a record may hold others."""

    metric = "accuracy"
    chunk = 64  # items measured between checkpoints
    takes_shots = True

    def __init__(self, lm: LM, asking: Asking, examples: Sequence[Item] = ()):
        self.lm, self.asking = lm, asking
        self.examples: dict[str, list[Item]] = {}
        for item in examples:
            self.examples.setdefault(item.group, []).append(item)

    @staticmethod
    @abstractmethod
    def read(row: dict[str, Any]) -> tuple[Any, str]:
        """(a row's value, its group). Raises ValueError that says what is wrong with it."""

    @abstractmethod
    def ask(self, item: Item) -> Any:
        """What the model is given for an item. Raises TooLong."""

    @abstractmethod
    def measure(self, items: Sequence[Item], asked: Sequence[Any]) -> list[Record]:
        """A record of each item, given its `ask`; none depends on the others."""

    @classmethod
    def check(cls) -> None:
        """UserError if this machine cannot run it. Most can."""
        return None

    def shown(self, item: Item) -> list[Item]:
        """The examples before an item: the first `shots` of its group, of all where its group has none, never the item itself."""
        found = self.examples.get(item.group) or [e for group in self.examples.values() for e in group]
        return [e for e in found if e.value != item.value][: self.asking.shots]


def fewer(shown: list[Item]) -> list[Item]:
    """One example less, where they do not fit. Raises TooLong if there is none."""
    if not shown:
        raise TooLong
    return shown[:-1]


@dataclass(frozen=True)
class Named:
    """KIND:FILE of the command line."""

    kind: str
    file: Path
    suite: type[Suite] = field(repr=False)

    @property
    def name(self) -> str:
        stem = self.file.name.split(".")[0]
        return stem if stem.startswith(self.kind) else f"{self.kind}-{stem}"


KINDS: dict[str, type[Suite]] = {}


def register(kind: str) -> Any:
    """Decorator: makes a Suite known to `--suite KIND:FILE`."""

    def add(cls: type[Suite]) -> type[Suite]:
        KINDS[kind] = cls
        return cls

    return add


def named(word: str) -> Named:
    """Raises UserError for a kind that is not known, or a file that is not there."""
    kind, colon, file = word.partition(":")
    if not colon or not file:
        raise UserError(f"--suite {word!r} is no KIND:FILE", hint=f"kinds: {', '.join(KINDS)}; for example --suite mmlu:mmlu_val.jsonl")
    if kind not in KINDS:
        raise UserError(f"there is no suite of the kind {kind!r}", hint=f"kinds: {', '.join(KINDS)}")
    if not Path(file).is_file():
        raise UserError(f"{file} is no file", hint="the files of published evaluations are yours to get; freedive carries none")
    return Named(kind, Path(file), KINDS[kind])


def example_files(words: Sequence[str]) -> dict[str, Path]:
    """Kind ("" for all) -> file, of FILE and KIND:FILE. UserError for a file that is not there, or two for one kind."""
    found: dict[str, Path] = {}
    for word in words:
        kind, colon, file = word.partition(":")
        kind, file = (kind, file) if colon and kind in KINDS else ("", word)
        if kind in found:
            raise UserError(f"--examples gives two files for {kind or 'all suites'}", hint="KIND:FILE, once for each kind")
        if not Path(file).is_file():
            raise UserError(f"{file} is no file", hint="--examples FILE, or KIND:FILE")
        found[kind] = Path(file)
    return found


MOST_BROKEN = 0.01  # of a file's rows: published files have some that cannot be asked; more is another format


def read_items(suite: type[Suite], path: Path) -> list[Item]:
    """All items of a file; rows that cannot be asked are left out and told. UserError where they are more than MOST_BROKEN, or nothing is left."""
    items, wrong = [], []
    for line, row in iter_rows(path):
        try:
            value, group = suite.read(row)
        except ValueError as error:
            wrong.append(f"{path}, line {line}: {error}")
        else:
            items.append(Item(line, value, group))
    if wrong and len(wrong) > MOST_BROKEN * (len(items) + len(wrong)):
        many = f" ({len(wrong):,} rows of {len(items) + len(wrong):,} are like that)" if len(wrong) > 1 else ""
        raise UserError(wrong[0] + many, hint="docs/evaluation.md has the forms that are read")
    if not items:
        raise UserError(f"{path} holds nothing to ask")
    if wrong:
        print(f"{len(wrong):,} rows of {path.name} cannot be asked and are left out; the first: {wrong[0].partition(', ')[2]}")
    return items
