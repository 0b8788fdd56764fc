"""Is an answer right, given what it is about; and does it commit itself to anything at all? By rule, or by whoever is asked.

The rule takes an answer for right that holds the reference's words in order, or an alias's (numbers: the last one is equal); for informative
that is neither empty, nor a refusal, nor a question back (freedive.eval.refusal). A judge of another model's making reads the passage for
correctness, and only question and answer for informativeness, as in Llama 3; its verdict is the last [[word]] of its reply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .asker import Asker
from .match import matches
from .refusal import is_informative

CORRECT = """Passage: {snippet}

Question: {question}
Reference answer: {answer}
Reply to be judged: {reply}

Does the reply give the answer that the passage and the reference give? End with [[correct]] or [[incorrect]]."""
INFORMATIVE = """Question: {question}
Reply to be judged: {reply}

Does the reply commit itself to an answer, whether right or wrong? It does not if it says that it doesn't know, or avoids the question.
End with [[yes]] or [[no]]."""
_VERDICT = re.compile(r"\[\[\s*(correct|incorrect|yes|no)\s*\]\]", re.IGNORECASE)
_WORD = re.compile(r"\b(incorrect|correct|yes|no|wrong|right)\b", re.IGNORECASE)


@dataclass
class Judge:
    """`asker` None: by rule. `unclear` counts replies of a judge without a verdict, which are taken for "no"."""

    asker: Asker | None = None
    unclear: int = field(default=0)

    def correct(self, row: dict[str, Any], replies: Sequence[str]) -> list[bool]:
        """For each reply: is it right?"""
        if self.asker is None:
            return [is_correct(reply, row["answer"], row["aliases"]) for reply in replies]
        return self._verdicts(CORRECT, row, replies, row["snippet"] or "(none)")

    def informative(self, row: dict[str, Any], replies: Sequence[str]) -> list[bool]:
        """For each reply: does it say something?"""
        if self.asker is None:
            return [is_informative(reply) for reply in replies]
        return self._verdicts(INFORMATIVE, row, replies, "")

    def _verdicts(self, form: str, row: dict[str, Any], replies: Sequence[str], snippet: str) -> list[bool]:
        assert self.asker is not None
        different = list(dict.fromkeys(replies))  # the same reply twice is judged once
        asked = [[{"role": "user", "content": form.format(snippet=snippet, question=row["questions"][0], answer=row["answer"], reply=reply or "(nothing)")}] for reply in different]
        verdict = {reply: parse_verdict(said) for reply, (said,) in zip(different, self.asker.ask(asked, max_new_tokens=48))}
        self.unclear += sum(v is None for v in verdict.values())
        return [bool(verdict[reply]) for reply in replies]


def is_correct(reply: str, answer: str, aliases: Sequence[str] = ()) -> bool:
    """The reply holds the answer or one of its other names, and does not decline."""
    return any(matches(reply, wanted) for wanted in (answer, *aliases) if wanted)


def parse_verdict(text: str) -> bool | None:
    """The last [[verdict]]; without brackets, the only kind of verdict word there is; else None."""
    found = [v.lower() for v in _VERDICT.findall(text)] or list({v.lower() for v in _WORD.findall(text)})
    if not found or (not _VERDICT.search(text) and len(found) > 1):
        return None
    return found[-1] in ("correct", "yes", "right")
