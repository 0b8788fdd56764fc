"""Runs suites: one file of records for each suite and number of shots, going on where it stopped; then means with intervals, over all items and by group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.eval.statistics import interval
from freedive.inference import LM
from freedive.runs import Artefact, UserError, json_line, progress

from .base import Asking, Item, Named, Record, Suite, TooLong, read_items


class Prepared:
    """A suite with its items read and its examples found: everything that can be wrong with the input is known here."""

    def __init__(self, named: Named, lm: LM, asking: Asking, limit: int, examples: Path | None, kept: int):
        kind = named.suite
        kind.check()
        self.named, self.asking = named, asking
        items = read_items(kind, named.file)
        shown: Sequence[Item] = ()
        if examples is None:  # from the file itself: its first items, which are then not asked, with few examples as with many
            shown, items = items[:kept], items[kept:]
            if not items:
                raise UserError(f"{named.file}: {kept} examples were asked for and it has {len(shown)} rows in all", hint="fewer --shots, or give --examples FILE")
        if asking.shots:
            if examples is not None:
                shown = read_items(kind, examples)
            if len(shown) < asking.shots:
                raise UserError(f"{named.file}: {asking.shots} examples were asked for and there are {len(shown)}", hint="fewer --shots, or give --examples FILE")
        self.items = items if not limit or limit >= len(items) else [items[i * len(items) // limit] for i in range(limit)]
        self.suite: Suite = kind(lm, asking, shown)
        self.name = named.name + (f"-{asking.shots}shot" if kind.takes_shots else "")

    @property
    def file(self) -> str:
        return f"items/{self.name}.jsonl"


def prepare(named: Sequence[Named], lm: LM, asking: Asking, shots: Sequence[int], limit: int, examples: dict[str, Path]) -> list[Prepared]:
    """One for each suite and number of shots; suites that take none appear once. UserError for two of one name, or input that cannot be used."""
    out = []
    for n in named:
        for k in shots if n.suite.takes_shots else [0]:
            out.append(Prepared(n, lm, replace(asking, shots=k), limit, examples.get(n.kind, examples.get("")), max(shots) if n.suite.takes_shots else 0))
    names = [p.name for p in out]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two suites have the name {name}", hint="give each file once, each number of --shots once, and files names of their own")
    return out


def run_suites(suites: Sequence[Prepared], artefact: Artefact) -> dict[str, Any]:
    """Name -> summary of each suite."""
    done: dict[str, int] = dict((artefact.resume or {}).get("suites", {}))
    for p in suites:
        at = done.get(p.name, 0)
        with progress.bar(len(p.items), p.name) as bar:
            bar.advance(at)
            while at < len(p.items):
                part = p.items[at : at + p.suite.chunk]
                for record in measured(p.suite, part):
                    artefact.append(p.file, json_line(record))
                at += len(part)
                done[p.name] = at
                artefact.checkpoint({"suites": done})
                bar.advance(len(part))
    return {p.name: summary(p, _records(artefact.work / p.file)) for p in suites}


def measured(suite: Suite, items: Sequence[Item]) -> list[Record]:
    """The records of items, in order; of one that is too long, that it is."""
    asked: dict[int, Any] = {}
    for i, item in enumerate(items):
        try:
            asked[i] = suite.ask(item)
        except TooLong:
            pass
    found = iter(suite.measure([items[i] for i in asked], list(asked.values())) if asked else [])
    return [{"line": item.line, "group": item.group, **(next(found) if i in asked else {"too_long": True})} for i, item in enumerate(items)]


def summary(p: Prepared, records: Sequence[Record]) -> dict[str, Any]:
    """Mean and bootstrap interval of each metric, and the first metric by group."""
    values: dict[str, list[float]] = defaultdict(list)
    groups: dict[str, list[float]] = defaultdict(list)
    shots = 0
    for r in records:
        for metric, value in r.get("scores", {}).items():
            values[metric].append(value)
        if "scores" in r and r["group"]:
            groups[r["group"]].append(r["scores"][p.suite.metric])
        shots += r.get("shots", 0)
    out: dict[str, Any] = {"kind": p.named.kind, "file": p.named.file.name, "shots": p.asking.shots, "metric": p.suite.metric,
                           "items": len(values[p.suite.metric]), "too_long": sum("too_long" in r for r in records)}  # fmt: skip
    if p.asking.shots and out["items"]:
        out["mean_shots"] = shots / out["items"]  # fewer where they did not fit
    out["metrics"] = {m: {"mean": sum(v) / len(v), "interval_95": interval(v)} for m, v in values.items() if v}
    if groups:
        out["groups"] = {g: {"items": len(v), "mean": sum(v) / len(v)} for g, v in sorted(groups.items())}
    return out


def _records(path: Path) -> list[Record]:
    return [row for _, row in iter_rows(path)]
