"""`freedive data look FOLDER`: documents and what was removed, in the terminal or as a page; and how right that was, where the truth is known."""

from __future__ import annotations

import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.runs import UserError, option, write_atomic

from .page import look_page
from .texts import is_artefact, iter_rows, shard_paths
from .waterfall import print_waterfall

MAX_CHARACTERS = 3000  # of a text in the terminal
HIDDEN = ("text", "url", "recipe")


@dataclass(frozen=True)
class LookConfig:
    """Browse what `freedive data` made: texts, sources, scores, reasons."""

    data: Path = option(help="folder made by `freedive data`, or one JSONL or parquet file", positional=True)
    reason: str | None = option(None, "show what was removed for this reason (c4, or c4/too_short); all: whatever was removed")
    find: str = option("", "only texts that contain this")
    split: str = option("train", "train or val")
    start: int = option(0, "leave out so many first")
    count: int = option(5, "how many at a time; with --html, in all")
    html: Path | None = option(None, "write them as a page instead")
    truth: Path | None = option(None, 'JSONL of {"url", "expected"}: print precision and recall of each step (needs --decisions of freedive data)')


def run(c: LookConfig) -> None:
    """Shows; UserError for a folder that holds nothing of the kind."""
    if c.start < 0 or c.count < 1:
        raise UserError(f"--start is {c.start}, --count is {c.count}", hint="at least 0, at least 1")
    if c.truth is not None:
        print_truth(score(c.data, c.truth))
        return
    rows = itertools.islice((row for row in rows_of(c) if c.find in str(row.get("text", ""))), c.start, None)
    if c.html is not None:
        chosen = list(itertools.islice(rows, c.count))
        if not c.html.parent.is_dir():
            raise UserError(f"there is no folder {c.html.parent}", hint="make it, or give another --html")
        write_atomic(c.html, [look_page(f"{c.data.name}: {c.reason or c.split}", chosen).encode("utf-8", "replace")])
        print(f"wrote {len(chosen)} text(s) to {c.html}")
        return
    first = next(rows, None)  # what is wrong is told before anything else
    if (c.data / "waterfall.json").is_file():
        print_waterfall(c.data)
    _browse(itertools.chain(() if first is None else (first,), rows), c)
    if c.reason is not None and not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("(of each reason only as many texts are kept as `freedive data --samples` says)")


def rows_of(c: LookConfig) -> Iterator[dict[str, Any]]:
    """The rows to look at, with all they hold."""
    if c.data.is_file():
        files = [c.data]
    elif c.reason is not None:
        rejected = c.data / "rejected.jsonl"
        if not rejected.is_file():
            raise UserError(f"{c.data} holds no rejected.jsonl", hint="give a folder made by `freedive data` from which something was removed")
        known = Counter(str(row.get("reason")) for _, row in iter_rows(rejected))
        if c.reason != "all" and not any(_matches(reason, c.reason) for reason in known):
            raise UserError(f"nothing was removed for the reason {c.reason}", hint="reasons: " + ", ".join(sorted(known)))
        yield from (row for _, row in iter_rows(rejected) if c.reason == "all" or _matches(str(row.get("reason")), c.reason))
        return
    elif is_artefact(c.data):
        files = shard_paths(c.data, c.split)
        if not files:
            raise UserError(f"{c.data} has no {c.split} documents", hint='a data artefact has "train" and "val"')
    else:
        raise UserError(f"{c.data} is no folder made by `freedive data`", hint="give such a folder, or one JSONL or parquet file")
    for file in files:
        yield from (row for _, row in iter_rows(file))


def _matches(reason: str, wanted: str) -> bool:
    return reason == wanted or reason.startswith(wanted + "/")


def _browse(rows: Iterator[dict[str, Any]], c: LookConfig) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    number = c.start
    while batch := list(itertools.islice(rows, c.count)):
        for row in batch:
            number += 1
            console.rule(f"{number}", align="left")
            facts = [f"{key}: {value}" for key, value in row.items() if key not in HIDDEN and value not in ("", None)]
            for line in (row.get("url"), "; ".join(facts)):
                if line:
                    console.print(_visible(str(line)), style="dim", markup=False)
            text = str(row.get("text", ""))
            console.print(_visible(text[:MAX_CHARACTERS]), markup=False)
            if len(text) > MAX_CHARACTERS:
                console.print(f"... {len(text) - MAX_CHARACTERS:,} characters more", style="dim")
        if not (sys.stdin.isatty() and sys.stdout.isatty()) or input("-- Enter: more, q: stop -- ").strip().lower().startswith("q"):
            return


def _visible(text: str) -> str:
    """No escape sequences of somebody's page in the user's terminal."""
    return "".join(character if character >= " " and character not in "\x7f\x9b" or character in "\n\t" else "\ufffd" for character in text)


# The truth


def score(folder: Path, truth: Path) -> list[dict[str, Any]]:
    """For each step that should, or did, remove a page: planted, removed, right, precision, recall. Pages whose truth is "any" are left out.

    `truth` has rows {"url", "expected": step, "keep" or "any"}; the folder must hold decisions.jsonl.
    """
    decisions = folder / "decisions.jsonl"
    if not decisions.is_file():
        raise UserError(f"{folder} holds no decisions.jsonl", hint="run freedive data with --decisions")
    expected = {str(row.get("url")): str(row.get("expected")) for _, row in iter_rows(truth)}
    fate = {str(row["url"]): str(row["reason"]).split("/")[0] or "keep" for _, row in iter_rows(decisions)}
    missing = [url for url in expected if url not in fate]
    if missing or not expected:
        raise UserError(
            f"{len(missing)} of {len(expected)} pages of {truth} are not in {decisions}", hint="give the truth about the pages that were read"
        )
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for url, wanted in expected.items():
        if wanted == "any":
            continue
        counts[wanted]["planted"] += 1
        counts[fate[url]]["removed"] += 1
        counts[wanted]["right"] += fate[url] == wanted
    rows = []
    for step, count in sorted(counts.items()):
        precision = count["right"] / count["removed"] if count["removed"] else 1.0
        recall = count["right"] / count["planted"] if count["planted"] else 1.0
        rows.append({"step": step, **{k: count[k] for k in ("planted", "removed", "right")}, "precision": precision, "recall": recall})
    return rows


def print_truth(rows: Iterable[dict[str, Any]]) -> None:
    """The result of `score` as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("step", box=None, pad_edge=False)
    for name in ("should", "did", "both", "precision", "recall"):
        table.add_column(name, justify="right")
    for row in rows:
        counts = (f"{row[key]:,}" for key in ("planted", "removed", "right"))
        table.add_row(row["step"], *counts, f"{row['precision']:.4f}", f"{row['recall']:.4f}")
    Console().print(table)
