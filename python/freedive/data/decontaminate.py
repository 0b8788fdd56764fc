"""Decontamination: documents that hold a piece of a named evaluation set, so that no score is a memory of the training data.

A document matches an item of a set if 13 words in a row are the same (`words`; GPT-3's length, 2005.14165 appendix C), compared as
MinHash compares them: lower-case, no punctuation, no accents, numbers as 0. An item of 8 to 12 words matches as a whole; one of fewer
than 8 (GPT-3's smallest) is not looked for, and so is no run of which fewer than 8 words hold a letter: a table of numbers is no
evidence. GPT-3 cut a match and its surroundings out of the document; here the document goes as a whole, or is marked.

The runs of all sets are a sorted table of 64-bit keys for each length. A page costs its words, their rolling hash and a look into a
bitmap; what passes that is searched in the table. A run is taken for another by mistake about once in 10^9 pages with a table of a million.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from freedive.runs import UserError, folder_hash, option

from . import minhash, words
from .texts import JSONL_SUFFIXES, PARQUET_SUFFIXES, TEXT_SUFFIXES, decode_utf8, iter_rows, text_files

MIN_WORDS = 8  # of an item, and with a letter in a run
LENGTHS = (5, 50)  # allowed for `words`
SPARSE = 16  # places of the bitmap for each key: one in 16 of other runs goes on to the table
SUFFIXES = JSONL_SUFFIXES + PARQUET_SUFFIXES + TEXT_SUFFIXES
_NAME = re.compile(r"[\w.-]+")
RUN = np.dtype([("key", "<u8"), ("set", "u1"), ("item", "<u4")])


@dataclass(frozen=True)
class EvalSet:
    """A file or folder of items; for the recipe, a hash of what it holds."""

    name: str
    path: Path = option(hash=False)
    digest: str = ""


@dataclass(frozen=True)
class Decontamination:
    sets: tuple[EvalSet, ...]
    words: int = 13
    action: Literal["remove", "mark"] = "remove"
    fields: tuple[str, ...] = ()  # of the rows; none: every text in them


@dataclass(frozen=True)
class Match:
    """The first run of words that a document shares with a set."""

    name: str  # of the set
    item: int  # row or paragraph of it, from 1
    text: str  # the words as they were compared


@dataclass(frozen=True)
class Runs:
    """All runs of one length, ready for look-up; one for each set that has it."""

    keys: np.ndarray  # uint64 [R], sorted
    sets: np.ndarray  # uint8 [R]
    items: np.ndarray  # uint32 [R]
    bitmap: np.ndarray  # bool [a power of 2]: may a key with these low bits be there?


@dataclass(frozen=True)
class Table:
    lengths: dict[int, Runs]  # by words, the longest first
    names: tuple[str, ...]
    found: tuple[dict[str, int], ...]  # of each set: items, short (not looked for), runs


def find(specs: Sequence[str], length: int, action: Literal["remove", "mark"], fields: tuple[str, ...]) -> Decontamination | None:
    """The rules for sets given as FILE or NAME=FILE, read and checked; None without any.

    UserError for a file that is missing, damaged or holds no item of 8 words, two sets of one name, and a length out of range.
    """
    if not LENGTHS[0] <= length <= LENGTHS[1]:
        raise UserError(f"--decontaminate-words is {length}", hint=f"allowed: {LENGTHS[0]} to {LENGTHS[1]}; GPT-3 used 13")
    if not specs:
        return None
    sets = []
    for spec in specs:
        before, equals, after = spec.partition("=")
        named = bool(equals) and not Path(spec).exists()
        path = Path(after if named else spec)
        if not path.exists():
            raise UserError(f"the evaluation set {path} does not exist", hint="--decontaminate FILE or NAME=FILE, JSONL, parquet or text")
        name = before if named else _stem(path)
        if not _NAME.fullmatch(name):
            raise UserError(f"an evaluation set cannot be called {name!r}", hint="NAME=FILE, with letters, digits and _ . - in NAME")
        if path.is_file() and not path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{path} is no kind of file that can be an evaluation set", hint=f"known: {', '.join(SUFFIXES)}")
        sets.append(EvalSet(name, path, folder_hash(path)[:16]))
    twice = sorted({s.name for s in sets if sum(t.name == s.name for t in sets) > 1})
    if twice:
        raise UserError(f"two evaluation sets are called {twice[0]}", hint="give them names: NAME=FILE")
    if len(sets) > 255:
        raise UserError(f"{len(sets)} evaluation sets were given, at most 255 are possible", hint="join some: a set can be a folder of files")
    rules = Decontamination(tuple(sets), length, action, fields)
    load(rules)
    return rules


def notes(rules: Decontamination) -> list[str]:
    """What is not looked for, a sentence for each set that has such items."""
    least = min(MIN_WORDS, rules.words)
    return [
        f"{name}: {count['short']:,} of {count['items']:,} items have fewer than {least} words with letters and are not looked for"
        for name, count in zip(load(rules).names, load(rules).found, strict=True)
        if count["short"]
    ]


def matches(text: str, rules: Decontamination) -> list[Match]:
    """The first match of a document with each set that it shares words with, in the order of the document; [] if there is none."""
    table = load(rules)
    found = simple_words(text)
    first: dict[int, tuple[int, int, int]] = {}  # set -> (place, length, item)
    for length, runs in table.lengths.items():
        for place, at in found.find_grams(length, runs.keys, runs.bitmap):
            key = runs.keys[at]
            while at < len(runs.keys) and runs.keys[at] == key:  # once for each set that has it
                number, here = int(runs.sets[at]), (place, length, int(runs.items[at]))
                first[number] = min(first.get(number, here), here)
                at += 1
    if not first:
        return []
    spelled = found.list()
    ordered = sorted((where, number) for number, where in first.items())
    return [Match(table.names[number], item, " ".join(spelled[place : place + length])) for (place, length, item), number in ordered]


def simple_words(text: str) -> Any:
    """The words that are compared, as words.split gives them."""
    found = words.split(text, simplify=True)
    return words.split(minhash.simplify(text)) if found.needs_reference else found


# The table


@functools.lru_cache(maxsize=2)
def load(rules: Decontamination) -> Table:
    """Reads the sets; loaded once, before worker processes are forked."""
    keys: dict[int, list[np.ndarray]] = {}  # by the length of the runs
    told = []
    for place, one in enumerate(rules.sets):
        count = {"items": 0, "short": 0, "runs": 0}
        for number, texts in _items(one.path, rules.fields):
            runs = [(length, found) for length, found in (_runs(text, rules.words) for text in texts) if len(found)]
            for length, found in runs:
                row = np.zeros(len(found), RUN)
                row["key"], row["set"], row["item"] = found, place, number
                keys.setdefault(length, []).append(row)
                count["runs"] += len(found)
            count["items"] += 1
            count["short"] += not runs
        if count["short"] == count["items"]:
            least = min(MIN_WORDS, rules.words)
            raise UserError(f"{one.path}: no item of {count['items']} has {least} words with letters", hint="is it the right file, and field?")
        told.append(count)
    lengths = {length: _sorted(np.concatenate(keys[length])) for length in sorted(keys, reverse=True)}
    return Table(lengths, tuple(one.name for one in rules.sets), tuple(told))


def _sorted(runs: np.ndarray) -> Runs:
    """RUN [n] as a table; of the equal runs of a set, the first item's stays."""
    runs = runs[np.lexsort((runs["item"], runs["set"], runs["key"]))]
    fresh = np.ones(len(runs), bool)
    fresh[1:] = (runs["key"][1:] != runs["key"][:-1]) | (runs["set"][1:] != runs["set"][:-1])
    keys, sets, items = (np.ascontiguousarray(runs[fresh][name]) for name in ("key", "set", "item"))
    bitmap = np.zeros(1 << max(6, (SPARSE * len(keys) - 1).bit_length()), bool)
    bitmap[keys & np.uint64(len(bitmap) - 1)] = True
    return Runs(keys, sets, items, bitmap)


def _runs(text: str, length: int) -> tuple[int, np.ndarray]:
    """(words of each run, their keys uint64 [runs]) of a text of an item; (0, none) if it is too short."""
    found = simple_words(text)
    least, count = min(MIN_WORDS, length), len(found)
    length = min(length, count)
    lettered = np.cumsum([0, *(any(map(str.isalpha, word)) for word in found.list())])
    if count < least or lettered[-1] < least:
        return 0, np.zeros(0, np.uint64)
    return length, found.grams(length)[lettered[length:] - lettered[:-length] >= least]


def _items(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """(number, its texts) of every row of a JSONL or parquet file, or paragraph of a text; of a folder, of its files together."""
    number = 0
    for file in text_files(path):
        if file.name.lower().endswith(JSONL_SUFFIXES + PARQUET_SUFFIXES):
            for line, row in iter_rows(file):
                missing = [name for name in fields if name not in row]
                if missing:
                    raise UserError(f"{file}, row {line} has no field {missing[0]}", hint=f"it has {', '.join(sorted(row)[:8])}")
                number += 1
                yield number, list(_texts([row[name] for name in fields] if fields else row))
        else:
            try:
                raw = file.read_bytes()
            except OSError as error:
                raise UserError(f"{file} could not be read: {error.strerror}") from None
            for paragraph in re.split(r"\n\s*\n", decode_utf8(raw, file)):
                if paragraph.strip():
                    number += 1
                    yield number, [paragraph]
    if number == 0:
        raise UserError(f"the evaluation set {path} is empty", hint="give a file that holds its items")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        yield from itertools.chain.from_iterable(map(_texts, value.values() if isinstance(value, dict) else value))


def _stem(path: Path) -> str:
    """gsm8k of gsm8k.jsonl.gz."""
    name = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
