"""Which of two authors wrote a text? Naive Bayes over what a text has and has not, fitted on what the two have written.

Manner, not matter: only features that several texts have count (a name occurs once), and that a habitual phrase is absent counts as much as that
it is there. (With rare words and without absences, multinomial, every text that had words which only the longer author used was taken for his.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

LEAST_SHARE = 0.02  # of the texts that must have a feature, and at least three
_PIECE = re.compile(r"\w+|[^\w\s]|\n")


def features(text: str) -> set[str]:
    """Lower-case words and marks, pairs of neighbours (where a text begins and ends counts as a mark), and how many there are, by doubling."""
    pieces = ["<begin>", *_PIECE.findall(text.lower()), "<end>"]
    return {*pieces[1:-1], *map(" ".join, zip(pieces, pieces[1:])), f"<{int(np.log2(len(pieces)))}>"}


class AuthorClassifier:
    """log_odds(text) > 0: rather b's. Bernoulli, smoothed by 1/2, equal priors."""

    def __init__(self, a: Iterable[str], b: Iterable[str]):
        found = [[features(text) for text in texts] for texts in (a, b)]
        if not all(found):
            raise ValueError("each author needs at least one text")
        counts = [Counter(f for text in texts for f in text) for texts in found]
        least = max(3, LEAST_SHARE * sum(map(len, found)))
        self.there: dict[str, float] = {}  # log-odds of a feature that is there, above those of its absence
        self.none = 0.0  # log-odds of a text without any
        for f in sorted(set(counts[0]) | set(counts[1])):
            if counts[0][f] + counts[1][f] >= least:
                has = [(c[f] + 0.5) / (len(texts) + 1) for c, texts in zip(counts, found)]
                absent = float(np.log1p(-has[1]) - np.log1p(-has[0]))
                self.there[f] = float(np.log(has[1]) - np.log(has[0])) - absent
                self.none += absent

    def log_odds(self, text: str) -> float:
        """Nats."""
        return self.none + sum(self.there.get(f, 0.0) for f in sorted(features(text)))
