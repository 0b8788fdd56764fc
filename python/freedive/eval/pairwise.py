"""Which of two answers is better, by a model that is asked. Both orders: a judge that likes whatever stands first says so, and its word counts as a tie.

The form is MT-bench's (arXiv:2306.05685): a comparison in words, then [[A]], [[B]] or [[C]] for a tie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from freedive.runs import UserError

from .asker import Asker, ask_fitting

Message = dict[str, Any]
PROMPT = """Two assistants answer the same request. Judge which answer is better: helpful, right, relevant, in as much detail as the request calls for. Do not let the order, the length or the names of the answers influence you.

[Request]
{request}

[Answer A]
{a}

[Answer B]
{b}

Compare the answers in a few sentences. Then end with your verdict: [[A]] if answer A is better, [[B]] if answer B is better, [[C]] if they are equally good."""
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]", re.IGNORECASE)
_PLAIN = re.compile(r"\b(?:answer|verdict is|verdict:|assistant)\s*\[*\s*([AB])\b|^\s*\[*([ABC])\]*\s*\.?\s*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Pair:
    """A prompt, as messages, and two answers."""

    prompt: Sequence[Message]
    first: str
    second: str


@dataclass(frozen=True)
class Verdict:
    """winner: "first", "second", "tie", or None where a reply held no verdict. orders: what was said with the first answer first, and second, as seen
    from the answers; they differ where the place decided. too_long: for the judge, which was not asked, or not in both orders."""

    winner: str | None
    orders: tuple[str | None, str | None]
    replies: tuple[str, str]
    too_long: bool = False


def judge_pairs(asker: Asker, pairs: Sequence[Pair], *, max_new_tokens: int = 256, form: str = PROMPT) -> list[Verdict]:
    """A verdict of each pair; both orders asked, disagreement is a tie. `form` has {request}, {a} and {b}.

    Raises UserError for a form that lacks one of these, and where the judge cannot be asked.
    """
    check_form(form)
    asked = [_question(form, p.prompt, *answers) for p in pairs for answers in ((p.first, p.second), (p.second, p.first))]
    said = ask_fitting(asker, asked, max_new_tokens)
    out = []
    for i in range(len(pairs)):
        too_long = None in said[2 * i : 2 * i + 2]
        forth, back = ("(too long for the judge)" if s is None else s for s in said[2 * i : 2 * i + 2])
        orders = ({"A": "first", "B": "second", "C": "tie", "": None}[parse(forth)], {"A": "second", "B": "first", "C": "tie", "": None}[parse(back)])
        winner = None if None in orders else orders[0] if orders[0] == orders[1] else "tie"
        out.append(Verdict(winner, orders, (forth, back), too_long))
    return out


def check_form(form: str) -> None:
    """UserError for a form in which something has no place."""
    if missing := [name for name in ("{request}", "{a}", "{b}") if name not in form]:
        raise UserError(f"the judge's form lacks {missing[0]}", hint="it is to have {request}, {a} and {b}")


def parse(reply: str) -> str:
    """The last [[A]], [[B]] or [[C]]; without brackets, an "answer A" or a letter in a line of its own, if there is one of them only; else ""."""
    if found := _VERDICT.findall(reply):
        return str(found[-1]).upper()
    plain = {(a or b).upper() for a, b in _PLAIN.findall(reply)}
    return plain.pop() if len(plain) == 1 else ""


def _question(form: str, prompt: Sequence[Message], a: str, b: str) -> list[Message]:
    """One pass over the form: an answer may hold braces, or the name of a place in it."""
    request = str(prompt[0].get("content") or "") if len(prompt) == 1 else "\n\n".join(f"{str(m['role']).capitalize()}: {m.get('content') or ''}" for m in prompt)
    values = {"request": request, "a": a or "(nothing)", "b": b or "(nothing)"}
    return [{"role": "user", "content": re.sub(r"\{(request|a|b)\}", lambda m: values[m[1]], form)}]
