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


def answer_match(prompts: list[Any], completions: list[str], completion_ids: list[Any] | None = None, *, answer: list[str],
                 meta: list[Any] | None = None, **columns: Any) -> list[float]:  # fmt: skip
    """1 where the completion's final answer is the row's `answer`, else 0: by the row's `meta.check` (freedive.eval.match), else by the
    last number for a number, and for a text by what follows the last "Answer:", or the last line, without case and articles.

    Never by whether the answer occurs in it: RL finds out within fifty steps that a list of all possible answers then always pays.
    """
    from freedive.eval.match import is_number, matches

    checks = [m.get("check") if isinstance(m, dict) else None for m in meta or [None] * len(answer)]
    return [float(matches(c, a, check or ("number" if is_number(a) else "last_answer"))) for c, a, check in zip(completions, answer, checks, strict=True)]


def coin(prompts: list[Any], completions: list[str], completion_ids: list[Any] | None = None, *, seeds: list[int], **columns: Any) -> list[float]:
    """1 or 0 at random, drawn anew for each completion and keyed by its seed: the control from which there is nothing to learn."""
    return [float(hashlib.sha256(f"coin {seed}".encode()).digest()[0] & 1) for seed in seeds]


BUILT_IN: dict[str, Reward] = {"answer": answer_match, "coin": coin}
