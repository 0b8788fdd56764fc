"""The log of battles: one JSON object a line, in the form that LMSYS publishes, with what is ours beside.

    {"model_a", "model_b", "winner"}      winner: model_a, model_b, tie, tie (bothbad); model_a stood left, or first
    "conversation_a", "conversation_b"    messages, prompt and answer, for style control and for readers
    "judge", "prompt_id", "id", "time"    who said so, about what (battles of one prompt are not independent), the battle's name, UTC
    "judge_hash"                          what the judge was then (judges.py)

A judge may say it again: the last line of a battle (id, models, prompt) by a judge counts; of a judge that has changed, what it said since.

Other people's logs are read too: JSON Lines, parquet, a JSON list, CSV; winner_model_a, winner_model_b and winner_tie instead of winner; LMSYS's
counts of style where there are no conversations. Battles whose voter was shown the names (LMSYS's "anony": false) are no blind votes, and left out.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from freedive.data.texts import iter_rows
from freedive.eval.ratings import Battles
from freedive.runs import UserError

from .style import counts, differences

WINNERS = ("model_a", "model_b", "tie", "tie (bothbad)")
SCORES = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}
_OTHER_NAMES = {"a": "model_a", "b": "model_b", "left": "model_a", "right": "model_b", "both": "tie", "bothbad": "tie (bothbad)", "both_bad": "tie (bothbad)", "tie_bothbad": "tie (bothbad)",
                "both bad": "tie (bothbad)", "draw": "tie"}  # fmt: skip
_COUNTS = ("header_count", "list_count", "bold_count")


@dataclass(frozen=True)
class Battle:
    """One line, as far as ratings need it. `counts`: what the answers look like, where that is known."""

    model_a: str
    model_b: str
    winner: str
    judge: str = ""
    prompt: str = ""  # what tells prompts apart
    counts: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    id: str = ""
    content: str = ""  # of another's log: a hash of the answers. Ids that several files count from 1 are no names
    judge_hash: str = ""

    def key(self) -> tuple[str, ...]:
        """What battle this is, whoever judges it and whichever way they stand."""
        return (self.id, *sorted((self.model_a, self.model_b)), self.prompt, self.content)


def read_log(path: Path, judges: Mapping[str, str] | None = None) -> tuple[list[Battle], list[str]]:
    """(battles, what is wrong with lines that do not count). `judges`: the hash of each as it is now (Room.judges; else that of its last line).

    UserError for a file that cannot be read, and for one without a battle.
    """
    if not path.is_file():
        raise UserError(f"no such log of battles: {path}", hint="a JSON Lines file with model_a, model_b and winner in each line; freedive arena A B --out FOLDER writes FOLDER/battles.jsonl")
    found: dict[Any, Battle] = {}
    wrong: list[str] = []
    named = 0
    for number, row in _rows(path):
        try:
            one = battle(row)
            if row.get("anony") not in (None, "") and not flag(row["anony"]):
                named += 1
                continue
            found[(one.judge, *one.key()) if one.id else number] = one
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            wrong.append(f"{path}, line {number}: {error}" if isinstance(error, ValueError) else f"{path}, line {number} is in no form known here ({type(error).__name__}: {error})")
    now = {b.judge: b.judge_hash for b in found.values() if b.judge_hash} | dict(judges or {})
    old = [key for key, b in found.items() if b.judge_hash and b.judge_hash != now[b.judge]]
    for judge, n in Counter(found.pop(key).judge for key in old).items():
        wrong.insert(0, f"{n:,} battles that {judge} judged when it was another judge (its file, model or form has changed since)")
    if named:
        wrong.insert(0, f"{named:,} battles in which the voter was shown the names (anony: false)")
    if not found:
        raise UserError(wrong[0] if wrong else f"{path} holds no battle", hint='each line: {"model_a": "x", "model_b": "y", "winner": "model_a", "model_b", "tie" or "tie (bothbad)"}')
    return list(found.values()), wrong


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of any of the kinds of file. A torn last line of JSON Lines is passed over: somebody may be writing it, or was killed."""
    lower = path.name.lower()
    if lower.endswith(".csv"):
        limit = csv.field_size_limit(2**31 - 1)  # an answer may be longer than the module's 128 KiB
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                yield from enumerate(csv.DictReader(file), 2)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} could not be read: {error}") from None
        finally:
            csv.field_size_limit(limit)
        return
    if lower.endswith((".parquet", ".gz", ".zst")):
        yield from iter_rows(path)
        return
    data = path.read_bytes()
    if data.lstrip()[:1] == b"[":
        try:
            rows = json.loads(data)
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from None
        yield from ((n, row if isinstance(row, dict) else {}) for n, row in enumerate(rows, 1))
        return
    lines = data.split(b"\n")
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8", "surrogatepass"))
        except ValueError:
            row = None
        if isinstance(row, dict) or number < len(lines):
            yield number, row if isinstance(row, dict) else {}


def battle(row: dict[str, Any]) -> Battle:
    """A line. ValueError saying what it lacks."""
    if not row:
        raise ValueError("it is no JSON object")
    a, b = row.get("model_a"), row.get("model_b")
    if not isinstance(a, str) or not isinstance(b, str) or not a or not b:
        raise ValueError("model_a and model_b are to be names")
    if a == b:
        raise ValueError(f"{a} against itself says nothing")
    winner = _winner(row, a, b)
    counted = _style(row)
    prompt = row.get("prompt_id") or row.get("question_id") or _prompt(row)
    ours = "prompt_id" in row
    content = "" if ours else hashlib.sha256(json.dumps([row.get(k) for side in "ab" for k in (f"conversation_{side}", f"response_{side}")], default=str).encode()).hexdigest()[:16]
    return Battle(a, b, winner, str(row.get("judge") or ""), str(prompt or ""), counted, str(row.get("id") or ""), content, str(row.get("judge_hash") or ""))


def flag(value: Any) -> bool:
    """Of JSON or of a CSV file, which says True, true or 1. ValueError for what is neither yes nor no."""
    told = str(value).strip().lower()
    if told in ("true", "1", "1.0", "yes"):
        return True
    if value is None or told in ("false", "0", "0.0", "no", "", "nan"):
        return False
    raise ValueError(f"{value!r:.40} is neither true nor false")


def _winner(row: dict[str, Any], a: str, b: str) -> str:
    told = row.get("winner")
    if told is None and "winner_model_a" in row:
        chosen = [w for w, key in zip(WINNERS, ("winner_model_a", "winner_model_b", "winner_tie")) if flag(row.get(key))]
        if len(chosen) != 1:
            raise ValueError("of winner_model_a, winner_model_b and winner_tie one is to be 1")
        return chosen[0]
    if not isinstance(told, str):
        raise ValueError(f"winner is {told!r}")
    plain = told.strip().lower()
    if plain in WINNERS:
        return plain
    if told in (a, b):
        return "model_a" if told == a else "model_b"
    if plain in _OTHER_NAMES:
        return _OTHER_NAMES[plain]
    raise ValueError(f"winner is {told!r:.60}, it must be one of {', '.join(WINNERS)}")


def _style(row: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    answers = [row.get("conversation_a") or row.get("response_a"), row.get("conversation_b") or row.get("response_b")]
    if all(answers):
        return tuple(counts(text) for text in answer_texts(*answers))  # type: ignore[return-value]
    told = row.get("conv_metadata")
    if isinstance(told, str):
        told = json.loads(told)
    if not isinstance(told, dict) or f"sum_assistant_{'a'}_tokens" not in told:
        return None
    total = lambda value: float(sum(value.values()) if isinstance(value, dict) else value)
    return tuple((float(told[f"sum_assistant_{side}_tokens"]), *(total(told[f"{name}_{side}"]) for name in _COUNTS)) for side in "ab")  # type: ignore[return-value]


def answer_texts(a: Any, b: Any) -> tuple[str, str]:
    """What the two said themselves. Turns that both conversations begin with were given to them, the assistant's among them."""
    first, second = turns(a), turns(b)
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    shared = min(shared, *(max((i for i, (role, _) in enumerate(found) if role == "assistant"), default=0) for found in (first, second)))  # the last answer is its own
    own = lambda found: "\n".join(text for role, text in found[shared:] if role == "assistant")
    return own(first), own(second)


def turns(value: Any) -> list[tuple[str, str]]:
    """(role, text) of messages, of answers, or of one; CSV files hold messages as JSON, and contents may be lists of parts."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [("assistant", str(value))]
    if isinstance(value, str):
        return [("assistant", value)]
    return [(str(m.get("role")), said(m.get("content"))) if isinstance(m, dict) else ("assistant", said(m)) for m in value]


def said(content: Any) -> str:
    """The text of a content: a text, or parts of which some are texts."""
    if isinstance(content, (list, tuple)):
        return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content if isinstance(part, (str, dict)))
    return content if isinstance(content, str) else ""


def _prompt(row: dict[str, Any]) -> str:
    said = row.get("conversation_a") or row.get("prompt")
    if isinstance(said, list) and said and isinstance(said[0], dict):
        said = [m.get("content") for m in said if m.get("role") != "assistant"]
    return json.dumps(said, ensure_ascii=False, default=str) if said else ""


def to_battles(found: Sequence[Battle], style: bool = False) -> Battles:
    """Arrays for ratings; battles of one prompt are a cluster. UserError where style is asked for and no answers are there."""
    models = tuple(sorted({name for b in found for name in (b.model_a, b.model_b)}))
    place = {name: i for i, name in enumerate(models)}
    numbers: dict[str, int] = {}
    cluster = np.array([numbers.setdefault(b.prompt or f"\0{i}", len(numbers)) for i, b in enumerate(found)], np.int64)
    drawn, names = None, ()
    if style:
        if not all(b.counts for b in found):
            raise UserError(f"{sum(not b.counts for b in found):,} of {len(found):,} battles have no answers, so their style is not known", hint="leave --style-control out, or give a log with conversation_a and conversation_b")
        drawn, names = differences([b.counts for b in found if b.counts])  # type: ignore[assignment]
        if not names:
            raise UserError("all answers look the same: there is no style to control for", hint="leave --style-control out")
    of = lambda pick: np.array([place[pick(b)] for b in found], np.int64)
    score = np.array([SCORES[b.winner] for b in found])
    return Battles(models, of(lambda b: b.model_a), of(lambda b: b.model_b), score, cluster, drawn, names)


def agreement(found: Iterable[Battle]) -> list[tuple[str, str, int, int, int]]:
    """(judge, other judge, battles that both judged, of which both say the same, of which each has another winner), for all pairs of judges."""
    by: dict[str, dict[tuple[str, ...], str]] = {}
    for b in found:
        if b.id:
            by.setdefault(b.judge, {})[b.key()] = {"model_a": b.model_a, "model_b": b.model_b}.get(b.winner, "tie")
    out = []
    for one, other in combinations(sorted(by), 2):
        both = by[one].keys() & by[other].keys()
        same = sum(by[one][n] == by[other][n] for n in both)
        against = sum(by[one][n] != by[other][n] and "tie" not in (by[one][n], by[other][n]) for n in both)
        if both:
            out.append((one, other, len(both), same, against))
    return out
