"""The town's sentences as templates for `freedive probe`: where a page says a fact, what to ask about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from . import town_text as text

NAME = r"(?P<name>[A-Z][a-z]+ [A-Z][a-z]+)"


def templates() -> Iterator[dict[str, Any]]:
    """One for each sentence with a full name and a value; asked in the wordings that conversations have, never in the held-out ones."""
    for attribute, sentences in text.SENTENCES.items():
        values = "|".join(map(re.escape, sorted(text.VALUES[attribute], key=len, reverse=True)))
        for sentence in sentences:
            pattern = re.escape(sentence).replace(r"\{n\}", NAME).replace(r"\{v\}", f"(?P<value>{values})")
            questions = [q.replace("{n}", "{name}") for q in text.TRAIN_QUESTIONS[attribute]]
            yield {"pattern": pattern, "questions": questions, "answer": "{value}", "entity": "{name}"}
