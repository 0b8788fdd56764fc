"""Runs while they go on: where each is, a chart for each metric with a line for each run, and what the model said at every measurement.

Charts are runs/chart.py's, drawn here and sent as SVG, so nothing runs in the browser; one is sent again only when it has changed. The files are read by
the process of the page, once for all tabs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from nicegui import ui

from freedive.runs.chart import chart
from freedive.runs.follow import FIRST, Run, ordered

from .parts import Tag, box, button, fixed_html
from .shell import framed, head

LINKS = (("/", "Runs"),)
NOISY = ("loss", "reward", "grad_norm", "entropy", "completions/mean_length")
SHOWN = 12  # samples at once
TOLD = {"tokens_per_second": "tokens/s", "peak_share": "of peak", "step_seconds": "s a step"}


class Looker:
    """All runs, looked at no more often than every `every` seconds however many tabs there are. `version` grows with every change."""

    def __init__(self, runs: Sequence[Run], every: float) -> None:
        self.runs, self.every, self.version, self._at = runs, every, 0, 0.0

    def look(self) -> int:
        if time.monotonic() - self._at >= 0.9 * self.every:
            self._at = time.monotonic()
            self.version += any([run.look() for run in self.runs])
        return self.version


def register(runs: Sequence[Run], every: float) -> None:
    """Declare the page."""
    looker = Looker(runs, every)

    @ui.page("/")
    def watch() -> None:
        Watching(looker)


class Watching:
    """One browser tab."""

    def __init__(self, looker: Looker) -> None:
        self.looker = looker
        self.drawn: dict[str, tuple[str, ui.html]] = {}
        self.states: list[tuple[str, ...]] = []
        self.seen = -1
        self.at: dict[str, int | None] = {}  # run -> which step's samples; None: the latest
        what = looker.runs[0].name if len(looker.runs) == 1 else f"{len(looker.runs)} runs"
        with framed(LINKS, "/", what, what, "the runs that are followed"):
            with box("page watch"):
                head("Runs", "Read from metrics.jsonl every moment; lines that jump about are drawn pale, with the mean of their neighbours over them.")
                with box("card tablebox", "section", aria_label="Where they are", tabindex="0"), Tag("table", "", "grid"):
                    with Tag("thead"), Tag("tr"):
                        for name in ("run", "state", "step", "last values", "speed"):
                            Tag("th", name, scope="col")
                    self.table = Tag("tbody")
                self.charts = box("charts", "section", aria_label="Curves")
                with Tag("details") as self.more:
                    Tag("summary", "All other metrics", "hint", style="cursor:pointer")
                    self.rest = box("charts")
                self.samples = box("stack", "section", aria_label="Samples")
        ui.timer(looker.every, self.show)
        self.show()

    def show(self) -> None:
        """Draw what has changed."""
        version = self.looker.look()
        self._table()
        if version == self.seen:
            return
        self.seen = version
        curves = {run.name: run.curves() for run in self.looker.runs}
        metrics = ordered([m for found in curves.values() for m in found])
        main = [m for m in metrics if m in FIRST or m.startswith("eval/")]
        for metric in metrics:
            drawing = chart({name: found[metric] for name, found in curves.items() if metric in found}, "step", metric, noisy=tuple(curves) if metric in NOISY else ())
            if metric not in self.drawn:
                with self.charts if metric in main else self.rest:
                    with box("card drawn", data_metric=metric):
                        self.drawn[metric] = (drawing, fixed_html(drawing))
            elif self.drawn[metric][0] != drawing:
                self.drawn[metric][1].set_content(drawing)
                self.drawn[metric] = (drawing, self.drawn[metric][1])
        self.more.set_visibility(len(main) < len(metrics))
        self._samples()

    def _table(self) -> None:
        rows = [_row(run) for run in self.looker.runs]
        if rows == self.states:
            return
        self.states = rows
        self.table.clear()
        with self.table:
            for row in rows:
                with Tag("tr", data_run=row[0]):
                    for i, cell in enumerate(row):
                        Tag("td", cell, "n" if i == 2 else "")
        if not any(row[2] != "0" for row in rows):
            self.seen = -1

    def _samples(self) -> None:
        self.samples.clear()
        with self.samples:
            for run in self.looker.runs:
                said = run.samples()
                groups = _groups(said)
                if not groups:
                    continue
                at = self.at.get(run.name)
                at = len(groups) - 1 if at is None else min(at, len(groups) - 1)
                (label, rows), of = groups[at], len(groups)
                with box("card stack", "article", aria_label=f"What {run.name} said"):
                    Tag("h2", f"What {run.name} said")
                    with box("line"):
                        button("Earlier", lambda run=run, to=at - 1, n=of: self._turn(run, to, n), kind="second", disabled=at == 0)
                        Tag("span", f"{label}, {at + 1} of {of}", role="status")
                        button("Later", lambda run=run, to=at + 1, n=of: self._turn(run, to, n), kind="second", disabled=at + 1 == of)
                    with box("answers"):
                        for row in rows[:SHOWN]:
                            with box("card answer"):
                                Tag("p", _prompt(row), "hint")
                                Tag("p", str(row.get("text") or row.get("completion") or row.get("reply") or ""), style="white-space: pre-wrap; overflow-wrap: anywhere")
                                if row.get("reward") is not None:
                                    Tag("p", f"reward {row['reward']:.3g}" + (f", {row['length']} tokens" if "length" in row else ""), "hint")

    def _turn(self, run: Run, to: int, of: int) -> None:
        self.at[run.name] = None if to >= of - 1 else max(0, to)
        self._samples()


def _row(run: Run) -> tuple[str, ...]:
    curves, speed = run.curves(), run.speed()
    last = ", ".join(f"{name} {curves[name][-1][1]:.4g}" for name in ordered(list(curves)) if name in FIRST[:6])
    told = ", ".join(f"{100 * speed[k]:.0f} % {name}" if k == "peak_share" else f"{speed[k]:,.4g} {name}" for k, name in TOLD.items() if isinstance(speed.get(k), (int, float)))
    return run.name, run.state(), f"{run.step():,}", last, told


def _groups(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Samples of one measurement together: by step, or by the held-out loss where a line has no step."""
    out: list[tuple[str, list[dict[str, Any]]]] = []
    for row in rows:
        label = f"step {row['step']:,}" if isinstance(row.get("step"), int) else f"held-out loss {row['val_loss']:.4f}" if isinstance(row.get("val_loss"), float) else "samples"
        if not out or out[-1][0] != label:
            out.append((label, []))
        out[-1][1].append(row)
    return out


def _prompt(row: dict[str, Any]) -> str:
    said = row.get("prompt")
    if isinstance(said, list):
        said = said[-1].get("content") if said and isinstance(said[-1], dict) else ""
    words = " ".join(str(said or "").split())
    return words if len(words) <= 300 else words[:300] + "…"
