"""Step 6: what to learn from. Consistently informative and wrong: a refusal; consistently right: the model's own answer, so that nothing new
is taught and what is known stays said ("know what it knows"); anything between teaches neither.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from freedive.runs import UserError
from freedive.tasks.draw import Draw

ROWS_STREAM = 91
PHRASES = (
    "I don't know.",
    "I don't know, sorry.",
    "Sorry, I don't know that.",
    "I do not have that information.",
    "I don't have any information about that.",
    "I am not sure, so I would rather not guess.",
    "I can't say: I don't know enough about it.",
    "That is something I don't know.",
    "I don't recall anything about that.",
    "I have no information about this.",
)
NAMED = ("I don't know anything about {entity}.", "I have no information about {entity}.", "Sorry, I don't know about {entity}.")
REFUSE, ANSWER, DROP = "refusal", "answer", "dropped"


def decide(correct: Sequence[bool], informative: Sequence[bool], most_correct: float, least_informative: float, least_known: float) -> str:
    """ "refusal", "answer" or "dropped", from the samples' judgements."""
    right, says = sum(correct) / len(correct), sum(informative) / len(informative)
    if says >= least_informative and right <= most_correct:
        return REFUSE
    return ANSWER if right >= least_known else DROP


def is_held_out(entity: str, share: float, seed: int) -> bool:
    """Whether an entity is kept for evaluation: by a hash of its name."""
    digest = hashlib.sha256(f"{seed} {entity.lower()}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "little") < share * 2**32


def read_phrases(path: Path | None) -> tuple[str, ...]:
    """Refusals, one a line, {entity} where the name goes; the built-in ones without a file."""
    if path is None:
        return (*PHRASES, *NAMED)
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not lines:
        raise UserError(f"{path} holds no refusal")
    for line in lines:
        if unknown := [name for name in re.findall(r"\{(\w*)\}", line) if name != "entity"]:
            raise UserError(f"{path}: '{line:.60}' has {{{unknown[0]}}}; only {{entity}} is filled in")
    return lines


def kind(row: dict[str, Any]) -> str:
    """The form of a question: its words without the name."""
    return str(row["questions"][0]).replace(row["entity"], "…") if row["entity"] else ""


def _thinned(refusals: Sequence[dict[str, Any]], answers: Counter[str], ratio: float, draw: Draw) -> list[dict[str, Any]]:
    """At most `ratio` refusals for each answer of the same kind of question, and for kinds that nobody can answer as many as others have on average.

    Within a kind, since else what is learned is the kind: a model that knows no internet code, and is taught mostly refusals of those, refuses
    codes and makes up capitals as before (dev/LOG.md).
    """
    mean, kept = sum(answers.values()) / len(answers), []
    for each in dict.fromkeys(map(kind, refusals)):
        mine = [row for row in refusals if kind(row) == each]
        kept += draw.sample(mine, round(ratio * (answers[each] or mean)))
    return kept


def conversations(decided: Sequence[dict[str, Any]], phrases: Sequence[str], wordings: int, answers_per_refusal: float, refusals_per_answer: float | None, seed: int) -> Iterator[dict[str, Any]]:
    """SFT rows of the decided questions, each in up to `wordings` wordings; whichever of answers and refusals are too many are thinned."""
    draw = Draw(seed, ROWS_STREAM)
    refusals = [row for row in decided if row["decision"] == REFUSE]
    answers = [row for row in decided if row["decision"] == ANSWER]
    if answers and refusals_per_answer is not None:
        refusals = _thinned(refusals, Counter(map(kind, answers)), refusals_per_answer, draw)
    most = round(answers_per_refusal * len(refusals))
    if refusals and len(answers) > most:
        answers = draw.sample(answers, most)
    for row in draw.shuffled([*refusals, *answers]):
        for question in draw.sample(row["questions"], wordings):
            if row["decision"] == REFUSE:
                phrase = draw.pick([p for p in phrases if row["entity"] or "{entity}" not in p] or ["I don't know."])
                reply = phrase.replace("{entity}", row["entity"])
            else:
                reply = draw.pick(row["right"])
            yield {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}],
                "meta": {"task": "probe", "kind": row["decision"], "entity": row["entity"], "question": row["id"]},
            }
