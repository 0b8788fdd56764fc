"""Step 2: questions with answers, each about a passage. They come from patterns over the passages, from rows that the user has, or from a
writer, a chat model that reads the passage. A question is kept if its answer stands in the passage and not in the question itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.eval.asker import Asker, Message
from freedive.eval.match import normalise
from freedive.runs import UserError

MOST_ANSWER_WORDS = 8
_ABOUT_THE_PASSAGE = re.compile(r"\b(?:the|this|that) (?:passage|text|author|excerpt|article|paragraph|snippet)\b|\b(?:mentioned|described|given) (?:above|here|in)\b", re.IGNORECASE)
_REPLY = re.compile(r"question:\s*(.+?)\s*\n+\s*answer:\s*(.+?)\s*(?:\n|$)", re.IGNORECASE)
INSTRUCTION = (
    "Read the passage and write one question about a fact in it, which somebody who has not seen the passage could answer. The answer must be a name, "
    "a number or a few words that stand in the passage. Use this form:\nQuestion: ...\nAnswer: ..."
)
EXAMPLES = (
    ("The Danube rises in the Black Forest and flows for 2,850 km through ten countries before it reaches the Black Sea.",
     "Question: Into which sea does the Danube flow?\nAnswer: the Black Sea"),
    ("Marie Curie, born in Warsaw in 1867, was the first person to win the Nobel Prize twice.",
     "Question: In which city was Marie Curie born?\nAnswer: Warsaw"),
)  # fmt: skip


@dataclass(frozen=True)
class Template:
    """A pattern with named groups, and what to ask where it matches."""

    pattern: re.Pattern[str]
    questions: tuple[str, ...]  # several wordings
    answer: str
    entity: str  # whom or what it is about


def read_templates(path: Path) -> list[Template]:
    """JSONL: {"pattern": "(?P<place>...) ...", "questions": ["... {place} ...?"], "answer": "{...}", "entity": "{place}"}; UserError names the line."""
    found = []
    for line, row in iter_rows(path):
        where = f"{path}, line {line}"
        wordings = row.get("questions") or row.get("question")
        wordings = [wordings] if isinstance(wordings, str) else wordings
        if not isinstance(row.get("pattern"), str) or not isinstance(wordings, list) or not isinstance(row.get("answer"), str):
            raise UserError(f"{where}: a template needs 'pattern', 'questions' and 'answer'; it has {sorted(row)[:6]}")
        try:
            pattern = re.compile(row["pattern"])
            groups = {name: "x" for name in pattern.groupindex}
            entity = row.get("entity") or ""
            for text in (*wordings, row["answer"], entity):
                text.format(**groups)
        except (re.error, KeyError, IndexError, ValueError) as error:
            raise UserError(f"{where}: {type(error).__name__}: {error}", hint="questions, answer and entity may use the pattern's named groups, as {name}") from None
        found.append(Template(pattern, tuple(wordings), row["answer"], entity))
    if not found:
        raise UserError(f"{path} holds no template")
    return found


def entities(templates: Sequence[Template], text: str) -> list[str]:
    """Whom or what the templates find in a passage."""
    return list(dict.fromkeys(t.entity.format(**m.groupdict("")) for t in templates if t.entity for m in t.pattern.finditer(text)))


def from_templates(templates: Sequence[Template], snippets: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A question for every match in every snippet."""
    for snippet in snippets:
        for template in templates:
            for match in template.pattern.finditer(snippet["text"]):
                values = match.groupdict("")
                yield {
                    "questions": [q.format(**values) for q in template.questions], "answer": template.answer.format(**values), "aliases": [],
                    "entity": template.entity.format(**values), "snippet": snippet["text"], "frequency": snippet["frequency"],
                }  # fmt: skip


def from_rows(path: Path) -> list[dict[str, Any]]:
    """The user's own: {"question" or "questions", "answer", "aliases", "entity", "snippet"}; only the first two are needed."""
    found = []
    for line, row in iter_rows(path):
        wordings = row.get("questions") or row.get("question") or row.get("prompt")
        wordings = [wordings] if isinstance(wordings, str) else wordings
        if not isinstance(wordings, list) or not wordings or not all(isinstance(q, str) for q in wordings) or not isinstance(row.get("answer"), (str, int, float)):
            raise UserError(f"{path}, line {line}: a question needs 'question' and 'answer'; it has {sorted(row)[:6]}")
        aliases = [str(a) for a in row.get("aliases") or []]
        found.append({"questions": wordings, "answer": str(row["answer"]), "aliases": aliases, "entity": str(row.get("entity") or ""),
                      "snippet": str(row.get("snippet") or ""), "frequency": int(row.get("frequency") or 0)})  # fmt: skip
    if not found:
        raise UserError(f"{path} holds no question")
    return found


def conversation(snippet: str) -> list[Message]:
    """What the writer is asked about a passage: two examples, then this one."""
    messages: list[Message] = []
    for text, reply in EXAMPLES:
        messages += [{"role": "user", "content": f"{INSTRUCTION}\n\nPassage: {text}"}, {"role": "assistant", "content": reply}]
    return [*messages, {"role": "user", "content": f"{INSTRUCTION}\n\nPassage: {snippet}"}]


def written(asker: Asker, snippets: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A question for each snippet, as the writer has it; without an answer where its reply is in another form."""
    replies = asker.ask([conversation(s["text"]) for s in snippets], max_new_tokens=96, seeds=[s["id"] for s in snippets])
    for snippet, (reply,) in zip(snippets, replies):
        found = _REPLY.search(reply)
        question, answer = (found[1], found[2].strip().rstrip(".")) if found else (reply, "")
        yield {"questions": [question], "answer": answer, "aliases": [], "entity": "", "snippet": snippet["text"], "frequency": snippet["frequency"]}


def fault(row: dict[str, Any]) -> str | None:
    """Why a question is of no use; None if it is good."""
    question, answer = row["questions"][0], normalise(row["answer"])
    if not answer:
        return "no answer"
    if len(answer.split()) > MOST_ANSWER_WORDS:
        return "answer too long"
    if row["snippet"] and f" {answer} " not in f" {normalise(row['snippet'])} ":
        return "answer not in the passage"
    if any(f" {answer} " in f" {normalise(q)} " for q in row["questions"]):
        return "answer in the question"
    if len(question.split()) < 3:
        return "no question"
    return "about the passage" if _ABOUT_THE_PASSAGE.search(question) else None
