"""The ladder: every variant of every op on the CUDA device, with what it is expected to buy (csrc/cuda/README.md's table, predicted) and, in columns of their own, what
was measured, from a results file of benchmarks/gpu. Which variants there are is read from the device's table of ops, now or when the file was written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "csrc" / "cuda" / "README.md"


def variants_here() -> dict[str, list[str]] | None:
    """Op -> its variants, from the slowest rung on, of the CUDA device or the emulated one; None without either"""
    from freedive import ops

    device = next((name for name in ("cuda", "cuda-emu") if name in ops.devices()), None)
    return None if device is None else {op: ops.ladder(op, device) for op in ops.schemas()}


def expectations(text: str) -> list[tuple[set[str], set[str], str]]:
    """Variants, the words that say which ops, what is expected of them: the rows of the table that begins `| variant |`, as "sm90_plain, sm90, matmul" """
    rows, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| variant |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not set(line) <= set("|- "):
            words: list[str] = []
            for word in re.findall(r"[a-z_0-9]{3,}", re.sub(r"\b(head|norm|product)s\b", r"\1", cells[0].partition(",")[2].lower())):
                words.append(words[-1].rpartition("_")[0] + word if word.startswith("_") and words else word)  # "attention_forward, _backward"
            rows.append(({part.strip() for part in cells[0].split(",")}, set(words), cells[2]))
    return rows


def expected(rows: list[tuple[set[str], set[str], str]], op: str, variant: str) -> str | None:
    """The row of that variant whose words fit the op best; naive is one row for all"""
    best: tuple[int, str] | None = None
    for names, words, text in rows:
        if variant not in names:
            continue
        fit = max((len(word) for word in words if word in op), default=1 if "all" in words else 0)
        if fit > 0 and (best is None or fit > best[0]):
            best = fit, text
    return None if best is None else best[1]


def table(results: dict[str, Any] | None, variants_of: dict[str, list[str]]) -> str:
    """Markdown. results: a file of benchmarks/gpu, or None: nothing was measured"""
    rows = expectations(README.read_text())
    measured: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (results or {}).get("rows", []):
        if row.get("ladder") and "seconds" in row:
            measured[row["op"], row["variant"]] = row
    out = []
    if results is not None:
        dry = any(row.get("dry_run") for row in results["rows"])
        out.append(f"Measured on {results.get('gpu') or results.get('device')}, {results.get('date')}." + (" **A dry run: these are no measurements.**" if dry else ""))
    else:
        out.append("Nothing is measured yet: no results file was given.")
    out += ["", "| op | variant | expected to buy (predicted) | measured | times naive | times the rung before | share of the limit |", "|---|---|---|---|---|---|---|"]
    for op, variants in variants_of.items():
        first = before = None
        for variant in variants:
            row = measured.get((op, variant))
            seconds = row["seconds"]["median"] if row else None
            times = lambda x: f"{x / seconds:.2f}" if x and seconds else ""
            share = f"{row['share']:.2f}" if row and row.get("share") is not None else ""
            cell = f"{seconds * 1e6:,.0f} us, {row['value']:,.0f} {row['unit']}" if row and seconds else ""
            out.append(f"| {op} | {variant} | {expected(rows, op, variant) or ''} | {cell} | {times(first) if variant != variants[0] else ''} | {times(before)} | {share} |")
            first, before = first or seconds, seconds or before
    return "\n".join(out)
