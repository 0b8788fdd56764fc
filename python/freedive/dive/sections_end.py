"""The end of the report: how long everything took, on which machine, and with which settings."""

from __future__ import annotations

import json
from typing import Any

from freedive.runs import folder_hash

from .found import Found, jsonl
from .page import code, details, paragraph, table, text


def times(found: Found) -> str | None:
    """What took how long, and the machine."""
    log = list(jsonl(found.root / "timings.jsonl"))
    spent: dict[str, list[float]] = {}
    for row in log:
        if "stage" in row:
            have = spent.setdefault(row["stage"], [0.0, 0.0, 0.0])
            spent[row["stage"]] = [have[0] + row.get("seconds", 0.0), have[1] + row.get("cpu_seconds", 0.0), have[2] + 1]
    body = ""
    if spent:
        rows = [(name, f"{wall:.1f}", f"{cpu:.1f}", str(int(starts))) for name, (wall, cpu, starts) in spent.items()]
        rows.append(("all", f"{sum(v[0] for v in spent.values()):.1f}", f"{sum(v[1] for v in spent.values()):.1f}", ""))
        body += table(("stage", "seconds", "CPU seconds", "starts"), rows)
    if found.machine:
        body += "<h3>The machine</h3>" + table(("", ""), [(k.replace("_", " "), str(v)) for k, v in found.machine.items()], left=2)
    return body + code("freedive/dive/stage.py", "freedive/dive/tiers.py") if body else None


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
