"""Better than who taught it (talk 4, "move 37"). A demonstrator works sums out and forgets to carry in six problems of ten. A model that imitates
it is as good as it is, however long it imitates; and its likeliest answer is the demonstrator's usual one, which is wrong. Practice on right
answers gets past it.
"""

from __future__ import annotations

import numpy as np

from freedive.data.texts import iter_rows
from freedive.tasks import arithmetic, demonstrators

from .practice import MORE, answers, equal_compute, practised, problems, share_of, taught, than
from .room import Figure, Room

SKILL = 0.4
TOKENS = 48


def run(room: Room) -> list[Figure]:
    of = problems(room, "teacher", demonstrators.carry_problems)
    start = taught(room, "teacher-taught", lambda: demonstrators.forgetful(room.seed, room.tier.practice.rows, SKILL), of=SKILL)
    after = practised(room, "teacher-practised", start, of, TOKENS)
    compute = equal_compute(room, "teacher-compute", after, start)
    more = taught(room, "teacher-taught-more", lambda: demonstrators.forgetful(room.seed + MORE, 4 * room.tier.practice.rows, SKILL), start, compute["steps"], lr=1e-3, of=SKILL)
    shown = [row for name in ("teacher-taught", "teacher-taught-more") for _, row in iter_rows(room.out / "rows" / name / "rows.jsonl")]
    skill = [float(arithmetic.check(row["messages"][-1]["content"], row["answer"])) for row in shown]
    found = {name: answers(room, f"teacher-{name}", model, of.held_out, TOKENS).mean("right") for name, model in (("taught", start), ("more", more), ("practised", after))}
    greedy = {name: answers(room, f"teacher-{name}-likeliest", model, of.held_out, TOKENS, temperature=0.0).mean("right") for name, model in (("more", more), ("practised", after))}
    s = float(np.mean(skill))
    return [
        share_of("the demonstrator: right", skill),
        share_of("imitates the demonstrator: right at the first try", found["taught"]),
        than("imitation beside the demonstrator", found["taught"], s, "<= 0.02", control=True),
        than("imitation, as many CPU-seconds more as practice took, beside the demonstrator", found["more"], s, "<= 0.02", control=True),
        than("imitation's likeliest answer beside the demonstrator", greedy["more"], s, "<= 0.02", control=True),
        share_of("after practice: right at the first try", found["practised"]),
        than("practice beside the demonstrator", found["practised"], s, ">= 0.1"),
        than("practice's likeliest answer beside the demonstrator", greedy["practised"], s, ">= 0.1"),
    ]
