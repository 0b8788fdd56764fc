"""Step 1: passages of the training data. Most names are read of once or twice, a few very often, and a model knows the latter; so passages
are drawn evenly over how often their rarest name occurs, in powers of two.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

LEAST_WORDS = 6
Names = Callable[[str], list[str]]
# Two and more words with a capital letter, or one inside a sentence.
_NAME = re.compile(r"(?:[A-Z][\w’'-]+(?: (?:of|the|de|van|von) (?=[A-Z])| (?=[A-Z]))?)+")
_SENTENCE_END = re.compile(r"[.!?][\"”)]?$")
_SENTENCE_START = re.compile(r"[.!?:\n]\s*[\"“(]?$")


def passages(text: str, most_words: int) -> Iterator[tuple[int, str]]:
    """(place in the text, passage): its lines, joined while they have less than LEAST_WORDS, cut behind a sentence after `most_words`."""
    begin, end, count = -1, 0, 0
    for line in re.finditer(r"[^\n]+", text):
        for piece in re.finditer(r"\S+", line[0]):
            begin = begin if begin >= 0 else line.start() + piece.start()
            end, count = line.start() + piece.end(), count + 1
            if count >= 2 * most_words or count >= most_words and _SENTENCE_END.search(piece[0]):
                yield begin, text[begin:end]
                begin, count = -1, 0
        if count >= LEAST_WORDS:
            yield begin, text[begin:end]
            begin, count = -1, 0
    if count >= LEAST_WORDS:
        yield begin, text[begin:end]


def names(text: str) -> list[str]:
    """Proper names as English writes them: capitals in the middle of a sentence. Rough, and only used to spread the choice."""
    found = []
    for match in _NAME.finditer(text):
        name = match[0].strip()
        at = match.start()
        if " " in name or at and not _SENTENCE_START.search(text[max(0, at - 4) : at]):
            found.append(name)
    return list(dict.fromkeys(found))


def frequencies(documents: Iterable[dict[str, Any]], names_of: Names, most_words: int) -> Counter[str]:
    """How many passages speak of each name."""
    counts: Counter[str] = Counter()
    for document in documents:
        for _, passage in passages(document["text"], most_words):
            counts.update(set(names_of(passage)))
    return counts


def choose(documents: Iterable[dict[str, Any]], names_of: Names, counts: Counter[str], wanted: int, most_words: int, seed: int) -> list[dict[str, Any]]:
    """About `wanted` passages, as many of each group of frequencies as there are; drawn by a hash of their text, at most `wanted` held at once."""
    groups: dict[int, _Lowest] = {}
    for number, document in enumerate(documents):
        for at, passage in passages(document["text"], most_words):
            found = names_of(passage)
            if not found:
                continue
            rarest = min(counts[name] for name in found)
            key = int.from_bytes(hashlib.sha256(f"{seed} {passage}".encode("utf-8", "surrogatepass")).digest()[:8], "little")
            row = {"document": str(document.get("id") or document.get("url") or number), "at": at, "text": passage, "frequency": rarest}
            groups.setdefault((rarest - 1).bit_length(), _Lowest(wanted)).add(key, row)
    chosen: list[dict[str, Any]] = []
    for place, group in enumerate(sorted(groups.values(), key=lambda g: len(g.heap))):  # the smallest first: what it leaves goes to the others
        chosen += group.lowest(-(-(wanted - len(chosen)) // (len(groups) - place)))
    return [{"id": i, **row} for i, row in enumerate(chosen)]


class _Lowest:
    """The rows of the n lowest keys so far; a key counts once."""

    def __init__(self, n: int):
        self.n, self.heap, self.keys = n, list[tuple[int, dict[str, Any]]](), set[int]()

    def add(self, key: int, row: dict[str, Any]) -> None:
        if key in self.keys or (len(self.heap) == self.n and -self.heap[0][0] < key):
            return
        self.keys.add(key)
        heapq.heappush(self.heap, (-key, row))
        if len(self.heap) > self.n:
            self.keys.discard(-heapq.heappop(self.heap)[0])

    def lowest(self, n: int) -> list[dict[str, Any]]:
        return [row for _, row in sorted(self.heap, key=lambda pair: -pair[0])[:n]]
