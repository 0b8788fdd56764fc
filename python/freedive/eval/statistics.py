"""How sure a measured share is: Wilson's interval of a proportion, and the bootstrap of a mean and of a paired difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def wilson(right: int, n: int, z: float = 1.96) -> list[float]:
    """95 % confidence interval of a share (Wilson 1927)."""
    if n == 0:
        return [0.0, 1.0]
    p, d = right / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [max(0.0, (p + z * z / (2 * n) - half) / d), min(1.0, (p + z * z / (2 * n) + half) / d)]


def bootstrap(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> list[float]:
    """95 % percentile interval of the mean of items drawn anew with replacement (Efron 1979)."""
    x = np.asarray(values, np.float64)
    if len(x) == 0:
        return [0.0, 1.0]
    rng = np.random.Generator(np.random.Philox(key=[seed, 31]))
    means = np.empty(resamples)
    rows = max(1, 4_000_000 // len(x))
    for at in range(0, resamples, rows):
        end = min(resamples, at + rows)
        means[at:end] = x[rng.integers(0, len(x), (end - at, len(x)))].mean(axis=1)
    return [float(np.quantile(means, q)) for q in (0.025, 0.975)]
