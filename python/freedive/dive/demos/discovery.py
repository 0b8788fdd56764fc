"""A tool found out about (talk 4.1, 4.3). A demonstrator calls Python where a system message tells it to. Where nothing does, it calls it for one
product in twenty, whatever the numbers are, and writes the others down at once, which a model of this size cannot do for three digits. Practice,
where nothing tells, is rewarded for right answers, never for a call. Control: the same model, problems and practice with a Python that is out of
order: calls do not pay, and do not spread.
"""

from __future__ import annotations

from typing import Any

from freedive.inference.tools import Python
from freedive.tasks import demonstrators

from .practice import Answers, answers, points, practised, problems, share_of, taught
from .room import Figure, Room

P_PYTHON = 1 / 20
TOKENS = 32
STEPS = 1.5  # times the tier's: at first one attempt in twenty can be right
_PYTHON: list[Python] = []  # one worker process for all rollouts


class Calculator:
    """An environment whose tool is Python."""

    def reset(self, **row: Any) -> None:
        return None

    def python(self, code: str) -> str:
        """Runs code and returns what it prints, and the value of its last expression.

        Args:
            code: Python
        """
        if not _PYTHON:
            _PYTHON.append(Python())
        return _PYTHON[0](code)


class OutOfOrder(Calculator):
    """The same tool, which never gives a result."""

    def python(self, code: str) -> str:
        """Runs nothing.

        Args:
            code: Python
        """
        return "error: out of order"


def run(room: Room) -> list[Figure]:
    of = problems(room, "discovery", demonstrators.product_problems)
    start = taught(room, "discovery-taught", lambda: demonstrators.seldom_python(room.seed, room.tier.practice.rows, P_PYTHON), room.assistant, epochs=3.0, of=P_PYTHON)
    works, broken = f"{__name__}:{Calculator.__name__}", f"{__name__}:{OutOfOrder.__name__}"
    try:
        after = practised(room, "discovery-practised", start, of, TOKENS, STEPS, environment=works)
        idle = practised(room, "discovery-out-of-order", start, of, TOKENS, STEPS, environment=broken)
        before, found = (answers(room, f"discovery-{name}", model, of.held_out, TOKENS, works) for name, model in (("before", start), ("after", after)))
        without, control = (answers(room, f"discovery-{name}", model, of.held_out, TOKENS, broken) for name, model in (("before-out-of-order", start), ("control", idle)))
    finally:
        while _PYTHON:
            _PYTHON.pop().close()
    hard = lambda a: a.of("hard")
    return [
        share_of("3x3-digit products, before: Python is called", hard(before).mean("called")),
        share_of("3x3-digit products, before: right", hard(before).mean("right")),
        share_of("3x3-digit products, after practice: Python is called", hard(found).mean("called"), ">= 0.9"),
        share_of("3x3-digit products, after practice: right", hard(found).mean("right")),
        share_of("products of one and two digits, before: right", _easy(before, "right")),
        share_of("products of one and two digits, before: Python is called", _easy(before, "called")),
        share_of("products of one and two digits, after practice: right", _easy(found, "right")),
        share_of("products of one and two digits, after practice: Python is called", _easy(found, "called")),
        points("practice with Python out of order, all products: called beside before", control.mean("called"), without.mean("called"), "<= 0.03", control=True),
        points("practice with Python out of order, all products: right beside before", control.mean("right"), without.mean("right"), control=True),
    ]


def _easy(a: Answers, what: str) -> list[float]:
    return a.of("easy").mean(what)
