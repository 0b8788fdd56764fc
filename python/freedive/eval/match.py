"""Is a reply right? Generic checkers; a row may name one in meta.check, or give its own function `module:function` in the configuration."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_ARTICLES = {"a", "an", "the"}


def normalise(text: str) -> str:
    """Lower case, words only, without articles."""
    return " ".join(w for w in re.findall(r"\w+", text.lower()) if w not in _ARTICLES)


def last_number(text: str) -> str | None:
    """The last number as written, without thousands separators; None if there is none."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def _same_number(a: str | None, b: str) -> bool:
    try:
        return a is not None and float(a) == float(b.replace(",", ""))
    except ValueError:
        return False


def matches(reply: str, answer: str, check: str = "") -> bool:
    """check: "exact" (normalised equality), "contains", "number" (the last number); "" = number if the answer is one, else contains."""
    if check == "number" or (not check and re.fullmatch(_NUMBER, answer.strip())):
        return _same_number(last_number(reply), answer.strip())
    wanted, given = normalise(answer), normalise(reply)
    if check == "exact":
        return wanted == given
    return bool(wanted) and f" {wanted} " in f" {given} "
