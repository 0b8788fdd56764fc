"""Ratings: golden values, intervals that hold the truth as often as they say, what cannot be rated, style, and Elo's order."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.eval.ratings import BASE, POINTS, Battles, elo, elo_spread, rate, student, win_rates
from freedive.runs import UserError

WIKIPEDIA = {"AB": 2, "BA": 3, "AD": 1, "DA": 4, "BC": 5, "CB": 3, "CD": 1, "DC": 3}  # "Bradley-Terry model": 22 games


def games(counts: dict[str, float]) -> Battles:
    return Battles.of([(pair[0], pair[1], 1.0) for pair, n in counts.items() for _ in range(int(n))])


def simulated(rng: np.random.Generator, truth: np.ndarray, n: int, ties: float, prompts: int = 0) -> Battles:
    """Battles whose mean score is Bradley-Terry's; with prompts, battles of one of them lean together without being biased on the whole."""
    k = len(truth)
    a = rng.integers(0, k, n)
    b = (a + rng.integers(1, k, n)) % k
    p = 1 / (1 + np.exp(truth[b] - truth[a]))
    cluster = None
    u = rng.random(n)
    if prompts:  # the same draw decides all battles of a prompt that have the same pair: answers are the same text
        cluster = rng.integers(0, prompts, n)
        shared = rng.random((prompts, k, k))
        low, high = np.minimum(a, b), np.maximum(a, b)
        u = np.where(a < b, shared[cluster, low, high], 1 - shared[cluster, low, high])
    tied = ties * np.minimum(p, 1 - p)  # on each side of the middle
    score = np.where(u < p - tied, 1.0, np.where(u < p + tied, 0.5, 0.0))
    return Battles(tuple(f"m{i}" for i in range(k)), a, b, score, cluster)


def test_the_golden_example():
    r = rate(games(WIKIPEDIA))
    assert np.allclose(np.exp(r.beta), [0.639835, 1.043314, 0.65981, 2.270377], atol=1e-5)
    assert r.order() == ["D", "B", "C", "A"] and not r.warnings


def test_points_are_those_of_chess():
    r = {x.model: x.rating for x in rate(Battles.of([("a", "b", 1.0)] * 3 + [("a", "b", 0.0)])).ratings}
    assert abs(r["a"] - r["b"] - 190.848502) < 1e-6  # a win rate of 3/4
    assert abs(1 / (1 + 10 ** (-400 / 400)) - 0.909091) < 1e-6 and abs(POINTS * np.log(10) - 400) < 1e-9
    assert elo(Battles.of([("a", "b", 1.0)]), k=32).tolist() == [1016, 984]


@pytest.mark.parametrize("k, n, ties, prompts", [(4, 80, 0.3, 0), (6, 400, 0.6, 0), (8, 800, 0.0, 0), (5, 600, 0.2, 80)])
def test_intervals_hold_the_truth_and_the_order_is_gold(k: int, n: int, ties: float, prompts: int):
    """95 % intervals cover in 90 to 99 % of 200 simulations, with ties and with several battles of one prompt."""
    rng = np.random.default_rng(k)
    truth = np.linspace(1, -1, k)
    held, at = [], 0
    for _ in range(200):
        battles = simulated(rng, truth, n, ties, prompts)
        found = rate(battles)
        by = {x.model: x for x in found.ratings}
        held += [by[m].interval_95[0] <= BASE + POINTS * truth[i] <= by[m].interval_95[1] for i, m in enumerate(battles.models)]
        at += found.order() == list(battles.models)
    assert 0.90 <= np.mean(held) <= 0.99, np.mean(held)
    big = rate(simulated(rng, truth, 6000, ties))
    assert big.order() == [f"m{i}" for i in range(k)] and [x.rank for x in big.ratings] == list(range(1, k + 1))


def test_battles_of_one_prompt_taken_for_independent_would_lie():
    rng, truth = np.random.default_rng(1), np.linspace(1, -1, 4)
    held = {True: [], False: []}  # type: ignore[var-annotated]
    for _ in range(100):
        b = simulated(rng, truth, 600, 0.0, 30)
        for clustered in held:
            found = rate(b if clustered else Battles(b.models, b.first, b.second, b.score))
            by = {x.model: x for x in found.ratings}
            held[clustered] += [by[m].interval_95[0] <= BASE + POINTS * t <= by[m].interval_95[1] for m, t in zip(b.models, truth)]
    assert np.mean(held[True]) > 0.9 > np.mean(held[False]) + 0.1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.sampled_from([0.0, 0.5, 1.0])).filter(lambda r: r[0] != r[1]), min_size=12, max_size=60), st.randoms())
def test_order_and_side_change_nothing_of_bradley_terry(rows, random):
    try:
        first = rate(Battles.of(rows))
    except UserError as error:
        assert "never met" in error.message
        return
    other = [(b, a, 1 - s) if random.random() < 0.5 else (a, b, s) for a, b, s in rows]
    random.shuffle(other)
    second = rate(Battles.of(other))
    assert np.allclose(first.beta, second.beta, atol=1e-7) and np.allclose(first.covariance, second.covariance, atol=1e-6)
    assert np.isfinite(first.beta).all() and abs(first.beta.sum()) < 1e-8


def test_the_gradient_is_zero_and_the_sandwich_is_its_formula():
    rng = np.random.default_rng(0)
    b = simulated(rng, np.linspace(1, -1, 4), 300, 0.3)
    found = rate(b)
    x = np.zeros((300, 4))
    x[np.arange(300), b.first], x[np.arange(300), b.second] = 1, -1
    p = 1 / (1 + np.exp(-x @ found.beta))
    assert np.abs(x.T @ (b.score - p)).max() < 1e-7
    bread = np.linalg.pinv(x.T @ (x * (p * (1 - p))[:, None]))
    fought = np.abs(x).sum(0)
    more = p * (1 - p) * (1 / fought[b.first] + 1 / fought[b.second])  # a decided battle for each model
    meat = x.T @ (x * ((b.score - p) ** 2)[:, None]) * 300 / 299 + x.T @ (x * more[:, None])
    assert np.allclose(found.covariance, bread @ meat @ bread, atol=1e-8)


def test_who_never_met_cannot_be_compared_and_is_named():
    with pytest.raises(UserError, match="never met, not even through others.*a, b and c, d"):
        rate(Battles.of([("a", "b", 1.0), ("b", "a", 1.0), ("c", "d", 0.5)]))
    with pytest.raises(UserError, match="two models"):
        rate(Battles((), np.zeros(0, int), np.zeros(0, int), np.zeros(0)))
    with pytest.raises(UserError, match="anchor 'z'"):
        rate(Battles.of([("a", "b", 0.5)]), anchor="z")


def test_who_always_wins_is_rated_finitely_and_named():
    rows = [("king", "a", 1.0), ("king", "b", 1.0), ("king", "b", 1.0), ("a", "b", 1.0), ("a", "b", 0.0), ("b", "a", 1.0)]
    found = rate(Battles.of(rows))
    assert found.separated and found.order()[0] == "king" and "king never lost to any of the others" in found.warnings[0]
    one = found.ratings[0]
    assert one.rating < 2000 and one.interval_95[0] < one.rating < one.interval_95[1]
    assert not rate(Battles.of([*rows, ("a", "king", 0.5)])).separated  # one tie is enough
    for n in (1, 2, 5, 400):  # Firth's estimate of two models, w wins of n: log((w + 1/2) / (n - w + 1/2))
        two = rate(Battles.of([("a", "b", 1.0)] * n))
        assert abs(two.beta[0] - two.beta[1] - np.log((n + 0.5) / 0.5)) < 1e-8


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("never", ["lost", "won"])
def test_who_is_never_beaten_changes_nothing_of_the_others(clustered: bool, never: str):
    """Ratings and intervals of the others, prompts as clusters included, are to the last digit what they are without the one who stands apart."""
    rng, truth = np.random.default_rng(5), np.linspace(1, -1, 4)
    b = simulated(rng, truth, 300, 0.3, 25)
    alone = b if clustered else dataclasses.replace(b, cluster=None)
    n = 400
    score = np.full(n, 1.0 if never == "lost" else 0.0)
    more = Battles((*b.models, "zed"), np.append(b.first, np.full(n, 4)), np.append(b.second, np.arange(n) % 4), np.append(b.score, score),
                   np.append(b.cluster, np.arange(n) // 4 % 100) if clustered else None)  # fmt: skip
    found, before = rate(more), rate(alone)
    assert found.separated and not before.separated and f"zed never {'lost to' if never == 'lost' else 'won against'} any of the others" in found.warnings[0]
    by = {r.model: r for r in found.ratings}
    zed = by["zed"]
    for r in before.ratings:
        assert by[r.model].rating == pytest.approx(r.rating, abs=1e-6) and by[r.model].interval_95 == pytest.approx(r.interval_95, abs=1e-6)
        assert by[r.model].rank == r.rank + (never == "lost")
    assert zed.rank == (1 if never == "lost" else 5) and zed.interval_95[0] < zed.rating < zed.interval_95[1]
    width = lambda r: r.interval_95[1] - r.interval_95[0]
    if clustered:  # 100 prompts with four battles of zed each say less than 400 prompts
        free = next(r for r in rate(dataclasses.replace(more, cluster=None)).ratings if r.model == "zed")
        assert width(zed) > 1.3 * width(free)
    styled = rate(dataclasses.replace(more, style=rng.normal(size=(700, 1)), style_names=("length",)))
    assert styled.separated and np.isfinite(styled.beta).all() and abs(styled.effects[0].coefficient) < 1


def test_style_control_takes_out_what_style_does():
    """Longer answers win whoever wrote them; the worse model writes longer ones, and is first until that is taken out."""
    rng, n, truth = np.random.default_rng(3), 4000, np.array([0.6, 0.0, -0.6])
    a = rng.integers(0, 3, n)
    b = (a + rng.integers(1, 3, n)) % 3
    style = (rng.normal(size=n) + 0.9 * (a - b))[:, None]
    p = 1 / (1 + np.exp(-(truth[a] - truth[b] + 1.5 * style[:, 0])))
    score = (rng.random(n) < p).astype(float)
    plain, controlled = rate(Battles(("x", "y", "z"), a, b, score)), rate(Battles(("x", "y", "z"), a, b, score, None, style, ("length",)))
    assert plain.order() == ["z", "y", "x"] and controlled.order() == ["x", "y", "z"]
    low, high = controlled.effects[0].interval_95
    assert low < 1.5 < high and all(r.interval_95[0] < BASE + POINTS * t < r.interval_95[1] for r, t in zip(controlled.ratings, truth))
    with pytest.raises(UserError, match="cannot be told from the models"):
        rate(Battles(("x", "y", "z"), a, b, score, None, (a - b)[:, None].astype(float), ("length",)))


def test_elo_depends_on_the_order_and_win_rates_do_not():
    b = games(WIKIPEDIA)
    spread = elo_spread(b, 32, 50)
    assert spread.shape == (50, 4) and np.ptp(spread, axis=0).min() > 5 and np.allclose(spread.mean(1), BASE)
    rates = win_rates(b)
    assert np.isnan(rates[0, 2]) and abs(rates[0, 1] - 0.4) < 1e-12 and abs(rates[1, 0] - 0.6) < 1e-12


def test_a_million_battles():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40)
    found = rate(simulated(rng, truth, 1_000_000, 0.2))
    assert np.corrcoef(found.beta, truth)[0, 1] > 0.999 and max(r.interval_95[1] - r.interval_95[0] for r in found.ratings) < 12


def test_students_quantiles():
    for degrees, wanted in ((1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042)):
        assert student(degrees) == pytest.approx(wanted, rel=0.01)


def test_few_prompts_do_not_make_intervals_narrow():
    rng = np.random.default_rng(0)
    rows = [("a" if rng.random() < 0.5 else "b", "c", float(rng.random() < 0.5)) for _ in range(60)] + [("a", "b", float(rng.random() < 0.5)) for _ in range(30)]
    alone = Battles.of(rows)
    width = lambda found: max(r.interval_95[1] - r.interval_95[0] for r in found.ratings)
    for prompts, words in ((1, "one prompt"), (3, "3 prompts only")):
        found = rate(dataclasses.replace(alone, cluster=np.arange(len(alone)) % prompts))
        assert width(found) >= 0.999 * width(rate(alone)) and any(words in w for w in found.warnings)


def test_ties_are_no_certainty():
    """Few battles, most of them ties: a tie between equals has no score, and without more the sandwich would be of width 0."""
    newcomer = rate(Battles.of([("x", "y", 1.0)] * 700 + [("x", "y", 0.0)] * 300 + [("x", "z", 0.5)]))
    by = {r.model: r for r in newcomer.ratings}
    assert by["z"].interval_95[1] - by["z"].interval_95[0] > 500 and {by["y"].rank, by["z"].rank} <= {1, 2} and by["z"].rank == 1
    assert all(r.interval_95[1] - r.interval_95[0] > 100 for r in rate(Battles.of([("a", "b", 0.5)] * 4)).ratings)
    rng = np.random.default_rng(0)
    for n in (5, 10, 20):
        held = []
        for _ in range(400):
            score = np.where(rng.random(n) < 0.8, 0.5, rng.random(n) < 1 / (1 + np.exp(-0.5)))
            found = rate(Battles(("a", "b"), np.zeros(n, int), np.ones(n, int), score))
            q = 0.2 / (1 + np.exp(-0.5)) + 0.4  # a win rate with ties as half
            truth = BASE + POINTS * np.log(q / (1 - q)) / 2
            held += [r.interval_95[0] <= truth <= r.interval_95[1] for r in found.ratings if r.model == "a"]
        assert np.mean(held) >= 0.9, (n, np.mean(held))
