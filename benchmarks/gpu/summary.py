"""The measured figures beside the floors and aims of cases.TARGETS"""

from __future__ import annotations

import math
from typing import Any

from cases import TARGETS, Target


def figure(target: Target, rows: list[dict[str, Any]]) -> tuple[float | None, int]:
    """Geometric mean over the target's rows, and how many they are; a ratio to the best peer of several runs is the smallest"""
    values: dict[str, float] = {}
    for row in rows:
        if "variant" not in row or not target.rows(row):
            continue
        value = row.get(target.of) if target.peer is None else (row["peers"].get(target.peer) or {}).get("ratio")
        if value is not None and value > 0:
            values[row["case"]] = min(value, values.get(row["case"], math.inf))
    if not values:
        return None, 0
    return math.exp(sum(map(math.log, values.values())) / len(values)), len(values)


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for target in TARGETS:
        value, n = figure(target, rows)
        verdict = "not measured" if value is None else "aim" if value >= target.aim else "floor" if value >= target.floor else "below the floor"
        out.append({"figure": target.name, "value": None if value is None else round(value, 3), "floor": round(target.floor, 2), "aim": round(target.aim, 2), "rows": n, "verdict": verdict})
    return out


def table(found: list[dict[str, Any]], dry_run: bool) -> str:
    lines = ["**A dry run on the CPU with tiny sizes: what stands here measures nothing.**", ""] if dry_run else []
    lines += [f"| figure | {'dry run' if dry_run else 'measured'} | floor | aim | cases | reached |", "|---|---|---|---|---|---|"]
    lines += [f"| {v['figure']} | {'' if v['value'] is None else v['value']} | {v['floor']} | {v['aim']} | {v['rows']} | {'' if dry_run else v['verdict']} |" for v in found]
    return "\n".join(lines)
