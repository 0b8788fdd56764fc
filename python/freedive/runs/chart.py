"""Line charts as inline SVG, drawn by hand: colours come from the style sheet, so that a chart follows light and dark."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from .page import text

WIDTH, HEIGHT = 480, 230  # of the drawing, in SVG units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 10, 38  # margins for the labels
MAX_POINTS = 400  # of a line; more would be closer together than a pixel
NEIGHBOURS = 10  # on each side, in the mean drawn over a noisy line

Points = Sequence[tuple[float, float]]


def chart(
    series: Mapping[str, Points], x: str, y: str, low: float | None = None, high: float | None = None, noisy: Collection[str] = ()
) -> str:
    """Lines over a common x axis; `low` and `high` fix the ends of the y axis. Empty when no series has a point.

    A line named in `noisy` is drawn pale, with the mean of its neighbours over it.
    """
    lines: dict[str, list[tuple[float, float]]] = {name: _thin([p for p in points if all(map(math.isfinite, p))]) for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    xs = [p[0] for points in lines.values() for p in points]
    ys = [p[1] for points in lines.values() for p in points]
    x_low = 0.0 if 0 <= min(xs) < 0.1 * max(xs) else min(xs)
    x_high = max(max(xs), x_low + 1e-9)
    x_ticks = ticks(x_low, x_high, 6)
    y_ticks = ticks(min(ys) if low is None else low, max(ys) if high is None else high, 5)
    y_low, y_high = (y_ticks[0] if low is None else low), (y_ticks[-1] if high is None else high)

    def at(px: float, py: float) -> tuple[str, str]:
        across = LEFT + (px - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = TOP + (y_high - py) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f}", f"{down:.1f}"

    parts = []
    for tick in y_ticks:
        _, down = at(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{float(down) + 4:.1f}" text-anchor="end">{_label(tick)}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            across, _ = at(tick, y_low)
            parts.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_label(tick)}</text>')
    parts.append(f'<text x="{(WIDTH + LEFT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{text(x)}</text>')
    for index, (name, points) in enumerate(lines.items()):
        colour = f"var(--s{index % 4})"
        if name in noisy and len(points) >= 2 * NEIGHBOURS:
            parts.append(_polyline([at(*p) for p in points], colour, "raw"))
            points = _smooth(points)
        placed = [at(*p) for p in points]
        if len(placed) > 1:
            parts.append(_polyline(placed, colour))
        if len(placed) <= 25:
            parts += [f'<circle cx="{a}" cy="{b}" r="2.6" style="fill:{colour}"/>' for a, b in placed]
    legend = "".join(f'<span><b style="background:var(--s{i % 4})"></b>{text(name)}</span>' for i, name in enumerate(lines))
    legend = f'<div class="legend">{legend}</div>' if len(lines) > 1 else ""  # one line alone is named by the caption
    last = "; ".join(f"{name}: from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in lines.items())
    label = text(f"{y} by {x}. {last}")
    drawing = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<figure><figcaption>{text(y)}</figcaption>{drawing}{legend}</figure>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose low..high, about `count` of them."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _thin(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS: the mean of neighbours, so that a noisy curve does not gain or lose by the choice."""
    points = list(points)
    every = -(-len(points) // MAX_POINTS)
    if every <= 1:
        return points
    groups = [points[i : i + every] for i in range(0, len(points), every)]
    return [(g[-1][0], sum(p[1] for p in g) / len(g)) for g in groups]


def _smooth(points: Points) -> list[tuple[float, float]]:
    """Each value becomes the mean of itself and its neighbours on both sides; near the ends, of as many as there are on either."""
    half = min(NEIGHBOURS, len(points) // 8)
    out = []
    for i, (px, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        near = points[i - reach : i + reach + 1]
        out.append((px, sum(p[1] for p in near) / len(near)))
    return out


def _polyline(placed: Sequence[tuple[str, str]], colour: str, kind: str = "") -> str:
    path = " ".join(",".join(p) for p in placed)
    named = f' class="{kind}"' if kind else ""
    return f'<polyline points="{path}" style="stroke:{colour}"{named}/>'


def _label(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10000 else f"{value:g}"
