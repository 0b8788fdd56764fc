"""Is a reply right? Generic checkers; a row may name one in meta.check, or give its own function `module:function` in the configuration."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from freedive.runs import UserError
from freedive.tasks.benchmarks import check_gsm8k

# A minus counts as a sign only where no number or word ends right before it: "10-3" ends in 3, not in -3.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_MARK = re.compile(r"####|\banswer(?:\s+is)?\b\s*:?|=", re.IGNORECASE)
_ARTICLES = {"a", "an", "the"}


def normalise(text: str) -> str:
    """Lower case, words only, without articles."""
    return " ".join(w for w in re.findall(r"\w+", text.lower()) if w not in _ARTICLES)


def last_number(text: str) -> str | None:
    """The last number as written, without thousands separators; None if there is none."""
    found = _NUMBER.findall(text.replace("−", "-"))
    return found[-1].replace(",", "") if found else None


def last_answer(text: str) -> str:
    """The rest of the line after the last "####", "answer", "answer is" or "="; without such a mark the last line that is not empty."""
    marks = list(_MARK.finditer(text))
    lines = text[marks[-1].end() :].strip().splitlines() if marks else text.strip().splitlines()[-1:]
    return lines[0].strip() if lines else ""


def is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text.strip()) is not None


def _number(reply: str, answer: str) -> bool:
    found, wanted = last_number(reply), last_number(answer)
    return found is not None and wanted is not None and Decimal(found) == Decimal(wanted)


def _exact(reply: str, answer: str) -> bool:
    return normalise(reply) == normalise(answer)


def _contains(reply: str, answer: str) -> bool:
    wanted = normalise(answer)
    return bool(wanted) and f" {wanted} " in f" {normalise(reply)} "


def _last_answer(reply: str, answer: str) -> bool:
    found = last_answer(reply)
    return _number(found, answer) if is_number(answer) else bool(found) and _exact(found, answer)


CHECKS: dict[str, Callable[[str, str], bool]] = {"exact": _exact, "contains": _contains, "number": _number, "last_answer": _last_answer, "gsm8k": check_gsm8k}


def matches(reply: str, answer: str, check: str = "") -> bool:
    """check: "exact" (normalised equality), "contains" (its words, in order), "number" (the last numbers are equal), "last_answer" (what
    follows the last mark, as number or text); "" = number if the answer is one, else contains. Raises UserError for any other."""
    if not check:
        return _number(reply, answer) if is_number(answer) else _contains(reply, answer)
    if check not in CHECKS:
        raise UserError(f"there is no check {check!r}", hint=f"meta.check may be one of {', '.join(CHECKS)}")
    return CHECKS[check](reply, answer)
