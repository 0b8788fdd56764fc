"""Who judges without a page: a function that scores an answer or compares two, or a model that is asked.

    length, answer, task, ...           built in: scores; the higher one wins, equal ones tie
    file.py:function                    yours: a reward function as freedive rl takes them (TRL's, verl's, OpenRLHF's form), or
                                        def f(prompt, answer_a, answer_b, **row) -> "a" | "b" | "tie" | "both bad" | None
    model.gguf, runs/sft, http://...    a model or a service: asked about both orders; where they disagree it is a tie

None, and a reward of None for either answer: this judge says nothing about the battle, and it is not in the log. What a judge says depends on its `key`:
of a changed one (another file, model, form) what was said before does not count, and it is asked again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from freedive.inference.folder import base_and_adapter
from freedive.runs import UserError, find_function, folder_hash

from ..asker import Asker
from ..pairwise import PROMPT, Pair, check_form, judge_pairs
from .contestants import judge_model
from .room import Match, Prompt
from .style import counts

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
    key: str  # a hash of what its verdicts depend on

    def check(self, prompts: Sequence[Prompt]) -> None:
        """UserError where it lacks something to judge these by: said before anything is answered."""
        ...

    def judge(self, cases: Sequence[tuple[Match, str, str]]) -> list[Verdict]:
        """A verdict of each (match, left answer, right answer)."""
        ...


def find_judge(what: str, *, model: str = "", tokens: int = 256, form: str = PROMPT, threads: int | None = None) -> Judge:
    """By name. UserError for what is none, or cannot be loaded."""
    path, far = Path(what), what.startswith(("http://", "https://"))
    if far or path.is_dir() or path.is_file() and path.suffix == ".gguf":
        check_form(form)
        who = {"address": what.rstrip("/"), "model": model} if far else {"files": [folder_hash(p) for p in base_and_adapter(path, None) if p is not None]}
        return Asked(model or what if far else path.stem or what, judge_model(what, model, threads), tokens, form, _key({**who, "tokens": tokens, "form": form}))
    if ":" not in what and what not in _built_in():
        raise UserError(f"there is no judge {what!r}", hint=f"built in: {', '.join(_built_in())}; file.py:function; a model's folder or .gguf file; the address of a service")
    function = find_function(what, _built_in(), "judge")
    names = _parameters(function)
    key = _key({"function": what.rpartition(":")[2], "source": _source(function) if what not in _built_in() else ""})
    return Compared(what, function, key) if {"answer_a", "answer_b"} <= names else Scored(what, function, key)


def _key(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _source(function: Callable[..., Any]) -> str:
    """A hash of the file that a function is in; of files which that imports nothing is known."""
    try:
        return folder_hash(inspect.getfile(inspect.unwrap(function)))
    except (TypeError, OSError):
        return ""


def _built_in() -> dict[str, Callable[..., Any]]:
    from freedive.rl.rewards import BUILT_IN

    return {"length": length, **{k: v for k, v in BUILT_IN.items() if k in ("answer", "form", "task")}}


def length(prompts: list[Any], completions: list[Any], completion_ids: list[Any] | None = None, **columns: Any) -> list[float]:
    """The longer answer wins, in words and marks: what a judge that does not read would say."""
    return [float(counts(c)[0]) for c in completions]


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _required(function: Callable[..., Any]) -> set[str]:
    """Parameters without a default."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {p.name for p in found if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


@dataclass
class Scored:
    """By a reward function."""

    name: str
    function: Callable[..., Any]
    key: str = ""

    def check(self, prompts: Sequence[Prompt]) -> None:
        built_in = _built_in().get(self.name)
        if self.name == "task" and built_in is self.function and not all((p.row.get("meta") or {}).get("task") for p in prompts):
            raise UserError("the judge 'task' needs the task of each prompt, in meta.task", hint="the rows of a task of freedive rl; or the judge `answer`, for rows with an answer")
        for name in _required(self.function) - {"prompts", "completions", "completion_ids", "seeds", "solution_str", "ground_truth", "data_source", "queries", "labels"}:
            have = [name in p.row for p in prompts]
            if not (all(have) if built_in is self.function else any(have)):
                raise UserError(f"the judge {self.name!r} needs {name!r}, and {sum(not h for h in have):,} of {len(prompts):,} prompts have none", hint=f"a column {name} beside `prompt`")

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
    key: str = ""

    def check(self, prompts: Sequence[Prompt]) -> None:
        for name in _required(self.function) - {"messages", "prompt", "answer_a", "answer_b"}:
            if lacking := sum(name not in p.row for p in prompts):
                raise UserError(f"the judge {self.name!r} needs {name!r}, and {lacking:,} of {len(prompts):,} prompts have none",
                                hint=f"a column {name} beside `prompt`; or give the parameter a default")  # fmt: skip

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
    key: str = ""

    def check(self, prompts: Sequence[Prompt]) -> None:
        check_form(self.form)

    def judge(self, cases: Sequence[tuple[Match, str, str]]) -> list[Verdict]:
        found = judge_pairs(self.asker, [Pair(m.prompt.messages, a, b) for m, a, b in cases], max_new_tokens=self.tokens, form=self.form)
        return [Verdict(_SIDES.get(v.winner or ""), {"orders": [_SIDES.get(o or "") for o in v.orders]}, v.replies if v.winner is None else ()) for v in found]
