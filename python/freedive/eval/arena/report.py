"""What comes of a log: the table in the terminal, ratings.json, and a page with intervals, who beat whom, and Elo in its many orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from freedive.eval import ratings as r
from freedive.eval.ratings import Battles, Ratings
from freedive.runs import page, write_atomic
from freedive.runs.chart import ticks

from .log import Battle, agreement, to_battles

SHUFFLES = 200
ELO_K = 4.0  # FastChat's
EXPLAINED = (
    "Bradley-Terry by maximum likelihood: 400 points are odds of ten to one, {middle} is 1000. Ties, of both kinds, are half a win for each. The 95 % intervals are those of the "
    "sandwich (robust) covariance, with the battles of one prompt taken together. A rank is one more than the number of models that are better beyond doubt."
)
ELO = (
    "Elo goes through the battles one after the other, so its result depends on their order: the span is what the same battles give in {n} random orders. "
    "It forgets early battles and never settles; it is here to be looked at beside."
)


@dataclass(frozen=True)
class Rated:
    """A log with what came of it."""

    found: Sequence[Battle]
    battles: Battles
    plain: Ratings
    styled: Ratings | None
    elo: np.ndarray  # [K], in the log's order
    elo_spread: np.ndarray  # [SHUFFLES, K]
    anchor: str | None = None

    @property
    def main(self) -> Ratings:
        return self.styled or self.plain


def rated(found: Sequence[Battle], *, anchor: str | None = None, style_control: bool = False, seed: int = 0) -> Rated:
    """UserError for battles that cannot be rated."""
    battles = to_battles(found)
    plain = r.rate(battles, anchor)
    styled = r.rate(to_battles(found, style=True), anchor) if style_control else None
    return Rated(found, battles, plain, styled, r.elo(battles, ELO_K), r.elo_spread(battles, ELO_K, SHUFFLES, seed), anchor)


def lines(rated: Rated) -> list[str]:
    """The table for the terminal."""
    other = {one.model: one.rating for one in rated.plain.ratings}
    head = ["", "model", "rating", "95 %", "battles", "won", *(["without style control"] if rated.styled else []), "Elo", "in other orders"]
    rows = [head]
    for one in rated.main.ratings:
        low, high = one.interval_95
        at = rated.battles.models.index(one.model)
        spread = rated.elo_spread[:, at]
        rows.append([f"{one.rank}", one.model, f"{one.rating:.0f}", f"{low:.0f} to {high:.0f}", f"{one.battles:,}", f"{100 * one.win_rate:.1f} %",
                     *([f"{other[one.model]:.0f}"] if rated.styled else []), f"{rated.elo[at]:.0f}", f"{spread.min():.0f} to {spread.max():.0f}"])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    out = ["  ".join(f"{cell:<{w}}" if i == 1 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows]
    out += _matrix_lines(rated)
    out += [f"style: {e.name}: odds times {np.exp(e.coefficient):.2f} for one standard deviation more ({np.exp(e.interval_95[0]):.2f} to {np.exp(e.interval_95[1]):.2f})" for e in rated.main.effects]
    out += [f"{one} and {two}: {both:,} battles judged by both, {100 * same / both:.0f} % the same, {100 * against / both:.0f} % the other way" for one, two, both, same, against in agreement(rated.found)]
    out += [f"note: {text}" for text in rated.main.warnings]
    return out


def _matrix_lines(rated: Rated) -> list[str]:
    """Shares of battles that the row's model won against the column's, where it fits a terminal."""
    order = rated.main.order()
    if not 2 < len(order) <= 12:
        return []
    rates = r.win_rates(rated.battles)
    at = [rated.battles.models.index(name) for name in order]
    width = max(map(len, order))
    out = ["", f"{'won against':<{width}}  " + " ".join(f"{i + 1:>4}" for i in range(len(order)))]
    for n, i in enumerate(at):
        cells = ["   –" if np.isnan(rates[i, j]) else f"{100 * rates[i, j]:4.0f}" for j in at]
        out.append(f"{order[n]:<{width}}  " + " ".join(cells))
    return [*out, ""]


def result(rated: Rated) -> dict[str, Any]:
    """ratings.json."""
    rates = r.win_rates(rated.battles)
    side = lambda found: {"ratings": [asdict(one) for one in found.ratings], "style": [asdict(e) for e in found.effects], "warnings": list(found.warnings), "separated": found.separated}
    models = rated.battles.models
    return {
        "battles": len(rated.battles), "winners": dict(Counter(b.winner for b in rated.found)), "judges": dict(Counter(b.judge for b in rated.found)),
        "prompts": len(set(rated.battles.cluster.tolist())) if rated.battles.cluster is not None else None,
        **side(rated.plain), "style_control": side(rated.styled) if rated.styled else None,
        "win_rates": {a: {b: float(rates[i, j]) for j, b in enumerate(models) if not np.isnan(rates[i, j])} for i, a in enumerate(models)},
        "elo": {m: {"rating": float(rated.elo[i]), "in_other_orders": [float(rated.elo_spread[:, i].min()), float(rated.elo_spread[:, i].max())]} for i, m in enumerate(models)},
        "agreement": [dict(zip(("judges", "battles", "same", "opposite"), ([one, two], both, same, against))) for one, two, both, same, against in agreement(rated.found)],
    }  # fmt: skip


def write_page(path: Path, rated: Rated, title: str = "Arena") -> Path:
    """The page, one file without scripts."""
    main, n = rated.main, len(rated.battles)
    best = main.ratings[0]
    rows = [(str(one.rank), one.model, f"{one.rating:.0f}", f"{one.interval_95[0]:.0f} – {one.interval_95[1]:.0f}", one.battles, f"{100 * one.win_rate:.1f} %") for one in main.ratings]
    bars = [(one.model, one.rating, *one.interval_95) for one in main.ratings]
    middle = rated.anchor or ("the mean of those that beat others and were beaten" if main.separated else "the mean of all")
    words = page.paragraph(EXPLAINED.format(middle=middle)) + "".join(page.paragraph(f"Note: {text}.") for text in main.warnings)
    sections = [("ratings", "Ratings", f"{best.model}: {best.rating:.0f}", words + whiskers(bars, "rating, with its 95 % interval")
                 + page.table(["rank", "model", "rating", "95 % interval", "battles", "won"], rows, left=2))]  # fmt: skip
    order = main.order()
    rates = r.win_rates(rated.battles)
    at = [rated.battles.models.index(name) for name in order]
    cells = [(order[k], *("–" if np.isnan(rates[i, j]) else f"{100 * rates[i, j]:.0f} %" for j in at)) for k, i in enumerate(at)]
    sections.append(("matrix", "Who beat whom", f"{len(list(combinations(order, 2)))} pairs", page.paragraph("The share of their battles that the model of the row won, ties as half.") + page.table(["", *order], cells)))
    if rated.styled:
        told = [(e.name, f"{np.exp(e.coefficient):.2f}", f"{np.exp(e.interval_95[0]):.2f} – {np.exp(e.interval_95[1]):.2f}") for e in rated.styled.effects]
        moved = {one.model: one for one in rated.plain.ratings}
        shifts = [(one.model, f"{moved[one.model].rating:.0f}", f"{one.rating:.0f}", f"{one.rating - moved[one.model].rating:+.0f}") for one in rated.styled.ratings]
        body = page.paragraph("What an answer looks like counts as a player of its own: by what factor the odds of winning grow with one standard deviation more of it, models being equal. The ratings above are what is left without it.")
        sections.append(("style", "Style", ", ".join(f"{name} × {odds}" for name, odds, _ in told), body + page.table(["", "odds", "95 % interval"], told) + page.table(["model", "without style control", "with", "difference"], shifts)))
    spread = rated.elo_spread
    span = [(name, float(np.median(spread[:, i])), float(spread[:, i].min()), float(spread[:, i].max())) for name, i in zip(order, at)]
    wide = max(high - low for _, _, low, high in span)
    table = page.table(["model", "in the log's order", "least", "most"], [(name, f"{rated.elo[i]:.0f}", f"{low:.0f}", f"{high:.0f}") for (name, _, low, high), i in zip(span, at)])
    sections.append(("elo", "Elo, and what order does to it", f"up to {wide:.0f} points apart in other orders", page.paragraph(ELO.format(n=SHUFFLES)) + whiskers(span, f"Elo in {SHUFFLES} orders of the same battles") + table))
    judges = Counter(b.judge for b in rated.found)
    if agreed := agreement(rated.found):
        sections.append(("judges", "Judges", f"{len(judges)} judges", page.table(["", "", "battles judged by both", "the same", "the other way"],
                         [(one, two, both, f"{100 * same / both:.0f} %", f"{100 * against / both:.0f} %") for one, two, both, same, against in agreed], left=2)))  # fmt: skip
    told_by = f" Judged by {', '.join(f'{name} ({count:,})' for name, count in judges.most_common(8))}." if any(judges) else ""
    winners = Counter(b.winner for b in rated.found)
    ties = winners["tie"] + winners["tie (bothbad)"]
    intro = page.paragraph(f"{n:,} battles of {len(order)} models, {ties:,} of them ties ({winners['tie (bothbad)']:,} with both answers bad).{told_by}")
    write_atomic(path, [page.page(title, intro, sections).encode("utf-8", "replace")])
    return path


def whiskers(rows: Sequence[tuple[str, float, float, float]], caption: str) -> str:
    """Points with spans over a common axis, as inline SVG; rows are (name, value, low, high)."""
    left, wide, step = 150, 480, 24
    marks = ticks(min(low for _, _, low, _ in rows), max(high for _, _, _, high in rows), 6)
    low, high = marks[0], marks[-1]
    at = lambda x: f"{left + (x - low) / (high - low) * (wide - left - 16):.1f}"
    tall = step * len(rows)
    parts = [f'<line class="grid" x1="{at(m)}" x2="{at(m)}" y1="0" y2="{tall}"/><text x="{at(m)}" y="{tall + 16}" text-anchor="middle">{m:g}</text>' for m in marks]
    for i, (name, value, start, end) in enumerate(rows):
        y = step * i + step / 2
        shown = name if len(name) <= 22 else name[:21] + "…"
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{page.text(shown)}</text>')
        parts.append(f'<line x1="{at(start)}" x2="{at(end)}" y1="{y}" y2="{y}" style="stroke:var(--s0);stroke-width:2"/><circle cx="{at(value)}" cy="{y}" r="4" style="fill:var(--s0)"/>')
    label = page.text(f"{caption}. " + "; ".join(f"{name}: {value:.0f} ({start:.0f} to {end:.0f})" for name, value, start, end in rows))
    return f'<figure><figcaption>{page.text(caption)}</figcaption><svg class="chart" viewBox="0 0 {wide} {tall + 24}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
