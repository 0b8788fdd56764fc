"""Multiple choice. MMLU's way (Hendrycks et al., arXiv:2009.03300): the options are shown with letters, and the letter that the model finds likeliest
is its choice. The way of HellaSwag, ARC and PIQA: the options are not shown, and the likeliest text is (accuracy), or the likeliest for its length
(accuracy_norm: log-prob divided by the option's characters, as in EleutherAI's harness)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from freedive.inference import LM
from freedive.runs import UserError
from freedive.tokenizer import render

from .base import Asking, Item, Record, Suite, fewer, register
from .rows import LETTERS, Choices, choices
from .scoring import continuation_logprobs, longest, next_token_logprobs, split


class _Choice(Suite):
    @staticmethod
    def read(row: dict[str, Any]) -> tuple[Choices, str]:
        value = choices(row)
        return value, value.group


@register("mmlu")
class MMLU(_Choice):
    """Choice by letter. Shots come from the same subject."""

    def measure(self, items: Sequence[Item], asked: Sequence[Any]) -> list[Record]:
        single = [i for i, (_, ids, _) in enumerate(asked) if all(len(c) == 1 for c in ids)]
        scores: dict[int, list[float]] = {}
        found = next_token_logprobs(self.lm, [asked[i][0] for i in single], [[c[0] for c in asked[i][1]] for i in single])
        scores.update((i, [float(x) for x in row]) for i, row in zip(single, found))
        rest = [i for i in range(len(items)) if i not in scores]  # a tokenizer that cuts " A" in two
        pairs = [(asked[i][0], c) for i in rest for c in asked[i][1]]
        flat = iter(continuation_logprobs(self.lm, pairs))
        scores.update((i, [next(flat) for _ in asked[i][1]]) for i in rest)
        records = []
        for i, item in enumerate(items):
            chosen = int(np.argmax(scores[i]))
            records.append({"question": item.value.question, "chosen": LETTERS[chosen], "right": LETTERS[item.value.answer], "shots": asked[i][2],
                            "logprobs": [round(x, 4) for x in scores[i]], "scores": {"accuracy": float(chosen == item.value.answer)}})  # fmt: skip
        return records

    def ask(self, item: Item) -> tuple[list[int], list[list[int]], int]:
        """(ids of the prompt, ids of each letter, examples shown: as many as fit)."""
        shown = self.shown(item)
        letters = LETTERS[: len(item.value.options)]
        while True:
            text = "\n\n".join([*self._intro(item), *(_block(e.value) + f" {LETTERS[e.value.answer]}" for e in shown), _block(item.value)])
            if self.asking.chat:
                prompt = render(self.lm.tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)[0]
                ids = [self.lm.tokenizer.encode(letter) for letter in letters]
            else:
                cut = [split(self.lm, text, f" {letter}") for letter in letters]
                prompt, ids = cut[0][0], [c[1] for c in cut]
            if len(prompt) + max(map(len, ids)) <= longest(self.lm):
                return prompt, ids, len(shown)
            shown = fewer(shown)

    def _intro(self, item: Item) -> list[str]:
        return [f"The following are multiple choice questions (with answers) about {item.group.replace('_', ' ')}."] if item.group else []


def _block(value: Choices) -> str:
    return "\n".join([value.question.strip(), *(f"{letter}. {option}" for letter, option in zip(LETTERS, value.options)), "Answer:"])


@register("multiple_choice")
class MultipleChoice(_Choice):
    """Choice by the likeliest text, as a document goes on."""

    def __init__(self, lm: LM, asking: Asking, examples: Sequence[Item] = ()):
        super().__init__(lm, asking, examples)
        if asking.chat:
            raise UserError("multiple_choice compares texts as a document goes on and takes no --chat", hint="mmlu:FILE asks for a letter, also in turns")

    def measure(self, items: Sequence[Item], asked: Sequence[Any]) -> list[Record]:
        flat = iter(continuation_logprobs(self.lm, [pair for pairs, _ in asked for pair in pairs]))
        records = []
        for item, (pairs, shots) in zip(items, asked):
            found = [next(flat) for _ in pairs]
            best, normed = int(np.argmax(found)), int(np.argmax([x / len(o) for x, o in zip(found, item.value.options)]))
            right = item.value.answer
            records.append({"question": item.value.question, "chosen": best, "chosen_norm": normed, "right": right, "shots": shots,
                            "logprobs": [round(x, 4) for x in found], "scores": {"accuracy": float(best == right), "accuracy_norm": float(normed == right)}})  # fmt: skip
        return records

    def ask(self, item: Item) -> tuple[list[tuple[list[int], list[int]]], int]:
        shown = self.shown(item)
        while True:
            before = "".join(f"{_open(e.value)} {e.value.options[e.value.answer]}\n\n" for e in shown)
            pairs = [split(self.lm, before + _open(item.value), f" {option}") for option in item.value.options]
            if max(len(a) + len(b) - 1 for a, b in pairs) <= longest(self.lm):
                return pairs, len(shown)
            shown = fewer(shown)


def _open(value: Choices) -> str:
    return value.question.strip() if value.ending else f"Question: {value.question.strip()}\nAnswer:"
