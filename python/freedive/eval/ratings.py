"""Who is better, from battles between two: Bradley-Terry by maximum likelihood with intervals, and Elo beside it to see why not.

P(a beats b) = 1 / (1 + exp(beta_b - beta_a - gamma . style)). A tie, of either kind, is half a win for each: the likelihood is then a
quasi-likelihood, whose own curvature says nothing true about the spread. The intervals are therefore the sandwich's, H^-1 C H^-1 with H the
curvature and C the outer products of the scores (Huber 1967; White 1982), summed within a cluster first where battles share a prompt. A tie between
equals has no score at all, so few battles that were mostly ties would look like certainty: each model's part of C is never without one decided battle
more than there were, spread over those it fought. A rating is
1000 + 400 / ln 10 * (beta - mean beta): 400 points are odds of ten to one, as in chess.

A finite maximum exists if and only if every model reaches every other by a chain of wins or ties (Ford 1957). Models that no chain of battles joins
cannot be compared: an error. Where a group of models never loses to the others, how far above it is is not in the data: those are named. Within each
group the likelihood has its maximum all the same (the limit of the whole one), with the sandwich's intervals, as if the others were not there; how far
apart the groups are is rated by the likelihood with Jeffreys' prior (Firth 1993), which is finite. So somebody unbeaten changes nothing of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from freedive.runs import UserError

POINTS = 400 / math.log(10)  # a nat of log-odds in rating points
BASE = 1000.0
Z = 1.959963984540054  # of a 95 % interval
FAR = 12.0  # nats; beyond, a style that tells winners from losers exactly


@dataclass(frozen=True)
class Battles:
    """n battles among `models`. score 1: the first won, 0: the second, 0.5: a tie. cluster: what is not independent has the same number.
    style [n, F]: how much more of something the first answer has (freedive.eval.arena.style)."""

    models: tuple[str, ...]
    first: np.ndarray  # int [n], places in models
    second: np.ndarray  # int [n]
    score: np.ndarray  # float64 [n]
    cluster: np.ndarray | None = None  # int [n]
    style: np.ndarray | None = None  # float64 [n, F]
    style_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.score)

    @staticmethod
    def of(rows: Sequence[tuple[str, str, float]]) -> Battles:
        """From (first, second, score), models by their names in order."""
        models = tuple(sorted({name for a, b, _ in rows for name in (a, b)}))
        place = {name: i for i, name in enumerate(models)}
        first, second = np.array([place[a] for a, _, _ in rows], np.int64), np.array([place[b] for _, b, _ in rows], np.int64)
        return Battles(models, first, second, np.array([row[2] for row in rows], np.float64))


@dataclass(frozen=True)
class Rating:
    """A model's place. `rank`: 1 and one more for each model that is better beyond doubt (95 % of the difference, both errors counted)."""

    model: str
    rating: float
    interval_95: tuple[float, float]
    rank: int
    battles: int
    win_rate: float  # ties count half


@dataclass(frozen=True)
class Effect:
    """Of one unit of a style, which is a standard deviation between two answers: the factor on the odds of winning is exp(coefficient)."""

    name: str
    coefficient: float  # nats
    interval_95: tuple[float, float]


@dataclass(frozen=True)
class Ratings:
    """Models from the best, what style did, and what is to be said about it."""

    ratings: tuple[Rating, ...]
    effects: tuple[Effect, ...]
    warnings: tuple[str, ...]
    separated: bool  # some model never loses to some others: distances between those are the prior's
    beta: np.ndarray  # float64 [K], in the order of Battles.models, mean 0
    covariance: np.ndarray  # float64 [K + F, K + F], of beta and of the coefficients

    def order(self) -> list[str]:
        return [r.model for r in self.ratings]


def rate(battles: Battles, anchor: str | None = None) -> Ratings:
    """Bradley-Terry ratings. `anchor`: this model has exactly 1000, instead of the mean of all (of those that beat and were beaten, where some were not).

    UserError for models that no chain of battles joins, naming them, and for styles that cannot be told from the models.
    """
    count = len(battles.models)
    if count < 2 or not len(battles):
        raise UserError(f"there are {len(battles):,} battles of {count} models; ratings need two models that met")
    if anchor is not None and anchor not in battles.models:
        raise UserError(f"the anchor {anchor!r} is in no battle", hint=f"models: {', '.join(battles.models)}")
    groups = parts(battles)
    if len(groups) > 1:
        told = "; ".join(" and ".join(", ".join(g) for g in (groups[0], group)) for group in groups[1:3])
        raise UserError(f"these never met, not even through others, and cannot be compared: {told}", hint="more battles between them, or rate each group alone: --only MODEL ...")
    theta, cov, firth, main, warnings = _fit(battles)
    beta = theta[:count]
    shift = main / main.sum() if anchor is None else np.eye(count)[battles.models.index(anchor)]
    to = np.eye(count) - shift  # beta - what is set to 0
    of_beta = cov[:count, :count]
    spread = np.sqrt(np.maximum(np.diag(to @ of_beta @ to.T), 0))
    centre = to @ beta
    difference = beta[None, :] - beta[:, None]
    errors = np.sqrt(np.maximum(np.diag(of_beta)[None, :] + np.diag(of_beta)[:, None] - 2 * of_beta, 0))
    ranks = 1 + (difference > Z * errors + 1e-12).sum(1)
    wins, games = table(battles)
    points = lambda nats: float(BASE + POINTS * nats)
    made = [Rating(name, points(centre[i]), (points(centre[i] - Z * spread[i]), points(centre[i] + Z * spread[i])), int(ranks[i]), int(games[i].sum()),
                   float(wins[i].sum() / games[i].sum())) for i, name in enumerate(battles.models)]  # fmt: skip
    effects = []
    for f, name in enumerate(battles.style_names):
        c, s = float(theta[count + f]), math.sqrt(max(float(cov[count + f, count + f]), 0))
        effects.append(Effect(name, c, (c - Z * s, c + Z * s)))
    return Ratings(tuple(sorted(made, key=lambda r: -r.rating)), tuple(effects), tuple(warnings), firth, beta, cov)


def parts(battles: Battles) -> list[list[str]]:
    """Groups of models joined by battles, the one with the most battles first."""
    _, games = table(battles)
    return _groups(battles, _closure(games > 0), games)


def _groups(battles: Battles, joined: np.ndarray, games: np.ndarray) -> list[list[str]]:
    """Models by whom they are joined with, both ways."""
    same = joined & joined.T
    found: dict[bytes, list[int]] = {}
    for i in range(len(battles.models)):
        found.setdefault(same[i].tobytes(), []).append(i)
    order = sorted(found.values(), key=lambda g: -games[g].sum())
    return [[battles.models[i] for i in g] for g in order]


def _closure(edges: np.ndarray) -> np.ndarray:
    """[K, K]: is there a way from i to j?"""
    reach = edges | np.eye(len(edges), dtype=bool)
    while True:
        more = (reach.astype(np.int64) @ reach.astype(np.int64)) > 0
        if (more == reach).all():
            return reach
        reach = more


def table(battles: Battles) -> tuple[np.ndarray, np.ndarray]:
    """(wins, games), float64 [K, K]: of the row's model against the column's; a tie is half a win."""
    k = len(battles.models)
    at, back = battles.first * k + battles.second, battles.second * k + battles.first
    count = lambda where, weight: np.bincount(where, weight, k * k).reshape(k, k)
    wins = count(at, battles.score) + count(back, 1 - battles.score)
    games = count(at, np.ones(len(battles))) + count(back, np.ones(len(battles)))
    return wins, games


def win_rates(battles: Battles) -> np.ndarray:
    """[K, K] share of wins of the row's model against the column's, ties half; NaN where they did not meet."""
    wins, games = table(battles)
    return np.divide(wins, games, out=np.full(wins.shape, np.nan), where=games > 0)


# The fit


def _fit(battles: Battles) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray, list[str]]:
    """(theta [K + F], covariance, whether Jeffreys' prior was needed, bool [K] whose mean is 0 in ratings, warnings)."""
    wins, games = table(battles)
    k = len(battles.models)
    separate = _groups(battles, _closure(wins > 0), games)
    warnings = []
    if len(separate) > 1:
        place = {name: i for i, name in enumerate(battles.models)}
        reach = _closure(wins > 0)
        for group in separate[1:]:
            above = not reach[place[separate[0][0]], place[group[0]]]
            whom = "any of the others" if len(separate) == 2 else "some others"
            what = "never lost to" if above else "never won against"
            warnings.append(f"{', '.join(group)} {what} {whom}: how far {'above' if above else 'below'} is not in the battles; the rating given is that of Jeffreys' prior")
    of = np.zeros(k, np.int64)  # the group of each model
    for number, names in enumerate(separate):
        of[[battles.models.index(name) for name in names]] = number
    everybody = np.ones(k, bool)
    if (within := _within(battles, of, warnings)) is not None:
        theta, cov = within
        if len(separate) == 1:
            return theta, cov, False, everybody, warnings
        theta, cov = _apart(battles, of, theta, cov)
        return theta, cov, True, (of == 0) if len(separate[0]) > 1 else everybody, warnings
    if len(separate) == 1:
        warnings.append("a style tells winners from losers (almost) without a mistake; the likelihood has Jeffreys' prior")
    design = _Design(battles)
    fitted = _newton(design, battles.score, firth=True)
    if fitted is None:
        raise UserError("the ratings cannot be computed from these battles", hint="leave --style-control out")
    weights, residual = design.weights(fitted, battles.score)
    inverse = design.inverse(weights)
    flat = np.zeros(len(fitted))
    flat[:k] = 1 / math.sqrt(k)
    curved, sandwich = inverse - np.outer(flat, flat) @ inverse, _sandwich(design, inverse, weights, residual, battles.cluster, warnings)
    return fitted, sandwich if np.trace(sandwich) > np.trace(curved) else curved, True, everybody, warnings


def _within(battles: Battles, group: np.ndarray, warnings: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """(theta, covariance) of the maximum over the battles inside the groups, the mean of each group being 0; None where a style has it run off to infinity."""
    inside = _some(battles, group[battles.first] == group[battles.second])
    if not len(inside):
        empty = len(battles.models)
        return (np.zeros(empty), np.zeros((empty, empty))) if battles.style is None else None
    try:
        design = _Design(inside, group)
    except UserError:
        if group.any():
            return None
        raise
    theta = _newton(design, inside.score, firth=False)
    if theta is None:
        return None
    weights, residual = design.weights(theta, inside.score)
    return theta, _sandwich(design, design.inverse(weights), weights, residual, inside.cluster, warnings)


def _apart(battles: Battles, group: np.ndarray, theta: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds how far apart the groups are: Firth's estimate, the models within them standing as they do. Its covariance is that of its curvature, to which the
    battles of one prompt bring as much as one of them: what is the same answer in several is not several answers."""
    k = len(battles.models)
    between = _some(battles, group[battles.first] != group[battles.second])
    a, b = group[between.first], group[between.second]
    known = theta[between.first] - theta[between.second] + (0.0 if between.style is None else between.style @ theta[k:])
    design = _Design(Battles(tuple(map(str, range(int(group.max()) + 1))), a, b, between.score), known=known)
    places = _newton(design, between.score, firth=True)
    if places is None:
        raise UserError("the ratings cannot be computed from these battles", hint="rate fewer models: --only MODEL ...")
    weights = design.weights(places, between.score)[0]
    if between.cluster is not None:
        _, same, times = np.unique(np.stack([between.cluster, np.minimum(a, b), np.maximum(a, b)]), axis=1, return_inverse=True, return_counts=True)
        weights = weights / times[same.reshape(-1)]
    n = design.k
    spread = design.inverse(weights) - np.full((n, n), 1 / n)  # without the direction that nothing measures
    out, whole = theta.copy(), cov.copy()
    out[:k] += places[group]
    out[:k] -= out[:k].mean()
    whole[:k, :k] += spread[np.ix_(group, group)]
    return out, whole


def _some(battles: Battles, kept: np.ndarray) -> Battles:
    part = lambda x: None if x is None else x[kept]
    return Battles(battles.models, battles.first[kept], battles.second[kept], battles.score[kept], part(battles.cluster), part(battles.style), battles.style_names)


def _sandwich(design: _Design, inverse: np.ndarray, weights: np.ndarray, residual: np.ndarray, cluster: np.ndarray | None, warnings: list[str]) -> np.ndarray:
    """Covariance of theta. Every model has one decided battle more than were fought, in C. G clusters know little of themselves where they are few:
    never less than of independent battles, and as wide as Student's t with G - 1 degrees of freedom asks."""
    games = np.bincount(design.a, minlength=design.k) + np.bincount(design.b, minlength=design.k)
    more = design.curvature(weights * (1 / games[design.a] + 1 / games[design.b]))
    alone = inverse @ (design.meat(residual, None) + more) @ inverse
    groups = len(residual) if cluster is None else len(np.unique(cluster))
    if groups == len(residual):
        if groups < 20:
            warnings.append(f"there are {groups} battles only: the intervals are rough")
        return alone
    together = inverse @ (design.meat(residual, cluster) + more) @ inverse
    if groups == 1:
        warnings.append("all battles are about one prompt: the intervals are for that prompt, and say nothing about others")
        return alone
    if groups < 20:
        warnings.append(f"the battles are about {groups} prompts only: what the intervals say about others is rough")
    wider = student(groups - 1) / Z
    return (together if np.trace(together) > np.trace(alone) else alone) * wider**2


def student(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t: exact for 1 and 2 degrees of freedom, else Cornish and Fisher's expansion (within 1 %)."""
    if degrees <= 2:
        return {1: 12.7062, 2: 4.30265}.get(degrees, math.inf)
    z, v = Z, degrees
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)


class _Design:
    """Rows e_first - e_second with the style beside, never made whole: [n, K + F] would not fit for a million battles of hundreds of models.

    A direction that nothing measures, all ratings of a `group` [K] moving together, has curvature 1 here; scores have no part in it, so it stays at 0.
    known [n]: log-odds that stand before anything is fitted.
    """

    def __init__(self, battles: Battles, group: np.ndarray | None = None, known: np.ndarray | None = None):
        self.a, self.b, self.z, self.known = battles.first, battles.second, battles.style, known
        self.group = np.zeros(len(battles.models), np.int64) if group is None else group
        self.k, self.f = len(battles.models), 0 if battles.style is None else battles.style.shape[1]
        if self.f:
            values = np.linalg.eigvalsh(self.curvature(np.full(len(battles), 0.25)) / max(1, len(battles)) + self._flat())
            if values[0] < 1e-9 * values[-1]:
                raise UserError("the styles cannot be told from the models: each model has always the same", hint="leave --style-control out")

    def _flat(self) -> np.ndarray:
        out = np.zeros((self.k + self.f, self.k + self.f))
        same = self.group[:, None] == self.group[None, :]
        out[: self.k, : self.k] = same / same.sum(1)
        return out

    def weights(self, theta: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(p (1 - p), score - p) of each battle."""
        p = 1 / (1 + np.exp(-self.odds(theta)))
        return p * (1 - p), score - p

    def odds(self, theta: np.ndarray) -> np.ndarray:
        """Log-odds that the first wins [n]."""
        told = theta[self.a] - theta[self.b] + (0.0 if self.known is None else self.known)
        return told if self.z is None else told + self.z @ theta[self.k :]

    def gradient(self, residual: np.ndarray) -> np.ndarray:
        """Sum of residual times row."""
        of_models = np.bincount(self.a, residual, self.k) - np.bincount(self.b, residual, self.k)
        return of_models if self.z is None else np.concatenate([of_models, self.z.T @ residual])

    def curvature(self, weights: np.ndarray) -> np.ndarray:
        """Sum of weight times row times row transposed."""
        k, a, b = self.k, self.a, self.b
        out = np.zeros((k + self.f, k + self.f))
        pairs = np.bincount(a * k + b, weights, k * k).reshape(k, k)
        out[:k, :k] = np.diag(pairs.sum(0) + pairs.sum(1)) - pairs - pairs.T
        if self.z is not None:
            for f in range(self.f):
                of_models = weights * self.z[:, f]
                out[:k, k + f] = out[k + f, :k] = np.bincount(a, of_models, k) - np.bincount(b, of_models, k)
            out[k:, k:] = self.z.T @ (weights[:, None] * self.z)
        return out

    def inverse(self, weights: np.ndarray) -> np.ndarray:
        return np.linalg.inv(self.curvature(weights) + self._flat())

    def leverage(self, inverse: np.ndarray) -> np.ndarray:
        """row . inverse . row of each battle [n]."""
        a, b, k = self.a, self.b, self.k
        out = inverse[a, a] + inverse[b, b] - 2 * inverse[a, b]
        if self.z is not None:
            out = out + 2 * ((inverse[a, k:] - inverse[b, k:]) * self.z).sum(1) + ((self.z @ inverse[k:, k:]) * self.z).sum(1)
        return out

    def meat(self, residual: np.ndarray, cluster: np.ndarray | None) -> np.ndarray:
        """Outer products of the scores, of each cluster's sum. Few clusters know too little of themselves: G / (G - 1)."""
        if cluster is None:
            n = len(residual)
            return self.curvature(residual**2) * (n / max(1, n - 1))
        _, of = np.unique(cluster, return_inverse=True)
        groups = int(of.max()) + 1
        if groups == len(residual):
            return self.meat(residual, None)
        sums = np.zeros((groups, self.k + self.f))
        np.add.at(sums, (of, self.a), residual)
        np.add.at(sums, (of, self.b), -residual)
        if self.z is not None:
            np.add.at(sums[:, self.k :], of, residual[:, None] * self.z)
        return sums.T @ sums * (groups / max(1, groups - 1))


def _newton(design: _Design, score: np.ndarray, firth: bool) -> np.ndarray | None:
    """The maximum, from 0, by Newton's steps of at most 2 nats; None where it runs off to infinity. Without the prior the function is concave."""
    theta = np.zeros(design.k + design.f)
    for _ in range(500):
        weights, residual = design.weights(theta, score)
        inverse = design.inverse(np.maximum(weights, 1e-12))
        if firth:  # the score that Jeffreys' prior adds, h (1/2 - p), falls by h p (1 - p): a step that left that out would be too long
            h = weights * design.leverage(inverse)
            residual = residual + h * (0.5 - (score - residual))
            inverse = design.inverse(np.maximum(weights * (1 + h), 1e-12))
        step = inverse @ design.gradient(residual)
        longest = float(np.abs(step).max())
        theta = theta + step * min(1.0, 2 / max(longest, 1e-300))
        if longest < 1e-10:
            return theta
        if not firth and design.f and np.abs(theta[design.k :]).max() > FAR:
            return None
    return None


# Elo


def elo(battles: Battles, k: float = 4.0, base: float = BASE) -> np.ndarray:
    """Ratings [K] after going through the battles in their order: each moves both by k (result - expected). Depends on the order."""
    return _online(battles, np.arange(len(battles))[None, :], k, base)[0]


def elo_spread(battles: Battles, k: float = 4.0, shuffles: int = 100, seed: int = 0, base: float = BASE) -> np.ndarray:
    """Ratings [shuffles, K] after the same battles in other orders."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 34]))
    return _online(battles, np.stack([rng.permutation(len(battles)) for _ in range(shuffles)]), k, base)


def _online(battles: Battles, orders: np.ndarray, k: float, base: float) -> np.ndarray:
    """All orders [S, n] side by side."""
    told = np.full((len(orders), len(battles.models)), base)
    rows = np.arange(len(orders))
    for at in orders.T:
        a, b = battles.first[at], battles.second[at]
        expected = 1 / (1 + 10 ** ((told[rows, b] - told[rows, a]) / 400))
        move = k * (battles.score[at] - expected)
        told[rows, a] += move
        told[rows, b] -= move
    return told
