"""The arena on real data: SmolLM2 at several temperatures and types, asked capitals of the world; people's orders of answers (OASST), and what looks have to do with them;
and how often intervals hold the truth.

    python benchmarks/arena.py --model SmolLM2-135M-Instruct.Q4_1.gguf --other SmolLM2-135M-Instruct.Q8_0.gguf --data ../shared/data [--questions 60] [--out arena]

One JSON line per case: contestants by gold (right about other questions) and by the arena; the judges' agreement with people; simulations.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from freedive.eval.arena.contestants import read_contestants
from freedive.eval.arena.judges import Scored
from freedive.eval.arena.log import read_log
from freedive.eval.arena.play import fill, play
from freedive.eval.arena.report import lines, rated, write_page
from freedive.eval.arena.room import Match, Room, make_prompt
from freedive.eval.arena.style import NAMES, counts, differences
from freedive.eval.ratings import BASE, POINTS, Battles, rate
from freedive.eval.statistics import share
from freedive.sft.labels.importing import read_items

TEMPERATURES = (0.0, 0.8, 1.2, 1.6)


def say(case: str, **numbers: Any) -> None:
    print(json.dumps({"benchmark": "arena", "case": case, **numbers}, ensure_ascii=False), flush=True)


def capitals(data: Path) -> list[tuple[str, str]]:
    """(country or state, capital)."""
    folder = data / "sft" / "facts"
    countries = json.loads((folder / "countries_with_capitals.json").read_text("utf-8"))["countries"]
    states = json.loads((folder / "us_state_capitals.json").read_text("utf-8"))["capitals"]
    found = [(row["name"], row["capital"]) for row in countries] + [(f"the state {row['state']}", row["capital"]) for row in states]
    return [(of, capital) for of, capital in found if capital]


def right(prompts: list[Any], completions: list[str], completion_ids: Any = None, *, answer: list[str], **_: Any) -> list[float]:
    return [float(a.lower() in said.lower()) for said, a in zip(completions, answer)]


def contestants(a: argparse.Namespace, out: Path) -> None:
    """Who is right more often, about other questions, is to be first in the arena."""
    began = time.process_time()
    pairs = capitals(a.data)
    random.Random(0).shuffle(pairs)
    prompts = [make_prompt([{"role": "user", "content": f"What is the capital of {c}? Answer with its name."}], {"answer": capital}) for c, capital in pairs[: 2 * a.questions]]
    given = [f"{a.model},name=t{t:g},temperature={t},max_tokens=24,dtype=int8" for t in TEMPERATURES]
    given += [f"{a.other},name=other,temperature=0,max_tokens=24,dtype=int8"] if a.other else []
    room = Room(out, read_contestants(given), seed=0)
    fought, other = prompts[: a.questions], prompts[a.questions :]
    play(room, fought, [Scored("right", right)], threads=a.threads)
    names = sorted(room.contestants)
    fill(room, [Match("", p, x, y) for p in other for x, y in zip(names, names[1:] + names[:1])], a.threads)
    gold = {n: [bool(right([], [room.answers[p.id, n] or ""], answer=[p.row["answer"]])[0]) for p in other] for n in names}
    made = rated(read_log(room.log)[0])
    write_page(out / "report.html", made)
    order = made.plain.order()
    apart = [(x, y) for x, y in combinations(order, 2) if _differ(gold[x], gold[y])]
    say("contestants", arena=[{"model": r.model, "rating": round(r.rating), "interval_95": [round(v) for v in r.interval_95], "rank": r.rank, "gold": share(gold[r.model])} for r in made.plain.ratings],
        pairs_that_gold_tells_apart=len(apart), in_golds_order=sum(np.mean(gold[x]) > np.mean(gold[y]) for x, y in apart).item() if apart else 0, battles=len(made.battles),
        cpu_seconds=round(time.process_time() - began))  # fmt: skip
    print("\n".join(lines(made)))


def _differ(a: Sequence[bool], b: Sequence[bool]) -> bool:
    each = np.asarray(a, float) - np.asarray(b, float)
    return bool(abs(each.mean()) > 1.96 * each.std(ddof=1) / np.sqrt(len(each)))


def people(a: argparse.Namespace) -> None:
    """Pairs of answers that people put in an order: who wins if the longer one does; and the odds that each look is worth, prompts taken together.
    Sides are drawn, so the two "models" are nobody and must come out equal: the control."""
    items, _ = read_items(str(a.data / "sft" / "oasst_en_100_trees.jsonl.gz"))
    draw, counted, score, prompt, longer = random.Random(0), [], [], [], []
    for item in items:
        for x, y in combinations(item.answers, 2):
            if item.ranks and item.ranks[x.id] != item.ranks[y.id]:
                x, y = (x, y) if draw.random() < 0.5 else (y, x)
                counted.append((counts(x.text), counts(y.text)))
                score.append(float(item.ranks[x.id] < item.ranks[y.id]))
                prompt.append(item.id)
                if counted[-1][0][0] != counted[-1][1][0]:
                    longer.append(((counted[-1][0][0] > counted[-1][1][0]) == bool(score[-1]), item.id))
    style, names = differences(counted)
    n = len(score)
    numbers = {p: i for i, p in enumerate(dict.fromkeys(prompt))}
    found = rate(Battles(("left", "right"), np.zeros(n, int), np.ones(n, int), np.array(score), np.array([numbers[p] for p in prompt]), style, names))
    say("people", pairs=n, prompts=len(numbers), the_longer_answer_wins=share([w for w, _ in longer], [p for _, p in longer]),
        odds_per_standard_deviation={e.name: [round(float(np.exp(v)), 2) for v in (e.coefficient, *e.interval_95)] for e in found.effects},
        control_left_against_right=[round(v) for v in (found.ratings[0].rating - BASE, *(x - BASE for x in found.ratings[0].interval_95))], looks=list(NAMES))  # fmt: skip


def simulations() -> None:
    """How often 95 % intervals hold the truth, and how often the order is gold's: 200 arenas of each kind."""
    for models, battles, ties in ((4, 100, 0.3), (6, 600, 0.5), (10, 2000, 0.2)):
        rng, truth = np.random.default_rng(models), np.linspace(1, -1, models)
        held, gold = [], 0
        for _ in range(200):
            first = rng.integers(0, models, battles)
            second = (first + rng.integers(1, models, battles)) % models
            p = 1 / (1 + np.exp(truth[second] - truth[first]))
            tied, u = ties * np.minimum(p, 1 - p), rng.random(battles)
            found = rate(Battles(tuple(f"m{i}" for i in range(models)), first, second, np.where(u < p - tied, 1.0, np.where(u < p + tied, 0.5, 0.0))))
            held += [r.interval_95[0] <= BASE + POINTS * truth[int(r.model[1:])] <= r.interval_95[1] for r in found.ratings]
            gold += found.order() == [f"m{i}" for i in range(models)]
        say("simulations", models=models, battles=battles, ties=ties, coverage=float(np.mean(held)), order_is_gold=gold / 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--other", type=Path, help="the same model in another type")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int)
    a = parser.parse_args()
    simulations()
    people(a)
    with tempfile.TemporaryDirectory() as folder:
        contestants(a, a.out or Path(folder) / "arena")


if __name__ == "__main__":
    main()
