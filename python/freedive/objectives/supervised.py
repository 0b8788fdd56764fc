"""Pretraining and SFT: a constant weight per token, so the derivative is known before the forward."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def sft_weights(mask: ArrayLike, total: float) -> np.ndarray:
    """dlogprobs = -mask / total: the loss is the mean negative log-prob of the trained tokens. -> float32 [N]

    mask [N]: 0 for what is not learned (prompts, tool output), else the token's weight, normally 1 (pretraining: all 1).
    total: sum of the mask over the whole optimizer step, all micro-batches and all ranks. Raises ValueError if it is not
    positive, or if the mask has a negative or non-finite entry.
    """
    weights = np.asarray(mask, dtype=np.float64)
    if not np.isfinite(total) or total <= 0:
        raise ValueError(f"total must be the positive sum of the mask over the whole step; got {total}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("mask must hold finite weights of zero or more")
    return (-weights / total).astype(np.float32)
