"""Reward shapers and the numbers RL runs are judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence


def soft_overlong(length: int, max_length: int, cache: int) -> float:
    """DAPO's length penalty (arXiv:2503.14476): 0 up to max_length - cache tokens, then linearly down to -1."""
    if not 0 < cache <= max_length:
        raise ValueError(f"cache must be between 1 and max_length = {max_length}; got {cache}")
    return -min(1.0, max(0.0, (length - (max_length - cache)) / cache))


def cosine_reward(
    correct: bool,
    length: int,
    max_length: int,
    correct_range: tuple[float, float] = (1.0, 0.5),
    wrong_range: tuple[float, float] = (-1.0, -0.5),
) -> float:
    """Reward by length along half a cosine (arXiv:2502.03373): ranges are (at length 0, at max_length).

    A short right answer earns the most, a short wrong one the least: thinking longer pays only when the answer is not known.
    """
    if max_length <= 0:
        raise ValueError(f"max_length must be positive; got {max_length}")
    short, long = correct_range if correct else wrong_range
    return long + 0.5 * (short - long) * (1 + math.cos(math.pi * min(length, max_length) / max_length))


def repetition_penalty(ids: Sequence[int], n: int = 3, max_penalty: float = 1.0) -> float:
    """-max_penalty times the share of n-grams that already occurred (arXiv:2502.03373). 0 for fewer than n ids."""
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    total = len(ids) - n + 1
    if total < 1:
        return 0.0
    return -max_penalty * (1 - len({tuple(ids[i : i + n]) for i in range(total)}) / total)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased P(at least one of k samples is right), from c right ones of n: 1 - C(n-c, k)/C(n, k) (arXiv:2107.03374)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n; got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def best_of_n_kl(n: int) -> float:
    """KL, in nats, between choosing the best of n samples and one sample: ln n - (n-1)/n (arXiv:2210.10760)"""
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    return math.log(n) - (n - 1) / n
