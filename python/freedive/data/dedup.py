"""Exact duplicates: of documents by the hash of their normalised text, and (optional) of lines that many documents share.

Both look backwards only: the first copy stays. Both can be rebuilt from the documents already written, which is how a resumed
run goes on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any


def text_id(text: str) -> str:
    """The first 128 bits of sha256 over the lower-cased text with single spaces, as hex: the document's id."""
    return hashlib.sha256(" ".join(text.lower().split()).encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Seen:
    """Documents and lines seen so far. `max_line_copies` = 0 leaves lines alone."""

    def __init__(self, max_line_copies: int = 0):
        self.max_line_copies = max_line_copies
        self._ids: set[bytes] = set()
        self._lines: Counter[bytes] = Counter()

    def duplicate(self, identity: str) -> bool:
        return bytes.fromhex(identity) in self._ids

    def trim(self, text: str) -> str:
        """The text without lines that `max_line_copies` earlier documents had."""
        if not self.max_line_copies:
            return text
        lines = text.split("\n")
        return "\n".join(
            line for line in lines if not line.strip() or self._lines[_line_hash(line)] < self.max_line_copies
        ).strip("\n")

    def add(self, row: dict[str, Any]) -> None:
        """Remembers a document that was written."""
        self._ids.add(bytes.fromhex(row["id"]))
        if self.max_line_copies:
            self._lines.update({_line_hash(line) for line in row["text"].split("\n") if line.strip()})


def _line_hash(line: str) -> bytes:
    return hashlib.sha256(" ".join(line.lower().split()).encode("utf-8", "surrogatepass")).digest()[:16]
