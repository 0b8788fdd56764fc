"""Minimal pairs (BLiMP, Warstadt et al., arXiv:1912.00582): of two sentences that differ in one thing, the right one should be likelier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Item, Record, Suite, TooLong, register
from .rows import Pair, pair
from .scoring import continuation_logprobs, longest


@register("minimal_pairs")
class MinimalPairs(Suite):
    takes_shots = False

    @staticmethod
    def read(row: dict[str, Any]) -> tuple[Pair, str]:
        value = pair(row)
        return value, value.group

    def ask(self, item: Item) -> list[tuple[list[int], list[int]]]:
        tok = self.lm.tokenizer
        pairs = [([tok.bos_id], tok.encode(text)) for text in (item.value.good, item.value.bad)]  # each as a document by itself
        if max(len(ids) for _, ids in pairs) > longest(self.lm):
            raise TooLong
        return pairs

    def measure(self, items: Sequence[Item], asked: Sequence[Any]) -> list[Record]:
        found = continuation_logprobs(self.lm, [pair for pairs in asked for pair in pairs])
        return [{"good": item.value.good, "bad": item.value.bad, "logprobs": [round(good, 4), round(bad, 4)], "scores": {"accuracy": float(good > bad)}}
                for item, good, bad in zip(items, found[::2], found[1::2])]  # fmt: skip
