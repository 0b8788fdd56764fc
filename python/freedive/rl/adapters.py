"""Reward functions written for other libraries, called as these call them. A function is known by its parameters:

verl       compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float or {"score": ...}; one completion at a time
OpenRLHF   reward_func(queries, prompts, labels, **kwargs) -> tensor, list, or {"rewards": ..., "scores": ..., "extra_logs": ...}
TRL        f(prompts, completions, completion_ids, **columns) -> list[float | None]

Each of them sync or async; of verl's, all completions are awaited together. So a file of rewards runs unchanged in four places. Rows may be
verl's too: reward_model.ground_truth is their answer.
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
    return _trl(function) if _is_async(function) else function


def ground_truth(columns: dict[str, list[Any]], i: int) -> Any:
    """A row's right answer: the column ground_truth, verl's reward_model.ground_truth, or `answer`."""
    model = columns.get("reward_model", [None] * (i + 1))[i]
    if isinstance(model, dict) and "ground_truth" in model:
        return model["ground_truth"]
    return next((columns[k][i] for k in ("ground_truth", "answer", "label") if k in columns), None)


def _verl(function: Callable[..., Any], names: set[str]) -> Reward:
    def reward(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, **columns: Any) -> list[float | None]:
        calls = []
        for i, completion in enumerate(completions):
            info = columns.get("extra_info", [None] * (i + 1))[i]
            given = {"data_source": columns.get("data_source", [""] * (i + 1))[i], "solution_str": completion_text(completion),
                     "ground_truth": ground_truth(columns, i), "extra_info": info}  # fmt: skip
            calls.append({k: v for k, v in given.items() if k in names})
        said = [s.get("score") if isinstance(s, dict) else s for s in _finished([function(**c) for c in calls])]
        return [None if s is None else float(s) for s in said]

    reward.__name__ = getattr(function, "__name__", "reward")
    return reward


def _openrlhf(function: Callable[..., Any]) -> Reward:
    def reward(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, **columns: Any) -> list[float | None]:
        asked = [_plain(p) for p in prompts]
        queries = [p + completion_text(c) for p, c in zip(asked, completions, strict=True)]
        (result,) = _finished([function(queries=queries, prompts=asked, labels=[ground_truth(columns, i) for i in range(len(prompts))])])
        values = result["rewards"] if isinstance(result, dict) else result
        return values.tolist() if hasattr(values, "tolist") else values  # type: ignore[no-any-return]

    reward.__name__ = getattr(function, "__name__", "reward")
    return reward


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(vars(type(function)).get("__call__"))


def _finished(results: list[Any]) -> list[Any]:
    """What was returned, awaited together where a function is async."""
    if not any(inspect.isawaitable(r) for r in results):
        return results

    async def every() -> list[Any]:
        return list(await asyncio.gather(*results))

    return asyncio.run(every())


def _trl(function: Callable[..., Any]) -> Reward:
    def reward(*given: Any, **named: Any) -> list[float | None]:
        return _finished([function(*given, **named)])[0]  # type: ignore[no-any-return]

    reward.__name__ = getattr(function, "__name__", "reward")
    reward.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]  # so that it is given the columns it names
    return reward


def _plain(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "".join(f"{m['role']}: {m['content']}\n" for m in prompt)
