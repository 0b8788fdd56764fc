"""How alike two texts are: ROUGE-L (Lin 2004), by which Self-Instruct (Wang et al., arXiv:2212.10560) keeps tasks that are not yet in its pool; and
MinHash, as `freedive data` has it, by which an answer that was given before is known again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from freedive.data.minhash import SHAPE, signature

LEAST = 20  # words of an answer that is compared


def words(text: str) -> list[str]:
    """Lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table in one integer's bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        both = row & places.get(word, 0)
        row = (row + both | row - both) & full
    return len(a) - row.bit_count()


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words; 0 where one has none."""
    if not a or not b:
        return 0.0
    return 2 * common_subsequence(a, b) / (len(a) + len(b))


class Pool:
    """Texts that a new one must differ from."""

    def __init__(self, texts: Iterable[str] = ()):
        self.known: list[list[str]] = [words(text) for text in texts]

    def add(self, text: str) -> None:
        self.known.append(words(text))

    def nearest(self, text: str, enough: float = 1.0) -> float:
        """The largest ROUGE-L with any of them; looks no further once `enough` is reached."""
        mine, best = words(text), 0.0
        for other in self.known:
            shorter, longer = sorted((len(mine), len(other)))
            if shorter and 2 * shorter > best * (shorter + longer):  # else even a subsequence of all its words would be no better
                best = max(best, rouge_l(mine, other))
                if best >= enough:
                    break
        return best


class Answers:
    """Texts by their MinHashes of five words, numbers all alike; texts of fewer than LEAST words are like nothing: many questions have the same short answer."""

    def __init__(self, texts: Iterable[str] = ()):
        self.count, self.signatures = 0, np.empty((0, *SHAPE), np.uint64)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        if (found := self._signature(text)) is None:
            return
        if self.count == len(self.signatures):
            self.signatures = np.concatenate([self.signatures, np.empty((max(256, self.count), *SHAPE), np.uint64)])
        self.signatures[self.count] = found
        self.count += 1

    def nearest(self, text: str) -> float:
        """The largest part of its hashes that agrees with one of them: an estimate of the Jaccard similarity, with a standard error of 0.05."""
        found = self._signature(text)
        if found is None or not self.count:
            return 0.0
        return float((self.signatures[: self.count] == found).mean((1, 2)).max())

    @staticmethod
    def _signature(text: str) -> np.ndarray | None:
        return signature(text) if len(words(text)) >= LEAST else None
