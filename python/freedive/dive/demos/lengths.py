"""Answers grow long because that pays (talk 4.2). A demonstrator works one sum of four numbers in ten out in steps and answers the others at
once; so does the model, until practice on right answers alone makes the long answers likelier. Control: the same practice of a model whose
demonstrator never wrote a long answer: what is never tried is never rewarded.
"""

from __future__ import annotations

from freedive.tasks import demonstrators

from .practice import answers, points, practised, problems, share_of, taught, times
from .room import Figure, Room

P_STEPS = 1 / 10
TOKENS = 64  # of an answer; one in steps has 46
STEPS = 1.5  # times the tier's: at first one attempt in ten can be right


def run(room: Room) -> list[Figure]:
    of = problems(room, "length", demonstrators.sum_problems)
    figures = []
    for name, p_steps in (("seeded", P_STEPS), ("unseeded", 0.0)):
        control = not p_steps
        start = taught(room, f"length-{name}", lambda p_steps=p_steps: demonstrators.mostly_at_once(room.seed, 2 * room.tier.practice.rows, p_steps), of=p_steps)  # type: ignore[misc]
        after = practised(room, f"length-{name}-practised", start, of, TOKENS, STEPS)
        was, is_now = (answers(room, f"length-{name}-{when}", model, of.held_out, TOKENS) for when, model in (("before", start), ("after", after)))
        told = "never shown a long solution" if control else f"shown {P_STEPS:.0%} long solutions"
        figures += [
            share_of(f"{told}: right at the first try, before", was.mean("right"), control=control),
            share_of(f"{told}: after practice", is_now.mean("right"), control=control),
            points(f"{told}: right, after practice beside before", is_now.mean("right"), was.mean("right"), "<= 0.1" if control else ">= 0.3", control),
            times(f"{told}: length of an answer, after practice beside before", is_now.mean("length"), was.mean("length"), "<= 1.1" if control else ">= 1.5", control),
        ]
    return figures
