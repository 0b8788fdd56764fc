"""Where a reward comes from: a built-in, or the user's own function in a file. The form is TRL's:

    def my_reward(prompts, completions, completion_ids, **columns) -> list[float]

`completions` are texts; `columns` are the other keys of the JSONL rows (such as `answer`), one entry per completion, and `seeds`, the
number that keyed the sampling of each completion. A function without `**columns` is given the ones it names.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from freedive.runs import UserError

Reward = Callable[..., list[float]]


def answer_match(prompts: list[Any], completions: list[str], completion_ids: list[Any] | None = None, *, answer: list[str], **columns: Any) -> list[float]:
    """1 where the completion's final answer is the row's `answer` (the last number, or the normalised text), else 0."""
    from freedive.eval.match import matches

    return [float(matches(c, a)) for c, a in zip(completions, answer, strict=True)]


def coin(prompts: list[Any], completions: list[str], completion_ids: list[Any] | None = None, *, seeds: list[int], **columns: Any) -> list[float]:
    """1 or 0 at random, drawn anew for each completion and keyed by its seed: the control from which there is nothing to learn."""
    return [float(hashlib.sha256(f"coin {seed}".encode()).digest()[0] & 1) for seed in seeds]


BUILT_IN: dict[str, Reward] = {"answer": answer_match, "coin": coin}


def find_reward(name: str) -> Reward:
    """A built-in by name, `package.module:function`, or `path/to/file.py:function`. Raises UserError when there is none."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    where, _, function = name.rpartition(":")
    if not where:
        raise UserError(f"unknown reward {name!r}", hint=f"built in: {', '.join(BUILT_IN)}; or module:function, or file.py:function")
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise UserError(f"no such reward file: {where}")
        spec = importlib.util.spec_from_file_location("freedive_user_reward", where)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UserError(f"the reward file {where} cannot be run: {type(error).__name__}: {error}") from error
    else:
        try:
            module = importlib.import_module(where)
        except ImportError as error:
            raise UserError(f"the reward's module {where!r} cannot be imported: {error}") from None
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{where} has no function {function!r}")
    return found


def reward_file(name: str) -> Path | None:
    """The user's file that a reward comes from, which is then one of the run's inputs; None for built-in and imported ones."""
    where = name.rpartition(":")[0]
    return Path(where) if where.endswith(".py") else None
