"""Reward functions written for other libraries, called as these call them. A function is known by its parameters:

verl       compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float or {"score": ...}; one completion at a time
OpenRLHF   reward_func(queries, prompts, labels, **kwargs) -> tensor, list, or {"rewards": ..., "scores": ..., "extra_logs": ...}
TRL        f(prompts, completions, completion_ids, **columns) -> list[float | None], sync or async

So a file of rewards runs unchanged in four places. Rows may be verl's too: reward_model.ground_truth is their answer.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from .rewards import Reward, completion_text


def adapted(function: Callable[..., Any]) -> Reward:
    """The function in TRL's form."""
    try:
        names = set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return function
    if {"solution_str", "ground_truth"} <= names:
        return _verl(function, names)
    if {"queries", "labels"} <= names:
        return _openrlhf(function)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(vars(type(function)).get("__call__")):
        return _asynchronous(function)
    return function


def ground_truth(columns: dict[str, list[Any]], i: int) -> Any:
    """A row's right answer: the column ground_truth, verl's reward_model.ground_truth, or `answer`."""
    model = columns.get("reward_model", [None] * (i + 1))[i]
    if isinstance(model, dict) and "ground_truth" in model:
        return model["ground_truth"]
    return next((columns[k][i] for k in ("ground_truth", "answer", "label") if k in columns), None)


def _verl(function: Callable[..., Any], names: set[str]) -> Reward:
    def reward(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, **columns: Any) -> list[float | None]:
        out: list[float | None] = []
        for i, completion in enumerate(completions):
            info = columns.get("extra_info", [None] * (i + 1))[i]
            given = {"data_source": columns.get("data_source", [""] * (i + 1))[i], "solution_str": completion_text(completion),
                     "ground_truth": ground_truth(columns, i), "extra_info": info}  # fmt: skip
            score = function(**{k: v for k, v in given.items() if k in names})
            score = score.get("score") if isinstance(score, dict) else score
            out.append(None if score is None else float(score))
        return out

    reward.__name__ = getattr(function, "__name__", "reward")
    return reward


def _openrlhf(function: Callable[..., Any]) -> Reward:
    def reward(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, **columns: Any) -> list[float | None]:
        asked = [_plain(p) for p in prompts]
        queries = [p + completion_text(c) for p, c in zip(asked, completions, strict=True)]
        result = function(queries=queries, prompts=asked, labels=[ground_truth(columns, i) for i in range(len(prompts))])
        values = result["rewards"] if isinstance(result, dict) else result
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        return [None if v is None else float(v) for v in values]

    reward.__name__ = getattr(function, "__name__", "reward")
    return reward


def _asynchronous(function: Callable[..., Any]) -> Reward:
    def reward(*given: Any, **named: Any) -> list[float | None]:
        return asyncio.run(function(*given, **named))  # type: ignore[arg-type]

    reward.__name__ = getattr(function, "__name__", "reward")
    reward.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]  # so that it is given the columns it names
    return reward


def _plain(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "".join(f"{m['role']}: {m['content']}\n" for m in prompt)
