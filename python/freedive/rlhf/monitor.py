"""The monitor of over-optimisation: the reward that is practised (proxy) beside another that is not (gold), against how far the policy has moved.

The one idea: a proxy can always be raised; what it stands for rises with it, turns, and falls (Gao et al. 2022, arXiv:2210.10760). The same held-out
prompts are answered at every measurement, and three things are told of the answers: both rewards, and the KL to the starting model in nats a
completion, whose root is the axis on which such curves are compared. An answer of which a reward says nothing is in no mean. When gold has fallen
significantly below its peak several times in a row, it is time to stop; the weights of the peak are the ones to keep. Gold may be a function, a reward
model trained on other preferences, or a judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from freedive.model import Model
from freedive.rl.rollouts import Rollout, cuts, lay_out

SMOOTHING = 0.5  # weight of a measurement in the moving average
ERRORS = 3.0  # standard errors below the peak that count as a fall: the highest of many measurements is a lucky one


@dataclass
class StopRule:
    """Fires when gold was below its peak by more than three standard errors, `patience` measurements in a row.

    Moving averages of each prompt's gold are compared with those at the peak, prompt by prompt: what prompts differ in cancels. NaN: gold says nothing of a
    prompt, whose average stays; only prompts that have one now and at the peak are compared.
    """

    patience: int = 3
    average: list[float] = field(default_factory=list)  # of each prompt, moving
    peak: list[float] = field(default_factory=list)  # the same where its mean was highest
    peak_step: int = 0
    since: int = 0
    stop_step: int | None = None

    def see(self, step: int, gold: Sequence[float]) -> bool:
        """Takes gold [prompts] of a measurement; True where it is the peak so far."""
        new = np.asarray(gold, np.float64)
        old = np.asarray(self.average) if self.average else new
        average = np.where(np.isnan(new), old, np.where(np.isnan(old), new, (1 - SMOOTHING) * old + SMOOTHING * new))
        self.average = average.tolist()
        difference = average - (np.asarray(self.peak) if self.peak else np.full(len(new), -np.inf))
        difference = difference[~np.isnan(difference)]
        if not len(difference):
            return False
        if difference.mean() > 0:
            self.peak, self.peak_step, self.since = self.average, step, 0
            return True
        error = float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else 0.0
        self.since = self.since + 1 if difference.mean() < -ERRORS * error else 0
        if self.stop_step is None and self.since >= self.patience:
            self.stop_step = step
        return False


@dataclass
class Monitor:
    """`measure` at a step; `rule` and `points` are what a checkpoint keeps. max_kl: a budget, for who has no gold (0: none)."""

    answer: Callable[[], list[Rollout]]  # to the same prompts with the same seeds every time, rewarded by the proxy
    gold: Callable[[list[Rollout]], list[float]] | None
    kl: Callable[[list[Rollout]], np.ndarray]
    samples: int  # answers to each prompt
    rule: StopRule
    max_kl: float = 0.0
    kl_stop: int | None = None  # where the budget was spent
    points: list[dict[str, Any]] = field(default_factory=list)
    last: list[dict[str, Any]] = field(default_factory=list)  # the answers of the last measurement with both rewards
    first: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, step: int) -> tuple[dict[str, Any], bool]:
        """(a line of monitor.jsonl, whether this is the peak so far)."""
        rollouts = self.answer()
        proxy = np.array([r.reward for r in rollouts], np.float64)
        kl = self.kl(rollouts)
        point: dict[str, Any] = {"step": step, "kl": float(kl.mean()), "sqrt_kl": math.sqrt(max(0.0, float(kl.mean()))), "proxy": _mean(proxy), "proxy_se": _error(proxy, self.samples)}
        over = bool(self.max_kl) and point["kl"] > self.max_kl
        peak = not over  # without gold the latest within the budget is the best
        gold = None
        if self.gold is not None:
            gold = np.asarray(self.gold(rollouts), np.float64)
            point |= {"gold": _mean(gold), "gold_se": _error(gold, self.samples)}
            if not over:
                peak = self.rule.see(step, _by_prompt(gold, self.samples).tolist())
        for name, values in (("proxy", proxy), ("gold", gold)):
            if values is not None and (none := int(np.isnan(values).sum())):
                point[f"{name}_none"] = none  # answers of which it says nothing
        if over and self.kl_stop is None:
            self.kl_stop = step
        point |= {"length": float(np.mean([r.length for r in rollouts])), "stop_rate": float(np.mean([r.stopped for r in rollouts])), "distinct_2": distinct([r.ids for r in rollouts]),
                  "stop": self.stop_step is not None}  # fmt: skip
        self.points.append(point)
        self.last = [{"text": r.text, "proxy": float(p), "gold": None if gold is None else float(gold[i])} for i, (r, p) in enumerate(zip(rollouts, proxy))]
        self.first = self.first or self.last
        return point, peak

    @property
    def peak_gold(self) -> float:
        """What the rule took for the highest: the moving average there. A single measurement may have been higher by luck."""
        return _mean(np.asarray(self.rule.peak, np.float64))

    @property
    def stop_step(self) -> int | None:
        """Where the rule fired or the budget was spent, whichever came first."""
        fired = [s for s in (self.rule.stop_step, self.kl_stop) if s is not None]
        return min(fired) if fired else None

    def state(self) -> dict[str, Any]:
        return {"rule": dict(self.rule.__dict__), "kl_stop": self.kl_stop, "points": self.points, "first": self.first, "last": self.last}

    def load_state(self, state: dict[str, Any]) -> None:
        self.rule, self.kl_stop = StopRule(**state["rule"]), state["kl_stop"]
        self.points, self.first, self.last = state["points"], state["first"], state["last"]

    def gamed(self) -> int | None:
        """Which of the last answers games the proxy most: higher there than 9 of 10 at the start, and lower in gold than half of them; None if there is none,
        and where gold is not below its peak by the rule's three standard errors: such an answer is there by chance too.

        Measured in deviations of the answers at the start.
        """
        if self.gold is None or not self.first or not self.rule.since:
            return None
        proxy, gold = (np.array([r[k] for r in self.first]) for k in ("proxy", "gold"))
        now_proxy, now_gold = (np.array([r[k] for r in self.last]) for k in ("proxy", "gold"))
        if np.isnan(proxy).all() or np.isnan(gold).all():
            return None
        found = (now_proxy > np.nanquantile(proxy, 0.9)) & (now_gold < np.nanmedian(gold))
        if not found.any():
            return None
        z = (now_proxy - np.nanmean(proxy)) / max(float(np.nanstd(proxy)), 1e-9) - (now_gold - np.nanmean(gold)) / max(float(np.nanstd(gold)), 1e-9)
        return int(np.argmax(np.where(found, z, -np.inf)))


def distinct(completions: Sequence[Sequence[int]], n: int = 2) -> float:
    """Different n-grams of ids as a part of all: falls when a policy has found one thing to say (Li et al. 2016, arXiv:1510.03055)."""
    grams = [tuple(ids[i : i + n]) for ids in completions for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def kl_of(rollouts: Sequence[Rollout], reference: Model, temperature: float, frozen: bool, max_tokens: int) -> np.ndarray:
    """float64 [rollouts]: log-prob of what was sampled less that of the reference (k1), summed over the completion. frozen: `reference` without its adapter."""
    out: list[float] = []
    for begin, end in cuts(rollouts, min(max_tokens, reference.max_tokens), reference.max_seqs):
        b = lay_out(rollouts[begin:end], [0.0] * (end - begin))
        if frozen:
            with reference.without_adapter() as model:
                scored = model.score(b.batch, temperature).logprobs
        else:
            scored = reference.score(b.batch, temperature).logprobs
        difference = np.where(b.mask > 0, b.behaviour_logprobs.astype(np.float64) - scored, 0)
        out += np.add.reduceat(difference, b.batch.cu_seqlens[:-1]).tolist()
    return np.array(out)


def fit(kl: Sequence[float], gain: Sequence[float], law: str = "rl") -> dict[str, float]:
    """Gao et al.'s laws of gold over d = sqrt(KL): "rl" d (alpha - beta ln d), "bon" d (alpha - beta d). {"alpha", "beta", "r2"}, by least squares."""
    d, y = np.sqrt(np.maximum(np.asarray(kl, np.float64), 0)), np.asarray(gain, np.float64)
    used = (d > 0) & np.isfinite(y)
    d, y = d[used], y[used]
    if len(d) < 3:
        return {}
    columns = np.stack([d, -d * (np.log(d) if law == "rl" else d)], 1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, y, rcond=None)
    rest = y - columns @ np.array([alpha, beta])
    return {"alpha": float(alpha), "beta": float(beta), "r2": float(1 - (rest**2).sum() / max(float(((y - y.mean()) ** 2).sum()), 1e-12))}


def _mean(values: np.ndarray) -> float:
    """Over those that are known; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _by_prompt(values: np.ndarray, samples: int) -> np.ndarray:
    """Means over the known answers to each prompt, NaN where there are none."""
    return np.array([_mean(row) for row in values.reshape(-1, samples)])


def _error(values: np.ndarray, samples: int) -> float:
    """Standard error of the mean, over prompts; NaN with fewer than two."""
    means = _by_prompt(values, samples)
    means = means[~np.isnan(means)]
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan
