"""Agreement: do a model's samples, or several models, give the same answer? It needs no reference: made-up answers differ from each other.

Replies are compared by what they add to the question: the words of the first sentence that the question does not hold ("The capital of Kuwait
is Doha." and "It's Doha, I believe." agree mostly, "... is Kuwait City." does not). `agreement` is the largest share of replies that add the
same words, `entropy` that of these groups in nats (semantic entropy, Farquhar et al., Nature 2024, with equal words in place of equal
meaning), `overlap` the mean over pairs of the share of words in common (Jaccard). How well each tells known from unknown is the area under
the ROC.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from freedive.eval.match import normalise

_FIRST_SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)
_EMPTY_WORDS = frozenset("is are was were be been it its it's this that of in on at to for by as and or known called located city town".split())


@dataclass(frozen=True)
class Agreement:
    agreement: float
    entropy: float  # nats
    overlap: float
    answer: str  # the commonest


def added(reply: str, question: str = "") -> frozenset[str]:
    """The words of a reply's first sentence that are neither the question's nor empty; all its words if none are left."""
    first = _FIRST_SENTENCE.match(reply.strip())
    words = normalise(first[1] if first else reply).split()
    left = frozenset(words) - frozenset(normalise(question).split()) - _EMPTY_WORDS
    return left or frozenset(words)


def agree(replies: Sequence[str], question: str = "") -> Agreement:
    """How far replies to one question say the same."""
    sets = [added(reply, question) for reply in replies]
    groups = Counter(sets)
    shares = [count / len(sets) for count in groups.values()]
    pairs = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(sets, 2)]
    common = groups.most_common(1)[0][0]
    return Agreement(max(shares), -sum(p * math.log(p) for p in shares) + 0.0, sum(pairs) / len(pairs) if pairs else 1.0, replies[sets.index(common)])


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Chance that a positive one has a higher score than a negative one, ties counting half; None without both kinds."""
    yes = sorted(s for s, p in zip(scores, positive) if p)
    no = sorted(s for s, p in zip(scores, positive) if not p)
    if not yes or not no:
        return None
    wins, below = 0.0, 0
    for score in yes:
        while below < len(no) and no[below] < score:
            below += 1
        equal = below
        while equal < len(no) and no[equal] == score:
            equal += 1
        wins += below + (equal - below) / 2
    return wins / (len(yes) * len(no))
