"""Environments, in TRL's form: a class whose instances each live through one rollout.

    class Treasure:
        def reset(self, **row) -> str | None:      # the row's keys; what it returns is added to the question
            self.place, self.found = row["place"], False
        def look(self, room: str) -> str:          # every public method is a tool: type hints and the docstring are what the model is told
            '''Looks into a room.

            Args:
                room: name of the room
            '''
            self.found = room == self.place
            return "gold!" if self.found else "dust"
        def get_reward(self) -> float: ...         # if there is one, it is added to the reward
        def step(self, text: str) -> str | None:   # ours: for turns without tools. The next user's turn, or None: over

Reward functions get the instances as `environments`. They live in this process; a method that takes too long is broken off by an alarm, which
ends everything but a call into C that never comes back.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import signal
import threading
import typing
from collections.abc import Callable, Iterator
from typing import Any

from freedive.runs import UserError, find_function

NOT_TOOLS = frozenset({"reset", "get_reward", "step"})
_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def find_environment(name: str) -> Callable[[], Any]:
    """The class (or factory without arguments) `file.py:Class` or `package.module:Class`. Raises UserError where it is no environment."""
    factory = find_function(name, {}, "environment")
    try:
        instance = factory()
    except Exception as error:
        raise UserError(f"the environment {name} cannot be made: {type(error).__name__}: {error}", hint="it is called without arguments, once for each rollout") from error
    if not callable(getattr(instance, "reset", None)):
        raise UserError(f"the environment {name} has no method reset(**row)")
    if not tools_of(instance) and not callable(getattr(instance, "step", None)):
        raise UserError(f"the environment {name} has no public method to be called as a tool, and no step(text)")
    return factory


def tools_of(environment: Any) -> dict[str, Callable[..., Any]]:
    """Name -> method of each tool, in the order of the class."""
    names = [n for kind in reversed(type(environment).__mro__[:-1]) for n in vars(kind) if not n.startswith("_") and n not in NOT_TOOLS]
    return {n: getattr(environment, n) for n in dict.fromkeys(names) if inspect.ismethod(getattr(environment, n))}


def schema(name: str, method: Callable[..., Any]) -> dict[str, Any]:
    """A tool as the function schema that a model is shown (OpenAI's): from type hints, and a docstring in Google's form."""
    document = inspect.getdoc(method) or ""
    told, _, rest = document.partition("Args:")
    described = dict(re.findall(r"^\s*(\w+)(?: \([^)]*\))?:\s*(.+)$", rest.partition("Returns:")[0], re.MULTILINE))
    hints = typing.get_type_hints(method)
    properties, required = {}, []
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        hint = hints.get(parameter.name, str)
        kind = next((k for k in (*typing.get_args(hint), hint) if k in _KINDS), None)  # of `int | None` the int
        origin = typing.get_origin(hint)
        word = _KINDS[origin] if origin in _KINDS else _KINDS[kind] if kind is not None else "string"
        properties[parameter.name] = {"type": word} | ({"description": described[parameter.name].strip()} if parameter.name in described else {})
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": told.strip(), "parameters": parameters}}


class TooLong(BaseException):
    """A method of an environment was over its time. No Exception, so that what it calls does not catch it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooLong in the body after `seconds`; 0 is no limit. Alarms reach the main thread only: elsewhere there is none."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise TooLong(f"timed out after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def called(method: Callable[..., Any], arguments: dict[str, Any], seconds: float = 0.0, *positional: Any) -> str:
    """The answer of a tool, as text. What goes wrong is an answer too: "error: ..."; the model may put it right."""
    try:
        inspect.signature(method).bind(*positional, **arguments)
    except TypeError as error:
        return f"error: {error}"
    try:
        with time_limit(seconds):
            answer = method(*positional, **arguments)
    except TooLong as error:
        return f"error: {error}"
    except Exception as error:  # an environment may say no by raising, as TRL's do
        return f"error: {type(error).__name__}: {error}"
    return "" if answer is None else str(answer)


def begin(factory: Callable[[], Any], row: dict[str, Any], seconds: float = 0.0) -> tuple[Any, str | None]:
    """A new environment for a row, and what it adds to the question. Raises UserError when its reset fails: it is the user's."""
    environment = factory()
    try:
        parameters = inspect.signature(environment.reset).parameters.values()
        everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = {p.name for p in parameters}
        with time_limit(seconds):
            added = environment.reset(**(row if everything else {k: v for k, v in row.items() if k in names}))
    except (Exception, TooLong) as error:
        raise UserError(f"reset of the environment {type(environment).__name__} failed: {type(error).__name__}: {error}",
                        hint=f"it is called with the row's keys: {', '.join(row)}") from error  # fmt: skip
    if added is not None and not isinstance(added, str):
        raise UserError(f"reset of the environment {type(environment).__name__} returned {type(added).__name__}; it must be text, or None")
    return environment, added
