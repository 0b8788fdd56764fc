"""The page's part on practice: curves of a run, beside its control's; pass@k; and what was said to the same problems from the first step to the last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freedive.dive.found import jsonl
from freedive.objectives import pass_at_k
from freedive.runs.chart import chart
from freedive.runs.page import Reply, asked, cards, paragraph

RUNS = {  # arm -> (folder of the run, what it is); the first is the one whose trajectories are shown
    "rlvr": (("rlvr-practised", "paid for right answers"), ("rlvr-coin", "paid by a coin")),
    "length": (("length-seeded-practised", "some long solutions before"), ("length-unseeded-practised", "none")),
    "discovery": (("discovery-practised", "Python works"), ("discovery-out-of-order", "out of order")),
    "teacher": (("teacher-practised", "practice"),),
}
ANSWERS = {  # arm -> (folder of answers, whose they are): pass@k
    "rlvr": (("answers-rlvr-before", "before"), ("answers-rlvr-after", "after practice"), ("answers-rlvr-more", "more conversations"), ("answers-rlvr-coin", "paid by a coin")),
}
CURVES = (  # key of metrics.jsonl, label, least, largest, drawn as a mean of neighbours
    ("eval/pass@1", "held-out problems: right at the first try", 0, 1, False),
    ("completions/mean_length", "length of an answer, tokens", 0, None, False),
    ("entropy", "entropy of the next token, nats", 0, None, True),
    ("frac_reward_zero_std", "share of problems with equal rewards: nothing to learn", 0, 1, True),
    ("tools/call_frequency", "calls of the tool, an answer", 0, None, False),
)
SHOWN = 4  # moments of a run


def practice(seed: Path, arm: str) -> str:
    """HTML; empty for an arm without practice."""
    runs = {words: list(jsonl(seed / folder / "metrics.jsonl")) for folder, words in RUNS.get(arm, ())}
    if not all(runs.values()) or not runs:
        return ""
    drawn = "".join(chart({words: _curve(log, key) for words, log in runs.items()}, "step", label, low, high, noisy=list(runs) if noisy else ())
                    for key, label, low, high, noisy in CURVES)  # fmt: skip
    drawn += _pass_at_k(seed, arm)
    said = list(jsonl(seed / RUNS[arm][0][0] / "trajectories.jsonl"))
    return f'<div class="charts">{drawn}</div>' + paragraph("The same problems, from the first step to the last:") + cards(_trajectories(said))


def _curve(log: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    # a step without a gradient (all attempts at each problem equally good) logs an entropy of 0, measured on nothing
    return [(row["step"], row[key]) for row in log if row.get(key) is not None and (key != "entropy" or row[key] and row.get("grad_norm"))]


def _pass_at_k(seed: Path, arm: str) -> str:
    series = {}
    for folder, words in ANSWERS.get(arm, ()):
        rows = [row["right"] for row in jsonl(seed / folder / "answers.jsonl")]
        ks = [2**i for i in range(10) if rows and 2**i <= len(rows[0])]
        series[words] = [(math.log2(k), float(np.mean([pass_at_k(len(r), sum(r), k) for r in rows]))) for k in ks]
    return chart(series, "attempts k, as a power of two", "pass@k: one of k attempts is right", 0, 1) if series else ""


def _trajectories(rows: Sequence[dict[str, Any]]) -> list[str]:
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"][-1]["content"], []).append(row)
    made = []
    for question, several in by_prompt.items():
        chosen = [several[round(i * (len(several) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
        replies = [Reply(f"step {r['step']}", _words(r), f"{r['length']} tokens", bool(r["reward"])) for r in {r["step"]: r for r in chosen}.values()]
        made.append(asked(question, *replies))
    return made


def _words(row: dict[str, Any]) -> str:
    """A completion with its calls and what came back."""
    shown: Callable[[dict[str, Any]], str] = lambda m: str(m["content"]) + "".join(f"[{c['function']['arguments'].get('code', '')} → " for c in m.get("tool_calls") or [])
    return "".join(f"{m['content']}] " if m["role"] == "tool" else shown(m) for m in row.get("messages") or []) or row["text"]
