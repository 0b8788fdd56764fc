"""Who judges without a page: a function that scores an answer or compares two, or a model that is asked.

    length, answer, task, ...           built in: scores; the higher one wins, equal ones tie
    file.py:function                    yours: a reward function as freedive rl takes them (TRL's, verl's, OpenRLHF's form), or
                                        def f(prompt, answer_a, answer_b, **row) -> "a" | "b" | "tie" | "both bad" | None
    model.gguf, runs/sft, http://...    a model or a service: asked about both orders; where they disagree it is a tie

None, and a reward of None for either answer: this judge says nothing about the battle, and it is not in the log.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from freedive.runs import UserError, find_function

from ..asker import Asker
from ..pairwise import PROMPT, Pair, judge_pairs
from .contestants import judge_model
from .form import form as looks
from .room import Match

_SIDES = {"first": "model_a", "second": "model_b", "tie": "tie"}
_TOLD = {"a": "model_a", "b": "model_b", "model_a": "model_a", "model_b": "model_b", "tie": "tie", "c": "tie", "both bad": "tie (bothbad)", "tie (bothbad)": "tie (bothbad)"}


@dataclass(frozen=True)
class Verdict:
    """winner as of log.WINNERS, or None; `more` goes into the log; `unclear`: what was said instead of a verdict."""

    winner: str | None
    more: dict[str, Any] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()


class Judge(Protocol):
    name: str

    def judge(self, cases: Sequence[tuple[Match, str, str]]) -> list[Verdict]:
        """A verdict of each (match, left answer, right answer)."""
        ...


def find_judge(what: str, *, model: str = "", tokens: int = 256, form: str = PROMPT, threads: int | None = None) -> Judge:
    """By name. UserError for what is none, or cannot be loaded."""
    path = Path(what)
    if what.startswith(("http://", "https://")) or path.is_dir() or path.is_file() and path.suffix == ".gguf":
        return Asked(model or what if what.startswith("http") else path.stem or what, judge_model(what, model, threads), tokens, form)
    if ":" not in what and what not in _built_in():
        raise UserError(f"there is no judge {what!r}", hint=f"built in: {', '.join(_built_in())}; file.py:function; a model's folder or .gguf file; the address of a service")
    function = find_function(what, _built_in(), "judge")
    names = _parameters(function)
    return Compared(what, function) if {"answer_a", "answer_b"} <= names else Scored(what, function)


def _built_in() -> dict[str, Callable[..., Any]]:
    from freedive.rl.rewards import BUILT_IN

    return {"length": length, **{k: v for k, v in BUILT_IN.items() if k != "coin"}}


def length(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, **columns: Any) -> list[float]:
    """The longer answer wins, in words and marks: what a judge that does not read would say."""
    return [float(looks(c)[0]) for c in completions]


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


@dataclass
class Scored:
    """By a reward function."""

    name: str
    function: Callable[..., Any]

    def judge(self, cases: Sequence[tuple[Match, str, str]]) -> list[Verdict]:
        from freedive.rl.adapters import adapted
        from freedive.rl.rewards import call

        prompts = [m.prompt.messages[0]["content"] if len(m.prompt.messages) == 1 else list(m.prompt.messages) for m, _, _ in cases for _ in (0, 1)]
        texts = [t for _, a, b in cases for t in (a, b)]
        said = [t if isinstance(p, str) else [{"role": "assistant", "content": t}] for p, t in zip(prompts, texts)]
        rows = [m.prompt.row for m, _, _ in cases for _ in (0, 1)]
        columns = {k: [row.get(k) for row in rows] for row in rows for k in row if k not in ("prompt", "completion", "completions", "messages")}
        if self.name == "length":
            said = list(texts)
        scores = call(self.name, adapted(self.function), prompts, said, [[] for _ in texts], columns | {"seeds": list(range(len(texts)))})
        out = []
        for a, b in zip(scores[::2], scores[1::2]):
            winner = None if math.isnan(a) or math.isnan(b) else "tie" if a == b else "model_a" if a > b else "model_b"
            out.append(Verdict(winner, {"scores": [a, b]}))
        return out


@dataclass
class Compared:
    """By a function of both answers."""

    name: str
    function: Callable[..., Any]

    def judge(self, cases: Sequence[tuple[Match, str, str]]) -> list[Verdict]:
        out = []
        names = _parameters(self.function)
        every = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(self.function).parameters.values())
        for match, a, b in cases:
            given = {**match.prompt.row, "messages": list(match.prompt.messages), "prompt": match.prompt.messages[-1]["content"], "answer_a": a, "answer_b": b}
            try:
                said = self.function(**(given if every else {k: v for k, v in given.items() if k in names}))
            except Exception as error:
                raise UserError(f"the judge {self.name!r} failed: {type(error).__name__}: {error}", hint=f"it is called with {', '.join(given)}") from error
            winner = _TOLD.get(str(said).strip().lower()) if said is not None else None
            if said is not None and winner is None:
                raise UserError(f"the judge {self.name!r} returned {said!r:.60}", hint='it must return "a", "b", "tie", "both bad" or None')
            out.append(Verdict(winner))
        return out


@dataclass
class Asked:
    """By a model."""

    name: str
    asker: Asker
    tokens: int
    form: str = PROMPT

    def judge(self, cases: Sequence[tuple[Match, str, str]]) -> list[Verdict]:
        found = judge_pairs(self.asker, [Pair(m.prompt.messages, a, b) for m, a, b in cases], max_new_tokens=self.tokens, form=self.form)
        return [Verdict(_SIDES.get(v.winner or ""), {"orders": [_SIDES.get(o or "") for o in v.orders]}, v.replies if v.winner is None else ()) for v in found]
