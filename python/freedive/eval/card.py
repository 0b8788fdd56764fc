"""The report card of a model: one row for each measure with its interval, as a table in the terminal and as a page; accuracy against examples shown."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from freedive.runs import page
from freedive.runs.chart import chart

Result = dict[str, Any]  # of eval.json


def measures(result: Result) -> list[tuple[str, str, float, list[float] | None, int]]:
    """(suite, metric, value, 95 % interval or None, items) of everything in an eval.json."""
    rows: list[tuple[str, str, float, list[float] | None, int]] = []
    for name, suite in result.get("suites", {}).items():
        rows += [(name, metric, m["mean"], m["interval_95"], suite["items"]) for metric, m in suite["metrics"].items()]
    if "accuracy" in result:
        rows.append(("questions", "accuracy", result["accuracy"], result.get("accuracy_95"), result["questions"]))
        rows += [("questions", f"pass@{k}", v, None, result["questions"]) for k, v in result.get("pass_at", {}).items()]
        rows += [("questions", name.replace("_", " "), v, result.get(f"{name}_95"), result["questions"]) for name, v in result.items() if name.startswith("best_of_") and not name.endswith("_95")]
        rows.append(("questions", "stop_rate", result["stop_rate"], None, result["questions"]))
    rows += [("text", name, result[name], None, 0) for name in ("val_bits_per_byte", "val_loss") if name in result]
    return rows


def lines(result: Result) -> list[str]:
    """The table as text, for the terminal."""
    rows = [(f"{suite}, {metric}", f"{value:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "", f"{n:,}" if n else "")
            for suite, metric, value, interval, n in measures(result)]  # fmt: skip
    if not rows:
        return []
    table = [("", "", "95 %", "items"), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(4)]
    told = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in table]
    too_long = {name: s["too_long"] for name, s in result.get("suites", {}).items() if s["too_long"]}
    return told + [f"{name}: {n:,} items do not fit into the model's context and are left out" for name, n in too_long.items()]


def by_shots(result: Result) -> dict[str, list[tuple[float, float]]]:
    """Kind and file -> (examples shown, first metric), of what was asked with several numbers of examples."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for suite in result.get("suites", {}).values():
        if suite["metric"] in suite["metrics"]:
            found[f"{suite['kind']}: {suite['file']}"].append((suite.get("mean_shots", suite["shots"]), suite["metrics"][suite["metric"]]["mean"]))
    return {name: sorted(points) for name, points in found.items() if len(points) > 1}


def card(model: str, result: Result) -> str:
    """The page."""
    rows = measures(result)
    table = page.table(["suite", "metric", "", "95 % interval", "items"], [(s, m, f"{v:.4f}", f"{i[0]:.3f} – {i[1]:.3f}" if i else "", n or "") for s, m, v, i, n in rows], left=2)
    first = f"{rows[0][0]} {rows[0][1]} {rows[0][2]:.3f}" if rows else "nothing was measured"
    sections = [("measures", "What was measured", first, table)]
    if curves := by_shots(result):
        drawn = chart(curves, "examples shown before the question", "accuracy", low=0.0, high=1.0)
        words = page.paragraph("The weights are the same at every point; only what stands before the question differs: the model learns from its context.")
        sections.append(("shots", "In-context learning", "accuracy against the number of examples", words + f'<div class="charts">{drawn}</div>'))
    for name, suite in result.get("suites", {}).items():
        if len(groups := suite.get("groups", {})) > 1:
            body = page.table(["group", suite["metric"], "items"], [(g, f"{v['mean']:.3f}", v["items"]) for g, v in groups.items()])
            best = max(groups, key=lambda g: groups[g]["mean"])
            sections.append((f"groups-{name}", f"{name} by group", f"{len(groups)} groups; best: {best}", body))
    return page.page(f"Report card: {model}", page.paragraph("Each item with what was asked and answered is in `items/` and `answers.jsonl` beside this page."), sections)
