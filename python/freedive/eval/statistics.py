"""How sure a measured share is: Wilson's interval of a proportion, and the bootstrap of a mean, a share, a paired difference."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
STREAM = 33  # of the random numbers


def wilson(right: int, n: int, z: float = 1.96) -> list[float]:
    """95 % confidence interval of a share (Wilson 1927)."""
    if n == 0:
        return [0.0, 1.0]
    p, d = right / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [max(0.0, (p + z * z / (2 * n) - half) / d), min(1.0, (p + z * z / (2 * n) + half) / d)]


def bootstrap(values: Sequence[float], clusters: Sequence[Hashable] | None = None, seed: int = 0, resamples: int = RESAMPLES) -> list[float]:
    """95 % percentile interval of the mean of items drawn anew with replacement (Efron 1979); of whole clusters where they are given, one of
    each item: several questions about one person are not independent. A single cluster can tell nothing of others: then items are drawn."""
    if clusters is not None and len(set(clusters)) == 1:
        clusters = None
    x = np.asarray(values, np.float64)
    if len(x) == 0:
        return [0.0, 1.0]
    of = _numbered(clusters if clusters is not None else range(len(x)))
    count = int(of.max()) + 1
    sums, sizes = np.bincount(of, x, count), np.bincount(of, minlength=count)
    rng = np.random.Generator(np.random.Philox(key=[seed, STREAM]))
    means = np.empty(resamples)
    rows = max(1, 4_000_000 // count)  # at a time
    for at in range(0, resamples, rows):
        end = min(resamples, at + rows)
        drawn = rng.integers(0, count, (end - at, count))
        means[at:end] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return [float(np.quantile(means, q)) for q in (0.025, 0.975)]


def interval(scores: Sequence[float], clusters: Sequence[Hashable] | None = None, seed: int = 0) -> list[float]:
    """95 % interval of the mean of scores between 0 and 1, by bootstrap. Where all are 0, or all 1, there is nothing to resample: the other
    end is then 1 - 0.05^(1/clusters) away (the exact one-sided bound)."""
    first = float(scores[0]) if len(scores) else 0.5
    if first not in (0.0, 1.0) or any(float(s) != first for s in scores):
        return bootstrap(scores, clusters, seed)
    far = 1 - 0.05 ** (1 / len(set(clusters if clusters is not None else range(len(scores)))))
    return [0.0, far] if first == 0 else [1 - far, 1.0]


def share(flags: Sequence[bool], clusters: Sequence[Hashable] | None = None, seed: int = 0) -> dict[str, Any]:
    """{"share", "interval_95", "n"}: a share with its interval over clusters (single questions where none are given)."""
    if not len(flags):
        return {"share": None, "interval_95": None, "n": 0}
    return {"share": float(np.mean(np.asarray(flags, np.float64))), "interval_95": interval(flags, clusters, seed), "n": len(flags)}


def _numbered(names: Sequence[Hashable]) -> np.ndarray:
    """A number from 0 for each name, by first appearance."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])
