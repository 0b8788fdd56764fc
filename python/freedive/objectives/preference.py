"""Learning from what people prefer: the reward model's loss over ranked lists, and the losses that need no reward model (DPO, IPO).

The one idea of both: a preference says something of a *difference* only. A list of K ranked answers has K scores and K(K-1)/2 pairs of them, so it
costs K forward passes (Ouyang et al. 2022, arXiv:2203.02155, section 3.5); and in DPO the difference is that of the log-ratios to the reference.
Both return derivatives; what is coupled (a list, a pair) is never split over micro-batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .policy import Metrics, check_batch, f64, padded

RANKING_LOSSES = ("bradley_terry", "plackett_luce")
DPO_LOSSES = ("sigmoid", "ipo")


def log_sigmoid(x: ArrayLike) -> np.ndarray:
    """log 1 / (1 + exp(-x)), without overflow."""
    return -np.logaddexp(0, -np.asarray(x, np.float64))


def sigmoid(x: ArrayLike) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(log_sigmoid(x))


def ranked_pairs(ranks: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(better, worse, weight) of all pairs of one list, indices into it; a tie is half a pair each way. ranks [K]: 0 is best, equal ones tie."""
    r = np.asarray(ranks)
    i, j = np.triu_indices(len(r), 1)
    tie = r[i] == r[j]
    better, worse = np.where(r[i] <= r[j], i, j), np.where(r[i] <= r[j], j, i)
    return np.concatenate([better, worse[tie]]), np.concatenate([worse, better[tie]]), np.concatenate([np.where(tie, 0.5, 1.0), np.full(tie.sum(), 0.5)])


def ranking_loss(scores: ArrayLike, ranks: ArrayLike, cu_lists: ArrayLike, total: int, *, loss: str = "bradley_terry", center: float = 0.0,
                 margins: ArrayLike | None = None) -> tuple[np.ndarray, Metrics]:  # fmt: skip
    """A reward model's loss, averaged over lists -> dscores float32 [S], metrics that add up over the step's micro-batches.

    scores [S] of the answers of L lists; list l is entries cu_lists[l] up to cu_lists[l+1], two or more. ranks [S]: 0 is best, equal ones tie.
    total: lists of the whole step. A list's loss is
    "bradley_terry"   the mean over its K(K-1)/2 pairs of -log sigmoid(better - worse - margin); a tie counts half each way (arXiv:2203.02155)
    "plackett_luce"   -log P(order) / (K - 1): each answer against those that are not better than it, tied ones among them (Luce 1959, Plackett 1975)
    plus center x the mean over pairs of (better + worse)^2, which holds the mean reward at 0 (TRL's center_rewards_coefficient, arXiv:2312.09244).
    margins [L]: by how much the better one must win (Llama 2, arXiv:2307.09288; "bradley_terry" only); nobody has to win a tie. Raises ValueError for a list of fewer than two.
    """
    if loss not in RANKING_LOSSES:
        raise ValueError(f"unknown loss {loss!r}; one of {', '.join(RANKING_LOSSES)}")
    s, r, cu = np.asarray(scores, np.float64), np.asarray(ranks), np.asarray(cu_lists, np.int64)
    if len(s) != len(r) or len(cu) < 1 or cu[0] != 0 or cu[-1] != len(s):
        raise ValueError(f"{len(s)} scores and {len(r)} ranks, in lists that end at {cu[-1] if len(cu) else None}")
    if len(cu) > 1 and np.diff(cu).min() < 2:
        raise ValueError("a list needs at least two answers to compare")
    d = np.zeros(len(s))
    told = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0, "mean_reward": 0.0}
    for number, (begin, end) in enumerate(zip(cu[:-1], cu[1:])):
        x, mine = s[begin:end], d[begin:end]
        better, worse, weight = ranked_pairs(r[begin:end])
        share = weight / weight.sum() / max(total, 1)
        difference, strict = x[better] - x[worse], weight == 1.0
        if loss == "bradley_terry":
            h = difference - strict * (0.0 if margins is None else float(np.asarray(margins)[number]))
            told["loss"] -= float((share * log_sigmoid(h)).sum())
            slope = -share * sigmoid(-h)
            np.add.at(mine, better, slope)
            np.add.at(mine, worse, -slope)
        else:
            value, slope = _plackett_luce(x, r[begin:end])
            told["loss"] += value / (len(x) - 1) / max(total, 1)
            mine += slope / (len(x) - 1) / max(total, 1)
        if center:
            both = x[better] + x[worse]
            told["loss"] += center * float((share * both**2).sum())
            np.add.at(mine, better, 2 * center * share * both)
            np.add.at(mine, worse, 2 * center * share * both)
        if strict.any():
            told["accuracy"] += float(np.mean((difference[strict] > 0) + 0.5 * (difference[strict] == 0))) / max(total, 1)
            told["margin"] += float(difference[strict].mean()) / max(total, 1)
        told["mean_reward"] += float(x.mean()) / max(total, 1)
    return d.astype(np.float32), told


def _plackett_luce(x: np.ndarray, ranks: np.ndarray) -> tuple[float, np.ndarray]:
    """-log P(order) and its derivative by x, float64 [K]."""
    value, slope = 0.0, np.zeros(len(x))
    for i in range(len(x)):
        rest = np.flatnonzero(ranks >= ranks[i])
        top = x[rest].max()
        e = np.exp(x[rest] - top)
        value += float(top + np.log(e.sum()) - x[i])
        slope[rest] += e / e.sum()
        slope[i] -= 1
    return value, slope


def sequence_logps(logprobs: ArrayLike, mask: ArrayLike, cu_seqlens: ArrayLike, mean: bool = False) -> np.ndarray:
    """float64 [S]: the log-prob of each sequence's trained tokens, summed, or their mean. Nats."""
    cu, trained, owner = check_batch(mask, cu_seqlens)
    S = len(cu) - 1
    sums = np.bincount(owner, np.where(trained, f64(logprobs, trained), 0), minlength=S)
    return sums / np.maximum(np.bincount(owner, trained.astype(np.float64), minlength=S), 1) if mean else sums


def dpo_loss(logprobs: ArrayLike, mask: ArrayLike, cu_seqlens: ArrayLike, reference_logps: ArrayLike, total: int, *, beta: float = 0.1, loss_type: str = "sigmoid",
             label_smoothing: float = 0.0, rpo_alpha: float = 0.0) -> tuple[np.ndarray, Metrics]:  # fmt: skip
    """DPO and IPO, averaged over pairs -> dlogprobs float32 [N], metrics (TRL's names) that add up over the step's micro-batches.

    Sequence 2p is the chosen answer of pair p, 2p + 1 the rejected one; mask [N] marks their tokens. reference_logps [2P]: the reference's
    `sequence_logps`, for "ipo" with mean=True. total: pairs of the whole step. h = (chosen - its reference) - (rejected - its reference);
    "sigmoid"   -log sigmoid(beta h) of sums (Rafailov et al. 2023, arXiv:2305.18290); label_smoothing e: labels are wrong with probability e (cDPO)
    "ipo"       (h - 1/(2 beta))^2 of means over tokens, as in TRL (Azar et al. 2023, arXiv:2310.12036)
    rpo_alpha adds so much of the chosen answer's mean negative log-prob (arXiv:2404.19733). Raises ValueError for an odd number of sequences.
    """
    if loss_type not in DPO_LOSSES:
        raise ValueError(f"unknown loss_type {loss_type!r}; one of {', '.join(DPO_LOSSES)}")
    cu, trained, owner = check_batch(mask, cu_seqlens)
    S = len(cu) - 1
    reference = np.asarray(reference_logps, np.float64)
    if S % 2 or reference.shape != (S,):
        raise ValueError(f"pairs are two sequences each, with a reference for each; got {S} sequences and {list(reference.shape)} of the reference")
    mean = loss_type == "ipo"
    logps = sequence_logps(logprobs, mask, cu_seqlens, mean)
    length = np.maximum(np.bincount(owner, trained.astype(np.float64), minlength=S), 1)
    ratio = logps - reference
    h = ratio[0::2] - ratio[1::2]
    if loss_type == "sigmoid":
        value = -(1 - label_smoothing) * log_sigmoid(beta * h) - label_smoothing * log_sigmoid(-beta * h)
        slope = -beta * ((1 - label_smoothing) * sigmoid(-beta * h) - label_smoothing * sigmoid(beta * h))
    else:
        value, slope = (h - 1 / (2 * beta)) ** 2, 2 * (h - 1 / (2 * beta))
    by_sequence = np.zeros(S)
    by_sequence[0::2], by_sequence[1::2] = slope, -slope
    if mean:
        by_sequence /= length
    loss = float(value.sum())
    if rpo_alpha:
        loss -= rpo_alpha * float((sequence_logps(logprobs, mask, cu_seqlens, True)[0::2]).sum())
        by_sequence[0::2] -= rpo_alpha / length[0::2]
    n = max(total, 1)
    metrics = {
        "loss": loss / n,
        "rewards/chosen": beta * float(ratio[0::2].sum()) / n,
        "rewards/rejected": beta * float(ratio[1::2].sum()) / n,
        "rewards/margins": beta * float(h.sum()) / n,
        "rewards/accuracies": float((h > 0).sum() + 0.5 * (h == 0).sum()) / n,
        "logps/chosen": float(logps[0::2].sum()) / n,
        "logps/rejected": float(logps[1::2].sum()) / n,
    }
    return padded(np.where(trained, by_sequence[owner], 0) / n, len(np.asarray(mask))), metrics
