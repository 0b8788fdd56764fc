"""Advantages: how much better a completion did than the others drawn for the same prompt.

The one idea: the group is the baseline, no value network. All functions see whole groups, rewards [P, G] = G completions of
each of P prompts; never call them on a micro-batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# name -> (formula, source)
ADVANTAGES = {
    "grpo": ("(r - mean) / (std + eps), std with ddof=1 over the group", "arXiv:2402.03300"),
    "batch": ("(r - mean) / (std + eps), mean over the group, std with ddof=1 over the batch", "arXiv:2508.08221"),
    "dr_grpo": ("r - mean", "arXiv:2503.20783"),
    "rloo": ("r - mean of the others = G/(G-1) (r - mean)", "arXiv:2402.14740"),
    "maxrl": ("(r - mean) / mean, for rewards of zero or more", "arXiv:2602.02710"),
    "best": ("1 for the best of the group (the first of equals), 0 for the others: with loss reinforce, SFT on the best of n", "arXiv:2304.06767"),
    "none": ("r", "plain REINFORCE without a baseline"),
}


def check_rewards(rewards: ArrayLike) -> np.ndarray:
    r = np.asarray(rewards, dtype=np.float64)
    if r.ndim != 2:
        raise ValueError(f"rewards must have the shape [prompts, group size]; got {list(r.shape)}")
    if not np.isfinite(r).all():
        raise ValueError("rewards must be finite; a completion a reward function does not apply to has to be left out before")
    return r


def zero_std(rewards: ArrayLike) -> np.ndarray:
    """Groups [P] -> bool [P]: whether all rewards of the group are equal, so that nothing can be learned from it"""
    r = check_rewards(rewards)
    return r.max(1, initial=-np.inf) <= r.min(1, initial=np.inf)


def advantages(rewards: ArrayLike, kind: str = "grpo", eps: float = 1e-4, valid: ArrayLike | None = None) -> np.ndarray:
    """Rewards [P, G] -> advantages, float64 [P, G]; see ADVANTAGES for the kinds. eps as in TRL.

    A group whose rewards are all equal gets exactly 0 (except kind "none"). valid, bool [P, G]: completions that have a reward; the others
    get 0 and are no part of any baseline, and a group with fewer than two of them gets 0. Raises ValueError for groups of one: they have
    no baseline.
    """
    if kind not in ADVANTAGES:
        raise ValueError(f"unknown advantage '{kind}'; choose one of {', '.join(ADVANTAGES)}")
    if valid is not None and not np.all(valid):
        return _of_valid(np.asarray(rewards, np.float64), kind, eps, np.asarray(valid, bool))
    r = check_rewards(rewards)
    G = r.shape[1]
    if kind == "none":
        return r
    if G < 2:
        raise ValueError(f"advantage '{kind}' compares the completions of one prompt: it needs groups of at least 2, got {G}")
    mean = r.mean(1, keepdims=True)
    a = r - mean
    if kind == "grpo":
        a = a / (r.std(1, ddof=1, keepdims=True) + eps)
    elif kind == "batch":
        a = a / (r.std(ddof=1) + eps) if r.size else a
    elif kind == "rloo":
        a = a * (G / (G - 1))
    elif kind == "best":
        a = np.zeros_like(r)
        a[np.arange(len(r)), r.argmax(1)] = 1.0
    elif kind == "maxrl":
        if (r < 0).any():
            raise ValueError("advantage 'maxrl' divides by the mean reward: rewards must be zero or more")
        a = a / np.where(mean > 0, mean, 1)
    # Found on the rewards: r - mean of equal rewards is not always 0 in floating point.
    return np.where(zero_std(r)[:, None], 0.0, a)


def _of_valid(r: np.ndarray, kind: str, eps: float, valid: np.ndarray) -> np.ndarray:
    """Advantages where some completions have no reward: group by group, each on what it has."""
    if r.shape != valid.shape:
        raise ValueError(f"valid must have the shape of the rewards, {list(r.shape)}; got {list(valid.shape)}")
    out = np.zeros(r.shape)
    for row, has, to in zip(r, valid, out, strict=True):
        if has.sum() > 1 or kind == "none":
            to[has] = advantages(row[None, has], "dr_grpo" if kind == "batch" else kind, eps)[0]
    if kind == "batch" and valid.sum() > 1:
        out /= check_rewards(r[valid][None]).std(ddof=1) + eps
    return out


def reward_metrics(rewards: ArrayLike) -> dict[str, float]:
    """TRL's names: reward (mean), reward_std (mean over groups, ddof=1), frac_reward_zero_std (groups without a signal)"""
    r = check_rewards(rewards)
    if r.size == 0:
        return {"reward": 0.0, "reward_std": 0.0, "frac_reward_zero_std": 0.0}
    std = r.std(1, ddof=1).mean() if r.shape[1] > 1 else 0.0
    return {"reward": float(r.mean()), "reward_std": float(std), "frac_reward_zero_std": float(zero_std(r).mean())}
