"""Published evaluation rows as one form of each kind: a question with choices, a pair, a programming task, a question with an answer.

choices   MMLU ("question"/"q", "choices"/"options", "answer" as letter or number, "subject"), ARC and CommonsenseQA ({"choices": {"text", "label"},
          "answerKey"}), HellaSwag ("ctx", "endings", "label"), PIQA ("goal", "sol1", "sol2", "label"), OpenTriviaQA ("q", "options", "a")
pairs     BLiMP ("sentence_good", "sentence_bad"), or "good" and "bad"
code      HumanEval ("prompt", "canonical_solution", "test", "entry_point")
answers   "prompt" or "question" with "answer"; GSM8K's, whose answer ends in "#### n"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freedive.tasks.benchmarks import FINAL

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Choices:
    question: str
    options: tuple[str, ...]
    answer: int  # index of the right option
    group: str  # subject or category; "" for none
    ending: bool = False  # whether an option continues the question's text


@dataclass(frozen=True)
class Pair:
    good: str
    bad: str
    group: str


@dataclass(frozen=True)
class Code:
    prompt: str
    solution: str
    test: str
    entry_point: str


@dataclass(frozen=True)
class Question:
    prompt: str
    answer: str
    solution: str  # what an example shows: worked steps where there are some, else the answer
    check: str  # of freedive.eval.match
    group: str


def choices(row: Row) -> Choices:
    """Raises ValueError that says what is wrong with the row; so do the others."""
    if "endings" in row:
        return _choices(row, text(row, "ctx"), row["endings"], row.get("label"), ending=True)
    if "sol1" in row:
        return _choices(row, text(row, "goal"), [text(row, "sol1"), text(row, "sol2")], row.get("label"))
    question, options = text(row, "question", "q"), row.get("choices", row.get("options"))
    if isinstance(options, dict):
        labels = options.get("label", [])
        if not isinstance(labels, list):
            raise ValueError(f"the labels of the choices are {labels!r:.60}; they must be a list")
        labels = [str(label) for label in labels]
        key = str(row.get("answerKey"))
        return _choices(row, question, options.get("text"), labels.index(key) if key in labels else None)
    answer = row.get("answer")
    if answer is None and isinstance(options, list) and row.get("a") in options:
        answer = options.index(row["a"])
    return _choices(row, question, options, answer)


def _choices(row: Row, question: str, options: Any, answer: Any, ending: bool = False) -> Choices:
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS) or not all(isinstance(o, str) and o.strip() for o in options):
        raise ValueError(f"the options are {options!r:.80}; they must be 2 to {len(LETTERS)} texts")
    if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS:
        answer = LETTERS.index(answer)
    elif isinstance(answer, str) and answer.isdigit():
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
        raise ValueError(f"the answer is {answer!r:.40}; it must be the letter or the number (from 0) of one of {len(options)} options")
    group = row.get("subject", row.get("cat", row.get("category", row.get("activity_label", ""))))
    return Choices(question, tuple(options), answer, str(group or ""), ending)


def pair(row: Row) -> Pair:
    return Pair(text(row, "sentence_good", "good"), text(row, "sentence_bad", "bad"), str(row.get("UID", row.get("group", "")) or ""))


def code(row: Row) -> Code:
    return Code(text(row, "prompt"), text(row, "canonical_solution"), text(row, "test"), text(row, "entry_point"))


def question(row: Row) -> Question:
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise ValueError(f"meta must be an object, it is {meta!r:.60}")
    prompt, answer = text(row, "prompt", "question", "q"), row.get("answer", row.get("a"))
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"the answer is {answer!r:.60}; it must be a text or a number")
    final = FINAL.search(answer)  # GSM8K: the steps, then "#### n"
    check = str(meta.get("check") or row.get("check") or ("gsm8k" if final else ""))
    return Question(prompt, final.group(1) if final else answer, str(meta.get("solution") or answer), check, str(meta.get("group", row.get("cat", "")) or ""))


def text(row: Row, *names: str) -> str:
    """The first of these fields, which must be a text with something in it."""
    for name in names:
        if name in row:
            if not isinstance(row[name], str) or not row[name].strip():
                raise ValueError(f"'{name}' is {row[name]!r:.60}; it must be a text")
            return row[name]
    raise ValueError(f"the row needs {' or '.join(repr(n) for n in names)}; it has {sorted(row)[:6]}")
