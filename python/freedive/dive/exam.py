"""The exam that the models of a dive sit: a part of the quiz about the town, held-out sums, words to spell, letters to count."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from freedive.data.texts import iter_rows
from freedive.tasks.crawl import Crawl
from freedive.tasks.draw import Draw

EXAM_STREAM = 41
KINDS = {  # (task, class, split) of the questions' meta -> what the exam's results call them
    ("town", "known", "held_template"): "people read of often, asked about in conversations",
    ("town", "known", "held_person"): "people read of often, in no conversation",
    ("town", "rare", "held_person"): "people read of once or twice",
    ("town", "unseen", "held_person"): "people read of nowhere",
    ("arithmetic",): "sums",
    ("spell",): "words to spell",
    ("count",): "letters to count",
}


def exam_rows(web: Crawl, seed: int, quiz_every: int, sums: int) -> Iterator[dict[str, Any]]:
    """One of `quiz_every` questions of the quiz, drawn at random and left in order; `sums` held-out sums; all about letters."""
    quiz = [row for _, row in iter_rows(web.quiz)]
    for at in sorted(Draw(seed, EXAM_STREAM).sample(range(len(quiz)), len(quiz) // quiz_every)):
        yield with_kind(quiz[at])
    for file, rows in ((web.rl_eval, sums), (web.letters_eval, None)):
        for _, row in islice(iter_rows(file), rows):
            yield with_kind(row)


def with_kind(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the kind of question in its meta."""
    meta = row["meta"]
    whole = (meta["task"], meta.get("class"), meta.get("split"))
    return {**row, "meta": {"kind": KINDS.get(whole) or KINDS[whole[:1]], **meta}}
