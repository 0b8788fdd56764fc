"""What is kept of what a model wrote: a reason for each instruction, answer and turn that is not, "" for the others.

The rules for instructions are Self-Instruct's (arXiv:2212.10560, §2.2) but for those about one language; novelty.py has its ROUGE-L rule.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from freedive.eval.asker import Reply
from freedive.eval.refusal import is_refusal

from .novelty import rouge_l, words

LEAST_WORDS, MOST_WORDS = 3, 150
ELSEWHERE = re.compile(
    r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to|videos?|audio|music|flow ?charts?|diagrams?)\b", re.IGNORECASE
)  # what is not text
REPEATED = 0.3  # of the runs of four words, at most
_LIST_MARK = re.compile(r"^\s*(?:\*\*)?(?:task\s*)?\d+\s*[.):]\s*(?:\*\*)?", re.IGNORECASE | re.MULTILINE)
_ASSISTANT = re.compile(
    r"\s*(?:of course|certainly|sure[,!]|i['’]?m sorry|i apologi[sz]e|as an ai|here['’]?s|here (?:is|are)|i['’]d be happy|thank you for (?:your|the) (?:question|feedback))(?!\w)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rules:
    """A labeller's rules for an answer that can be checked by machine."""

    min_words: int = 0
    max_words: int = 0  # 0: any number
    require: tuple[re.Pattern[str], ...] = ()  # each is found in it
    forbid: tuple[re.Pattern[str], ...] = ()  # none is
    refusals: bool = False  # kept

    def fault(self, answer: str) -> str:
        count = len(words(answer))
        if count < self.min_words or self.max_words and count > self.max_words:
            return "not as long as the labeller's rules say"
        if not all(p.search(answer) for p in self.require) or any(p.search(answer) for p in self.forbid):
            return "against the labeller's rules"
        return ""


def items(text: str, cut_off: bool = False) -> list[str]:
    """The items of a numbered list; the whole text where it is none. An item is its first paragraph; the last of a text that was `cut_off` is none."""
    parts = _LIST_MARK.split(text)
    found = [_LIST_MARK.sub("", part.strip().split("\n\n")[0]).strip().strip("*").strip() for part in (parts[1:] if len(parts) > 1 else parts)]
    return [item for item in (found[:-1] if cut_off else found) if item]


def instruction_fault(text: str) -> str:
    count = len(words(text))
    if count < LEAST_WORDS:
        return "too short"
    if count > MOST_WORDS:
        return "too long"
    if not (text[0].isalnum() or text[0] in "\"'“‘(¿¡"):
        return "begins with a mark"
    if _ASSISTANT.match(text):
        return "speaks as the assistant"
    if ELSEWHERE.search(text):
        return "about what is not text"
    return "repeats itself" if repeats(text) else ""


def answer_fault(instruction: str, reply: Reply, rules: Rules) -> str:
    """Why an answer is no good, by itself."""
    answer, said = reply.text, words(reply.text)
    if reply.finish == "refused":
        return "longer than the generator takes"
    if reply.finish == "length":
        return "answer cut off"
    if not said:
        return "empty answer"
    if not rules.refusals and is_refusal(answer) and len(said) < 40:
        return "refusal"
    if fault := rules.fault(answer):
        return fault
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
