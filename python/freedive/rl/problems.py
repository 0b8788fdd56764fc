"""The problems: reading or making them, and which of them a step practises.

The one idea: a group whose completions all earned the same teaches nothing, so with dynamic sampling (DAPO, arXiv:2503.14476, section
3.2) a step goes on drawing problems until it has as many as it wants that the model gets right now and then, or has drawn often enough.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.data.texts import iter_rows
from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, render

from .groups import dead, group_metrics
from .rewards import lacking
from .rollouts import Rollout
from .tasks import task_rows

EXAMPLE = '{"prompt": "What is 2+2?", "answer": "4"}'


@dataclass(frozen=True)
class Problem:
    row: dict[str, Any]
    ids: list[int]  # the prompt, rendered; with an environment, before its reset adds to it


def read_problems(path: Path, tok: Tokenizer, tools: Any = None, rewards: Sequence[str] = ()) -> list[Problem]:
    """Problems with their rendered prompts. Raises UserError, with file and line, for what `problem_rows` refuses and for a prompt that cannot be rendered."""
    out = [rendered([row], tok, tools, where)[0] for where, row in problem_rows(path, rewards)]
    if not out:
        raise UserError(f"{path} holds no problem")
    return out


def problem_rows(path: Path, rewards: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE, line N", row). Raises UserError for a row without a prompt to be answered, and for one that lacks what a built-in among `rewards` needs."""
    for line, row in iter_rows(path):
        where = f"{path}, line {line}"
        if "prompt" not in row:
            raise UserError(f"{where}: a problem needs 'prompt'; it has {sorted(row)[:6]}", hint=EXAMPLE)
        prompt = row["prompt"]
        if not isinstance(prompt, (str, list)):
            raise UserError(f"{where}: the prompt is {json.dumps(prompt)[:60]}; it must be a text, or a list of messages", hint=EXAMPLE)
        if not prompt:
            raise UserError(f"{where}: the prompt is empty", hint=EXAMPLE)
        if isinstance(prompt, list) and isinstance(prompt[-1], dict) and prompt[-1].get("role") == "assistant":
            raise UserError(f"{where}: the prompt ends in a turn of the assistant, and a completion is a new one", hint="leave that turn out, or put the user's next one behind it")
        if said := next(filter(None, (lacking(reward, row) for reward in rewards)), ""):
            raise UserError(f"{where}: {said}", hint=EXAMPLE)
        yield where, row


def made_problems(tasks: Sequence[str], seed: int, n: int, split: str, tok: Tokenizer, tools: Any = None) -> list[Problem]:
    """`n` problems of "train" or "held_out", of all tasks in equal parts. Raises UserError for a task that is not there or has too few."""
    sizes = [n // len(tasks) + (i < n % len(tasks)) for i in range(len(tasks))]
    by_task = [list(task_rows(task, seed, size, split)) for task, size in zip(tasks, sizes) if size]
    in_turn = (rows[i] for i in range(max(map(len, by_task), default=0)) for rows in by_task if i < len(rows))  # so that the first ones are of all tasks too
    return rendered(in_turn, tok, tools)


def rendered(rows: Iterable[dict[str, Any]], tok: Tokenizer, tools: Any = None, where: str | None = None) -> list[Problem]:
    """where: file and line, for messages."""
    out = []
    for row in rows:
        prompt = row["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        out.append(Problem(row, render(tok, messages, add_generation_prompt=True, row=where, tools=tools or None)[0]))
    return out


@dataclass(frozen=True)
class Practice:
    """What one step learns from."""

    rollouts: list[Rollout]  # whole groups, next to each other
    problems: list[Problem]  # one a group
    drawn: int  # problems drawn so far in the run, those given up included
    metrics: dict[str, float]  # TRL's reward metrics over all that was drawn, so that filtering does not flatter the curve


def practise(solve: Callable[[Sequence[Problem], int], list[Rollout]], problems: Sequence[Problem], order: Sequence[int], drawn: int,
             wanted: int, generations: int, draws: int) -> Practice:  # fmt: skip
    """Draws `wanted` problems in `order`, going round, up to `draws` times, until as many groups have unlike rewards.

    `solve(chosen, first)` samples and rewards `generations` completions of each problem; `first` counts the completions of this step
    before them. With one draw all groups are kept as they came. With more, those of equal rewards and the surplus go; if there is no
    group to learn from at all, the last draw is kept.
    """
    kept: list[tuple[Problem, list[Rollout]]] = []
    rewards: list[list[float]] = []
    for _ in range(draws):
        chosen = [problems[order[(drawn + i) % len(problems)]] for i in range(wanted)]
        rollouts = solve(chosen, len(rewards) * generations)
        drawn += wanted
        groups = [rollouts[i : i + generations] for i in range(0, len(rollouts), generations)]
        rewards += [[r.reward for r in g] for g in groups]
        if draws == 1:
            return Practice(rollouts, chosen, drawn, group_metrics(np.array(rewards)))
        kept += [pair for pair, d in zip(zip(chosen, groups), dead(np.array(rewards[-wanted:]))) if not d]
        if len(kept) >= wanted:
            break
    if not kept:
        kept = list(zip(chosen, groups))
    kept = kept[:wanted]
    metrics = group_metrics(np.array(rewards)) | {"problems_drawn": float(len(rewards))}
    return Practice([r for _, group in kept for r in group], [p for p, _ in kept], drawn, metrics)


def shuffled(n: int, seed: int, stream: int) -> list[int]:
    """The order in which `n` problems are drawn."""
    return [int(i) for i in np.random.Generator(np.random.Philox(key=[seed, stream])).permutation(n)]
