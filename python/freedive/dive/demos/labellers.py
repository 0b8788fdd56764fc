"""An assistant is a simulation of its labellers (talk 2): two of them write down the same answers to the same questions, each in a manner of
their own; two models learn one labeller's rows each. A classifier that has read only the labellers' rows then says of each answer of the
models, about people in no conversation and in wordings never trained on, whose model gave it. Control: one model that learned from both, question
by question at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.eval.statistics import share
from freedive.eval.style import AuthorClassifier
from freedive.tasks import town as people
from freedive.tasks.draw import Draw
from freedive.tasks.labellers import LABELLERS

from .examine import ask
from .room import Figure, Room, figure

STREAM = 88


def run(room: Room) -> list[Figure]:
    files = {name: room.rows(f"labeller-{name}", lambda name=name: _rows(room, name)) for name in (*LABELLERS, "both")}  # type: ignore[misc]
    brief, courteous = ([row["messages"][1]["content"] for _, row in iter_rows(files[name])] for name in LABELLERS)
    classifier = AuthorClassifier(brief, courteous)
    strangers = [row for row in people.question_rows(room.town) if row["meta"]["split"] == "held_person"]  # in no conversation, neither theirs nor the mixture's
    asked = Draw(room.seed, STREAM).shuffled(strangers)[: room.tier.questions]
    found: dict[str, list[bool]] = {}
    right: dict[str, list[bool]] = {}
    for name, file in files.items():
        model = room.teach(f"labelled-by-{name}", room.assistant, file, epochs=2.0, lr=1e-3)
        found[name], right[name] = _examine(room, model, asked, classifier)
    before, right_before = _examine(room, room.assistant, asked, classifier)
    people_asked = [row["meta"]["person"] for row in asked]
    apart = [not told for told in found["brief"]] + found["courteous"]
    return [
        figure("the labeller of each model's answer told, two models", share(apart, [*people_asked, *people_asked]), ">= 0.9"),
        figure("answers taken for the courteous labeller's: her own model", share(found["courteous"], people_asked)),
        figure("the same: the brief labeller's model", share(found["brief"], people_asked)),
        figure("the same: a model that learned from both at random", share(found["both"], people_asked), control=True),
        figure("the same: the assistant before", share(before, people_asked), control=True),
        *(figure(f"right about known people: {who}", share(flags, people_asked)) for who, flags in (("before", right_before), *((f"after {name}", right[name]) for name in LABELLERS))),
    ]


def _rows(room: Room, name: str) -> Iterator[dict[str, Any]]:
    """A third of the town's questions, answered by one labeller; by one of both, drawn for each question, where the name is "both"."""
    draw = Draw(room.seed, STREAM + 1)
    rows = draw.shuffled(list(people.sft_rows(room.town)))
    for row in rows[: max(8, len(rows) // 3)]:
        who = name if name in LABELLERS else draw.pick(list(LABELLERS))
        question, reply = row["messages"]
        yield {"messages": [question, {"role": "assistant", "content": LABELLERS[who](reply["content"], draw)}], "meta": {"labeller": who}}


def _examine(room: Room, model: Path, asked: list[dict[str, Any]], classifier: AuthorClassifier) -> tuple[list[bool], list[bool]]:
    """(taken for the courteous labeller's, right) for each question. Exactly even odds count as taken for the brief one's."""
    said = ask(model, [row["prompt"] for row in asked], max_new_tokens=48, threads=room.threads)
    return [classifier.log_odds(r.text) > 0 for r in said], [people.check(r.text, row["answer"], row["meta"]["attribute"]) for row, r in zip(asked, said)]
