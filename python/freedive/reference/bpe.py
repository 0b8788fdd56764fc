"""Byte-pair encoding, trained the obvious way: count every pair, merge the most frequent, repeat (Sennrich et al., 2016).

The oracle for rustbpe, which the product uses. The one idea: text is split into pieces first (the regex), and merges never
cross a piece, so it is enough to keep each distinct piece once with its count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import regex

Pair = tuple[int, int]


def merge(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Replace every non-overlapping occurrence of `pair`, left to right"""
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def train(texts: Iterable[str], vocab_size: int, pattern: str, ties: str = "smaller ids") -> dict[bytes, int]:
    """Ranks of `vocab_size` tokens, the 256 bytes first. Ties of the count go to the smallest pair of ids (rustbpe), or with
    ties = "larger bytes" to the pair whose bytes compare greater (Stanford CS336's assignment).

    Stops early when no pair is left to merge. Raises ValueError for vocab_size < 256.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size must be at least 256, one per byte; got {vocab_size}")
    counts = Counter(piece for text in texts for piece in regex.findall(pattern, text))
    pieces = [(list(piece.encode("utf-8")), count) for piece, count in counts.items()]
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < vocab_size:
        pairs: Counter[Pair] = Counter()
        for ids, count in pieces:
            for pair in zip(ids, ids[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        if ties == "smaller ids":
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        else:
            best = max(pairs, key=lambda pair: (pairs[pair], tokens[pair[0]], tokens[pair[1]]))
        pieces = [(merge(ids, best, len(tokens)), count) for ids, count in pieces]
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return {token: rank for rank, token in enumerate(tokens)}


def encode(text: str, ranks: dict[bytes, int], pattern: str) -> list[int]:
    """tiktoken's rule: in each piece, join the neighbours whose union has the lowest rank, until none has one"""
    out = []
    for piece in regex.findall(pattern, text):
        parts = [bytes([b]) for b in piece.encode("utf-8")]
        while len(parts) > 1:
            rank, i = min((ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1))
            if rank == len(ranks):
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        out += [ranks[part] for part in parts]
    return out
