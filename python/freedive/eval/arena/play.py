"""Battles without a page: whoever has not answered a prompt yet does, then judges say who was better. Stopped at any moment, the same call goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freedive.runs import progress

from .contestants import answer, load_contestant
from .judges import Judge
from .room import Match, Prompt, Room, decision

AT_ONCE = 16  # battles that a judge is given together; on the disk after each such part


@dataclass
class Played:
    """What came of one judge's work."""

    judged: int = 0
    unclear: int = 0  # a model gave no verdict
    silent: int = 0  # a function said nothing
    two_faced: int = 0  # asked both ways, and the place decided


def play(room: Room, prompts: Sequence[Prompt], judges: Sequence[Judge], limit: int | None = None, threads: int | None = None) -> dict[str, Played]:
    """All pairs on all prompts, or the first `limit` battles; what is decided already counts. Returns what each judge did now."""
    matches = room.matches(prompts)[:limit]
    room.keep_judges({judge.name: judge.key for judge in judges if judge.key})
    done = {judge.name: room.judged(judge.name, judge.key) for judge in judges}
    fill(room, [m for m in matches if any(m.id not in found for found in done.values())], threads)
    return {judge.name: _judge(room, judge, [m for m in matches if m.id not in done[judge.name]]) for judge in judges}


def fill(room: Room, matches: Sequence[Match], threads: int | None = None) -> None:
    """The answers that these battles lack, model after model: one is in memory at a time."""
    lacking: dict[str, dict[str, Prompt]] = {}
    for m in matches:
        for name in (m.left, m.right):
            if (m.prompt.id, name) not in room.answers:
                lacking.setdefault(name, {})[m.prompt.id] = m.prompt
    loaded, lm = None, None
    with progress.bar(sum(map(len, lacking.values())), "answers") as bar:
        for c in sorted((room.contestants[name] for name in lacking), key=lambda c: c.key()):
            wanted = list(lacking[c.name].values())
            if not c.service and loaded != c.key():
                lm = None  # the old one goes before the new one comes
                loaded, lm = c.key(), load_contestant(c, threads)

            def tell(texts: dict[int, str | None]) -> None:
                room.keep_answers(c.name, [(wanted[i], text) for i, text in texts.items()])
                bar.advance(len(texts), text=c.name)

            answer(c, lm, [p.messages for p in wanted], [room.seed_of(p, c.name) for p in wanted], tell)


def _judge(room: Room, judge: Judge, matches: Sequence[Match]) -> Played:
    told, told_by = Played(), {"judge_hash": judge.key} if judge.key else {}
    both = [(m, a, b) for m in matches if (a := room.answers[m.prompt.id, m.left]) is not None and (b := room.answers[m.prompt.id, m.right]) is not None]
    with progress.bar(len(both), judge.name) as bar:
        for at in range(0, len(both), AT_ONCE):
            part, decided = both[at : at + AT_ONCE], []
            for (match, a, b), verdict in zip(part, judge.judge(part)):
                if verdict.winner is not None:
                    decided.append(decision(match, verdict.winner, judge.name, (a, b), **told_by, **verdict.more))
                elif verdict.unclear:
                    room.keep_unclear(match, judge.name, verdict.unclear, **told_by)
                    told.unclear += 1
                else:
                    told.silent += 1
                orders = verdict.more.get("orders", ())
                told.two_faced += len(set(orders)) > 1 and None not in orders
            room.keep_battles(decided)
            told.judged += len(decided)
            bar.advance(len(part))
    return told
