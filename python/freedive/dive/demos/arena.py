"""An arena (talk 5.2): the assistant at four ages, and once more with too high a temperature, fight over the town's questions, judged right or wrong.

Whom the arena puts first is compared with gold: who is right how often, about other people. Its intervals are put to the test on parts of its own battles:
the 95 % interval of a tenth is to hold the rating that the other nine tenths give.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from freedive.eval.arena.contestants import Contestant, read_contestants
from freedive.eval.arena.judges import Scored
from freedive.eval.arena.log import read_log, to_battles
from freedive.eval.arena.play import fill, play
from freedive.eval.arena.report import rated, write_page
from freedive.eval.arena.room import Match, Prompt, make_prompt
from freedive.eval.arena.room import Room as Arena
from freedive.eval.ratings import Battles, rate
from freedive.eval.statistics import share
from freedive.tasks import town as people
from freedive.tasks.draw import Draw

from .room import Figure, Room, figure

STREAM = 98
AGES = (0.1, 0.3, 1.0)  # epochs of the mixture; the assistant has had all of them
HOT = 1.5  # temperature
PARTS = 10


def run(room: Room) -> list[Figure]:
    players = _contestants(room)
    rows = [row for row in people.question_rows(room.town) if row["meta"]["split"] == "held_template"]
    names = Draw(room.seed, STREAM).shuffled(sorted({row["meta"]["person"] for row in rows}))
    fought_about = set(names[: len(names) // 2])
    shuffled = Draw(room.seed, STREAM + 1).shuffled(rows)
    fought, other = ([row for row in shuffled if (row["meta"]["person"] in fought_about) == side][: room.tier.questions] for side in (True, False))
    arena = Arena(room.out / "arena", players, room.seed)
    prompts, gold_prompts = ([make_prompt(row["prompt"], {k: v for k, v in row.items() if k != "prompt"}) for row in part] for part in (fought, other))
    judge = Scored("right", _right)
    play(arena, prompts, [judge], threads=room.threads)
    gold = _gold(arena, gold_prompts, room.threads)
    found, _ = read_log(arena.log)
    found = [b for b in found if b.judge == judge.name]
    made = rated(found)
    write_page(arena.folder / "report.html", made, "Arena of the town")
    order = made.plain.order()
    pairs = list(combinations(order, 2))  # the better one by the arena first
    apart = [_differ(gold[a], gold[b]) for a, b in pairs]
    agreed = [not told or float(np.mean(gold[a])) > float(np.mean(gold[b])) for told, (a, b) in zip(apart, pairs)]
    persons = [p.row["meta"]["person"] for p in gold_prompts]
    return [
        figure("pairs in gold's order, or that gold does not tell apart", share(agreed), ">= 1.0"),
        figure("pairs that gold tells apart beyond doubt", share(apart)),
        figure("a tenth of the battles: its 95 % interval holds the rating of the other nine tenths", share(_coverage(to_battles(found))), ">= 0.9"),
        *(figure(f"right about other people: {name}, place {place} in the arena", share(gold[name], persons)) for place, name in enumerate(order, 1)),
    ]


def _contestants(room: Room) -> list[Contestant]:
    ages = [room.teach(f"age-{age:g}".replace(".", "-"), room.base, room.chats, epochs=age * room.tier.epochs / 3, lr=2e-3, replay_fraction=0.5) for age in AGES]
    given = [(path, f"after {age:g} epochs", 0.0) for path, age in zip(ages, AGES)] + [(room.assistant, "the assistant", 0.0), (room.assistant, "the assistant, too hot", HOT)]
    return [c for path, name, t in given for c in read_contestants([f"{path},name={name},temperature={t},max_tokens=48"])]


def _right(prompts: list[Any], completions: list[str], completion_ids: Any = None, *, answer: list[str], meta: list[dict[str, Any]], **_: Any) -> list[float]:
    return [float(people.check(said, a, m["attribute"])) for said, a, m in zip(completions, answer, meta)]


def _gold(arena: Arena, prompts: Sequence[Prompt], threads: int | None) -> dict[str, list[bool]]:
    """Right or wrong about prompts that nobody fights over."""
    names = sorted(arena.contestants)
    fill(arena, [Match("", p, a, b) for p in prompts for a, b in zip(names, names[1:] + names[:1])], threads)
    return {n: [bool(_right([], [arena.answers[p.id, n] or ""], answer=[str(p.row["answer"])], meta=[p.row["meta"]])[0]) for p in prompts] for n in names}


def _differ(a: Sequence[bool], b: Sequence[bool]) -> bool:
    """Beyond doubt, question by question (a normal interval of the paired difference)."""
    each = np.asarray(a, float) - np.asarray(b, float)
    return bool(abs(each.mean()) > 1.96 * each.std(ddof=1) / np.sqrt(len(each)))


def _coverage(battles: Battles) -> list[bool]:
    """For each tenth of the prompts and each model: does its interval hold what the others say?"""
    assert battles.cluster is not None
    out = []
    parts = min(PARTS, int(battles.cluster.max()) + 1)
    for part in range(parts):
        inside = battles.cluster % parts == part
        tenth, rest = (rate(Battles(battles.models, *(x[keep] for x in (battles.first, battles.second, battles.score, battles.cluster)))) for keep in (inside, ~inside))
        told = {r.model: r.rating for r in rest.ratings}
        out += [r.interval_95[0] - 1e-6 <= told[r.model] <= r.interval_95[1] + 1e-6 for r in tenth.ratings]
    return out
