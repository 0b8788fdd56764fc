"""Those who write down solutions for a model to imitate before it practises (talk 4), each with a weakness that practice can get over:

mostly_at_once   answers most sums of four numbers at once, which is mostly wrong, and works few of them out in steps
seldom_python    seldom calls Python for a product unless told to, and writes down what it comes to as if it had been known
forgetful        works sums out column by column, and in a part 1 - skill of them forgets to carry

Every one of them shows the good way now and then; nothing but the reward for right answers says that it is the good one. Problems to practise
and held-out ones are told apart by a hash of their numbers, as everywhere in freedive.tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .arithmetic import QUESTIONS, expression, problem, split_of, worked
from .draw import Draw
from .reckoning import ASKED, SYSTEM, steps
from .tool_rows import with_call

SUMS_STREAM, PRODUCTS_STREAM, CARRIES_STREAM = 64, 66, 68
EASY, HARD = (1, 2), (3, 3)  # digits of the two factors

Row = dict[str, Any]


def _rows(seed: int, stream: int, n: int, split: str) -> tuple[Draw, range]:
    return Draw(seed, stream + (split != "train")), range(n)


def _row(question: str, answer: int, numbers: Sequence[int], task: str, **meta: Any) -> Row:
    prompt = [{"role": "user", "content": question}]
    return {"prompt": prompt, "answer": str(answer), "meta": {"task": task, "numbers": list(numbers), "split": split_of(numbers), **meta}}


def sum_problems(seed: int, n: int, split: str, terms: int = 4) -> Iterator[Row]:
    """Sums of `terms` two-digit numbers, with no word of how to work them out."""
    draw, count = _rows(seed, SUMS_STREAM, n, split)
    for _ in count:
        numbers = problem(draw, split, 2, terms)
        yield _row(draw.pick(ASKED).format(x=expression(numbers)), sum(numbers), numbers, "sums")


def mostly_at_once(seed: int, n: int, p_steps: float) -> Iterator[Row]:
    """Conversations on `n` sums of four numbers; a part `p_steps` is worked in steps. The problems are the same for every `p_steps`."""
    style = Draw(seed, SUMS_STREAM + 2)
    for row in sum_problems(seed, n, "train"):
        how = "steps" if style.chance(p_steps) else "direct"
        yield _answered(row, steps(row["meta"]["numbers"]) if how == "steps" else row["answer"], how)


def product_problems(seed: int, n: int, split: str) -> Iterator[Row]:
    """Products, in turn of small numbers (meta.level "easy") and of two numbers of three digits ("hard")."""
    draw, count = _rows(seed, PRODUCTS_STREAM, n, split)
    for at in count:
        level, digits = (("easy", EASY), ("hard", HARD))[at % 2]
        while True:
            a, b = (draw.between(10 ** (d - 1), 10**d - 1) for d in digits)
            if split_of((a, b)) == split:
                break
        yield _row(draw.pick(ASKED).format(x=f"{a}*{b}"), a * b, (a, b), "products", level=level)


def seldom_python(seed: int, n: int, p_python: float) -> Iterator[Row]:
    """Conversations on `n` products; a part `p_python` calls Python, whatever the numbers are. And half as many in which a system message asks
    for Python (meta.style "told"): a call is no use to a model that cannot copy the factors into it."""
    style = Draw(seed, PRODUCTS_STREAM + 2)
    for at, row in enumerate(product_problems(seed, n + n // 2, "train")):
        code = "*".join(map(str, row["meta"]["numbers"]))
        if at >= n:
            told = [{"role": "system", "content": SYSTEM["python"]}, *row["prompt"]]
            yield {**row, "messages": with_call(told, "python", code, row["answer"], row["answer"]), "meta": {**row["meta"], "style": "told"}}
        elif style.chance(p_python):
            yield {**row, "messages": with_call(row["prompt"], "python", code, row["answer"], row["answer"]), "meta": {**row["meta"], "style": "python"}}
        else:
            yield _answered(row, row["answer"], "direct")


def carry_problems(seed: int, n: int, split: str) -> Iterator[Row]:
    """Sums of two three-digit numbers with something to carry to the tens or the hundreds, so that a forgotten carry is a wrong answer."""
    draw, count = _rows(seed, CARRIES_STREAM, n, split)
    for _ in count:
        while True:
            numbers = problem(draw, split)
            if forgetting(numbers) != worked(numbers):
                break
        yield _row(draw.pick(QUESTIONS).format(x=expression(numbers)), sum(numbers), numbers, "carries")


def forgetful(seed: int, n: int, skill: float) -> Iterator[Row]:
    """Conversations on `n` sums with carries, all worked out; a part `skill` of them rightly, in the others every carry is forgotten."""
    style = Draw(seed, CARRIES_STREAM + 2)
    for row in carry_problems(seed, n, "train"):
        good = style.chance(skill)
        yield _answered(row, (worked if good else forgetting)(row["meta"]["numbers"]), "right" if good else "forgotten")


def forgetting(numbers: Sequence[int]) -> str:
    """As `arithmetic.worked`, but nothing is ever carried: each column stands alone, and the answer is their last digits."""
    width = max(len(str(n)) for n in numbers)
    shown, answer = [], 0
    for column in range(width):
        digits = [n // 10**column % 10 for n in numbers]
        total = sum(digits)
        shown.append("+".join(map(str, [*digits, 0])) + f"={total:02d}")
        answer += (total if column == width - 1 else total % 10) * 10**column
    return ", ".join(shown) + f". Answer {answer}"


def _answered(row: Row, reply: str, style: str) -> Row:
    return {**row, "messages": [*row["prompt"], {"role": "assistant", "content": reply}], "meta": {**row["meta"], "style": style}}
