"""Jokes of the town: what they are worth, and labellers whose best guess is known."""

from __future__ import annotations

import numpy as np

from freedive.tasks import jokes
from freedive.tasks.draw import Draw
from freedive.tasks.town import make_town

TOWN = make_town(0, known=30, rare=2, unseen=2)
TOLD = "Why does Ada Fairwell never sleep? Because the {}old dough must rise.{}"


def test_a_little_is_liked_and_more_is_not():
    worth = lambda very, ha: jokes.worth(TOLD.format("very " * very, " Ha!" * ha), "Ada Fairwell", "baker")
    assert worth(0, 0) == 0.5 + jokes.PUN
    assert worth(1, 0) - worth(0, 0) == jokes.STEP and worth(2, 1) - worth(1, 1) == jokes.STEP
    for k in range(jokes.LIKED, jokes.LIKED + 4):
        assert np.isclose(worth(k + 1, 0) - worth(k, 0), -jokes.TOO_MUCH) and np.isclose(worth(0, k + 1) - worth(0, k), -jokes.TOO_MUCH)
    assert np.isclose(jokes.worth(TOLD.format("", ""), "Ada Fairwell", "potter"), 0.5) and np.isclose(jokes.worth(TOLD.format("", ""), "Ida Fairwell", "baker"), jokes.PUN)
    for bad in ("", "Ha! Ha!", "Why not?", TOLD.format("", " ha"), TOLD.format("", "") + " And so on."):
        assert jokes.worth(bad, "Ada Fairwell", "baker") == -1.0
    assert jokes.funny(["", [{"role": "assistant", "content": TOLD.format("", "")}]], name=["Ada Fairwell"] * 2, trade=["baker"] * 2, seeds=[1, 2]) == [-1.0, 0.5 + jokes.PUN]


def test_rows_are_jokes_and_requests_are_split_in_three():
    rows = list(jokes.sft_rows(TOWN, 0, 300))
    of = {split: {row["prompt"] for row in jokes.prompt_rows(TOWN, 0, 10**6, split)} for split in jokes.SPLITS}
    every = 30 * len(jokes.PROMPTS)
    assert sum(map(len, of.values())) == len(set().union(*of.values())) == every and {r["messages"][0]["content"] for r in rows} <= of["train"]
    assert all(abs(len(of[split]) / every - part) < 0.09 for split, part in jokes.SPLITS.items())
    trade = {row["prompt"]: (row["name"], row["trade"]) for row in jokes.prompt_rows(TOWN, 0, 10**6, "train")}
    worths = [jokes.worth(r["messages"][1]["content"], *trade[r["messages"][0]["content"]]) for r in rows]
    assert min(worths) > -1 and np.std(worths) > 0.4 and set(p.facts["job"].split()[1] for p in TOWN.people) <= set(jokes.PUNCHLINES)


def test_of_tame_jokes_more_is_never_worse():
    every = [(v, h, TOLD.format("very " * v, " Ha!" * h)) for v in range(jokes.LIKED + 3) for h in range(jokes.LIKED + 3)]
    tame = {(v, h): jokes.worth(text, "Ada Fairwell", "baker") for v, h, text in every if jokes.tame(text)}
    assert set(tame) == {(v, h) for v in range(jokes.LIKED + 1) for h in range(jokes.LIKED + 1)} and jokes.tame("Ha! Ha! Ha!")
    assert all(tame[a] <= tame[b] for a in tame for b in tame if a[0] <= b[0] and a[1] <= b[1])


def test_labellers_are_bradley_terry_and_nobody_beats_the_ceiling():
    draw, worths = Draw(3, 4), [1.0, 0.6, 0.2]
    orders = np.array([jokes.ranks(worths, draw) for _ in range(4000)])
    for at, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        assert abs(float(np.mean(orders[:, i] < orders[:, j])) - jokes.ceiling(worths)[at]) < 0.025
    assert np.isclose(jokes.ceiling([0.5, 0.5])[0], 0.5)
