"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations


def learning_rate(step: int, steps: int, peak: float, warmup: int, final_fraction: float = 0.0) -> float:
    """Linear warm-up over `warmup` steps, then linear decay to final_fraction * peak at the last step. step counts from 0.

    Decaying to zero beats a cosine to 10 % at short horizons (arXiv:2502.15938).
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup + 1) / max(1, steps - warmup)
    return peak * (1 - (1 - final_fraction) * min(1.0, done))
