"""Tasks with checkers: the invented town, sums, letters, and loaders for public benchmark files. Rows as in docs/contracts.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import arithmetic, letters, town
from .benchmarks import check_gsm8k, gsm8k

__all__ = ["check", "check_gsm8k", "gsm8k"]


def check(reply: str, row: Mapping[str, Any]) -> bool:
    """Judges a reply to an evaluation row by the task named in its meta."""
    meta, answer = row["meta"], row["answer"]
    task = meta["task"]
    if task == "town":
        return town.check(reply, answer, meta["attribute"])
    if task == "arithmetic":
        return arithmetic.check(reply, answer)
    if task in ("spell", "count"):
        return letters.check(reply, answer, task)
    if task == "gsm8k":
        return check_gsm8k(reply, answer)
    raise ValueError(f'no checker for task "{task}"')
