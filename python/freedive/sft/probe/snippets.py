"""Step 1: passages of the training data. Most names are read of once or twice, a few very often, and a model knows the latter; so passages
are drawn evenly over how often their rarest name occurs, in powers of two.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

LEAST_WORDS = 6
Names = Callable[[str], list[str]]
# Two and more words with a capital letter, or one inside a sentence.
_NAME = re.compile(r"(?:[A-Z][\w’'-]+(?: (?:of|the|de|van|von) (?=[A-Z])| (?=[A-Z]))?)+")
_SENTENCE_END = re.compile(r"[.!?][\"”)]?$")
_SENTENCE_START = re.compile(r"(?:^|[.!?:\n]\s*[\"“(]?)$")


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
        if " " in name or not _SENTENCE_START.search(text[: match.start()]):
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
    """About `wanted` passages, as many of each group of frequencies as there are; drawn by a hash of their text, in the documents' order."""
    groups: dict[int, list[tuple[bytes, dict[str, Any]]]] = {}
    for number, document in enumerate(documents):
        for at, passage in passages(document["text"], most_words):
            found = names_of(passage)
            if not found:
                continue
            rarest = min(counts[name] for name in found)
            key = hashlib.sha256(f"{seed} {passage}".encode("utf-8", "surrogatepass")).digest()
            row = {"document": str(document.get("id") or document.get("url") or number), "at": at, "text": passage, "frequency": rarest}
            groups.setdefault((rarest - 1).bit_length(), []).append((key, row))
    chosen: list[dict[str, Any]] = []
    for place, group in enumerate(sorted(groups.values(), key=len)):  # the smallest first: what it leaves goes to the others
        share = -(-(wanted - len(chosen)) // (len(groups) - place))
        unique = {key: row for key, row in sorted(group, key=lambda pair: pair[0])}
        chosen += list(unique.values())[:share]
    return [{"id": i, **row} for i, row in enumerate(chosen)]
