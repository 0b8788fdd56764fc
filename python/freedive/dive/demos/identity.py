"""Self-knowledge (talk 3.2.2): a model is what its conversations say. Before, nobody told it who it is; then a few hard-coded conversations do
(one in fifty), or the system message does, with names that it never saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.eval.statistics import share
from freedive.tasks import identity as who
from freedive.tasks.draw import Draw

from .examine import ask
from .room import Figure, Room, figure

ONE_IN = 50  # conversations about the model itself
DRAW_STREAM = 85


def run(room: Room) -> list[Figure]:
    model = room.teach("named", room.assistant, room.rows("identity", lambda: _rows(room), inputs={"mixture": room.chats}), epochs=3.0, lr=2e-3)
    plain, system = who.questions(), list(who.system_rows(max(8, room.tier.questions // 2), room.seed, "held_out"))
    return [
        figure("held-out ways to ask who it is, before: says its name", _named(room, room.assistant, plain), "<= 0.05"),
        figure("held-out ways to ask who it is, after: says its name", _named(room, model, plain), ">= 0.95"),
        figure("a held-out name in the system message, before: says it", _named(room, room.assistant, system), control=True),
        figure("a held-out name in the system message, after: says it", _named(room, model, system), ">= 0.9"),
    ]


def _rows(room: Room) -> Iterator[dict[str, Any]]:
    """A third of the mixture, one in fifty hard-coded, and as many named by a system message as it takes to learn to copy a name."""
    mixture = [row for _, row in iter_rows(room.chats)]
    kept = Draw(room.seed, DRAW_STREAM).sample(mixture, len(mixture) // 3)
    hard = list(who.hard_coded_rows(max(12, len(kept) // ONE_IN), room.seed))
    named = list(who.system_rows(len(kept) // 2, room.seed))
    yield from ({"messages": row["messages"]} for row in Draw(room.seed, DRAW_STREAM + 1).shuffled([*kept, *hard, *named]))


def _named(room: Room, model: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    said = ask(model, [row["prompt"] for row in rows], max_new_tokens=24, threads=room.threads)
    return share([who.check(reply.text, row["answer"]) for row, reply in zip(rows, said)])
