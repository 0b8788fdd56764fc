"""`freedive eval compare`: several evaluations side by side; differences are paired, item by item, with a bootstrap interval."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.runs import UserError, option, read_json

from .card import measures
from .statistics import bootstrap


@dataclass(frozen=True)
class CompareConfig:
    """Evaluations side by side."""

    folders: list[Path] = option(help="folders that `freedive eval` wrote, the first is what the others are compared with", positional=True)
    json: bool = option(False, "print JSON instead of a table")


def run(c: CompareConfig) -> None:
    """Print the comparison. UserError for a folder that holds no evaluation."""
    if len(c.folders) < 2:
        raise UserError("one evaluation alone cannot be compared" if c.folders else "there is no evaluation to compare", hint="freedive eval compare runs/eval-base runs/eval-sft")
    found = comparison(c.folders)
    if c.json:
        print(json.dumps(found, indent=2))
        return
    table = [["", *(folder.name for folder in c.folders)]]
    for r in found:
        cells = [f"{r['suite']}, {r['metric']}", f"{r['values'][0]:.4f}" if r["values"][0] is not None else "–"]
        for value, d in zip(r["values"][1:], r["differences"]):
            more = f" ({d['mean']:+.3f}: {d['interval_95'][0]:+.3f} {d['interval_95'][1]:+.3f}, {d['items']:,} items)" if d else ""
            cells.append("–" if value is None else f"{value:.4f}{more}")
        table.append(cells)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        print("  ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:]))]))
    print("in brackets: the mean difference to the first over the items both have, and its 95 % interval (bootstrap)")
    for note in differing(c.folders):
        print(f"note: {note}")


def differing(folders: list[Path]) -> list[str]:
    """Settings in which evaluations differ, besides the model: what is compared may then be these."""
    settings = [read_json(folder / "run.json").get("config", {}) if (folder / "run.json").is_file() else {} for folder in folders]
    out = []
    for name in dict.fromkeys(key for s in settings for key in s):
        values = [s.get(name) for s in settings]
        if name not in ("model", "out", "threads", "force") and any(v != values[0] for v in values):
            out.append(f"they were made with different --{name.replace('_', '-')}: {', '.join(str(v) for v in values)}")
    return out


def comparison(folders: list[Path]) -> list[dict[str, Any]]:
    """A row for each suite and metric that any folder has: {"suite", "metric", "values", "differences"}; differences have one entry for each
    folder after the first, None where there are no common items."""
    results = []
    for folder in folders:
        if not (folder / "eval.json").is_file():
            raise UserError(f"{folder} holds no eval.json", hint="give folders that `freedive eval` wrote")
        results.append(read_json(folder / "eval.json"))
    tables = [{(suite, metric): value for suite, metric, value, _, _ in measures(r)} for r in results]
    out: list[dict[str, Any]] = []
    for suite, metric in dict.fromkeys(key for t in tables for key in t):
        first = _scores(folders[0], suite, metric)
        differences: list[dict[str, Any] | None] = []
        for folder in folders[1:]:
            other = _scores(folder, suite, metric)
            common = sorted(set(first) & set(other))
            each = [other[line] - first[line] for line in common]
            differences.append({"mean": sum(each) / len(each), "interval_95": bootstrap(each), "items": len(each)} if each else None)
        out.append({"suite": suite, "metric": metric, "values": [t.get((suite, metric)) for t in tables], "differences": differences})
    return out


def _scores(folder: Path, suite: str, metric: str) -> dict[int, float]:
    """Line of the suite's file -> score."""
    path = folder / "items" / f"{suite}.jsonl"
    if not path.is_file():
        return {}
    return {r["line"]: r["scores"][metric] for _, r in iter_rows(path) if metric in r.get("scores", {})}
