"""Counts of what came in, what each step removed and why, and what came out: documents and bytes, adding up exactly.

documents_in = documents_out + sum of removed          at every step, and documents_out of one is documents_in of the next
bytes_in     = bytes_out + bytes of removed + trimmed  where trimmed is what a step cut from texts that stay (markup, lines)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from freedive.runs import UserError, human_bytes

STEPS = (
    "read",
    "url",
    "extract",
    "language",
    "gopher_repetition",
    "gopher_quality",
    "c4",
    "fineweb",
    "decontamination",
    "edu",
    "pii",
    "exact_dedup",
    "near_dedup",
    "line_dedup",
)


class Waterfall:
    """Adds up trails: for each document the bytes that left each step it passed, and the (step, rule) that removed it."""

    def __init__(self, state: dict[str, Any] | None = None):
        self.steps: dict[str, dict[str, Any]] = (state or {}).get("steps") or {}

    def add(self, size: int, trail: list[tuple[str, int]], removed: tuple[str, str] | None) -> None:
        """One document of `size` bytes that passed the steps of `trail` and was then removed, or not."""
        for step, out in trail:
            self.passed(step, 1, size, out)
            size = out
        if removed is not None:
            self.lost(*removed, 1, size)

    def passed(self, step: str, documents: int, bytes_in: int, bytes_out: int) -> None:
        """Documents that went through `step`."""
        counts = self._enter(step, documents, bytes_in)
        counts["documents_out"] += documents
        counts["bytes_out"] += bytes_out

    def lost(self, step: str, rule: str, documents: int, size: int) -> None:
        """Documents, of `size` bytes together, that `rule` of `step` removed."""
        count = self._enter(step, documents, size)["removed"].setdefault(rule, {"documents": 0, "bytes": 0})
        count["documents"] += documents
        count["bytes"] += size

    def merge(self, state: dict[str, Any]) -> None:
        """Adds the counts of another waterfall's `state`."""
        for step, other in state["steps"].items():
            counts = self._enter(step, other["documents_in"], other["bytes_in"])
            counts["documents_out"] += other["documents_out"]
            counts["bytes_out"] += other["bytes_out"]
            for rule, lost in other["removed"].items():
                count = counts["removed"].setdefault(rule, {"documents": 0, "bytes": 0})
                count["documents"] += lost["documents"]
                count["bytes"] += lost["bytes"]

    def _enter(self, step: str, documents: int, size: int) -> dict[str, Any]:
        empty = {"documents_in": 0, "bytes_in": 0, "documents_out": 0, "bytes_out": 0, "removed": {}}
        counts = self.steps.setdefault(step, empty)
        counts["documents_in"] += documents
        counts["bytes_in"] += size
        return counts

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def result(self) -> dict[str, Any]:
        """What waterfall.json holds: steps in order, rules from the most to the least frequent."""
        steps = []
        for name in [step for step in STEPS if step in self.steps]:
            step = self.steps[name]
            removed = dict(sorted(step["removed"].items(), key=lambda item: (-item[1]["documents"], item[0])))
            lost = sum(count["bytes"] for count in removed.values())
            steps.append({"step": name, **step, "removed": removed, "bytes_trimmed": step["bytes_in"] - step["bytes_out"] - lost})
        first, last = steps[0], steps[-1]
        return {
            "documents_in": first["documents_in"],
            "bytes_in": first["bytes_in"],
            "documents_out": last["documents_out"],
            "bytes_out": last["bytes_out"],
            "steps": steps,
        }


def print_waterfall(waterfall: dict[str, Any] | str | Path, console: Any = None) -> None:
    """Prints a waterfall (its dict, its file or the data artefact that holds it) as a table."""
    from rich.console import Console
    from rich.table import Table

    if isinstance(waterfall, dict):
        result = waterfall
    else:
        path = Path(waterfall)
        path = path / "waterfall.json" if path.is_dir() else path
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} holds no waterfall: {error}", hint="give a folder written by `freedive data`") from None
    table = Table("step", "rule", box=None, pad_edge=False)
    for name in ("documents", "bytes", "of input"):
        table.add_column(name, justify="right")
    total = max(1, result["documents_in"])
    table.add_row("input", "", f"{result['documents_in']:,}", human_bytes(result["bytes_in"]), "100.0 %")
    for step in result["steps"]:
        for rule, count in step["removed"].items():
            table.add_row(
                step["step"],
                rule,
                f"-{count['documents']:,}",
                f"-{human_bytes(count['bytes'])}",
                f"-{100 * count['documents'] / total:.1f} %",
            )
        if step["bytes_trimmed"] > 0:
            table.add_row(step["step"], "(cut from pages)", "", f"-{human_bytes(step['bytes_trimmed'])}", "")
    table.add_row(
        "kept",
        "",
        f"{result['documents_out']:,}",
        human_bytes(result["bytes_out"]),
        f"{100 * result['documents_out'] / total:.1f} %",
    )
    (console or Console()).print(table)
