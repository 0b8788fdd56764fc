"""Practice with answers that can be checked (talk 4.1, 4.2). A model is taught by conversations in which most sums of two four-digit numbers are
answered at once and three in ten are worked out column by column. Then it practises: eight attempts at each problem, and those that came out
right are made likelier. Controls: as many CPU-seconds of more conversations by the same demonstrator, and the same practice paid for by a coin.
"""

from __future__ import annotations

from freedive.tasks import arithmetic

from .practice import MORE, answers, equal_compute, points, powers_of_four, practised, problems, share_of, taught
from .room import Figure, Room

P_WORKED = 0.3
DIGITS = 4  # of three, some seeds learn all sums at once from further conversations (dev/LOG.md)
TOKENS = 64  # of an answer; a worked one has 46
STEPS = 0.3  # of the tier's steps of practice: by then it is right nine times in ten, and what it is compared with gets no more time either


def run(room: Room) -> list[Figure]:
    p = room.tier.practice
    of = problems(room, "rlvr", lambda seed, n, split: arithmetic.rl_rows(seed, n, split, DIGITS), DIGITS)
    start = taught(room, "rlvr-taught", lambda: arithmetic.sft_rows(room.seed, p.rows, P_WORKED, DIGITS), of=[P_WORKED, DIGITS])
    after = practised(room, "rlvr-practised", start, of, TOKENS, STEPS)
    coin = practised(room, "rlvr-coin", start, of, TOKENS, STEPS, reward=["coin"])
    compute = equal_compute(room, "rlvr-compute", after, start)
    more = taught(room, "rlvr-taught-more", lambda: arithmetic.sft_rows(room.seed + MORE, 4 * p.rows, P_WORKED, DIGITS), start, compute["steps"], lr=1e-3, of=[P_WORKED, DIGITS])
    found = {name: answers(room, f"rlvr-{name}", model, of.held_out, TOKENS) for name, model in (("before", start), ("after", after), ("more", more), ("coin", coin))}
    first = {name: a.pass_at(1) for name, a in found.items()}
    return [
        share_of("right at the first try, before", first["before"]),
        share_of("after practice", first["after"]),
        share_of("after as many CPU-seconds of more conversations instead", first["more"], control=True),
        points("practice beside as many CPU-seconds of conversations", first["after"], first["more"], ">= 0.3"),
        points("practice paid by a coin, beside before", first["coin"], first["before"], "<= 0.03", control=True),
        *(share_of(f"pass@{k}, {name}", found[name].pass_at(k)) for k in powers_of_four(p.samples)[1:] for name in ("before", "after")),
    ]
