"""The folder of an arena: who plays, what they answered, what was said of it. Everything is appended; what is acknowledged is on the disk.

    arena.json      format, version, seed, of each contestant what its answers depend on, and of each judge a hash of what its verdicts depend on
    answers.jsonl   {"prompt_id", "model", "text", "seed"}; the first line of a prompt by a model counts; text null: it did not fit
    battles.jsonl   the log (log.py); the last line of a battle by a judge counts
    unclear.jsonl   battles in which a judge that was asked gave no verdict, with what it said

More contestants and more prompts can be added at any time; a name stands for one contestant for ever. Several processes may vote at once.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from freedive.data.sources import is_remote
from freedive.runs import UserError, locked, read_json, write_json_atomic
from freedive.sft.data import DataSource, iter_data
from freedive.sft.labels.items import items
from freedive.sft.labels.store import append, now

from ..asker import Message
from .contestants import Contestant, draw
from .log import Battle, read_log

FORMAT, VERSION = "freedive.arena", 1


@dataclass(frozen=True)
class Prompt:
    """What is asked, and the other columns of its row, for judges that need them (`answer`, `meta`, ...)."""

    id: str
    messages: tuple[Message, ...]
    row: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Match:
    """A battle to be: two contestants as they stand, left and right, and the prompt. `id` is the same whichever way they stand."""

    id: str
    prompt: Prompt
    left: str
    right: str


def make_prompt(messages: Sequence[Message], row: dict[str, Any] | None = None) -> Prompt:
    key = json.dumps(list(messages), ensure_ascii=False, sort_keys=True)
    return Prompt(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12], tuple(messages), row or {})


def read_prompts(file: str) -> tuple[list[Prompt], list[str]]:
    """(prompts without doubles, what is wrong with rows) of the rows that training reads; of a conversation, what stands before its last answer."""
    if not is_remote(file) and not Path(file).exists():
        raise UserError(f"{file} does not exist", hint="give JSON Lines or parquet with prompts")
    rows = [(f"{name}, line {line}", row) for name, line, row in iter_data(DataSource(file))]
    found: dict[str, Prompt] = {}
    wrong = []
    for at, told in items(enumerate(row for _, row in rows)):
        if isinstance(told, str):
            wrong.append(f"{rows[at][0]}: {told}")
            continue
        for item in told:
            p = make_prompt(item.prompt, rows[at][1])
            found.setdefault(p.id, p)
    if not found:
        raise UserError(f"{file} holds no prompts" + (f": {wrong[0]}" if wrong else ""), hint='each line: {"prompt": "..."}, or a conversation')
    return list(found.values()), wrong


class Room:
    """A folder with the contestants of this call."""

    def __init__(self, folder: Path, contestants: Sequence[Contestant] = (), seed: int | None = None, make: bool = True):
        self.folder, self.contestants = folder, {c.name: c for c in contestants}
        self.log = folder / "battles.jsonl"
        known = self._head()
        head = known or {"format": FORMAT, "version": VERSION, "seed": seed or 0, "contestants": {}}
        if known and seed is not None and seed != known["seed"]:
            raise UserError(f"{folder} was begun with seed {known['seed']}, and not {seed}", hint="leave --seed out")
        self.seed = int(head["seed"])
        playing = dict(head["contestants"])
        for name, c in self.contestants.items():
            mine = json.loads(json.dumps(c.identity()))
            if playing.get(name, mine) != mine:
                other = next(k for k in [*mine, *playing[name]] if mine.get(k) != playing[name].get(k))
                raise UserError(f"in {folder}, {name} was another contestant: its {other} was not this", hint=f"give it another name: {c.where},name={name}-2; or choose another --out")
            playing[name] = mine
        if make and playing != head["contestants"] or make and not known:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with locked(folder):
                    write_json_atomic(folder / "arena.json", {**head, "contestants": {**(self._head() or head)["contestants"], **playing}})
            except OSError as error:
                raise UserError(f"{folder} cannot be made: {error.strerror}", hint="choose another --out") from error
        self.answers: dict[tuple[str, str], str | None] = {}
        for row in _jsonl(folder / "answers.jsonl"):
            self.answers.setdefault((str(row["prompt_id"]), str(row["model"])), row["text"])

    def _head(self) -> dict[str, Any] | None:
        path = self.folder / "arena.json"
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()) or self.folder.is_file():
                raise UserError(f"{self.folder} exists and is not an arena's folder", hint="choose another --out")
            return None
        head = read_json(path)
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise UserError(f"{self.folder} is not an arena's folder", hint="choose another --out")
        if head.get("version") != VERSION:
            raise UserError(f"{self.folder} has version {head.get('version')} of the format, and this program knows {VERSION}")
        return head

    def matches(self, prompts: Sequence[Prompt]) -> list[Match]:
        """Every pair on every prompt, prompt after prompt in an order of the seed's; who stands left is drawn for each."""
        order = list(prompts)
        random.Random(f"{self.seed}\0prompts").shuffle(order)
        return [self.match(p, a, b) for p in order for a, b in self._pairs(p)]

    def _pairs(self, prompt: Prompt) -> list[tuple[str, str]]:
        pairs = list(combinations(sorted(self.contestants), 2))
        random.Random(f"{self.seed}\0{prompt.id}").shuffle(pairs)
        return pairs

    def match(self, prompt: Prompt, a: str, b: str) -> Match:
        pair = sorted((a, b))
        id = hashlib.sha256("\0".join((prompt.id, *pair)).encode()).hexdigest()[:16]
        left, right = pair if draw(self.seed, "sides", id) & 1 else pair[::-1]
        return Match(id, prompt, left, right)

    def seed_of(self, prompt: Prompt, model: str) -> int:
        """Of a contestant's answer to a prompt."""
        return draw(self.seed, prompt.id, model)

    def keep_answers(self, model: str, texts: Sequence[tuple[Prompt, str | None]]) -> None:
        new = [(p, text) for p, text in texts if (p.id, model) not in self.answers]
        append(self.folder / "answers.jsonl", *({"prompt_id": p.id, "model": model, "text": text, "seed": self.seed_of(p, model)} for p, text in new))
        self.answers |= {(p.id, model): text for p, text in new}

    def judged(self, judge: str, key: str = "") -> set[str]:
        """Ids of battles that a judge has decided, or could not. `key`: not what it said when it was another one; "" for people."""
        last = {(name, str(row["id"])): row.get("judge_hash", key) for name in ("battles.jsonl", "unclear.jsonl") for row in _jsonl(self.folder / name) if row.get("judge") == judge and "id" in row}
        return {id for (_, id), found in last.items() if not key or found == key}

    def judges(self) -> dict[str, str]:
        """The key of each judge as it is now."""
        return {str(k): str(v) for k, v in ((self._head() or {}).get("judges") or {}).items()}

    def keep_judges(self, keys: dict[str, str]) -> None:
        """So they are from now on; what they said as others counts no more."""
        if any(self.judges().get(name) != key for name, key in keys.items()):
            with locked(self.folder):
                head = self._head() or {}
                write_json_atomic(self.folder / "arena.json", {**head, "judges": {**(head.get("judges") or {}), **keys}})

    def battles(self) -> tuple[list[Battle], list[str]]:
        """(battles that count, what is wrong with lines that do not). UserError where there are none."""
        return read_log(self.log, self.judges())

    def keep_battles(self, decided: Sequence[dict[str, Any]]) -> None:
        """Lines that `decision` made; on the disk when this returns."""
        if decided:
            append(self.log, *decided)

    def keep_unclear(self, match: Match, judge: str, replies: Sequence[str], **more: Any) -> None:
        append(self.folder / "unclear.jsonl", {"id": match.id, "judge": judge, "model_a": match.left, "model_b": match.right, "prompt_id": match.prompt.id, "replies": list(replies), "time": now(), **more})


def decision(match: Match, winner: str, judge: str, texts: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A line of the log. `winner`: one of log.WINNERS, model_a being the left one."""
    said = lambda text: [*match.prompt.messages, {"role": "assistant", "content": text}]
    return {"id": match.id, "model_a": match.left, "model_b": match.right, "winner": winner, "judge": judge, "prompt_id": match.prompt.id,
            "conversation_a": said(texts[0]), "conversation_b": said(texts[1]), "time": now(), **more}  # fmt: skip


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file of ours; a line that a killed process left half-written is passed over."""
    if path.is_file():
        for raw in path.read_bytes().split(b"\n"):
            try:
                row = json.loads(raw.decode("utf-8", "surrogatepass")) if raw.strip() else None
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
