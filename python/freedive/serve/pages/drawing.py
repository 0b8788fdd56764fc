"""The architecture as a drawing, from a model's real shapes: SVG text, to be put into a page as it is (names in it are escaped).

Left to right as the talk draws it: ids, embedding, one block in full (it repeats n_layer times), the last norm, the head. A matrix is a
rectangle whose sides grow with its own (the square root of them, so that a vocabulary of 150,000 still fits beside a width of 500).
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field

from freedive.model import DecoderConfig

WIDE, ROOM = 1000, 196  # of the drawing; height of a box


@dataclass
class _Canvas:
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, size: float = 12.5, quiet: bool = False, anchor: str = "middle", bold: bool = False) -> None:
        look = ' class="quiet"' if quiet else ""
        weight = ' font-weight="500"' if bold else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{look}{weight}>{html.escape(words)}</text>')

    def box(self, x: float, y: float, w: float, h: float, kind: str = "box", r: float = 6) -> None:
        self.parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{r}"/>')

    def wire(self, *points: tuple[float, float], tip: bool = True) -> None:
        path = " ".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
        self.parts.append(f'<path class="wire" d="{path}"/>')
        if tip:
            (x0, y0), (x1, y1) = points[-2:]
            a = math.atan2(y1 - y0, x1 - x0)
            tips = [(x1, y1)] + [(x1 - 7 * math.cos(a + s), y1 - 7 * math.sin(a + s)) for s in (0.45, -0.45)]
            self.parts.append('<path class="tip" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in tips) + 'Z"/>')

    def plus(self, x: float, y: float) -> None:
        self.parts.append(f'<circle class="box" cx="{x:.1f}" cy="{y:.1f}" r="10"/><path class="wire" d="M{x - 5:.1f} {y:.1f}h10M{x:.1f} {y - 5:.1f}v10"/>')

    def matrix(self, x: float, y: float, name: str, rows: int, columns: int, scale: float, under: str = "") -> float:
        """Drawn around the line y, beginning at x; returns where it ends."""
        w, h = max(14.0, scale * math.sqrt(columns)), max(14.0, scale * math.sqrt(rows))
        self.box(x, y - h / 2, w, h, "weight", 3)
        self.text(x + w / 2, y - h / 2 - 8, name, 12)
        self.text(x + w / 2, y + h / 2 + 16, f"{rows:,} × {columns:,}", 11, quiet=True)
        if under:
            self.text(x + w / 2, y + h / 2 + 30, under, 11, quiet=True)
        return x + w


def architecture_svg(c: DecoderConfig) -> str:
    """One <svg> of the decoder `c`."""
    d, scale = _Canvas(), 92 / math.sqrt(max(c.d_ff, c.d_model, c.n_head * c.head_dim))
    vocab = min(scale, 96 / math.sqrt(c.vocab_size))
    y1, y2 = 78.0, 78.0 + ROOM
    y3 = y2 + ROOM + 14
    q, kv = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    norm = "RMSNorm" if c.norm == "rmsnorm" else "LayerNorm"

    # ids to residual stream
    d.text(20, y1 + 4, "token ids", 13, anchor="start", bold=True)
    d.wire((86, y1), (122, y1))
    end = d.matrix(126, y1, "embedding", c.vocab_size, c.d_model, vocab, "a row for each id")
    x = end + 14
    if c.position == "learned" or c.bigram_rows:
        name, rows = ("positions", c.max_positions) if c.position == "learned" else ("pairs of tokens", c.bigram_rows)
        d.wire((x, y1), (x + 34, y1))
        d.plus(x + 44, y1)
        d.text(x + 44, y1 - 22, name, 12)
        d.text(x + 44, y1 + 30, f"{rows:,} × {c.d_model:,}", 11, quiet=True)
        x += 54
    d.wire((x, y1), (x + 60, y1))
    d.text(x + 70, y1 - 5, f"residual stream: {c.d_model:,} numbers a token", 13, anchor="start", bold=True)
    d.text(x + 70, y1 + 13, f"through {c.n_layer} blocks, one after the other, all shaped as below", 12, quiet=True, anchor="start")

    # attention
    d.box(8, y2 - 92, WIDE - 16, ROOM, "box", 12)
    d.text(26, y2 - 68, "attention: tokens look at those before them", 13, anchor="start", bold=True)
    top = 24.0
    d.wire((26, y2 + top), (62, y2 + top))
    d.box(64, y2 + top - 16, 84, 32)
    d.text(106, y2 + top + 4, norm, 12)
    d.wire((148, y2 + top), (176, y2 + top))
    x = 182.0
    for name, rows in (("W query", q), ("W key", kv), ("W value", kv)):
        end = d.matrix(x, y2 + top, name, rows, c.d_model, scale)
        x = max(end, x + 74) + 14
    detail = (["norm of q, k"] if c.qk_norm else []) + (["rotated by position"] if c.position == "rope" else [])
    d.wire((end + 8, y2 + top), (x + 12, y2 + top))
    d.box(x + 14, y2 + top - 36, 208, 72)
    shared = f"{c.n_head} heads of {c.head_dim}" + (f", {c.n_kv_head} for k and v" if c.n_kv_head != c.n_head else "")
    for i, words in enumerate([shared, *([", ".join(detail)] if detail else []), "softmax(q k / √" + str(c.head_dim) + ") v"]):
        d.text(x + 118, y2 + top - 14 + 19 * i, words, 12, quiet=i > 0)
    d.wire((x + 222, y2 + top), (x + 246, y2 + top))
    end = d.matrix(x + 252, y2 + top, "W out", c.d_model, q, scale)
    d.wire((end + 8, y2 + top), (WIDE - 64, y2 + top))
    d.plus(WIDE - 52, y2 + top)
    d.wire((36, y2 + top), (36, y2 - 46), (WIDE - 52, y2 - 46), (WIDE - 52, y2 + top - 11))

    # MLP
    d.box(8, y3 - 92, WIDE - 16, ROOM, "box", 12)
    d.text(26, y3 - 68, "MLP: each token by itself", 13, anchor="start", bold=True)
    d.wire((26, y3 + top), (62, y3 + top))
    d.box(64, y3 + top - 16, 84, 32)
    d.text(106, y3 + top + 4, norm, 12)
    d.wire((148, y3 + top), (176, y3 + top))
    x = 182.0
    for name in ("W gate", "W up") if c.mlp == "swiglu" else ("W up",):
        end = d.matrix(x, y3 + top, name, c.d_ff, c.d_model, scale)
        x = max(end, x + 84) + 14
    d.wire((end + 8, y3 + top), (x + 12, y3 + top))
    d.box(x + 14, y3 + top - 18, 150, 36)
    d.text(x + 89, y3 + top + 4, "silu(gate) × up" if c.mlp == "swiglu" else "GELU", 12)
    d.wire((x + 164, y3 + top), (x + 190, y3 + top))
    end = d.matrix(x + 196, y3 + top, "W down", c.d_model, c.d_ff, scale)
    d.wire((end + 8, y3 + top), (WIDE - 64, y3 + top))
    d.plus(WIDE - 52, y3 + top)
    d.wire((36, y3 + top), (36, y3 - 46), (WIDE - 52, y3 - 46), (WIDE - 52, y3 + top - 11))

    # head
    y4 = y3 + ROOM
    d.text(20, y4 - 5, f"after block {c.n_layer}", 13, anchor="start", bold=True)
    d.wire((20, y4 + 14), (122, y4 + 14))
    d.box(126, y4 - 2, 84, 32)
    d.text(168, y4 + 18, norm, 12)
    d.wire((210, y4 + 14), (244, y4 + 14))
    end = d.matrix(250, y4 + 14, "head", c.vocab_size, c.d_model, vocab, "the embedding once more" if c.tie_embeddings else "")
    d.wire((end + 10, y4 + 14), (end + 70, y4 + 14))
    d.text(end + 80, y4 + 9, f"{c.vocab_size:,} numbers: one a token of the vocabulary", 13, anchor="start", bold=True)
    d.text(end + 80, y4 + 27, "softmax makes them probabilities, and the next token is drawn from those", 12, quiet=True, anchor="start")
    height = y4 + 108
    words = f"Architecture: {c.n_layer} blocks, width {c.d_model}, {c.n_head} heads, vocabulary {c.vocab_size}"
    return f'<svg viewBox="0 0 {WIDE} {height:.0f}" role="img" aria-label="{html.escape(words)}">{"".join(d.parts)}</svg>'
