"""What the demonstrations of chapter 4 share: a model taught by a demonstrator, practice with a reward, as much fine-tuning instead, and answers
to held-out problems, many to each.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from freedive.dive.found import jsonl
from freedive.eval.statistics import bootstrap, interval
from freedive.inference import load
from freedive.inference.params import Params
from freedive.objectives import pass_at_k
from freedive.rl import stage as rl
from freedive.rl.environments import find_environment
from freedive.rl.episodes import Episodes
from freedive.rl.problems import rendered
from freedive.rl.rollouts import Rollout, sample
from freedive.rl.scoring import Scorer
from freedive.rl.stage import RLConfig
from freedive.runs import json_line, read_json, stage, write_json_atomic
from freedive.sft import stage as sft
from freedive.sft.stage import SFTConfig

from .room import Figure, Room

AT_ONCE = 64  # problems
EVAL_STREAM = 89
MORE = 1000  # added to the seed: further problems of a demonstrator
Rows = Callable[[], Iterable[Mapping[str, Any]]]


def taught(room: Room, name: str, rows: Rows, model: Path | None = None, steps: int | None = None, lr: float = 2e-3, epochs: float | None = None, of: Any = None) -> Path:
    """The base model (or `model`) after SFT on a demonstrator's rows; the tier says how long, or `steps` do. of: constants that the rows depend on."""
    file = room.rows(name, rows, [room.tier.practice.rows, of])
    return sft.run(SFTConfig(
        model=model or room.base, data=[str(file)], out=room.out / name, context=room.tier.size.context, epochs=epochs or room.tier.practice.epochs, steps=steps,
        batch_tokens=room.tier.size.batch, micro_tokens=room.tier.size.batch, lr=lr, dtype="auto", seed=room.seed, threads=room.threads, samples=[],
    ))  # fmt: skip


@dataclass(frozen=True)
class Problems:
    """Files of problems: to practise, and held out."""

    train: Path
    held_out: Path


def problems(room: Room, name: str, make: Callable[[int, int, str], Iterable[Mapping[str, Any]]], of: Any = None) -> Problems:
    """`make(seed, n, split)` gives them. of: constants that they depend on."""
    p = room.tier.practice
    train = room.rows(f"{name}-train", lambda: make(room.seed, p.problems, "train"), [p.problems, of])
    return Problems(train, room.rows(f"{name}-held-out", lambda: make(room.seed, p.held_out, "held_out"), [p.held_out, of]))


def practised(room: Room, name: str, model: Path, of: Problems, tokens: int, steps: float = 1.0, **changes: Any) -> Path:
    """`model` after practice, rewarded for right answers unless `changes` (fields of RLConfig) say otherwise; `steps`: as a part of the tier's."""
    p = room.tier.practice
    settings: dict[str, Any] = {"reward": ["answer"], "eval_reward": "answer"}  # whatever is paid for, held-out problems are judged by what is right
    return rl.run(RLConfig(
        model=model, data=of.train, eval_data=of.held_out, out=room.out / name, steps=max(1, round(steps * p.steps)), prompts_per_step=p.prompts, num_generations=8,
        max_completion_length=tokens, lr=p.lr, eval_every=max(1, p.steps // 8), eval_problems=64, show=3, dtype="auto", seed=room.seed, threads=room.threads,
        **{**settings, **changes},
    ))  # fmt: skip


@dataclass(frozen=True)
class ComputeConfig:
    """What a comparison at equal compute depends on."""

    out: Path
    seed: int


def equal_compute(room: Room, name: str, practice: Path, teaching: Path) -> dict[str, Any]:
    """{"steps", "rl_cpu_seconds", "sft_cpu_seconds_per_step"}: the steps of SFT that take the CPU-seconds that `practice` took. Kept, since times
    never come out the same again. Evaluations are in neither."""
    out = room.out / name
    with stage("demos-compute", ComputeConfig(out, room.seed), out=out, inputs={"rl": practice, "sft": teaching}) as artefact:
        if not artefact.done:
            spent = math.fsum(row["cpu_seconds"] for row in jsonl(practice / "timings.jsonl") if "cpu_seconds" in row)
            rows = [row for row in jsonl(teaching / "timings.jsonl") if "cpu_seconds" in row]
            each = math.fsum(row["cpu_seconds"] for row in rows) / max(1, rows[-1]["step"])
            write_json_atomic(artefact.work / "compute.json", {"steps": max(1, math.ceil(spent / each)), "rl_cpu_seconds": spent, "sft_cpu_seconds_per_step": each})
    return read_json(out / "compute.json")


# ---- answers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """Several answers to each held-out problem: one line a problem, with lists of one entry an answer."""

    rows: Sequence[Mapping[str, Any]]

    def of(self, level: str) -> Answers:
        """The problems of this meta.level."""
        return Answers([row for row in self.rows if row["meta"].get("level") == level])

    def pass_at(self, k: int) -> list[float]:
        """Of each problem, unbiased."""
        return [pass_at_k(len(row["right"]), sum(row["right"]), k) for row in self.rows]

    def mean(self, what: str) -> list[float]:
        """Of each problem the mean of "length" (tokens), "called" (1: a tool was called) or "right"."""
        return [float(np.mean(row[what])) for row in self.rows]


@dataclass(frozen=True)
class AnswersConfig:
    """What answers depend on, besides the model and the problems."""

    out: Path
    tokens: int
    samples: int
    temperature: float
    environment: str
    seed: int


def answers(room: Room, name: str, model: Path, held_out: Path, tokens: int, environment: str = "", temperature: float = 1.0) -> Answers:
    """`model`'s answers to every held-out problem, as many to each as the tier says (one at temperature 0), kept in OUT/answers-NAME."""
    samples = room.tier.practice.samples if temperature else 1
    c = AnswersConfig(room.out / f"answers-{name}", tokens, samples, temperature, environment, room.seed)
    with stage("demos-practice-answers", c, out=c.out, inputs={"model": model, "problems": held_out}) as artefact:
        if not artefact.done:
            rows = list(jsonl(held_out))
            for row, found in zip(rows, _sampled(room, c, model, rows), strict=True):
                line = {"prompt": row["prompt"], "answer": row["answer"], "meta": row["meta"], "reply": found[0].text, "right": [int(r.reward >= 1.0) for r in found],
                        "length": [r.length for r in found], "called": [int(r.calls > 0) for r in found]}  # fmt: skip
                artefact.append("answers.jsonl", json_line(line))
    return Answers(list(jsonl(c.out / "answers.jsonl")))


def _sampled(room: Room, c: AnswersConfig, model: Path, rows: Sequence[dict[str, Any]]) -> list[list[Rollout]]:
    lm = load(model, threads=room.threads, dtype="auto")
    stops = (lm.tokenizer.im_end,)
    episodes = Episodes(lm.engine, find_environment(c.environment)) if c.environment else None
    done: list[list[Rollout]] = []
    with contextlib.closing(Scorer(["answer"])) as scorer:
        for at in range(0, len(rows), AT_ONCE):
            part = rows[at : at + AT_ONCE]
            seeds = [(c.seed + 1) * 9_000_011 + (EVAL_STREAM << 40) + (j << 32) + at + i for i in range(len(part)) for j in range(c.samples)]
            if episodes is None:
                outs = sample(lm.engine, [p.ids for p in rendered(part, lm.tokenizer)], c.samples, c.tokens, c.temperature, stops, seeds)
            else:
                outs = episodes.sample(part, c.samples, Params(c.tokens, c.temperature, stop_ids=stops), seeds)
            outs = scorer(outs, [row for row in part for _ in range(c.samples)], c.samples)
            done += [outs[i : i + c.samples] for i in range(0, len(outs), c.samples)]
    return done


# ---- figures; intervals resample problems, since answers to one are not independent -----------------------------------


def share_of(name: str, values: Sequence[float], target: str = "", control: bool = False) -> Figure:
    """A mean over problems of what lies between 0 and 1."""
    return Figure(name, float(np.mean(values)), interval(values), len(values), target, control)


def points(name: str, after: Sequence[float], before: Sequence[float], target: str = "", control: bool = False) -> Figure:
    """The mean difference of two models on the same problems, paired."""
    differences = np.asarray(after) - np.asarray(before)
    return Figure(name, float(differences.mean()), bootstrap(list(differences)), len(differences), target, control, "points")


def than(name: str, values: Sequence[float], beside: float, target: str = "", control: bool = False) -> Figure:
    """How far a mean over problems is above a number that is known."""
    low, high = interval(values)
    return Figure(name, float(np.mean(values)) - beside, [low - beside, high - beside], len(values), target, control, "points")


def times(name: str, after: Sequence[float], before: Sequence[float], target: str = "", control: bool = False) -> Figure:
    """How many times as large the mean became, of the same problems."""
    ratio, among = ratio_of(after, before, EVAL_STREAM) or (0.0, None)
    return Figure(name, ratio, among, len(after), target, control, "times")


def ratio_of(of: ArrayLike, whole: ArrayLike, stream: int, clusters: Sequence[str] | None = None) -> tuple[float, list[float]] | None:
    """(a mean beside another over the same items, its 95 % interval): items, or clusters of them, drawn anew for both together. None where the other mean
    cannot be told from 0: there is nothing to be a part of."""
    a, b = np.asarray(of), np.asarray(whole)
    _, at = np.unique(np.arange(len(a)) if clusters is None else np.array(clusters), return_inverse=True)
    n = int(at.max()) + 1
    drawn = np.random.Generator(np.random.Philox(key=[0, stream])).integers(0, n, (2000, n))
    above, below = (np.bincount(at, x, n)[drawn].sum(1) for x in (a, b))
    if np.quantile(below, 0.025) <= 0:
        return None
    return float(a.sum() / b.sum()), [float(x) for x in np.quantile(above / below, (0.025, 0.975))]


def powers_of_four(samples: int) -> list[int]:
    """1, 4, 16... up to `samples`."""
    return [4**i for i in range(10) if 4**i <= samples]
