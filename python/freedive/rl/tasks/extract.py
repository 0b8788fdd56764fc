"""The answer in a reply, leniently: in <answer>...</answer>, in \\boxed{...}, after the last "Answer:" or "####", or else the last line."""

from __future__ import annotations

import re

_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_BOX = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_MARK = re.compile(r"####|\banswer(?:\s+is)?\s*:?", re.IGNORECASE)


def answer_of(reply: str) -> str:
    """The answer without quotes, stars, full stop and spaces around it; "" where there is nothing."""
    if found := _TAG.findall(reply):
        text = found[-1]
    elif found := _BOX.findall(reply):
        text = found[-1]
    elif marks := list(_MARK.finditer(reply)):
        text = reply[marks[-1].end() :]
    else:
        text = next((line for line in reversed(reply.splitlines()) if line.strip()), "")
    return text.strip().strip("*`'\"").strip().removesuffix(".").strip()
