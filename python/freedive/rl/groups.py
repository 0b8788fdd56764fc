"""Groups of rewards [P, G], where NaN is a completion of which no reward function says anything: such a one is no part of its group."""

from __future__ import annotations

import numpy as np

from freedive.objectives import reward_metrics, zero_std


def dead(rewards: np.ndarray) -> np.ndarray:
    """bool [P]: nothing to learn from: fewer than two rewards, or all equal."""
    r = np.asarray(rewards, np.float64)
    if not np.isnan(r).any():
        return zero_std(r)
    return np.array([np.isfinite(row).sum() < 2 or bool(zero_std(row[None, np.isfinite(row)])[0]) for row in r])


def group_metrics(rewards: np.ndarray) -> dict[str, float]:
    """TRL's reward, reward_std and frac_reward_zero_std, over the rewards there are. NaN (null in a log) where there are too few: none, and for a
    deviation two in no group."""
    r = np.asarray(rewards, np.float64)
    if not np.isnan(r).any():
        return reward_metrics(r)
    known = r[np.isfinite(r)]
    spread = [row[np.isfinite(row)].std(ddof=1) for row in r if np.isfinite(row).sum() > 1]
    return {"reward": float(known.mean()) if len(known) else np.nan, "reward_std": float(np.mean(spread)) if spread else np.nan, "frac_reward_zero_std": float(dead(r).mean())}
