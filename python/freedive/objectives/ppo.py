"""PPO's side of values: generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438) and the clipped value loss (arXiv:1707.06347).

The one idea: only what the model said counts as a step. Ids that a tool or a user put between are skipped, so the value after a call is that
of the next thing the model says. The last token of a sequence has nothing after it: its value target is its reward.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .policy import Metrics, Totals, check_batch, f64, padded


def token_rewards(scores: ArrayLike, behaviour_logprobs: ArrayLike, reference_logprobs: ArrayLike | None, mask: ArrayLike, cu_seqlens: ArrayLike,
                  beta: float) -> np.ndarray:  # fmt: skip
    """float64 [N]: the sequence's score at its last trained token (that which predicts the end of the turn), and -beta (behaviour - reference) at each.

    scores [S]; the rest as of policy_loss. Ziegler et al. 2019, arXiv:1909.08593.
    """
    cu, trained, owner = check_batch(mask, cu_seqlens)
    out = np.zeros(len(np.asarray(mask)))
    n = len(trained)
    if beta:
        if reference_logprobs is None:
            raise ValueError(f"beta = {beta} needs reference_logprobs")
        out[:n] = -beta * np.where(trained, f64(behaviour_logprobs, trained) - f64(reference_logprobs, trained), 0)
    places = np.flatnonzero(trained)
    last = places[np.flatnonzero(np.append(owner[places][1:] != owner[places][:-1], True))] if len(places) else places
    out[last] += np.asarray(scores, np.float64)[owner[last]]
    return out


def gae(rewards: ArrayLike, values: ArrayLike, mask: ArrayLike, cu_seqlens: ArrayLike, gamma: float = 1.0, lam: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(advantages, returns), float64 [N], 0 where nothing is trained. returns = advantages + values: what the value loss aims at.

    delta_t = r_t + gamma V_{t+1} - V_t over the trained tokens of a sequence, V = 0 behind the last; A_t = sum of (gamma lam)^k delta_{t+k}.
    """
    cu, trained, _ = check_batch(mask, cu_seqlens)
    r, v = f64(rewards, trained), f64(values, trained)
    N = len(np.asarray(mask))
    adv, returns = np.zeros(N), np.zeros(N)
    for begin, end in zip(cu[:-1], cu[1:]):
        following, after = 0.0, 0.0
        for t in (np.flatnonzero(trained[begin:end]) + begin)[::-1]:
            following = r[t] + gamma * after - v[t] + gamma * lam * following
            adv[t], returns[t], after = following, following + v[t], v[t]
    return adv, returns


def whiten(x: ArrayLike, mask: ArrayLike, eps: float = 1e-8) -> np.ndarray:
    """float64 [N]: mean 0 and variance 1 over the trained entries (all of the step's at once), 0 elsewhere. Variance with ddof 1, as in TRL."""
    trained = np.asarray(mask) != 0
    x = np.asarray(x, np.float64)
    inside = x[trained]
    if len(inside) < 2:
        return np.where(trained, x, 0)
    return np.where(trained, (x - inside.mean()) / np.sqrt(inside.var(ddof=1) + eps), 0)


def value_loss(values: ArrayLike, old_values: ArrayLike, returns: ArrayLike, mask: ArrayLike, cu_seqlens: ArrayLike, totals: Totals, *, coefficient: float = 0.1,
               cliprange: float = 0.2) -> tuple[np.ndarray, Metrics]:  # fmt: skip
    """coefficient / 2 x mean over trained tokens of max((V - R)^2, (clip(V, old - cliprange, old + cliprange) - R)^2) -> dvalues float32 [N], metrics.

    totals of the whole step, so that micro-batches add up.
    """
    _, trained, _ = check_batch(mask, cu_seqlens)
    v, old, target = f64(values, trained), f64(old_values, trained), f64(returns, trained)
    near = np.clip(v, old - cliprange, old + cliprange)
    plain, clipped = (v - target) ** 2, (near - target) ** 2
    share = np.where(trained, coefficient / max(totals.tokens, 1), 0)
    # where the clipped branch is the larger, its slope is that of clip: 1 inside of the range, 0 outside
    slope = np.where(plain >= clipped, v - target, np.where(near == v, near - target, 0))
    metrics = {"loss/value": float((share / 2 * np.maximum(plain, clipped)).sum()), "val/clipfrac": float(((clipped > plain) & trained).sum()) / max(totals.tokens, 1)}
    return padded(share * slope, len(np.asarray(mask))), metrics


class AdaptiveKL:
    """beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon), after n sequences (Ziegler et al. 2019, arXiv:1909.08593, section 2.2);
    n / horizon is at most 1 here, or beta could change its sign."""

    def __init__(self, beta: float, target: float, horizon: float = 10_000):
        if not 0 < target < float("inf") or not horizon > 0:
            raise ValueError(f"target and horizon must be positive; got {target} and {horizon}")
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl: float, n: int) -> float:
        self.beta *= 1 + float(np.clip(kl / self.target - 1, -0.2, 0.2)) * min(1.0, n / self.horizon)
        return self.beta
