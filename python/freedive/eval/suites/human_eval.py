"""HumanEval (Chen et al., arXiv:2107.03374): a function from its signature and docstring, run against its tests in a sandbox."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from freedive.eval import sandbox
from freedive.runs import UserError, usable_cores
from freedive.tokenizer import render

from .base import Item, Record, TooLong, register
from .generation import Generates, shares
from .rows import Code, code
from .scoring import longest

STOP = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```")
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


@register("humaneval")
class HumanEval(Generates):
    chunk = 16
    takes_shots = False

    @staticmethod
    def read(row: dict[str, Any]) -> tuple[Code, str]:
        return code(row), ""

    @classmethod
    def check(cls) -> None:
        if why := sandbox.unavailable():
            raise UserError(f"humaneval runs what the model writes, and has no sandbox for it here: {why}")

    def measure(self, items: Sequence[Item], asked: Sequence[Any]) -> list[Record]:
        plain = self.plain()
        done = self.complete(items, asked, STOP if plain else ())
        programs = [item.value.prompt + o.text if plain else from_reply(item.value, o.text) for item, outs in zip(items, done) for o in outs]
        outcomes = run_tests([item.value for item in items for _ in range(self.asking.samples)], programs)
        records = []
        for i, (item, outs) in enumerate(zip(items, done)):
            mine = outcomes[i * self.asking.samples : (i + 1) * self.asking.samples]
            right = [o.passed for o in mine]
            records.append({"entry_point": item.value.entry_point, "replies": [o.text for o in outs], "right": right, "errors": [o.error for o in mine], "scores": shares(right)})
        return records

    def ask(self, item: Item) -> list[int]:
        tok, prompt = self.lm.tokenizer, item.value.prompt
        request = f"Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{prompt.strip()}\n```"
        ids = tok.document_ids(prompt) if self.plain() else render(tok, [{"role": "user", "content": request}], add_generation_prompt=True)[0]
        if len(ids) + self.asking.max_new_tokens > longest(self.lm):
            raise TooLong
        return ids


def from_reply(value: Code, reply: str) -> str:
    """The program of an assistant's reply: the code block that defines the function, behind the prompt, whose imports and helpers it may use."""
    blocks = _FENCED.findall(reply) or [reply]
    defining = [b for b in blocks if f"def {value.entry_point}" in b]
    if defining:
        return f"{value.prompt}\n    pass\n\n{defining[0]}\n"
    return value.prompt + blocks[0]  # the body alone


def run_tests(problems: Sequence[Code], programs: Sequence[str]) -> list[sandbox.Outcome]:
    """Each program against its problem's tests, side by side on the usable cores."""
    whole = [f"{program}\n{value.test}\ncheck({value.entry_point})\n" for value, program in zip(problems, programs)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(sandbox.run_python, whole))
