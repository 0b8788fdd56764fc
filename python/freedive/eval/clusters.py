"""Shares of questions that come in clusters: several about one person are not independent, so whole people are drawn anew."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
STREAM = 33


def share(flags: Sequence[bool], clusters: Sequence[Hashable] | None = None, seed: int = 0) -> dict[str, Any]:
    """{"share", "interval_95", "n"}: a share with the percentile bootstrap over clusters (single questions where none are given).

    A share of 0 or 1 has nothing to resample: its other end is then 1 - 0.05^(1/clusters) away (the exact one-sided bound).
    """
    values = np.array(flags, np.float64)
    if not len(values):
        return {"share": None, "interval_95": None, "n": 0}
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters if clusters is not None else range(len(values))))}
    of = np.array([names[c] for c in clusters]) if clusters is not None else np.arange(len(values))
    mean, count = float(values.mean()), len(names)
    if mean in (0.0, 1.0):
        far = 1 - 0.05 ** (1 / count)
        interval = [0.0, far] if mean == 0 else [1 - far, 1.0]
    else:
        sums, sizes = np.bincount(of, values, count), np.bincount(of, minlength=count)
        drawn = np.random.Generator(np.random.Philox(key=[seed, STREAM])).integers(0, count, (RESAMPLES, count))
        means = sums[drawn].sum(1) / sizes[drawn].sum(1)
        interval = [float(np.quantile(means, q)) for q in (0.025, 0.975)]
    return {"share": mean, "interval_95": interval, "n": len(values)}
