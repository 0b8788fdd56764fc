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
RIGHT = 1.0 - 1e-9  # a reward from which on an answer is right
ANSWER_FORM = re.compile(r"\banswer\s*:\s*\S.*\Z", re.IGNORECASE)


def completion_text(completion: Any) -> str:
    """What the model said, of a completion that is a text or a list of messages."""
    if isinstance(completion, str):
        return completion
    return "".join(m["content"] or "" for m in completion if m.get("role") == "assistant")


def answer_match(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, *, answer: list[Any],
                 meta: list[Any] | None = None, **columns: Any) -> list[float]:  # fmt: skip
    """1 where the completion's final answer is the row's `answer`, else 0: by the row's `meta.check` (freedive.eval.match), else by the
    last number for a number, and for a text by what follows the last "Answer:", or the last line, without case and articles.

    An answer may be a number. Raises UserError where a row has none.

    Never by whether the answer occurs in it: RL finds out within fifty steps that a list of all possible answers then always pays.
    """
    from freedive.eval.match import is_number, matches

    if lacking := sum(not _is_text(a) for a in answer):
        raise UserError(f"the reward `answer` compares with a text or a number, and {lacking:,} of {len(answer):,} rows have no such `answer`")
    answer = [str(a) for a in answer]
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
    answer is not known. Right is what the row's task says; of a row without meta.task, its `answer`."""
    judges = [task if isinstance(m, dict) and m.get("task") else answer_match for m in columns.get("meta") or [None] * len(completions)]
    right = [0.0] * len(completions)
    for judge in dict.fromkeys(judges):
        at = [i for i, j in enumerate(judges) if j is judge]
        take = lambda values, at=at: [values[i] for i in at]
        found = judge(take(prompts), take(completions), **{key: take(values) for key, values in columns.items() if isinstance(values, list)})
        for i, r in zip(at, found, strict=True):
            right[i] = r
    return [cosine_reward(r >= RIGHT, n, most) for r, n, most in zip(right, lengths, max_completion_length, strict=True)]


def repetition(prompts: list[Any], completions: list[Any], completion_ids: list[Any], **columns: Any) -> list[float]:
    """0, down to -1 by the share of three tokens in a row that were there before (objectives.repetition_penalty): beside a reward that long answers can game."""
    return [repetition_penalty(ids) for ids in completion_ids]


BUILT_IN: dict[str, Reward] = {"answer": answer_match, "coin": coin, "cosine": cosine, "form": form, "repetition": repetition, "task": task}  # type: ignore[dict-item]
NEEDS_ANSWER = ("answer", "cosine", "task")
SHAPERS = ("cosine", "repetition")  # of what they give, 1 or any other number does not say that an answer is right


def lacking(name: str, row: dict[str, Any]) -> str:
    """What the built-in reward of this name cannot do without and the row does not have, as a sentence; "" where all is there, and for other rewards."""
    from freedive.eval.match import CHECKS

    from . import tasks

    if name not in NEEDS_ANSWER:
        return ""
    given = row.get("meta")
    meta: dict[str, Any] = given if isinstance(given, dict) else {}
    by_task = name == "task" or name == "cosine" and bool(meta.get("task"))
    if by_task and (told := tasks.lacking(meta)):
        return f"the reward `{name}` asks the row's task, and {told}"
    if not _is_text(row.get("answer")):
        told = f"is {row['answer']!r:.40}" if "answer" in row else "is missing"
        return f"the reward `{name}` compares with the row's `answer`, a text or a number, and it {told}"
    if not by_task and meta.get("check") and meta["check"] not in CHECKS:
        return f"there is no check {meta['check']!r:.40}; meta.check may be one of {', '.join(CHECKS)}"
    return ""


def _is_text(answer: Any) -> bool:
    """Whether something can be compared with as a text."""
    return isinstance(answer, str) or isinstance(answer, (int, float)) and not isinstance(answer, bool)


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
    wrong = f"the reward {name!r} must return one finite number (or None) per completion, a list of {wanted}; it returned"
    if not isinstance(values, list):
        found = f"one number, {values!r:.40}" if hasattr(values, "__float__") else f"{values!r:.60}"
        raise UserError(f"{wrong} {found}", hint="return [score(c) for c in completions]")
    numbers: list[float] = []
    for place, value in enumerate(values, 1):
        try:
            numbers.append(math.nan if value is None else float(value))
        except (TypeError, ValueError):
            raise UserError(f"{wrong} {value!r:.60} for completion {place}") from None
        if value is not None and not math.isfinite(numbers[-1]):
            raise UserError(f"{wrong} {'NaN' if math.isnan(numbers[-1]) else 'an infinity'} for completion {place}", hint="None says that a completion has no reward")
    if len(numbers) != wanted:
        raise UserError(f"{wrong} {len(numbers)}")
    return numbers


def _iterable(values: Any) -> bool:
    try:
        iter(values)
    except TypeError:
        return False
    return True


def call(name: str, reward: Reward, prompts: Sequence[Any], completions: Sequence[Any], ids: Sequence[Any], columns: dict[str, list[Any]]) -> list[float]:
    """The rewards of one function, NaN where it gives None. Raises UserError when it fails: it is the user's."""
    try:
        values = _called(reward, list(prompts), list(completions), list(ids), columns)
        if not isinstance(values, (str, dict)) and _iterable(values):
            values = list(values)
    except UserError:  # ours, and says what is to be said
        raise
    except Exception as error:
        told = [k for k in columns if k not in ("seeds", "log_metric", "log_extra", "trainer_state", "environments")]
        raise UserError(f"the reward {name!r} failed: {type(error).__name__}: {error}", hint="it is called with prompts, completions, completion_ids "
                        f"and the columns of the problems: {', '.join(told) or 'none'}") from error  # fmt: skip
    return checked(name, values, len(prompts))
