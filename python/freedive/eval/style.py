"""Which of two authors wrote a text? Naive Bayes over words, marks and pairs of them, fitted on what the two have written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

_PIECE = re.compile(r"\w+|[^\w\s]|\n")


def features(text: str) -> list[str]:
    """Lower-case words and punctuation marks, and each with its neighbour; where a text begins and ends counts as a mark."""
    pieces = ["<begin>", *_PIECE.findall(text.lower()), "<end>"]
    return [*pieces[1:-1], *map(" ".join, zip(pieces, pieces[1:]))]


class AuthorClassifier:
    """log_odds(text) > 0: rather b's. Multinomial, smoothed by 1/2, equal priors; texts of equal weight whatever their length."""

    def __init__(self, a: Iterable[str], b: Iterable[str]):
        counts = [Counter(f for text in texts for f in features(text)) for texts in (a, b)]
        if not all(counts):
            raise ValueError("each author needs at least one text")
        names = set(counts[0]) | set(counts[1])
        totals = [sum(c.values()) + len(names) / 2 for c in counts]
        self.weights = {f: float(np.log((counts[1][f] + 0.5) / totals[1]) - np.log((counts[0][f] + 0.5) / totals[0])) for f in names}

    def log_odds(self, text: str) -> float:
        """Mean over the text's features, nats; features never seen say nothing. An empty text, or one of such features only, gives 0."""
        known = [self.weights[f] for f in features(text) if f in self.weights]
        return float(np.mean(known)) if known else 0.0
