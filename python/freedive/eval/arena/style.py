"""What an answer looks like, apart from what it says: its length, headings, lists and bold words. People like these, and ratings are to be had without them.

Differences are LMSYS's for style control: (a - b) / (a + b) of each count, the Markdown ones by word, divided by their spread over all battles, so
that one unit is one standard deviation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

NAMES = ("length", "headings", "lists", "bold")
_WORDS = re.compile(r"\w+|[^\w\s]")
_FENCED = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+\S", re.MULTILINE)
_LIST = re.compile(r"^\s*(?:[-*+]|\d{1,3}[.)])\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


def counts(text: str) -> tuple[int, int, int, int]:
    """(words and marks, headings, items of lists, bold runs); fenced code counts as words only."""
    prose = _FENCED.sub("", text)
    return len(_WORDS.findall(text)), len(_HEADING.findall(prose)), len(_LIST.findall(prose)), len(_BOLD.findall(prose))


def differences(counted: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(style [n, F], names) for Battles; what is the same in all battles is left out."""
    a, b = (np.array([pair[i] for pair in counted], np.float64).reshape(len(counted), len(NAMES)) for i in (0, 1))
    for side in (a, b):
        side[:, 1:] /= np.maximum(side[:, :1], 1)
    out = (a - b) / np.where(a + b > 0, a + b, 1)
    spread = np.sqrt((out**2).mean(0))  # around 0: whoever stands first
    kept = out.std(0) > 1e-9
    return out[:, kept] / spread[kept], tuple(name for name, keep in zip(NAMES, kept) if keep)
