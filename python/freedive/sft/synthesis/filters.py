"""What is kept of what a model wrote: a reason for each instruction, answer and turn that is not, "" for the others.

The rules for instructions are Self-Instruct's (arXiv:2212.10560, §2.2) but for those about one language; novelty.py has its ROUGE-L rule.
"""

from __future__ import annotations

import re
from collections import Counter

from freedive.eval.refusal import is_refusal

from .novelty import rouge_l, words

LEAST_WORDS, MOST_WORDS = 3, 150
ELSEWHERE = re.compile(
    r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to|videos?|audio|music|flow ?charts?|diagrams?)\b", re.IGNORECASE
)  # what is not text
REPEATED = 0.3  # of the runs of four words, at most
_LIST_MARK = re.compile(r"^\s*(?:\*\*)?(?:task\s*)?\d+\s*[.):]\s*(?:\*\*)?", re.IGNORECASE | re.MULTILINE)
_ASSISTANT = re.compile(
    r"\s*(?:of course|certainly|sure[,!]|i['’]?m sorry|i apologi[sz]e|as an ai|here['’]?s|here (?:is|are)|i['’]d be happy|thank you for (?:your|the) (?:question|feedback))\b",
    re.IGNORECASE,
)
_ENDS = re.compile(r"[.!?:;…\"'”’)\]}`>*|0-9。！？]\s*$")


def items(text: str) -> list[str]:
    """The items of a numbered list; the whole text where it is none. An item is its first paragraph."""
    parts = _LIST_MARK.split(text)
    found = [_LIST_MARK.sub("", part.strip().split("\n\n")[0]).strip().strip("*").strip() for part in (parts[1:] if len(parts) > 1 else parts)]
    return [item for item in found if item]


def instruction_fault(text: str) -> str:
    count = len(words(text))
    if count < LEAST_WORDS:
        return "too short"
    if count > MOST_WORDS:
        return "too long"
    if not (text[0].isalnum() or text[0] in "\"'“‘(¿¡"):
        return "begins with a mark"
    if ELSEWHERE.search(text):
        return "about what is not text"
    return "repeats itself" if repeats(text) else ""


def answer_fault(instruction: str, answer: str, most_tokens: int, refusals: bool = False) -> str:
    """`most_tokens`: the limit it was written under; a long text that ends within a sentence met it."""
    said = words(answer)
    if not said:
        return "empty answer"
    if len(said) > most_tokens // 2 and not _ENDS.search(answer):
        return "answer cut off"
    if not refusals and is_refusal(answer) and len(said) < 40:
        return "refusal"
    if rouge_l(said, words(instruction)) >= 0.8:
        return "answer repeats the question"
    return "answer repeats itself" if repeats(answer) else ""


def turn_fault(text: str, said_before: list[str]) -> str:
    """Of a simulated user's words; a conversation ends before them."""
    if not words(text):
        return "nothing said"
    if len(words(text)) > MOST_WORDS:
        return "too long"
    if _ASSISTANT.match(text):
        return "speaks as the assistant"
    if any(rouge_l(words(text), words(other)) >= 0.7 for other in said_before):
        return "said before"
    return "repeats itself" if repeats(text) else ""


def repeats(text: str) -> bool:
    """Whether more than REPEATED of its runs of four words came before, or one line is most of its lines."""
    said = words(text)
    runs = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    if len(runs) >= 8 and 1 - len(set(runs)) / len(runs) > REPEATED:
        return True
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) >= 4 and Counter(lines).most_common(1)[0][1] > len(lines) / 2
