"""Tools a model may call: a calculator, Python in a sandbox, search over documents (talk 3.1, 3.3). Text in, text out; never an exception.

What a model writes is run here, so nothing here trusts it: the calculator knows numbers only, Python runs in pydantic-monty's worker
processes under limits of time, memory and depth, without files, network or host objects, and every answer is cut to a length.
"""

from __future__ import annotations

import ast
import contextlib
import operator
import threading
from collections.abc import Callable
from typing import Any, Protocol

from freedive.runs import UserError

from .search import Backend

MAX_OUTPUT = 4000  # characters of an answer


class Tool(Protocol):
    """A call's text to its answer. Problems are answers too: they begin with "error:"."""

    def __call__(self, text: str) -> str: ...


def cut(text: str, limit: int = MAX_OUTPUT) -> str:
    """At most `limit` characters, and a word where more were."""
    return text if len(text) <= limit else text[:limit] + f"... ({len(text) - limit:,} more characters)"


# ---- calculator ----------------------------------------------------------------------------------------------------

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}  # fmt: skip
_MOST = 10**100


def calculator(text: str) -> str:
    """The value of an expression of numbers, + - * / // % ** and parentheses; commas between thousands are read over."""
    if len(text) > 500:
        return "error: the expression is longer than 500 characters"
    try:
        return _shown(_value(ast.parse(text.strip().replace(",", "").replace("^", "**"), mode="eval").body))
    except ZeroDivisionError:
        return "error: division by zero"
    except (SyntaxError, ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        return f"error: {error.args[0] if isinstance(error, ValueError) else 'not an expression of numbers'}"


def _value(node: ast.AST) -> int | float:
    value: Any
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        value = _value(node.operand) * (-1 if isinstance(node.op, ast.USub) else 1)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, power = _value(node.left), _value(node.right)
        if abs(power) > 400 or abs(base) > _MOST:
            raise ValueError("the power is too large")
        value = base**power
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        value = _BINARY[type(node.op)](_value(node.left), _value(node.right))
    else:
        raise ValueError("only numbers and + - * / // % ** ( ) are known")
    if isinstance(value, complex) or value != value or abs(value) > _MOST:
        raise ValueError("the number is too large, or none")
    return value


def _shown(value: int | float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


# ---- Python --------------------------------------------------------------------------------------------------------


class Python:
    """Python in a worker process of pydantic-monty: what is printed, and the value of the last expression. A new interpreter each call.

    seconds, megabytes and depth bound one call. Raises UserError if pydantic-monty is not installed.
    """

    def __init__(self, seconds: float = 2.0, megabytes: int = 64, depth: int = 200):
        try:
            import pydantic_monty
        except ImportError:
            raise UserError("the Python tool needs the Python package pydantic-monty", hint="run: pip install 'freedive[serve]'") from None
        self._library, self._lock = pydantic_monty, threading.Lock()
        self._limits = {"max_feed_duration_secs": seconds, "max_memory": megabytes << 20, "max_recursion_depth": depth}
        self._pool: Any = None
        self._stack = contextlib.ExitStack()
        self._timeout = seconds + 3.0

    def __call__(self, text: str) -> str:
        with self._lock:
            try:
                if self._pool is None:
                    self._pool = self._stack.enter_context(self._library.Monty(max_processes=1, request_timeout=self._timeout))
                return self._run(text)
            except self._library.MontyError as error:
                return f"error: {cut(_last_line(str(error)), 300)}"
            except (OSError, RuntimeError, ValueError) as error:  # a worker that died: the next call gets a new pool
                self.close()
                return f"error: {cut(_last_line(str(error)), 300)}"

    def _run(self, code: str) -> str:
        printed = self._library.CollectString(max_bytes=1 << 20)
        with self._pool.checkout(limits=self._limits) as session:
            try:
                value = session.feed_run(code, print_callback=printed)
            except self._library.MontyError as error:
                return cut(printed.output) + f"error: {cut(_last_line(str(error)), 300)}"
        out = printed.output
        return cut(out + (repr(value) if value is not None else "") if out or value is not None else "")

    def close(self) -> None:
        """End the worker processes."""
        self._pool = None
        with contextlib.suppress(Exception):
            self._stack.close()
        self._stack = contextlib.ExitStack()


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "failed"


# ---- search --------------------------------------------------------------------------------------------------------


class Search:
    """The best documents a backend has for a query, as a numbered list with the beginnings of their texts."""

    def __init__(self, backend: Backend, results: int = 3, characters: int = 400):
        self.backend, self.results, self.characters = backend, results, characters

    def __call__(self, text: str) -> str:
        try:
            hits = self.backend.search(text.strip()[:1000], self.results)
        except UserError as error:
            return f"error: {error.message}"
        if not hits:
            return "no results"
        return cut("\n".join(f"[{i}] {h.title or h.url}: {cut(' '.join(h.text.split()), self.characters)}" for i, h in enumerate(hits, 1)))
