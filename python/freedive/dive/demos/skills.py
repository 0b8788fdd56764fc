"""Tokens to think, and what tokens hide (talk 3.3): one model, one training, each problem in every style it knows.

The mixture has all styles equally often, and a system message chooses; dots and letters need more practice than that (letter by letter it has to
learn that two tokens are the same letter), again in all styles alike. All problems are held out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from freedive.eval.statistics import share
from freedive.inference import load
from freedive.inference.tools import Python
from freedive.runs import json_line, stage
from freedive.tasks import counting, reckoning
from freedive.tasks.draw import Draw

from .examine import Said, ask
from .room import Figure, Room, RowsConfig, figure

ORDER_STREAM = 88
BEGIN = "Answer "  # put into the mouth of a model that was about to work in steps


def counter(room: Room) -> Path:
    """The assistant after more practice with dots and letters."""

    def rows() -> Iterator[dict[str, Any]]:
        practice = [*counting.letters_rows(room.seed, room.tier.letters), *counting.dots_rows(room.seed, max(1, room.tier.letters // 80))]
        yield from ({"messages": row["messages"]} for row in Draw(room.seed, ORDER_STREAM).shuffled(practice))

    return room.teach("counter", room.assistant, room.rows("counter", rows, room.tier.letters), epochs=3.0, lr=2e-3, replay_fraction=0.0)


def sums(room: Room) -> list[Figure]:
    """Sums of four numbers: at once, in steps, and cut off after no step at all."""
    rows = list(reckoning.sum_rows(room.seed, room.tier.questions, "held_out"))
    by_style = _styles(room, "sums", room.assistant, rows)
    steps = [row for row in rows if row["meta"]["style"] == "steps"]
    forced = ask(room.assistant, [row["prompt"] for row in steps], begin=BEGIN, max_new_tokens=6, threads=room.threads)
    return [
        figure("sums of four numbers, answer at once", by_style["direct"], "<= 0.4"),
        figure("sums of four numbers, in steps", by_style["steps"], ">= 0.95"),
        figure("asked for steps, but the answer forced at once", share([counting.check(s.text, r["answer"]) for r, s in zip(steps, forced)]), "<= 0.4", control=True),
    ]


def products(room: Room) -> list[Figure]:
    rows = list(reckoning.product_rows(room.seed, room.tier.questions, "held_out"))
    by_style = _styles(room, "products", room.assistant, rows)
    return [figure("3x3-digit products, answer at once", by_style["direct"], "<= 0.1"), figure("3x3-digit products, with Python", by_style["python"], ">= 0.97")]


def dots(room: Room) -> list[Figure]:
    numbers = len(counting.numbers("held_out"))
    rows = list(counting.dots_rows(room.seed, max(1, room.tier.questions // numbers), "held_out"))
    by_style = _styles(room, "dots", counter(room), rows, cluster="dots")
    trained = [row for row in counting.dots_rows(room.seed + 1, max(1, room.tier.questions // 60), "train") if row["meta"]["dots"] in counting.ASKED_DOTS and row["meta"]["style"] == "direct"]
    seen = _styles(room, "dots-trained", counter(room), trained, cluster="dots")
    return [
        figure("10 to 60 dots, counts never trained, at once", by_style["direct"], "<= 0.3"),
        figure("10 to 60 dots, counts never trained, with Python", by_style["python"], ">= 0.97"),
        figure("10 to 60 dots, counts of the training, at once", seen["direct"], control=True),
    ]


def letters(room: Room) -> list[Figure]:
    by_style = _styles(room, "letters", counter(room), list(counting.letters_rows(room.seed, room.tier.questions, "held_out")), cluster="word")
    return [
        figure("letters in words never trained, at once", by_style["direct"], "<= 0.7"),
        figure("letters in words never trained, spelled first", by_style["spelled"], ">= 0.95"),
        figure("letters in words never trained, with Python", by_style["python"], ">= 0.97"),
    ]


def _styles(room: Room, name: str, model: Path, rows: Sequence[dict[str, Any]], cluster: str | None = None) -> dict[str, dict[str, Any]]:
    """Share of right answers in each style; the answers are kept in OUT/answers-NAME."""
    out = room.out / f"answers-{name}"
    lm, prompts = load(model, threads=room.threads, dtype="auto"), [row["prompt"] for row in rows]
    if any(row["meta"]["style"] == "python" for row in rows):
        with contextlib.closing(Python()) as python:
            said: list[Said] = ask(lm, prompts, {"python": python})
    else:
        said = ask(lm, prompts)
    right = [counting.check(reply.text, row["answer"]) for row, reply in zip(rows, said)]
    with stage("demos-answers", RowsConfig(out, name, room.tier.questions, room.seed), out=out, inputs={"model": model}, force=True) as artefact:
        for row, reply, good in zip(rows, said, right):
            artefact.append("answers.jsonl", json_line({"prompt": row["prompt"], "answer": row["answer"], "reply": reply.text, "calls": reply.calls, "right": good, "meta": row["meta"]}))
    result = {}
    for style in dict.fromkeys(row["meta"]["style"] for row in rows):
        chosen = [i for i, row in enumerate(rows) if row["meta"]["style"] == style]
        clusters = [rows[i]["meta"][cluster] for i in chosen] if cluster else None
        result[style] = share([right[i] for i in chosen], clusters)
    return result
