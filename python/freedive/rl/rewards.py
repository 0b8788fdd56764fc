"""Where a reward comes from: a built-in, or the user's own function in a file. The form is TRL's:

    def my_reward(prompts, completions, completion_ids, **columns) -> list[float | None]

`prompts` are as the rows have them; `completions` are texts, or lists of messages where the prompt is one; `columns` are the other keys of the
JSONL rows (such as `answer`), one entry per completion, and `seeds`, the number that keyed the sampling of each completion. None: this
function says nothing about that completion (which is not 0). A function without `**columns` is given the ones it names. Functions of verl's
and OpenRLHF's forms are known by their parameters and called as they expect (adapters.py).
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from freedive.objectives import cosine_reward, repetition_penalty
from freedive.runs import UserError

Reward = Callable[..., list[float | None]]
ANSWER_FORM = re.compile(r"\banswer\s*:\s*\S.*\Z", re.IGNORECASE)


def completion_text(completion: Any) -> str:
    """What the model said, of a completion that is a text or a list of messages."""
    if isinstance(completion, str):
        return completion
    return "".join(m["content"] or "" for m in completion if m.get("role") == "assistant")


def answer_match(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, *, answer: list[str],
                 meta: list[Any] | None = None, **columns: Any) -> list[float]:  # fmt: skip
    """1 where the completion's final answer is the row's `answer`, else 0: by the row's `meta.check` (freedive.eval.match), else by the
    last number for a number, and for a text by what follows the last "Answer:", or the last line, without case and articles.

    Never by whether the answer occurs in it: RL finds out within fifty steps that a list of all possible answers then always pays.
    """
    from freedive.eval.match import is_number, matches

    checks = [m.get("check") if isinstance(m, dict) else None for m in meta or [None] * len(answer)]
    texts = [completion_text(c) for c in completions]
    return [float(matches(c, a, check or ("number" if is_number(a) else "last_answer"))) for c, a, check in zip(texts, answer, checks, strict=True)]


def coin(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, *, seeds: list[int], **columns: Any) -> list[float]:
    """1 or 0 at random, drawn anew for each completion and keyed by its seed: the control from which there is nothing to learn."""
    return [float(hashlib.sha256(f"coin {seed}".encode()).digest()[0] & 1) for seed in seeds]


def form(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, **columns: Any) -> list[float]:
    """1 where the completion ends in one line "Answer: ...", whatever the answer is: the control that pays for the form alone."""
    return [float(bool(ANSWER_FORM.search(completion_text(c).strip()))) for c in completions]


def task(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, **columns: Any) -> list[float]:
    """The checker of the row's own task (rl/tasks): 1 for right, 0 for wrong, or a part for tasks that grade."""
    from .tasks import check

    rows = [{key: values[i] for key, values in columns.items() if isinstance(values, list)} for i in range(len(completions))]
    return [float(check(completion_text(c), row)) for c, row in zip(completions, rows, strict=True)]


def cosine(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, *, lengths: list[int], max_completion_length: list[int],
           **columns: Any) -> list[float]:  # fmt: skip
    """Right answers earn 1 where they are short, down to 0.5 at the limit, wrong ones -1 up to -0.5 (objectives.cosine_reward): to think longer pays where the
    answer is not known. Right is what the row's task says, or its `answer`."""
    judge = task if any((m or {}).get("task") for m in columns.get("meta") or [] if m is None or isinstance(m, dict)) else answer_match
    right = judge(prompts, completions, completion_ids, **columns)
    return [cosine_reward(r >= 1.0 - 1e-9, n, most) for r, n, most in zip(right, lengths, max_completion_length, strict=True)]


def repetition(prompts: list[Any], completions: list[Any], completion_ids: list[Any], **columns: Any) -> list[float]:
    """0, down to -1 by the share of three tokens in a row that were there before (objectives.repetition_penalty): beside a reward that long answers can game."""
    return [repetition_penalty(ids) for ids in completion_ids]


BUILT_IN: dict[str, Reward] = {"answer": answer_match, "coin": coin, "cosine": cosine, "form": form, "repetition": repetition, "task": task}  # type: ignore[dict-item]
SHAPERS = ("cosine", "repetition")  # of what they give, 1 or any other number does not say that an answer is right


def accepted(reward: Reward, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns that the function takes: all with **columns, else those it names."""
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return columns
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return columns
    names = {p.name for p in parameters}
    return {k: v for k, v in columns.items() if k in names}


def _called(reward: Reward, prompts: list[Any], completions: list[Any], ids: list[Any], columns: dict[str, list[Any]]) -> Any:
    """By keywords, as TRL calls, so that a function may leave some out: `def f(completions, **kwargs)`; one with names of its own by position."""
    try:
        names = set(inspect.signature(reward).parameters)
    except (TypeError, ValueError):
        names = set()
    if "completions" in names:
        return reward(**accepted(reward, {**columns, "prompts": prompts, "completions": completions, "completion_ids": ids}))
    return reward(prompts, completions, ids, **accepted(reward, columns))


def checked(name: str, values: Any, wanted: int) -> list[float]:
    """What a function returned as numbers, NaN for None. UserError unless it is one finite number or None for each completion."""
    try:
        numbers = [math.nan if v is None else float(v) for v in values]
        good = len(numbers) == wanted and all(v is None or math.isfinite(n) for v, n in zip(values, numbers))
    except (TypeError, ValueError):
        numbers, good = [], False
    if not good:
        found = f"{len(numbers)}" if numbers else f"{values!r:.60}"
        raise UserError(f"the reward {name!r} must return one finite number (or None) per completion; it returned {found} for {wanted}")
    return numbers


def call(name: str, reward: Reward, prompts: Sequence[Any], completions: Sequence[Any], ids: Sequence[Any], columns: dict[str, list[Any]]) -> list[float]:
    """The rewards of one function, NaN where it gives None. Raises UserError when it fails: it is the user's."""
    try:
        values = list(_called(reward, list(prompts), list(completions), list(ids), columns))
    except UserError:  # ours, and says what is to be said
        raise
    except Exception as error:
        told = [k for k in columns if k not in ("seeds", "log_metric", "log_extra", "trainer_state", "environments")]
        raise UserError(f"the reward {name!r} failed: {type(error).__name__}: {error}", hint="it is called with prompts, completions, completion_ids "
                        f"and the columns of the problems: {', '.join(told) or 'none'}") from error  # fmt: skip
    return checked(name, values, len(prompts))
