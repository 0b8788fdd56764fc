"""Arithmetic that is too much for one token (talk 3.3.1): sums of four numbers, and products of two.

Sums come answer-first ("162") and in steps, one small addition a token or two, column by column from the right:

    47+35+12+68    7+5=12+2=14+8=22, 2+4=06+3=09+1=10+6=16. Answer 162

Products come at once, or by a call of Python that copies the expression. The style is named by a system message, so that one model with
one training knows them all. Training and held-out problems are told apart by a hash of the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .arithmetic import expression, problem, split_of
from .draw import Draw
from .tool_rows import with_call

SUMS_STREAM, PRODUCTS_STREAM = 61, 63
SYSTEM = {"direct": "Answer at once.", "steps": "Work in steps.", "python": "Use Python."}
ASKED = ("What is {x}?", "Please work out {x}.", "{x}?")


def steps(numbers: Sequence[int]) -> str:
    """The columns from the right, each a chain of running sums that begins with the carry (if there is one); then the answer."""
    width = max(len(str(n)) for n in numbers)
    carry, columns = 0, []
    for column in range(width):
        digits = [n // 10**column % 10 for n in numbers]
        terms = [carry, *digits] if column else digits
        total, chain = terms[0], str(terms[0])
        for digit in terms[1:]:
            total += digit
            chain += f"+{digit}={total:02d}"
        columns.append(chain)
        carry = total // 10
    return ", ".join(columns) + f". Answer {sum(numbers)}"


def sum_row(numbers: Sequence[int], style: str, asked: str) -> dict[str, Any]:
    """A conversation on a sum, "direct" or in "steps"."""
    prompt = _prompt(style, asked.format(x=expression(numbers)))
    answer = str(sum(numbers))
    reply = steps(numbers) if style == "steps" else answer
    return {
        "messages": [*prompt, {"role": "assistant", "content": reply}], "prompt": prompt, "answer": answer,
        "meta": {"task": "four_term_sums", "numbers": list(numbers), "style": style, "split": split_of(numbers)},
    }  # fmt: skip


def product_row(a: int, b: int, style: str, asked: str) -> dict[str, Any]:
    """A conversation on a product, "direct" or by "python"."""
    prompt, answer = _prompt(style, asked.format(x=f"{a}*{b}")), str(a * b)
    messages = with_call(prompt, "python", f"{a}*{b}", answer, answer) if style == "python" else [*prompt, {"role": "assistant", "content": answer}]
    return {"messages": messages, "prompt": prompt, "answer": answer, "meta": {"task": "products", "numbers": [a, b], "style": style, "split": split_of((a, b))}}


def _prompt(style: str, question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM[style]}, {"role": "user", "content": question}]


def sum_rows(seed: int, n: int, split: str = "train", terms: int = 4, digits: int = 2) -> Iterator[dict[str, Any]]:
    """n sums, each in both styles."""
    draw = Draw(seed, SUMS_STREAM + (split != "train"))
    for _ in range(n):
        numbers, asked = problem(draw, split, digits, terms), draw.pick(ASKED)
        for style in ("direct", "steps"):
            yield sum_row(numbers, style, asked)


def product_rows(seed: int, n: int, split: str = "train", digits: int = 3) -> Iterator[dict[str, Any]]:
    """n products of two numbers, each in both styles."""
    draw = Draw(seed, PRODUCTS_STREAM + (split != "train"))
    for _ in range(n):
        (a, b), asked = problem(draw, split, digits, 2), draw.pick(ASKED)
        for style in ("direct", "python"):
            yield product_row(a, b, style, asked)
