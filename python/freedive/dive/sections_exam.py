"""What the report shows of examinations: the share of right answers with its interval, and answers of several models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from freedive.eval.statistics import wilson
from freedive.runs.page import Reply, Share, asked, details, paragraph, percent, shares, table

from .found import Answer, Exam

T = TypeVar("T")
MOST_GROUPS = 12  # a meta key with more values than this is a name, not a kind
LABELS = {"eval-base": "base model", "eval-sft": "assistant", "eval-rl": "after RL"}
COLOURS = {"eval-base": 3, "eval-sft": 0, "eval-rl": 1}  # the same model has the same colour everywhere
MOST_CHARACTERS = 160  # of a reply on a card
KINDS = {
    ("task", "town"): "people of the town",
    ("task", "arithmetic"): "sums",
    ("task", "spell"): "spell a word",
    ("task", "count"): "count a letter in a word",
}
INTERVAL = "The line in each bar is the 95 % interval (Wilson's): how far chance alone could move the share."


def label(exam: Exam) -> str:
    return LABELS.get(exam.name, exam.name)


def values(exams: Sequence[Exam], key: str) -> list[str]:
    """The values of a meta key in these exams, of the last one first."""
    return list(dict.fromkeys(value for e in reversed(exams) for value in e.values(key)))


def main_key(exams: Sequence[Exam]) -> str | None:
    """What to split an exam by: `task`, or what the evaluation was asked to group by, if there are a few kinds of it."""
    keys = ["task", *dict.fromkeys(key for e in exams for key in e.groups)]
    return next((key for key in keys if 1 < len(values(exams, key)) <= MOST_GROUPS), None)


def share_of(exam: Exam, meta: dict[str, str] | None = None, of: str = "right", name: str | None = None) -> Share | None:
    """A bar of `shares`, with the model's name or `name` beside it; None if there is no such question."""
    share, count = exam.share(meta, of)
    if share is None:
        return None
    low, high = wilson(round(share * count), count)
    return Share(label(exam) if name is None else name, share, low, high, percent(share, 1), f"{100 * low:.1f} to {100 * high:.1f}, of {count:,}", COLOURS.get(exam.name, 0))


def share_table(exams: Sequence[Exam]) -> str:
    """All questions, each kind of them, and how many answers ended by themselves: a bar for each exam."""
    key = main_key(exams)
    asked_for: list[tuple[str, dict[str, str], str]] = [("all questions", {}, "right")]
    if key:
        asked_for += [(KINDS.get((key, value), value), {key: value}, "right") for value in values(exams, key)]
    asked_for.append(("ended by themselves, right or wrong", {}, "stopped"))
    name = "" if len(exams) == 1 else None  # one model alone needs no name
    groups = [(words, [s for e in exams if (s := share_of(e, meta, of, name))]) for words, meta, of in asked_for]
    return shares(("questions", "" if name == "" else "model", "right answers"), [g for g in groups if g[1]]) + paragraph(INTERVAL)


def every_group(exams: Sequence[Exam]) -> str:
    """The same by every kind that the questions' meta data tell apart, and by pairs of kinds."""
    keys = list(dict.fromkeys(key for e in exams for a in e.answers for key in a.kind))
    keys = [key for key in keys if 1 < len(values(exams, key)) <= MOST_GROUPS]
    rows: list[tuple[Any, ...]] = [(key, value, *(_right(e, {key: value}) for e in exams)) for key in keys for value in values(exams, key)]
    body = details("Right answers by every kind of question", table(("questions", "", *map(label, exams)), rows, left=2)) if rows else ""
    for first, second in (("class", "template"), ("class", "split"), ("class", "attribute")):
        pairs = [(a, b) for a in values(exams, first) for b in values(exams, second) if first in keys and second in keys]
        lines = [(a, b, *(_right(e, {first: a, second: b}) for e in exams)) for a, b in pairs]
        lines = [line for line in lines if set(line[2:]) != {"–"}]
        if lines:
            body += details(f"By {first} and {second}", table((first, second, *map(label, exams)), lines, left=2))
    return body


def _right(exam: Exam, meta: dict[str, str]) -> str:
    share, count = exam.share(meta)
    return f"{percent(share, 1)} ({count:,})" if count else "–"


def side_by_side(exams: Sequence[Exam], count: int) -> list[str]:
    """Cards with a question that all exams asked, and each model's reply; `count` of them, of each kind some."""
    replies = [{a.question: a for a in e.answers} for e in exams]
    common = [q for q in replies[0] if all(q in r for r in replies)] if len(exams) > 1 else []
    key = main_key(exams)
    kinds = {q: replies[0][q].kind.get(key, "") if key else "" for q in common}
    by_kind = [spread([q for q in common if kinds[q] == kind], count) for kind in dict.fromkeys(kinds.values())]
    chosen = [q for turn in zip_longest(*by_kind) for q in turn if q is not None]
    return [asked(q, *(judged(r[q], label(e)) for e, r in zip(exams, replies))) for q in chosen[:count]]


def judged(a: Answer, who: str = "assistant", note: str = "") -> Reply:
    """A reply with its verdict."""
    verdict = "right" if a.right else f"wrong, it is {a.expected}"
    words = a.shown() if len(a.reply) <= MOST_CHARACTERS else a.reply[:MOST_CHARACTERS] + " …"
    return Reply(who, words, f"{verdict}; {note}" if note else verdict, a.right)


def spread(rows: list[T], count: int) -> list[T]:
    """`count` of the rows, evenly apart, the first and the last among them where there are two or more."""
    if len(rows) <= count:
        return rows
    return [rows[round(i * (len(rows) - 1) / max(1, count - 1))] for i in range(count)]
