"""Preferences as rows: reading, checking, rendering, and a report of what was found.

Forms (sft/rows.py reads them): TRL's {"prompt", "chosen", "rejected"}, with or without the prompt, texts or lists of messages; ranked lists
{"prompt", "completions", "ranks"}, as `freedive label export` writes them; OASST's trees, whose ranked siblings are lists. All become lists of
K >= 2 answers to one prompt, each from the conversation's first token through the answer's end-of-turn token: that is where a reward is read.

Held out is a part of the prompts, by a hash of the first message, so that no prompt, no tree and no labeller's opinion of it is on both sides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from freedive.data.sources import is_remote
from freedive.model import Batch
from freedive.runs import UserError
from freedive.sft.data import TOLD, DataSource, is_held_out, iter_data, parse_data
from freedive.sft.rows import Message, Ranking, rankings, trees
from freedive.tokenizer import Tokenizer, render

FORMS = 'known: {"prompt", "chosen", "rejected"}; {"prompt", "completions", "ranks"}, rank 0 is best; OASST trees'


@dataclass(frozen=True)
class Ranked:
    """Answers to one prompt, best first or not: `ranks` says."""

    prompt: list[int]  # ids, the opened assistant's turn included
    answers: list[list[int]]  # ids of each, its end-of-turn token included
    ranks: list[int]  # 0 is best, equal ones tie; not all are equal
    key: str  # first message: what is drawn anew together for intervals
    margin: float = 0.0  # by how much the better one should win
    row: dict[str, Any] = field(default_factory=dict)  # prompt and answers as messages, for people

    @property
    def sequences(self) -> list[list[int]]:
        return [[*self.prompt, *a] for a in self.answers]

    @property
    def tokens(self) -> int:
        """Of a batch: the prompt is there once, its last id before every answer."""
        return len(self.prompt) - 1 + sum(1 + len(a) for a in self.answers)

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) of every two answers that are no tie."""
        n = range(len(self.ranks))
        return [(i, j) for i in n for j in n if self.ranks[i] < self.ranks[j]]


@dataclass
class Report:
    """What one --data holds, as data.json of the run has it."""

    path: str
    rows: int = 0
    lists: int = 0
    held_out: int = 0  # of them
    pairs: int = 0  # of unlike rank
    ties: int = 0
    answers: Counter[int] = field(default_factory=Counter)  # K -> lists
    longer_wins: float = 0.0  # share of pairs whose better answer has more tokens: what length alone would get right
    too_long: int = 0  # answers left out
    empty: int = 0
    repeated: int = 0  # answers that stand in the list already
    left_out: int = 0  # lists without two answers of unlike rank
    tokens: int = 0
    longest: int = 0
    problems: list[str] = field(default_factory=list)
    n_problems: int = 0

    def wrong(self, where: str, what: str) -> None:
        self.n_problems += 1
        if len(self.problems) < TOLD:
            self.problems.append(f"{where}: {what}")

    def told(self) -> dict[str, Any]:
        """As JSON; a path by its last part."""
        d = {k: v for k, v in self.__dict__.items() if k not in ("problems", "n_problems")}
        return d | {"path": self.path if is_remote(self.path) else Path(self.path).name, "answers": {str(k): n for k, n in sorted(self.answers.items())}}

    def __str__(self) -> str:
        kinds = ", ".join(f"{n:,} of {k}" for k, n in sorted(self.answers.items()))
        parts = [f"{self.path}: {self.rows:,} rows, {self.lists:,} lists ({kinds or 'none'} answers), {self.pairs:,} pairs, {self.tokens:,} tokens; the longer answer is the better one in {100 * self.longer_wins:.0f} %"]
        for n, what in ((self.ties, "ties"), (self.held_out, "lists held out"), (self.too_long, "answers longer than the context left out"), (self.empty, "empty answers left out"),
                        (self.repeated, "repeated answers left out"), (self.left_out, "lists without two answers of unlike rank left out")):  # fmt: skip
            parts += [f"{n:,} {what}"] * bool(n)
        return "; ".join(parts)


def prompt_ids(tok: Tokenizer, prompt: Sequence[Message] | str) -> list[int]:
    """The prompt rendered, with the assistant's turn opened. Raises UserError."""
    return render(tok, [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, add_generation_prompt=True)[0]


def answer_ids(tok: Tokenizer, prompt: Sequence[Message], answer: Sequence[Message] | str) -> list[int]:
    """The answer as it follows `prompt_ids`, through its last end-of-turn token. A text is encoded as text, whatever stands in it, and may be empty."""
    if isinstance(answer, str):
        return [*tok.encode(answer), tok.im_end]
    if len(answer) == 1 and not answer[0].get("tool_calls"):
        return [*tok.encode(answer[0]["content"]), tok.im_end]
    whole, begin = render(tok, [*prompt, *answer])[0], render(tok, list(prompt), add_generation_prompt=True)[0]
    last = len(whole) - whole[::-1].index(tok.im_end)
    return whole[len(begin) : last]


def read_preferences(given: Any, tok: Tokenizer, context: int, val_fraction: float = 0.0, seed: int = 0) -> tuple[list[Ranked], list[Ranked], list[Report]]:
    """(to train on, held out, a report for each file). Raises UserError for a file with rows that are no preferences, or without any."""
    train: list[Ranked] = []
    held: list[Ranked] = []
    reports = []
    for source in parse_data(given):
        if source.weight is not None:
            raise UserError(f"{source.path}:{source.weight} has a weight; preferences have none", hint="weights mix the conversations of freedive sft")
        report = Report(source.path)
        mine = list(_ranked(source, tok, context, report))
        if report.problems:
            more = f" (and {report.n_problems - 1:,} more rows with problems)" if report.n_problems > 1 else ""
            raise UserError(report.problems[0] + more, hint=FORMS)
        if not mine:
            why = f": {report.too_long:,} answers are longer than {context} tokens" if report.too_long else f": {report.empty:,} answers are empty" if report.empty else ""
            raise UserError(f"{source.path} gives no two answers of unlike rank{why}", hint="raise --context, or give other data" if report.too_long else FORMS)
        out = [is_held_out(r.row["prompt"], val_fraction, seed) for r in mine]
        report.held_out = sum(out)
        train += [r for r, o in zip(mine, out) if not o]
        held += [r for r, o in zip(mine, out) if o]
        reports.append(report)
    return train, held, reports


def _ranked(source: DataSource, tok: Tokenizer, context: int, report: Report) -> Iterator[Ranked]:
    places: list[tuple[str, int]] = []

    def numbered() -> Iterator[tuple[int, dict[str, Any]]]:
        for file, line, row in iter_data(source):
            report.rows += 1
            places.append((file, line))
            yield len(places) - 1, row

    longer = 0.0
    for index, row in trees(numbered()):
        where = "{}, line {}".format(*places[index])
        try:
            found = rankings(row)
            margin = _margin(row)
        except (ValueError, TypeError, KeyError) as error:
            report.wrong(where, f"no {error}" if isinstance(error, KeyError) else str(error))
            continue
        for ranking in found:
            try:
                made = _one(ranking, margin, tok, context, report)
            except UserError as error:
                report.wrong(where, error.message)
                continue
            if made is None:
                report.left_out += 1
                continue
            pairs, lengths = made.pairs(), [len(a) for a in made.answers]
            report.lists += 1
            report.pairs += len(pairs)
            report.ties += len(lengths) * (len(lengths) - 1) // 2 - len(pairs)
            report.answers[len(lengths)] += 1
            report.tokens += made.tokens
            report.longest = max(report.longest, max(map(len, made.sequences)))
            longer += sum((lengths[i] > lengths[j]) + 0.5 * (lengths[i] == lengths[j]) for i, j in pairs)
            yield made
    report.longer_wins = longer / report.pairs if report.pairs else 0.0


def _margin(row: dict[str, Any]) -> float:
    """By how much the better answer should win; 0 where nothing is said. Raises ValueError."""
    given = row.get("margin") or 0.0
    try:
        margin = float(given)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise ValueError(f"the margin is {given!r:.40}; it must be a finite number")
    return margin


def _one(ranking: Ranking, margin: float, tok: Tokenizer, context: int, report: Report) -> Ranked | None:
    """The list as ids, without what cannot be used; None if too little is left."""
    if not ranking.prompt and not all(ranking.completions):
        raise UserError("an answer is empty, and there is no prompt", hint=FORMS)
    if not ranking.prompt:
        raise UserError("the answers have no prompt, and do not begin alike", hint=FORMS)
    asked = len(ranking.prompt)
    completions = [a[asked:] if a[:asked] == ranking.prompt else a for a in ranking.completions]  # whole conversations beside their prompt: UltraFeedback's rows
    for answer in completions:
        if answer and (answer[-1]["role"] != "assistant" or answer[0]["role"] in ("user", "system")):
            what = f"ends in a turn of the {answer[-1]['role']}" if answer[-1]["role"] != "assistant" else f"begins with a turn of the {answer[0]['role']}"
            raise UserError(f"an answer {what}: an answer is what the assistant says", hint=FORMS)
    prompt = prompt_ids(tok, ranking.prompt)
    answers, ranks, texts = [], [], []
    for answer, rank in zip(completions, ranking.ranks, strict=True):
        if not answer or not any(str(m.get("content") or "").strip() or m.get("tool_calls") for m in answer):
            report.empty += 1
            continue
        ids = answer_ids(tok, ranking.prompt, answer)
        if len(prompt) + len(ids) > context:
            report.too_long += 1
        elif ids in answers:
            report.repeated += 1
        else:
            answers.append(ids)
            ranks.append(rank)
            texts.append(answer)
    if len(set(ranks)) < 2:
        return None
    return Ranked(prompt, answers, ranks, str(next((m for m in ranking.prompt if m["role"] != "system"), ranking.prompt[0])["content"]), margin, {"prompt": ranking.prompt, "completions": texts, "ranks": ranks})


def packed(lists: Sequence[Ranked]) -> Batch:
    """All answers as one batch without targets; the answers of a list share its prompt. A sequence's last entry is its end-of-turn token."""
    sequences: list[tuple[Any, Any]] = []
    prefixes: list[tuple[int, int]] = []
    for r in lists:
        first, shared = len(sequences), len(r.prompt) - 1
        for number, answer in enumerate(r.answers):
            ids = [*r.prompt, *answer] if number == 0 else [r.prompt[-1], *answer]
            sequences.append((ids, np.full(len(ids), -1, np.int32)))
            prefixes.append((first, shared if number else 0))
    return Batch.pack(sequences, prefixes)


def longer_is_better(lists: Sequence[Ranked]) -> np.ndarray:
    """For each pair of `all_pairs`: 1 where the better answer has more tokens, ½ where equally many: the accuracy of length alone."""
    sign = lambda r, i, j: np.sign(len(r.answers[i]) - len(r.answers[j])) / 2 + 0.5
    return np.array([sign(r, i, j) for r in lists for i, j in r.pairs()])
