"""The GRPO family: one function, and a PolicySpec that says which member of it.

The one idea: every member is (advantage) x (a function of the probability ratio) x (the token's share of the loss), plus KL
and entropy. The table of terms and derivatives is in this package's docstring. Computed in float64, returned as float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray
Metrics = dict[str, float]

LOSSES = ("clip", "cispo", "reinforce")
RATIOS = ("token", "sequence")
AGGREGATIONS = ("grpo", "token", "dr_grpo", "sum")
KL_ESTIMATORS = ("k1", "k2", "k3", "k3_is")
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@dataclass(frozen=True)
class PolicySpec:
    """Which policy loss. Names are TRL's where the meaning is TRL's."""

    advantage: str = "dr_grpo"  # see advantages.ADVANTAGES
    loss: str = "clip"  # clip: PPO's; cispo: frozen, truncated ratio; reinforce: no ratio at all
    ratio: str = "token"  # sequence: GSPO's, the geometric mean of the token ratios
    epsilon: float = 0.2  # clip: ratio >= 1 - epsilon
    epsilon_high: float = 0.2  # clip: ratio <= 1 + epsilon_high
    delta: float | None = None  # dual clip (arXiv:1912.09729): ratio <= delta also where A < 0
    is_clip_max: float = 5.0  # cispo: ratio <= is_clip_max. Absolute, not 1 + epsilon
    # share of one trained token, L = trained tokens of its sequence:
    # grpo 1/(sequences L), token 1/tokens, dr_grpo 1/(sequences max_completion_length), sum 1/sequences
    aggregation: str = "dr_grpo"
    max_completion_length: int | None = None  # dr_grpo's constant
    beta: float = 0.0  # weight of KL(policy, reference)
    kl: str = "k3"  # estimator: k1, k2, k3, k3_is
    kl_in: str = "loss"  # or "reward": then call kl_in_reward before `advantages`
    entropy_coef: float = 0.0  # > 0 rewards entropy
    # Sampler and trainer disagree by w = exp(trainer - sampler), per token or as product over the sequence:
    # truncate to [low, high], or mask to 0 outside it. Same kernels give w = 1.
    correction: str = "none"
    correction_low: float = 0.0
    correction_high: float = 2.0
    # Not read by policy_loss: how rollouts are drawn and filtered
    num_iterations: int = 1  # optimizer passes over one rollout
    dynamic_sampling: bool = False  # drop groups of equal rewards and draw others (DAPO)
    mask_truncated_completions: bool = False  # completions cut at the length limit are not trained
    # PPO, advantage "gae": a value for each token (objectives/ppo.py)
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True  # advantages to mean 0 and variance 1 over the step
    vf_coef: float = 0.1  # weight of the value loss
    cliprange_value: float = 0.2

    def __post_init__(self) -> None:
        for name, allowed in (
            ("loss", LOSSES),
            ("ratio", RATIOS),
            ("aggregation", AGGREGATIONS),
            ("kl", KL_ESTIMATORS),
            ("kl_in", ("loss", "reward")),
            ("correction", CORRECTIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} '{getattr(self, name)}'; choose one of {', '.join(allowed)}")
        if self.epsilon < 0 or self.epsilon_high < 0:
            raise ValueError(f"epsilon and epsilon_high must not be negative; got {self.epsilon} and {self.epsilon_high}")
        if self.delta is not None and self.delta <= 1:
            raise ValueError(f"delta bounds the ratio from above and must be more than 1; got {self.delta}")
        if self.ratio == "sequence" and self.loss != "clip":
            raise ValueError("ratio 'sequence' goes with loss 'clip'")


# The papers' settings; every field can still be replaced (dataclasses.replace)
PRESETS = {
    "reinforce": PolicySpec(advantage="dr_grpo", loss="reinforce", aggregation="token"),
    # DeepSeekMath, arXiv:2402.03300
    "grpo": PolicySpec(advantage="grpo", aggregation="grpo", beta=0.04, kl="k3"),
    # arXiv:2503.20783
    "dr_grpo": PolicySpec(advantage="dr_grpo", aggregation="dr_grpo"),
    # arXiv:2503.14476
    "dapo": PolicySpec(
        advantage="grpo",
        aggregation="token",
        epsilon_high=0.28,
        dynamic_sampling=True,
        mask_truncated_completions=True,
    ),
    # arXiv:2402.14740
    "rloo": PolicySpec(
        advantage="rloo", loss="reinforce", aggregation="sum", beta=0.05, kl="k1", kl_in="reward"
    ),
    # arXiv:2507.18071
    "gspo": PolicySpec(
        advantage="grpo",
        ratio="sequence",
        aggregation="grpo",
        epsilon=3e-4,
        epsilon_high=4e-4,
        num_iterations=4,
    ),
    # arXiv:2506.13585, with ScaleRL's choices (arXiv:2510.13786)
    "cispo": PolicySpec(advantage="batch", loss="cispo", aggregation="token", is_clip_max=5.0),
    # best of n, SFT on it (expert iteration, RAFT): arXiv:2304.06767
    "rft": PolicySpec(advantage="best", loss="reinforce", aggregation="token"),
    # arXiv:1707.06347 as in RLHF, arXiv:1909.08593
    "ppo": PolicySpec(
        advantage="gae", aggregation="token", beta=0.05, kl="k1", kl_in="reward", num_iterations=4
    ),
    # DeepSeek-R1, arXiv:2501.12948
    "r1": PolicySpec(
        advantage="grpo", aggregation="grpo", epsilon=10.0, epsilon_high=10.0, beta=0.001, kl="k3"
    ),
}


@dataclass(frozen=True)
class Totals:
    """Denominators of one optimizer step, over all micro-batches and ranks"""

    sequences: int  # with at least one trained token
    tokens: int  # trained

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.sequences + other.sequences, self.tokens + other.tokens)


def check_batch(mask: ArrayLike, cu_seqlens: ArrayLike) -> tuple[Array, Array, Array]:
    """-> cu_seqlens int64 [S+1], mask bool [n] and owner [n] (each entry's sequence), n = cu_seqlens[-1]: the tail is cut off"""
    cu = np.asarray(cu_seqlens, dtype=np.int64)
    trained = np.asarray(mask) != 0
    if cu.ndim != 1 or len(cu) < 1 or cu[0] != 0 or (np.diff(cu) < 0).any():
        raise ValueError(f"cu_seqlens must begin with 0 and not decrease; got {cu.tolist()}")
    if trained.ndim != 1 or len(trained) < cu[-1]:
        raise ValueError(f"mask must have one entry per token, at least cu_seqlens[-1] = {cu[-1]}; got {list(trained.shape)}")
    return cu, trained[: cu[-1]], np.repeat(np.arange(len(cu) - 1), np.diff(cu))


def count(mask: ArrayLike, cu_seqlens: ArrayLike) -> Totals:
    """The part of Totals one batch contributes: add them up over the step. Sequences without a trained token don't count."""
    cu, trained, owner = check_batch(mask, cu_seqlens)
    per_sequence = np.bincount(owner, trained, minlength=len(cu) - 1)
    return Totals(int((per_sequence > 0).sum()), int(trained.sum()))


def kl_in_reward(
    rewards: ArrayLike,
    behaviour_logprobs: ArrayLike,
    reference_logprobs: ArrayLike,
    mask: ArrayLike,
    cu_seqlens: ArrayLike,
    beta: float,
) -> Array:
    """Rewards [S] minus beta times the k1 estimate of each sequence's KL, sum of (behaviour - reference) over trained tokens"""
    cu, trained, owner = check_batch(mask, cu_seqlens)
    d = np.where(trained, f64(behaviour_logprobs, trained) - f64(reference_logprobs, trained), 0)
    return np.asarray(rewards, dtype=np.float64) - beta * np.bincount(owner, d, minlength=len(cu) - 1)


def f64(x: ArrayLike, trained: Array) -> Array:
    """Per-token array without the tail, 0 where nothing is trained, whatever stood there"""
    return np.where(trained, np.asarray(x, dtype=np.float64)[: len(trained)], 0)


def shares(spec: PolicySpec, totals: Totals, length: Array, trained: Array) -> Array:
    """w [n]: each trained token's share of the loss; length [n] = trained tokens of its sequence"""
    if trained.any() and (totals.sequences <= 0 or totals.tokens <= 0):
        raise ValueError(f"totals must count the trained sequences and tokens of the whole step; got {totals}")
    if spec.aggregation == "token":
        denominator = np.full(len(trained), float(totals.tokens))
    elif spec.aggregation == "grpo":
        denominator = totals.sequences * length
    elif spec.aggregation == "sum":
        denominator = np.full(len(trained), float(totals.sequences))
    else:
        if not spec.max_completion_length or spec.max_completion_length <= 0:
            raise ValueError("aggregation 'dr_grpo' divides by max_completion_length: set it to the longest completion allowed")
        denominator = np.full(len(trained), float(totals.sequences * spec.max_completion_length))
    return np.where(trained, 1 / np.where(trained, denominator, 1), 0)


def kl_term(kind: str, logprobs: Array, reference: Array, ratio: Array) -> tuple[Array, Array]:
    """Per-token estimate of KL(policy, reference) and its derivative by logprobs (Schulman, joschu.net/blog/kl-approx.html)"""
    d = logprobs - reference
    if kind == "k1":
        return d, np.ones_like(d)
    if kind == "k2":
        return d * d / 2, d
    k3, slope = np.exp(-d) - 1 + d, 1 - np.exp(-d)
    return (k3, slope) if kind == "k3" else (ratio * k3, ratio * (k3 + slope))


def correction_weights(spec: PolicySpec, log_w: Array, per_sequence_sum: Array) -> Array:
    """Constant factors of the policy term: TIS (truncate) or MIS (mask) of exp(trainer - sampler)"""
    w = np.exp(per_sequence_sum if spec.correction.startswith("sequence") else log_w)
    if spec.correction.endswith("truncate"):
        return np.clip(w, spec.correction_low, spec.correction_high)
    return np.where((w >= spec.correction_low) & (w <= spec.correction_high), w, 0)


def policy_loss(
    logprobs: ArrayLike,
    behaviour_logprobs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    cu_seqlens: ArrayLike,
    spec: PolicySpec,
    totals: Totals,
    *,
    reference_logprobs: ArrayLike | None = None,
    sampler_logprobs: ArrayLike | None = None,
    entropy: ArrayLike | None = None,
) -> tuple[Array, Array | None, Metrics]:
    """Derivative of the policy loss, for a micro-batch of whole sequences -> dlogprobs float32 [N], dentropy [N] or None, metrics

    logprobs, behaviour_logprobs [N] nats; advantages [S], or [N] per token; mask [N], non-zero = the model's own tokens.
    reference_logprobs [N]: needed when spec.beta acts in the loss. sampler_logprobs [N]: what the sampler reported, when the
    behaviour log-probs were recomputed by the trainer; needed for a correction. entropy [N]: needed for the entropy bonus's
    value, otherwise only a metric. totals: of the whole step, so that micro-batches add up; so do all metrics but
    min and max (merge_metrics). Raises ValueError when something needed is missing or shapes disagree.
    """
    cu, trained, owner = check_batch(mask, cu_seqlens)
    S, N, n = len(cu) - 1, len(np.asarray(mask)), len(trained)
    for name, array in (
        ("logprobs", logprobs),
        ("behaviour_logprobs", behaviour_logprobs),
        ("reference_logprobs", reference_logprobs),
        ("sampler_logprobs", sampler_logprobs),
        ("entropy", entropy),
    ):
        if array is not None and np.shape(array) != (N,):
            raise ValueError(f"{name} must have the mask's shape [{N}]; got {list(np.shape(array))}")
    A = np.asarray(advantages, dtype=np.float64)
    if A.shape == (S,):
        A = A[owner]
    elif A.shape != (N,):
        raise ValueError(f"advantages must be one per sequence [{S}] or one per token [{N}]; got {list(A.shape)}")
    A = f64(A, trained)
    kl_in_loss = spec.beta != 0 and spec.kl_in == "loss"
    if kl_in_loss and reference_logprobs is None:
        raise ValueError(f"beta = {spec.beta} needs reference_logprobs")
    if spec.correction != "none" and sampler_logprobs is None:
        raise ValueError(f"correction '{spec.correction}' needs sampler_logprobs")

    def sequence_sum(x: Array) -> Array:
        """[n] -> [n]: each entry gets its sequence's sum"""
        return np.bincount(owner, x, minlength=S)[owner]

    l, b = f64(logprobs, trained), f64(behaviour_logprobs, trained)
    length = sequence_sum(trained.astype(np.float64))  # [n]
    w = shares(spec, totals, length, trained)
    token_ratio = np.exp(l - b)
    metrics: Metrics = {}

    # The policy term's factor: the share, times a constant correction
    factor = w
    if sampler_logprobs is not None:
        log_w = b - f64(sampler_logprobs, trained)
        metrics |= sampling_metrics(log_w, trained, totals)
        if spec.correction != "none":
            factor = w * correction_weights(spec, log_w, sequence_sum(log_w))

    low = high = bounded = np.zeros(n, dtype=bool)
    if spec.loss == "reinforce":
        term, slope = -A * l, -A
    elif spec.loss == "cispo":
        high = (token_ratio > spec.is_clip_max) & (A > 0)
        frozen = np.minimum(token_ratio, spec.is_clip_max)
        term, slope = -frozen * A * l, -frozen * A
    else:
        ratio = np.exp(sequence_sum(l - b) / np.maximum(length, 1)) if spec.ratio == "sequence" else token_ratio
        clipped = np.clip(ratio, 1 - spec.epsilon, 1 + spec.epsilon_high)
        low, high = (ratio < 1 - spec.epsilon) & (A < 0), (ratio > 1 + spec.epsilon_high) & (A > 0)
        term, active = -np.minimum(ratio * A, clipped * A), ~(low | high)
        if spec.delta is not None:
            bounded = (A < 0) & (ratio > spec.delta)
            term, active = np.where(bounded, -spec.delta * A, term), active & ~bounded
        slope = np.where(active, -ratio * A, 0)
    loss = float((factor * term).sum())
    dlogprobs = factor * slope
    if spec.ratio == "sequence":  # each token of the sequence moves its one ratio, by 1/L
        dlogprobs = np.where(trained, sequence_sum(dlogprobs) / np.maximum(length, 1), 0)

    if reference_logprobs is not None:
        kl, dkl = kl_term(spec.kl, l, f64(reference_logprobs, trained), token_ratio)
        metrics["kl"] = float(kl[trained].sum()) / max(totals.tokens, 1)
        if kl_in_loss:
            loss += float((w * spec.beta * kl).sum())
            dlogprobs = dlogprobs + w * spec.beta * dkl
    if entropy is not None:
        H = f64(entropy, trained)
        metrics["entropy"] = float(H.sum()) / max(totals.tokens, 1)
        loss -= spec.entropy_coef * float((w * H).sum())
    metrics |= {
        "loss": loss,
        "clip_ratio/low_mean": float(low.sum()) / max(totals.tokens, 1),
        "clip_ratio/high_mean": float(high.sum()) / max(totals.tokens, 1),
        "clip_ratio/region_mean": float((low | high | bounded).sum()) / max(totals.tokens, 1),
    }
    dentropy = padded(-spec.entropy_coef * w, N) if spec.entropy_coef else None
    return padded(dlogprobs, N), dentropy, metrics


def padded(x: Array, N: int) -> Array:
    """float32 [N], 0 in the tail"""
    out = np.zeros(N, dtype=np.float32)
    out[: len(x)] = x
    return out


def sampling_metrics(log_w: Array, trained: Array, totals: Totals) -> Metrics:
    """How far the trainer's log-probs are from the sampler's; all 0 and 1 when they share kernels"""
    if not trained.any():
        return {}
    w, difference = np.exp(log_w[trained]), np.abs(log_w[trained])
    return {
        "sampling/importance_sampling_ratio/min": float(w.min()),
        "sampling/importance_sampling_ratio/mean": float(w.sum()) / totals.tokens,
        "sampling/importance_sampling_ratio/max": float(w.max()),
        "sampling/sampling_logp_difference/mean": float(difference.sum()) / totals.tokens,
        "sampling/sampling_logp_difference/max": float(difference.max()),
    }


def merge_metrics(parts: Iterable[Metrics]) -> Metrics:
    """Metrics of the whole step from those of its micro-batches: sums, except min and max"""
    out: Metrics = {}
    for part in parts:
        for name, value in part.items():
            if name not in out:
                out[name] = value
            elif name.endswith("/min"):
                out[name] = min(out[name], value)
            elif name.endswith("/max"):
                out[name] = max(out[name], value)
            else:
                out[name] += value
    return out
