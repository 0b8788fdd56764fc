"""Public benchmarks as rows with checkers. Only the format is here; the files are the user's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from freedive.data.texts import iter_rows
from freedive.runs import UserError

FINAL = re.compile(r"####\s*\$?(-?[\d,]*\.?\d+)")
_ANY = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def gsm8k(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Rows {"prompt", "answer", "meta"} of a GSM8K file: JSONL(.gz) with "question" and "answer", which ends in "#### n"."""
    for number, row in iter_rows(path):
        question, solution = row.get("question"), row.get("answer")
        final = FINAL.search(solution) if isinstance(solution, str) else None
        if not isinstance(question, str) or final is None:
            raise UserError(
                f"{path}, line {number} is no GSM8K row", hint='expected {"question": "...", "answer": "... #### 42"}'
            )
        yield {"prompt": question, "answer": _plain(final.group(1)), "meta": {"task": "gsm8k", "solution": solution}}


def check_gsm8k(reply: str, answer: str) -> bool:
    """The number after the last "####", or else the last number of the reply, equals the answer ("1,000" is 1000, "5.0" is 5)."""
    found = FINAL.findall(reply) or _ANY.findall(reply)
    return bool(found) and _plain(found[-1]) == _plain(answer)


def _plain(number: str) -> str:
    number = number.replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number
