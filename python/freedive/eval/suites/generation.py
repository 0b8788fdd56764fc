"""Questions that are answered in words: exact, contained and numeric match (freedive.eval.match), with examples before the question (in-context
learning, talk 1.5); GSM8K's form with worked steps (Cobbe et al., arXiv:2110.14168)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freedive.eval.match import matches
from freedive.objectives import pass_at_k
from freedive.tokenizer import render

from .base import Item, Record, Suite, fewer, register
from .rows import Question, question
from .scoring import longest


class Generates(Suite):
    chunk = 32

    def plain(self) -> bool:
        """Whether questions are text rather than turns."""
        return self.asking.base or self.lm.tokenizer.chat is None

    def complete(self, items: Sequence[Item], prompts: Sequence[list[int]], stop: Sequence[str]) -> list[list[Any]]:
        """asking.samples completions of each prompt. Seeds depend on the item's line only."""
        a = self.asking
        many = [p for p in prompts for _ in range(a.samples)]
        seeds = [(a.seed << 40) + item.line * a.samples + j for item in items for j in range(a.samples)]
        done = self.lm.engine.generate(many, max_new_tokens=a.max_new_tokens, temperature=a.temperature, stop_ids=self.lm.tokenizer.stop_ids, stop=tuple(stop), seeds=seeds)
        return [done[i : i + a.samples] for i in range(0, len(done), a.samples)]


def shares(right: Sequence[bool]) -> dict[str, float]:
    """Accuracy, and pass@k where several answers were drawn (Chen et al., arXiv:2107.03374)."""
    n, c = len(right), sum(right)
    return {"accuracy": c / n} | ({f"pass@{k}": float(pass_at_k(n, c, k)) for k in (2, 4, 8, 16, 32, 64, 128) if k <= n} if n > 1 else {})


@register("generation")
class Generation(Generates):
    """An assistant is asked in turns, examples as earlier turns; with --base as text, "Question: ... Answer: ...", up to the end of the line."""

    lines = 1  # of a base model's answer

    @staticmethod
    def read(row: dict[str, Any]) -> tuple[Question, str]:
        value = question(row)
        return value, value.group

    def measure(self, items: Sequence[Item], asked: Sequence[Any]) -> list[Record]:
        plain = self.plain()
        done = self.complete(items, [ids for ids, _ in asked], ("\nQuestion:", "\n\n") if plain and self.lines > 1 else ("\n",) if plain else ())
        records = []
        for item, (_, shots), outs in zip(items, asked, done):
            right = [matches(o.text, item.value.answer, item.value.check) for o in outs]
            records.append({"prompt": item.value.prompt, "answer": item.value.answer, "replies": [o.text for o in outs], "right": right,
                            "ended": [o.stopped for o in outs], "shots": shots, "scores": shares(right)})  # fmt: skip
        return records

    def ask(self, item: Item) -> tuple[list[int], int]:
        shown = self.shown(item)
        while True:
            if self.plain():
                before = "".join(f"Question: {e.value.prompt}\nAnswer: {e.value.solution}\n\n" for e in shown)
                ids = self.lm.tokenizer.document_ids(f"{before}Question: {item.value.prompt}\nAnswer:")
            else:
                turns = [m for e in shown for m in ({"role": "user", "content": e.value.prompt}, {"role": "assistant", "content": e.value.solution})]
                ids = render(self.lm.tokenizer, [*turns, {"role": "user", "content": item.value.prompt}], add_generation_prompt=True)[0]
            if len(ids) + self.asking.max_new_tokens <= longest(self.lm):
                return ids, len(shown)
            shown = fewer(shown)


@register("gsm8k")
class GSM8K(Generation):
    """The number after the last "####" or "answer", else the last number, must be the answer."""

    lines = 100
