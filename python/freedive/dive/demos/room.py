"""What an arm gets: folders, the base model and the assistant of its seed, and the few steps that most arms take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from freedive.runs import json_line, stage, write_atomic
from freedive.sft import stage as sft
from freedive.sft.stage import SFTConfig
from freedive.tasks.town import Town

from . import mixture, world
from .mixture import Counts
from .world import Size


@dataclass(frozen=True)
class Practice:
    """How much the arms of chapter 4 do."""

    rows: int = 6000  # conversations of a demonstrator
    epochs: float = 4.0
    problems: int = 2000  # to practise
    held_out: int = 200
    samples: int = 16  # answers to each held-out problem
    steps: int = 100
    prompts: int = 16  # problems a step
    lr: float = 1.5e-4


@dataclass(frozen=True)
class Opinions:
    """How much the arms of 4.4 do."""

    jokes: int = 6000  # conversations
    epochs: float = 1.5
    lists: int = 1200  # ranked by labellers, each of four answers
    few: int = 300  # lists of tame jokes, for the weak reward model
    held_out: int = 200  # lists to choose weights by; at most so many requests to stop by, and to judge by
    judged: int = 400  # lists to judge by
    steps: int = 30  # of PPO
    prompts: int = 16  # a step
    lr: float = 2e-4
    over: int = 90  # steps of PPO for the weak reward model, without a KL
    over_lr: float = 1e-4


@dataclass(frozen=True)
class Tier:
    """How much an arm does."""

    size: Size
    counts: Counts
    epochs: float  # of the mixture
    questions: int  # of a skill's examination, about
    snippets: int  # of the probe
    searches: int  # conversations with a search or a page
    letters: int  # words of the counter's practice
    practice: Practice = Practice()
    opinions: Opinions = Opinions()


TIERS = {
    "full": Tier(world.FULL, mixture.FULL, 3.0, 300, 500, 6000, 2500),
    "smoke": Tier(world.SMOKE, mixture.SMOKE, 1.0, 12, 60, 40, 20, Practice(rows=60, epochs=1.0, problems=40, held_out=8, samples=4, steps=3, prompts=4),
                  Opinions(jokes=60, epochs=1.0, lists=12, few=4, held_out=8, judged=8, steps=2, prompts=2, over=3)),
}
HOLD_OUT = 0.3  # part of the people whom no arm teaches anything about


@dataclass(frozen=True)
class RowsConfig:
    """What a file of rows depends on."""

    out: Path
    what: str
    of: Any  # what of the tier it depends on
    seed: int


@dataclass(frozen=True)
class Room:
    """One seed's folder."""

    out: Path
    tier: Tier
    seed: int
    threads: int | None = None

    @property
    def town(self) -> Town:
        return world.town_of(self.tier.size, self.seed)

    @cached_property
    def base(self) -> Path:
        return world.make_base(self.out, self.tier.size, self.seed, self.threads)

    @property
    def corpus(self) -> Path:
        return self.out / "corpus" / "corpus.jsonl"

    @cached_property
    def chats(self) -> Path:
        """The mixture of conversations."""
        return self.rows("mixture", lambda: mixture.rows(self.town, self.tier.counts, self.seed), self.tier.counts)

    @cached_property
    def assistant(self) -> Path:
        """The base model after the mixture: the "naive" assistant, which answers everything."""
        return self.teach("assistant", self.base, self.chats, epochs=self.tier.epochs, lr=2e-3, replay_fraction=0.5)

    def rows(self, name: str, make: Any, of: Any = None, inputs: dict[str, Path] | None = None) -> Path:
        """A JSONL file of rows, made once: OUT/rows/NAME/rows.jsonl. `make()` gives them; they depend on the town, `of`, and the files `inputs`."""
        out = self.out / "rows" / name
        with stage("demos-rows", RowsConfig(out, name, [self.tier.size.scale, of], self.seed), out=out, inputs=dict(inputs or {})) as artefact:
            if not artefact.done:
                found: Iterable[Any] = make()
                write_atomic(artefact.work / "rows.jsonl", map(json_line, found))
        return out / "rows.jsonl"

    def teach(self, name: str, model: Path, chats: Path, epochs: float, lr: float, replay_fraction: float = 0.3) -> Path:
        """SFT; with some of the pages replayed, what was read stays known."""
        return sft.run(SFTConfig(
            model=model, data=[str(chats)], out=self.out / name, context=self.tier.size.context, epochs=epochs, batch_tokens=self.tier.size.batch, micro_tokens=self.tier.size.batch,
            lr=lr, replay=self.corpus if replay_fraction else None, replay_fraction=replay_fraction, dtype="auto", seed=self.seed, threads=self.threads, samples=["Hello!"],
        ))  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A measured number beside what was hoped for. `control`: it is there to compare with. `unit`: what `share` is: a share, "points" (a
    difference of two shares), or "times" (how many times as large)."""

    name: str
    share: float
    interval_95: Sequence[float] | None
    n: int
    target: str = ""  # ">= 0.95", "<= 0.05" or nothing
    control: bool = False
    unit: str = "share"

    @property
    def met(self) -> bool | None:
        if not self.target:
            return None
        sign, bound = self.target.split()
        return self.share >= float(bound) if sign == ">=" else self.share <= float(bound)


def shown(value: float, unit: str, digits: int = 1) -> str:
    """A figure's value for people."""
    return {"share": f"{100 * value:.{digits}f} %", "points": f"{100 * value:+.{digits}f} points", "times": f"x {value:.2f}"}[unit]


def figure(name: str, measured: dict[str, Any], target: str = "", control: bool = False) -> Figure:
    """From what `freedive.eval.statistics.share` gives."""
    return Figure(name, measured["share"], measured["interval_95"], measured["n"], target, control)
