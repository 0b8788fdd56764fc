"""Does a reply decline to answer? A rule for English, for replies of one or two sentences; a judge (judge.py) can decide instead."""

from __future__ import annotations

import re

_PHRASES = (
    r"\b(?:(?:do|does|did|would|could)(?: not|n[’']t)|can(?: ?not|[’']t)) (?:\w+ )?"
    r"(?:know|recall|remember|have|recogni[sz]e|find|provide|determine|confirm|verify|say|tell|answer|identify)\b",
    r"\b(?:am|i[’']m|are|we[’']re) (?:not (?:sure|certain|aware|familiar|able)|unsure|unaware|unfamiliar|unable)\b",
    r"\bno (?:information|knowledge|idea|record|records|data|details) (?:about|on|of|regarding|for)\b",
    r"\b(?:no idea|not familiar with|never heard of|unknown to me|beyond (?:my|what i)|i have no\b|nothing (?:is )?known)",
)
_REFUSAL = re.compile("|".join(_PHRASES), re.IGNORECASE)


def is_refusal(reply: str) -> bool:
    """True for a reply that says its author does not know, cannot say, or has no information; False for an empty one.

    "No" and "none" are answers, and so is whatever is said with doubt ("I think it is Paris").
    """
    return bool(_REFUSAL.search(reply))


def is_informative(reply: str) -> bool:
    """Whether a reply commits itself to an answer: it is neither empty, nor a refusal, nor a question back."""
    words = re.findall(r"\w+", reply)
    return bool(words) and not is_refusal(reply) and not reply.strip().endswith("?")
