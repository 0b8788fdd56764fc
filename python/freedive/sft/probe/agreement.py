"""Agreement: do a model's samples, or several models, give the same answer? It needs no reference: made-up answers differ from each other.

`agreement` is the largest share of replies that say the same; `entropy` is that of the groups, in nats (semantic entropy, Farquhar et al.,
Nature 2024, with equal words in place of equal meaning). How well either tells known from unknown is measured by the area under the ROC.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from freedive.eval.match import normalise


def agreement(replies: Sequence[str]) -> tuple[float, float, str]:
    """(largest share of equal replies, entropy of the groups in nats, the commonest reply); replies are compared as normalised words."""
    groups = Counter(normalise(reply) for reply in replies)
    shares = [count / len(replies) for count in groups.values()]
    return max(shares), -sum(p * math.log(p) for p in shares) + 0.0, groups.most_common(1)[0][0]


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Chance that a positive one has a higher score than a negative one, ties counting half; None without both kinds."""
    yes = sorted(s for s, p in zip(scores, positive) if p)
    no = sorted(s for s, p in zip(scores, positive) if not p)
    if not yes or not no:
        return None
    wins, below, equal = 0.0, 0, 0
    for score in yes:
        while below < len(no) and no[below] < score:
            below += 1
        equal = below
        while equal < len(no) and no[equal] == score:
            equal += 1
        wins += below + (equal - below) / 2
    return wins / (len(yes) * len(no))
