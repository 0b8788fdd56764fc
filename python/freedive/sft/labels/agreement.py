"""`freedive label agreement FOLDER`: how far labellers agree, in the numbers that are usual for it.

agreement   share of the pairs of answers about which two labellers say the same (first better, second better, tie): InstructGPT's labellers had 73 % (2203.02155)
kappa       the same beyond chance (Cohen 1960), of the three verdicts, for two labellers
tau         Kendall's tau-b (1945) of their two orders of an item, mean over items; an order that is all ties has none
alpha       Krippendorff's (2004), for any number of labellers and missing judgements: of verdicts on pairs (nominal; ordinal, with a tie between the two), of
            scores (interval). 1 is agreement, 0 is chance; his own limits are 0.8 to rely on and 0.667 for tentative conclusions
Intervals are 95 % percentile bootstraps over items: the pairs of one item are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from freedive.eval.statistics import bootstrap, share
from freedive.runs import UserError, option, write_json_atomic

from .items import Item
from .store import Judgement, Labels

RESAMPLES = 1000
FILE = "file"  # stands for the order that a file of prompts had


@dataclass(frozen=True)
class AgreementConfig:
    """How far labellers agree."""

    folder: Path = option(help="folder made by `freedive label`", positional=True)
    labeller: list[str] = option([], "only these labellers (default: all)")
    with_file: bool = option(True, "compare with the order that the file of prompts had, where it had one, as one more labeller")
    out: Path | None = option(None, "also write the numbers as JSON")
    seed: int = option(0, "of the bootstrap")


def run(c: AgreementConfig) -> int:
    """Print a table; UserError where no two labellers judged the same."""
    labels = Labels(c.folder)
    judgements = list(labels.judgements(c.labeller or None))
    if c.with_file and not any(j.labeller == FILE for j in judgements):
        judgements += [Judgement(i.id, FILE, ranks=i.ranks) for i in labels.items.values() if i.ranks]
    found = agreement(labels.items, judgements, seed=c.seed)
    if c.out is not None:
        write_json_atomic(c.out, found)
    _print(found)
    if not found["pairs_of_labellers"]:
        names = ", ".join(found["labellers"]) or "nobody"
        raise UserError(f"no two labellers judged the same prompt in {c.folder} (there is {names})", hint="freedive label --out FOLDER --labeller ANOTHER")
    return 0


def agreement(items: dict[str, Item], judgements: Iterable[Judgement], seed: int = 0) -> dict[str, Any]:
    """All numbers of a folder, as JSON has them."""
    told: dict[str, dict[str, Judgement]] = {}
    for j in judgements:
        told.setdefault(j.labeller, {})[j.item] = j
    verdicts = {name: {i: _verdicts(items[i], j) for i, j in mine.items() if j.ranks and not j.skipped} for name, mine in told.items()}
    between = []
    for one, other in combinations(told, 2):
        common = [i for i in items if i in verdicts[one] and i in verdicts[other]]
        pairs = [(i, p) for i in common for p in verdicts[one][i] if p in verdicts[other][i]]
        if not pairs:
            continue
        a, b = ([verdicts[who][i][p] for i, p in pairs] for who in (one, other))
        taus = [t for i in common if (t := kendall(*_orders(told[one][i], told[other][i]))) is not None]
        between.append({"labellers": [one, other], "prompts": len(common), "pairs": len(pairs), "agreement": share([x == y for x, y in zip(a, b)], [i for i, _ in pairs], seed),
                        "kappa": cohen(a, b), "tau": float(np.mean(taus)) if taus else None, "tau_interval_95": bootstrap(taus, seed=seed) if taus else None})  # fmt: skip
    units = {i: [[v[i][p] for v in verdicts.values() if i in v and p in v[i]] for p in combinations([a.id for a in items[i].answers], 2)] for i in items}
    scores = {i: [[told[n][i].scores[a.id] for n in told if i in told[n] and a.id in told[n][i].scores] for a in items[i].answers] for i in items}
    alphas = {"pairs_nominal": krippendorff(units, "nominal", seed), "pairs_ordinal": krippendorff(units, "ordinal", seed), "scores_interval": krippendorff(scores, "interval", seed)}
    return {"labellers": {name: _portrait(items, mine) for name, mine in told.items()}, "pairs_of_labellers": between, "alpha": alphas}


def _portrait(items: dict[str, Item], mine: dict[str, Judgement]) -> dict[str, Any]:
    """One labeller: how much, how fast, how many ties, and how often what was shown first was put above what was shown last."""
    done = [j for j in mine.values() if not j.skipped]
    seconds = [j.seconds for j in done if j.seconds > 0]
    pairs = [v for j in done if j.ranks for v in _verdicts(items[j.item], j).values()]
    ends = [(j.ranks[j.order[0]], j.ranks[j.order[-1]]) for j in done if len(j.order) > 1 and j.order[0] in j.ranks and j.order[-1] in j.ranks and j.seconds > 0]
    first = [a < b for a, b in ends if a != b]
    return {"judged": len(done), "ranked": sum(bool(j.ranks) for j in done), "written": sum(bool(j.text) for j in done), "skipped": sum(j.skipped for j in mine.values()),
            "flagged": sum(bool(j.flags) for j in mine.values()), "median_seconds": median(seconds) if seconds else None,
            "ties": sum(v == 0 for v in pairs) / len(pairs) if pairs else None, "shown_first_above_last": share(first) if first else None}  # fmt: skip


def _verdicts(item: Item, j: Judgement) -> dict[tuple[str, str], int]:
    """-1: the first is better, 1: the second is, 0: a tie; of each two answers that were ranked."""
    ids = [a.id for a in item.answers if a.id in j.ranks]
    return {(a, b): (j.ranks[a] > j.ranks[b]) - (j.ranks[a] < j.ranks[b]) for a, b in combinations(ids, 2)}


def _orders(one: Judgement, other: Judgement) -> tuple[list[int], list[int]]:
    ids = [i for i in one.ranks if i in other.ranks]
    return [one.ranks[i] for i in ids], [other.ranks[i] for i in ids]


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Tau-b of two orders of the same things; None where one of them is all ties."""
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(len(a)), 2)]
    untied = math.prod(sum(s[k] != 0 for s in signs) for k in (0, 1))
    return float(sum(x * y for x, y in signs) / math.sqrt(untied)) if untied else None


def cohen(a: Sequence[Any], b: Sequence[Any]) -> float | None:
    """Kappa of two labellers' categories of the same things; None where both only ever used one and the same."""
    n = len(a)
    seen = sum(x == y for x, y in zip(a, b)) / n
    chance = sum((list(a).count(c) / n) * (list(b).count(c) / n) for c in set(a) | set(b))
    return (seen - chance) / (1 - chance) if chance < 1 else None


def krippendorff(units: Mapping[Any, Sequence[Sequence[float]]], metric: str, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """{"alpha", "interval_95", "units"} of values that labellers gave to units, which stand in clusters (items); None where no unit has two values, or all
    values are the same.

    metric: nominal, ordinal, interval. The coincidences of a cluster are a matrix, so that a resample is a sum of matrices (Krippendorff 2004, 11.3).
    """
    values = sorted({v for cluster in units.values() for unit in cluster if len(unit) > 1 for v in unit})
    place = {v: i for i, v in enumerate(values)}
    matrices, counted = [], 0
    for cluster in units.values():
        m = np.zeros((len(values), len(values)))
        for unit in cluster:
            if len(unit) > 1:
                counted += 1
                for x, y in combinations(unit, 2):
                    m[place[x], place[y]] += 1 / (len(unit) - 1)
                    m[place[y], place[x]] += 1 / (len(unit) - 1)
        if m.any():
            matrices.append(m)
    if len(values) < 2:
        return None
    stack = np.stack(matrices)
    value = _alpha(stack.sum(0), np.array(values, float), metric)
    rng = np.random.Generator(np.random.Philox(key=[seed, 34]))
    drawn = [_alpha(stack[rng.integers(0, len(stack), len(stack))].sum(0), np.array(values, float), metric) for _ in range(resamples)]
    kept = [d for d in drawn if d is not None]
    return {"alpha": value, "interval_95": [float(np.quantile(kept, q)) for q in (0.025, 0.975)] if kept else None, "units": counted}


_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "nominal": lambda v, n: (v[:, None] != v[None, :]).astype(float),
    "interval": lambda v, n: (v[:, None] - v[None, :]) ** 2,
    # all that lies between two values, and half of each of them
    "ordinal": lambda v, n: (np.abs((np.cumsum(n) - n / 2)[:, None] - (np.cumsum(n) - n / 2)[None, :])) ** 2,
}


def _alpha(o: np.ndarray, values: np.ndarray, metric: str) -> float | None:
    """Of a coincidence matrix [C, C]."""
    n = o.sum(1)
    delta = _DISTANCES[metric](values, n)
    expected = float((n[:, None] * n[None, :] * delta).sum())
    return 1 - (float(n.sum()) - 1) * float((o * delta).sum()) / expected if expected > 0 else None


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    percent = lambda x: "-" if x is None else f"{100 * x:.0f} %"
    spread = lambda i, f="{:.2f}": "" if i is None else f" ({f.format(i[0])} to {f.format(i[1])})"
    table = Table("labeller", box=None, pad_edge=False)
    for name in ("judged", "ranked", "written", "skipped", "flagged", "seconds", "ties", "first above last"):
        table.add_column(name, justify="right")
    for name, p in found["labellers"].items():
        first = p["shown_first_above_last"]
        table.add_row(name, *(f"{p[k]:,}" for k in ("judged", "ranked", "written", "skipped", "flagged")), "-" if p["median_seconds"] is None else f"{p['median_seconds']:.0f}",
                      percent(p["ties"]), "-" if first is None else f"{percent(first['share'])} of {first['n']:,}")  # fmt: skip
    console.print(table)
    if found["pairs_of_labellers"]:
        table = Table("two labellers", box=None, pad_edge=False)
        for name in ("prompts", "pairs", "agreement", "kappa", "tau"):
            table.add_column(name, justify="right")
        for b in found["pairs_of_labellers"]:
            a = b["agreement"]
            table.add_row(" and ".join(b["labellers"]), f"{b['prompts']:,}", f"{b['pairs']:,}", percent(a["share"]) + spread([100 * x for x in a["interval_95"]], "{:.0f}"),
                          "-" if b["kappa"] is None else f"{b['kappa']:.2f}", "-" if b["tau"] is None else f"{b['tau']:.2f}" + spread(b["tau_interval_95"]))  # fmt: skip
        console.print()
        console.print(table)
    for name, a in found["alpha"].items():
        if a is not None and a["alpha"] is not None:
            console.print(f"Krippendorff's alpha, {name.replace('_', ', ')}: {a['alpha']:.2f}{spread(a['interval_95'])}, {a['units']:,} units", highlight=False)
