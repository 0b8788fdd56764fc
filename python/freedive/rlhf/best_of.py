"""`freedive generate best`: several answers to each question, and the one that a reward likes best: RLHF without training (talk 4.4).

How far that is from the model itself is known: KL = ln n - (n - 1)/n nats (objectives.best_of_n_kl). The reward is any of `freedive rl`: a reward model's
folder, `judge:WHO`, or a function. With --jsonl and --least the lines are rows for `freedive sft`: what the model said best, to be learned ("RFT").
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.inference import LM, load
from freedive.inference.chat import printable
from freedive.inference.load import ADAPTER_HELP, DTYPE_HELP, WEIGHTS_HELP
from freedive.objectives import best_of_n_kl
from freedive.rl.problems import Problem, problem_rows, rendered
from freedive.rl.rollouts import Rollout, sample
from freedive.rl.scoring import Scorer
from freedive.runs import UserError, check_at_least, json_line, option


@dataclass(frozen=True)
class BestConfig:
    """Answer questions n times, and tell the answer with the highest reward."""

    model: Path = option(help="the assistant: a folder, a .gguf file", positional=True)
    reward: str = option(help="a reward model's folder, judge:MODEL, file.py:function or package.module:function; task, answer or another built-in of freedive rl")
    adapter: Path | None = option(None, ADAPTER_HELP)
    prompt: list[str] = option([], "questions")
    file: Path | None = option(None, 'JSONL of questions: {"prompt": text or messages}; other keys go to the reward, and with --jsonl into the line')
    n: int = option(8, "answers to choose from")
    max_new_tokens: int = option(256, "longest answer, in tokens")
    temperature: float = option(1.0, "of sampling")
    seed: int = option(0, "of sampling")
    jsonl: bool = option(False, "print one JSON object a question: prompt and completion (the best answer), its reward, and all answers; freedive sft reads such lines")
    least: float | None = option(None, "leave out questions whose best answer has less than this reward, for example 1 where 1 is right; how many is told")
    threads: int | None = option(None, "CPU threads (default: all)")
    weights: str = option("auto", WEIGHTS_HELP)
    dtype: str = option("float32", DTYPE_HELP)


def best_of(lm: LM, scorer: Scorer, problems: Sequence[Problem], n: int, max_new_tokens: int, temperature: float = 1.0, seed: int = 0) -> list[tuple[int, list[Rollout]]]:
    """(which is best, the n rewarded answers) to each problem. An answer without a reward is never the best, unless none has one."""
    seeds = [(seed << 32) + i for i in range(len(problems) * n)]
    outs = scorer(sample(lm.engine, [p.ids for p in problems], n, max_new_tokens, temperature, lm.tokenizer.stop_ids or (lm.tokenizer.im_end,), seeds), [p.row for p in problems for _ in range(n)], n)
    groups = [outs[i : i + n] for i in range(0, len(outs), n)]
    return [(int(np.argmax([-np.inf if np.isnan(r.reward) else r.reward for r in g])), g) for g in groups]


def run(c: BestConfig) -> int:
    """Print the best answers; returns the exit code."""
    check_at_least(c, 1, "n", "max_new_tokens", "threads")
    if not 0 < c.temperature < float("inf"):
        raise UserError(f"temperature is {c.temperature}; n answers at 0 are all the same", hint="--temperature 1")
    rows: list[dict[str, Any]] = [{"prompt": p} for p in c.prompt]
    if c.file is not None:
        rows += [row for _, row in problem_rows(c.file, [c.reward])]
    if not rows:
        raise UserError("no question was given", hint='--prompt "Tell me a joke about a pelican."')
    if c.least is not None and not np.isfinite(c.least):
        raise UserError(f"least is {c.least}; it must be a number")
    left_out = 0
    with closing(Scorer([c.reward], threads=c.threads, max_completion_length=c.max_new_tokens)) as scorer:
        lm = load(c.model, threads=c.threads, dtype=c.dtype, weights=c.weights, adapter=c.adapter)
        problems = rendered(rows, lm.tokenizer)
        for at in range(0, len(problems), 32):
            for problem, (best, group) in zip(problems[at : at + 32], best_of(lm, scorer, problems[at : at + 32], c.n, c.max_new_tokens, c.temperature, c.seed + at)):
                if c.least is not None and not group[best].reward >= c.least:  # NaN: no reward at all
                    left_out += 1
                    continue
                _print(c, problem.row, best, group)
    if left_out:
        print(f"{left_out:,} of {len(rows):,} questions have no answer with a reward of {c.least:g}", file=sys.stderr)
    return 0


def _print(c: BestConfig, row: dict[str, Any], best: int, group: list[Rollout]) -> None:
    number = lambda r: None if np.isnan(r.reward) else r.reward
    if c.jsonl:
        told = {**row, "completion": group[best].text, "reward": number(group[best]), "n": c.n, "kl": best_of_n_kl(c.n), "answers": [{"text": r.text, "reward": number(r)} for r in group]}
        print(json_line(told).decode().rstrip("\n"), flush=True)
        return
    rewards = [r.reward for r in group if not np.isnan(r.reward)]
    spread = f"reward {group[best].reward:.3f}, of {c.n} between {min(rewards):.3f} and {max(rewards):.3f}" if rewards else "the reward says nothing of any answer"
    print(f"--- {row['prompt']!s:.80} ({spread})\n{printable(group[best].text)}", flush=True)
