"""Problems of numbers: arithmetic, countdown, parity, sorting. Each a maker and a checker."""

from __future__ import annotations

import ast
import re
from fractions import Fraction
from typing import Any

from freedive.eval.match import last_number
from freedive.runs import UserError
from freedive.tasks.draw import Draw

from .extract import answer_of

Row = dict[str, Any]
_ASKED = ("What is {x}?", "Please work out {x}.", "Calculate {x}.")


def arithmetic(draw: Draw, terms: int = 2, digits: int = 2, operations: str = "+-") -> Row:
    """Integers of up to `digits` digits, worked from the left except that * binds closer."""
    if terms < 2 or digits < 1 or not operations or set(operations) - set("+-*"):
        raise UserError(f"arithmetic needs terms >= 2, digits >= 1 and operations of + - *; got terms={terms}, digits={digits}, operations={operations}")
    parts = [str(draw.below(10**digits))]
    for _ in range(terms - 1):
        parts += [draw.pick(operations), str(draw.below(10**digits))]
    expression = " ".join(parts)
    return {"prompt": draw.pick(_ASKED).format(x=expression), "answer": str(value_of(expression))}


def check_number(reply: str, row: Row) -> float:
    """The last number of the answer is the right one."""
    found, wanted = last_number(answer_of(reply)), last_number(str(row["answer"]))
    try:
        return float(found is not None and wanted is not None and Fraction(found) == Fraction(wanted))
    except ValueError:
        return 0.0


def countdown(draw: Draw, numbers: int = 3, largest: int = 20) -> Row:
    """Numbers and a target that some expression of all of them reaches; every step of the one drawn is a whole number, 0 to 1000."""
    if numbers < 2 or largest < 2:
        raise UserError(f"countdown needs numbers >= 2 and largest >= 2; got numbers={numbers}, largest={largest}")
    while True:
        given = [draw.between(1, largest) for _ in range(numbers)]
        total = given[0]
        for n in given[1:]:
            operation = draw.pick("+-*/")
            if operation == "/" and (n == 0 or total % n):
                operation = "-"
            total = {"+": total + n, "-": total - n, "*": total * n, "/": total // n}[operation]
        if 0 < total <= 1000 and total not in given:
            break
    listed = ", ".join(map(str, draw.shuffled(given)))
    return {"prompt": f"Using all of the numbers {listed}, each once, and + - * / with parentheses, write an expression that equals {total}.", "answer": str(total),
            "meta": {"numbers": given, "target": total}}  # fmt: skip


def lacking_countdown(meta: dict[str, Any]) -> str:
    """What `check_countdown` needs of a row's meta and does not find, as a sentence; "" where all is there."""
    numbers, target = meta.get("numbers"), meta.get("target")
    if not isinstance(numbers, list) or not numbers or any(type(n) is not int for n in numbers):
        return f"a list of whole numbers is wanted in meta.numbers, which is {numbers!r:.40}"
    if type(target) not in (int, float):
        return f"a number is wanted in meta.target, which is {target!r:.40}"
    return ""


def check_countdown(reply: str, row: Row) -> float:
    """An expression of exactly the given numbers that has the target's value; a right-hand side "= 24" is read over."""
    text = answer_of(reply).partition("=")[0].replace("×", "*").replace("÷", "/").replace("−", "-").strip()
    if not re.fullmatch(r"[0-9\s+\-*/()]{1,200}", text) or "//" in text or "**" in text:
        return 0.0
    if sorted(map(int, re.findall(r"[0-9]+", text))) != sorted(row["meta"]["numbers"]):
        return 0.0
    return float(value_of(text) == row["meta"]["target"])


def parity(draw: Draw, length: int = 12) -> Row:
    """Bits, and whether the number of ones is even or odd."""
    if length < 1:
        raise UserError(f"parity needs length >= 1; got {length}")
    bits = [draw.below(2) for _ in range(length)]
    return {"prompt": f"Is the number of ones in {' '.join(map(str, bits))} even or odd?", "answer": "odd" if sum(bits) % 2 else "even"}


def sorting(draw: Draw, count: int = 4, largest: int = 99) -> Row:
    """Different numbers to be put in ascending or descending order."""
    if count < 2 or largest < count:
        raise UserError(f"sorting needs count >= 2 and largest >= count; got count={count}, largest={largest}")
    numbers: list[int] = []
    while len(numbers) < count:
        if (n := draw.below(largest + 1)) not in numbers:
            numbers.append(n)
    order = draw.pick(("ascending", "descending"))
    answer = sorted(numbers, reverse=order == "descending")
    return {"prompt": f"Sort these numbers in {order} order: {', '.join(map(str, numbers))}", "answer": ", ".join(map(str, answer))}


def check_list(reply: str, row: Row) -> float:
    """The numbers of the answer, in order."""
    return float(re.findall(r"-?\d+", answer_of(reply)) == re.findall(r"-?\d+", row["answer"]))


def value_of(expression: str) -> Fraction | None:
    """The value of + - * / and parentheses on whole numbers; None where it has none."""
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp):
        a, b = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add):
            return a + b
        if isinstance(node.op, ast.Sub):
            return a - b
        if isinstance(node.op, ast.Mult):
            return a * b
        if isinstance(node.op, ast.Div):
            return a / b
    raise ValueError("not an expression of whole numbers")
