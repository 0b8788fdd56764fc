"""The end of the report: how long everything took, on which machine, and with which settings."""

from __future__ import annotations

import json
from typing import Any

from freedive.runs import folder_hash
from freedive.runs.page import Share, bars, code, details, paragraph, percent, shares, table, text

from .found import Found, jsonl
from .sections_base import measured_speed

STAGES = {  # folders of a dive, as the talk calls what happens in them
    "crawl": "crawl", "sources": "own files", "data": "training data", "tokenizer": "tokenizer", "pretrain": "pretraining",
    "eval-base": "exam, base model", "sft": "assistant (SFT)", "eval-sft": "exam, assistant", "rl": "practice (RL)", "eval-rl": "exam, after RL",
}  # fmt: skip
MACHINE = {"memory_gib": "memory, GiB", "peak_gflops": "float32 peak, GFLOP/s", "load_at_start": "load at the start", "cpu": "CPU"}


def times(found: Found) -> str | None:
    """What took how long, how fast the training went, and the machine."""
    spent: dict[str, list[float]] = {}
    for row in jsonl(found.root / "timings.jsonl"):
        if "stage" in row:
            have = spent.setdefault(row["stage"], [0.0, 0.0, 0.0])
            spent[row["stage"]] = [have[0] + row.get("seconds", 0.0), have[1] + row.get("cpu_seconds", 0.0), have[2] + 1]
    body = ""
    if spent:
        whole = sum(v[0] for v in spent.values())
        body += paragraph(f"{clock(whole)} in all; where it went:")
        body += bars([(STAGES.get(n, n), v[0] / max(whole, 1e-9), f"{clock(v[0])}, {percent(v[0] / max(whole, 1e-9))}") for n, v in spent.items()])
        rows = [(name, f"{wall:.1f}", f"{cpu:.1f}", str(int(starts))) for name, (wall, cpu, starts) in spent.items()]
        rows.append(("all", f"{whole:.1f}", f"{sum(v[1] for v in spent.values()):.1f}", ""))
        note = paragraph("CPU seconds are those of all threads. More than one start: the stage was stopped, or found finished, and taken up again.")
        body += details("Seconds, by stage", table(("stage", "seconds", "CPU seconds", "starts"), rows) + note)
    body += _speeds(found)
    if found.machine:
        notes = [(MACHINE.get(k, k.replace("_", " ")), str(v)) for k, v in found.machine.items()]
        body += "<h3>The machine</h3>" + table(("", ""), notes, left=2)
    return body + code("freedive/dive/stage.py", "freedive/dive/tiers.py") if body else None


def _speeds(found: Found) -> str:
    """Per training stage: tokens a second and the share of the float32 peak, with their spread."""
    rows: list[tuple[str, ...]] = []
    peaks: list[tuple[str, list[Share]]] = []
    for stage in found.models:
        rates, share = measured_speed(found, stage)
        if rates:
            rows.append((STAGES.get(stage, stage), "tokens a second", *(f"{v:,.0f}" for v in rates)))
        if share:
            rows.append((STAGES.get(stage, stage), "% of the float32 peak", *(f"{100 * v:.1f}" for v in share)))
            middle, low, high = (min(1.0, v) for v in share)
            peaks.append((STAGES.get(stage, stage), [Share("", middle, low, high, percent(share[0]), f"{100 * low:.0f} to {100 * high:.0f}")]))
    rl = [row for row in found.lines("rl", "timings.jsonl") if row.get("step_seconds")]
    if rl:
        seconds = sum(row["step_seconds"] for row in rl)
        sampling = sum(row["sampling_seconds"] for row in rl) / seconds
        rows.append((STAGES["rl"], "tokens a second, sampled and learned from", f"{sum(row['tokens'] for row in rl) / seconds:,.0f}", "", ""))
        rows.append((STAGES["rl"], "% of the time spent sampling", f"{100 * sampling:.1f}", "", ""))
    if not rows:
        return ""
    body = "<h3>How fast, and how near to the machine's limit</h3>"
    if peaks:
        body += shares(("stage", "", "share of the float32 peak: median, and 10th to 90th percentile"), peaks)
    body += table(("stage", "measured between log lines", "median", "10th percentile", "90th percentile"), rows, left=2)
    if peaks:
        body += paragraph(
            "The peak is what this machine's float32 multiply-add units did in a loop that touches no memory. It is probed again at each "
            "line of the log, and the highest so far counts: on a busy machine it may be seen too low, and the share too high."
        )
    return body


def clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def settings(found: Found) -> str | None:
    """What every folder was made with."""
    if not found.runs:
        return None
    body = paragraph("Each folder's `run.json` holds these. The same settings and input give the same bytes again.")
    for path, run in found.runs.items():
        rows = [(key, _shown(value)) for key, value in run.get("config", {}).items()]
        rows += [(f"result: {key}", _shown(value)) for key, value in run.get("metrics", {}).items()]
        versions = ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items())
        note = f'<p class="note">{text(versions)}; content hash {folder_hash(path)[:16]}</p>'
        body += details(f"{path.name} (freedive {run.get('stage')})", table(("setting", "value"), rows, left=2) + note)
    return body


def _shown(value: Any) -> str:
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return words if len(words) <= 200 else words[:197] + "..."
