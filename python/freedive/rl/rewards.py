"""Where a reward comes from: a built-in, or the user's own function in a file. The form is TRL's:

    def my_reward(prompts, completions, completion_ids, **columns) -> list[float]

`completions` are texts; `columns` are the other keys of the JSONL rows (such as `answer`), one entry per completion, and `seeds`, the
number that keyed the sampling of each completion. A function without `**columns` is given the ones it names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

Reward = Callable[..., list[float]]


def answer_match(prompts: list[Any], completions: list[str], completion_ids: list[Any] | None = None, *, answer: list[str], **columns: Any) -> list[float]:
    """1 where the completion's final answer is the row's `answer` (the last number, or the normalised text), else 0."""
    from freedive.eval.match import matches

    return [float(matches(c, a)) for c, a in zip(completions, answer, strict=True)]


def coin(prompts: list[Any], completions: list[str], completion_ids: list[Any] | None = None, *, seeds: list[int], **columns: Any) -> list[float]:
    """1 or 0 at random, drawn anew for each completion and keyed by its seed: the control from which there is nothing to learn."""
    return [float(hashlib.sha256(f"coin {seed}".encode()).digest()[0] & 1) for seed in seeds]


BUILT_IN: dict[str, Reward] = {"answer": answer_match, "coin": coin}
