"""Files of conversations: reading, checking, rendering, and a report of what was found in each.

`--data` names files, folders and addresses (hf://, https://, s3://), each with an optional weight behind a colon: `chats.jsonl:0.7`. A row that is
no conversation, or trains nothing, is an error with its line; conversations that are too long, or have an empty turn, are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freedive.data.remote import Missing, RemoteError, hint
from freedive.data.sources import Source, is_remote, sources
from freedive.data.texts import JSONL_SUFFIXES, PARQUET_SUFFIXES, iter_rows, text_files
from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, check_mask, render
from freedive.tokenizer.chat_json import OWN
from freedive.train import Rows
from freedive.train.loader import Example

from .rows import FORMS, Message, conversations, form_of, trees

TOLD = 20  # problems named of a file
OWN_TOOLS = ("python", "search")  # what models of freedive have tokens for


@dataclass(frozen=True)
class DataSource:
    """One --data: what it names, and how much of an epoch's tokens it is to be (None: as much as there is)."""

    path: str
    weight: float | None = None

    @property
    def remote(self) -> bool:
        return is_remote(self.path)


def parse_data(given: Any) -> list[DataSource]:
    """"a.jsonl:0.7" and the like; a single path, or a list of them. UserError for a weight that cannot be, or where only some have one."""
    found = []
    for item in [given] if isinstance(given, (str, Path)) else list(given):
        text = str(item)
        match = re.fullmatch(r"(.+):(\d*\.?\d+(?:e-?\d+)?)", text)
        if match and not Path(text).exists():
            if not 0 < float(match[2]) < math.inf:
                raise UserError(f"{text}: the weight must be positive", hint=f"leave the file out, or write {match[1]}:0.5")
            found.append(DataSource(match[1], float(match[2])))
        else:
            found.append(DataSource(text))
    if not found:
        raise UserError("no data was given", hint="--data chats.jsonl")
    if len({d.weight is None for d in found}) > 1:
        raise UserError("some of the data has a weight and some has none", hint="give every one a weight, a.jsonl:0.7 b.jsonl:0.3, or none")
    return found


def remote_sources(data: Sequence[DataSource]) -> tuple[Source, ...]:
    """The files behind the addresses, which count by size and version where local ones count by content."""
    found = tuple(s for d in data if d.remote for s in sources((d.path,)))
    for source in found:
        if source.kind not in (".jsonl", ".ndjson", ".json", ".parquet"):
            raise UserError(f"{source.path} is neither JSON Lines nor parquet", hint="conversations are read from .jsonl (.gz, .zst) and .parquet")
    return found


def iter_data(data: DataSource) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(file, line, row) of all rows. Raises UserError for what cannot be read."""
    if data.remote:
        for source in remote_sources([data]):
            try:
                for line, row in iter_rows(source.path, source):
                    yield source.path, line, row
            except (RemoteError, Missing) as error:
                raise UserError(f"{source.path} could not be read: {error}", hint=hint(error.__cause__ or error, source.path)) from None
        return
    path = Path(data.path)
    if not path.exists():
        raise UserError(f"{path} does not exist", hint="give JSON Lines or parquet with conversations")
    for file in text_files(path, JSONL_SUFFIXES + PARQUET_SUFFIXES) if path.is_dir() else [path]:
        for line, row in iter_rows(file):
            yield str(file), line, row


@dataclass
class Report:
    """What one --data holds, as data.json of the run has it."""

    path: str
    weight: float | None = None
    rows: int = 0
    kept: int = 0  # conversations
    held_out: int = 0
    too_long: int = 0  # left out
    empty_turns: int = 0  # conversations left out for one
    tokens: int = 0
    learned: int = 0  # tokens that are targets
    longest: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)  # turns of kept conversations
    tool_calls: int = 0
    calls_left_out: int = 0  # of tools that the vocabulary cannot write
    problems: list[str] = field(default_factory=list)
    n_problems: int = 0

    def wrong(self, where: str, what: str) -> None:
        self.n_problems += 1
        if len(self.problems) < TOLD:
            self.problems.append(f"{where}: {what}")

    def told(self) -> dict[str, Any]:
        """As JSON; a path by its last part, for a run's folder does not depend on where its inputs lie."""
        d = {k: dict(v) if isinstance(v, Counter) else v for k, v in self.__dict__.items() if k not in ("problems", "n_problems")}
        return d | {"path": self.path if is_remote(self.path) else Path(self.path).name}

    def __str__(self) -> str:
        turns = ", ".join(f"{role} {count:,}" for role, count in self.roles.items())
        parts = [f"{self.path}: {self.rows:,} rows ({', '.join(self.forms)}), {self.kept:,} conversations, {self.tokens:,} tokens, {self.learned:,} of them learned; turns: {turns or 'none'}"]
        parts += [f"{self.held_out:,} held out"] * bool(self.held_out) + [f"{self.tool_calls:,} tool calls"] * bool(self.tool_calls)
        parts += [f"{self.too_long:,} longer than the context left out"] * bool(self.too_long)
        parts += [f"{self.empty_turns:,} with an empty turn left out"] * bool(self.empty_turns)
        parts += [f"{self.calls_left_out:,} calls of tools this vocabulary has no tokens for left out"] * bool(self.calls_left_out)
        return "; ".join(parts)


@dataclass
class Read:
    """The rendered conversations of one --data."""

    report: Report
    train: list[Example]
    held_out: list[Example]
    problems: list[str]


def read_data(data: DataSource, tok: Tokenizer, context: int, val_fraction: float = 0.0, seed: int = 0) -> Read:
    """Read and render all rows, noting what is wrong instead of raising; val_fraction of them, by a hash of the first message after the system's, is held out."""
    report = Report(data.path, data.weight)
    train: list[Example] = []
    held: list[Example] = []

    def numbered() -> Iterator[tuple[int, dict[str, Any]]]:
        for file, line, row in iter_data(data):
            report.rows += 1
            places.append((file, line))
            yield len(places) - 1, row

    places: list[tuple[str, int]] = []
    for index, row in trees(numbered()):
        file, line = places[index]
        here = f"{file}, line {line}"
        try:
            found = conversations(row)
            report.forms[form_of(row)] += 1
        except ValueError as error:
            report.wrong(here, str(error))
            continue
        for messages in found:
            _one(messages, row.get("tools"), here, tok, context, report, held if is_held_out(messages, val_fraction, seed) else train)
    report.held_out = len(held)
    return Read(report, train, held, report.problems)


def _one(messages: list[Message], tools: Any, here: str, tok: Tokenizer, context: int, report: Report, into: list[Example]) -> None:
    messages = _writable(messages, tok, report)
    if any(not m["content"].strip() and not m.get("tool_calls") and m["role"] != "tool" for m in messages):
        report.empty_turns += 1
        return
    try:
        ids, mask = render(tok, messages, tools=tools)
        if len(ids) > context + 1:
            report.too_long += 1
            return
        check_mask(tok, ids, mask)
    except UserError as error:
        report.wrong(here, error.message)
        return
    report.kept += 1
    report.tokens += len(ids)
    report.longest = max(report.longest, len(ids))
    report.learned += sum(mask)
    report.roles.update(m["role"] for m in messages)
    report.tool_calls += sum(len(m.get("tool_calls") or []) for m in messages)
    into.append(Rows.from_masked(ids, mask))


def _writable(messages: list[Message], tok: Tokenizer, report: Report) -> list[Message]:
    """Models of freedive have tokens for some tools: calls of others, and their answers, are left out."""
    if OWN not in tok.special_tokens:
        return messages
    out: list[Message] = []
    dropped = False
    for message in messages:
        if message["role"] == "tool" and dropped:
            continue
        calls = message.get("tool_calls") or []
        names = [c.get("function", c).get("name") if isinstance(c, dict) else None for c in calls] if isinstance(calls, list) else []
        dropped = bool(names) and all(isinstance(n, str) and n not in OWN_TOOLS for n in names)
        if dropped:
            report.calls_left_out += len(names)
            if not message["content"]:
                continue
            message = {k: v for k, v in message.items() if k != "tool_calls"}
        out.append(message)
    return out


def is_held_out(messages: list[Message], fraction: float, seed: int) -> bool:
    """By the first message that is no system message, so that conversations of one tree stay together and one sheet for all rows decides nothing."""
    if fraction <= 0:
        return False
    first = next((m for m in messages if m["role"] != "system"), messages[0])
    key = json.dumps([seed, first["role"], first["content"]], ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") < fraction * 2**64


def checked(reads: Iterable[Read], context: int) -> list[Read]:
    """The same, or a UserError for the first file with a problem, or for data without any conversation."""
    reads = list(reads)
    for read in reads:
        if read.problems:
            more = f" (and {read.report.n_problems - 1:,} more rows with problems)" if read.report.n_problems > 1 else ""
            raise UserError(read.problems[0] + more, hint=f"known forms: {FORMS}; `freedive sft check` lists the problems of a file")
        r = read.report
        if not r.kept:
            left_out = [f"{n} {why}" for n, why in ((r.too_long, f"longer than {context} tokens"), (r.empty_turns, "with an empty turn")) if n]
            why = f": {', '.join(left_out)}" if left_out else ": it holds no row" if not r.rows else ""
            raise UserError(f"{r.path} gives no conversation to train on{why}", hint="raise --context, or give other data" if r.too_long else "give other data")
    return reads
