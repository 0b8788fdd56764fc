"""The folder of a labelling: what is judged, and what each labeller said. Everything that people make is appended, nothing is overwritten.

    label.json            format, version, seed, the file of prompts and its hash
    guidelines/HASH.md    every sheet that was worked by
    items.jsonl           prompts and the answers that came with them
    answers.jsonl         answers sampled from models: {"item", "id", "text", "source", ...}; the first line of an id counts
    judgements/NAME.jsonl one labeller's, a line each as `Judgement` has it; the last line about an item counts
    drafts/NAME.json      what is being typed: {item: {...}}, replaced atomically

One process writes a labeller's file (a lock); several labellers have processes of their own. A process killed at any moment leaves at most a torn
last line, which the next one cuts off: the judgement under way is lost but for its draft.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from freedive.runs import UserError, json_line, locked, read_json, write_atomic, write_json_atomic
from freedive.runs.atomic import fsync_folder, write_all

from .guidelines import guidelines_hash
from .items import Answer, Item

FORMAT, VERSION = "freedive.label", 1
FLAGS = ("no sense", "personal data", "asks for harm", "other")  # what somebody should look at
SCORES = range(1, 8)  # InstructGPT's overall quality, 2203.02155 table 3
TASKS = ("write", "rank", "both")
_NAME = re.compile(r"[^\W_][\w.@+-]{0,63}")


@dataclass(frozen=True)
class Judgement:
    """What a labeller said about an item. Answers are named by their ids; ranks are dense, 0 is best, equal ones are ties."""

    item: str
    labeller: str
    skipped: bool = False
    text: str = ""  # the ideal answer
    ranks: dict[str, int] = field(default_factory=dict)
    scores: dict[str, int] = field(default_factory=dict)  # 1 to 7
    answer_notes: dict[str, str] = field(default_factory=dict)
    notes: str = ""
    flags: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)  # answers as they were shown, first to last
    seconds: float = 0.0  # that it was in front of the labeller
    time: str = ""  # UTC, ISO 8601
    guidelines: str = ""  # hash of the sheet

    @staticmethod
    def of_record(row: dict[str, Any]) -> Judgement:
        """ValueError for a line that is none."""
        known = {k: v for k, v in row.items() if k in Judgement.__dataclass_fields__}
        kinds = {name: type(getattr(_EMPTY, name)) for name in Judgement.__dataclass_fields__} | {"seconds": (int, float)}
        for name, value in known.items():
            if not isinstance(value, kinds[name]):
                raise ValueError(f"'{name}' is {type(value).__name__}")
        if not known.get("item") or not known.get("labeller"):
            raise ValueError("a judgement names its item and its labeller")
        return Judgement(**known)

    def done(self, task: str) -> bool:
        """Whether nothing is missing of a task."""
        return not self.skipped and (task == "rank" or bool(self.text)) and (task == "write" or bool(self.ranks))


_EMPTY = Judgement("", "")


class Labels:
    """A folder, opened to be read. `items` hold sampled answers too."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.head = read_json(folder / "label.json") if (folder / "label.json").is_file() else {}
        if not isinstance(self.head, dict) or self.head.get("format") != FORMAT:
            raise UserError(f"{folder} is no folder of labels", hint="freedive label PROMPTS --out FOLDER makes one")
        if self.head.get("version") != VERSION:
            raise UserError(f"{folder} has version {self.head.get('version')} of the format, and this program knows {VERSION}")
        self.seed = int(self.head.get("seed") or 0)
        self.items: dict[str, Item] = {}
        for line, row in _lines(folder / "items.jsonl"):
            try:
                item = Item.of_record(row)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{folder}/items.jsonl, line {line} is no item: {error}") from None
            self.items[item.id] = item
        self._answers_at = 0
        self.read_answers()

    def read_answers(self) -> None:
        """Take in what was sampled since the last time, by whichever process."""
        path = self.folder / "answers.jsonl"
        if not path.is_file():
            return
        with open(path, "rb") as file:
            file.seek(self._answers_at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._answers_at += len(whole)
        for raw in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(raw)
                item = self.items[row["item"]]
                if all(a.id != row["id"] for a in item.answers):
                    self.items[item.id] = replace(item, answers=(*item.answers, Answer(str(row["id"]), str(row["text"]), str(row.get("source") or ""))))

    def add_answer(self, item: str, answer: Answer, **more: Any) -> None:
        """Keep a sampled answer; another process may have been first, and then its answer counts."""
        append(self.folder / "answers.jsonl", {"item": item, "id": answer.id, "text": answer.text, "source": answer.source, **more})
        self.read_answers()

    def labellers(self) -> list[str]:
        return sorted(p.name.removesuffix(".jsonl") for p in (self.folder / "judgements").glob("*.jsonl"))

    def judgements(self, labellers: Sequence[str] | None = None) -> Iterator[Judgement]:
        """The last judgement of each labeller about each item, by labeller and then in the order of the items. UserError for a damaged file."""
        missing = [name for name in labellers or [] if name not in self.labellers()]
        if missing:
            raise UserError(f"there is no labeller {missing[0]!r} in {self.folder}", hint=f"there are: {', '.join(self.labellers()) or 'none'}")
        for name in self.labellers() if labellers is None else labellers:
            last = self.last(name)
            yield from (last[item] for item in self.items if item in last)

    def last(self, labeller: str) -> dict[str, Judgement]:
        """A labeller's last judgement about each item."""
        path = self.folder / "judgements" / f"{labeller}.jsonl"
        found: dict[str, Judgement] = {}
        for line, row in _lines(path):
            try:
                one = Judgement.of_record(row)
            except ValueError as error:
                raise UserError(f"{path}, line {line} is no judgement: {error}", hint="remove the line, or mend it") from None
            if one.item in self.items:
                found[one.item] = one
        return found

    def guidelines(self) -> str:
        """The sheet that was worked by last."""
        name = str(self.head.get("guidelines") or "")
        path = self.folder / "guidelines" / f"{name}.md"
        return path.read_text("utf-8") if name and path.is_file() else ""

    def order(self, item: str, labeller: str) -> list[str]:
        """Answers as a labeller sees them: a draw of the folder's seed, the item and the labeller."""
        ids = [a.id for a in self.items[item].answers]
        random.Random(f"{self.seed}\0{item}\0{labeller}").shuffle(ids)  # a text as seed is hashed, the same everywhere
        return ids


class Desk(Labels):
    """The folder with one labeller at work; made by `at_work`."""

    def __init__(self, folder: Path, labeller: str):
        super().__init__(folder)
        self.labeller = labeller
        self.path = folder / "judgements" / f"{labeller}.jsonl"
        self._draft_path = folder / "drafts" / f"{labeller}.json"
        for path in (self.path.parent, self._draft_path.parent):
            path.mkdir(exist_ok=True)
        _cut_torn(self.path)
        self.mine = self.last(labeller)
        self.drafts: dict[str, dict[str, Any]] = _drafts(self._draft_path)

    def judge(self, one: Judgement) -> None:
        """Keep a judgement: on the disk when this returns. UserError for one that cannot be, and nothing is written then."""
        check(one, self.items[one.item])
        one = replace(one, labeller=self.labeller, time=one.time or now())
        append(self.path, asdict(one))
        self.mine[one.item] = one
        self.draft(one.item, None)

    def draft(self, item: str, what: dict[str, Any] | None) -> None:
        """Keep what is being typed; None forgets it."""
        if what is None and item not in self.drafts:
            return
        self.drafts = {k: v for k, v in self.drafts.items() if k != item} | ({item: what} if what is not None else {})
        write_json_atomic(self._draft_path, self.drafts)

    def open_items(self, task: str) -> list[str]:
        """What this labeller has neither judged nor skipped, in order."""
        return [i for i in self.items if i not in self.mine or not (self.mine[i].skipped or self.mine[i].done(task))]


@contextlib.contextmanager
def at_work(folder: Path, labeller: str) -> Iterator[Desk]:
    """The folder for one labeller, whose file no other process writes meanwhile. UserError where one does."""
    labeller = check_name(labeller)
    Labels(folder)  # is one
    (folder / "judgements").mkdir(exist_ok=True)
    with locked(folder / "judgements" / labeller):
        yield Desk(folder, labeller)


def make(folder: Path, items: Sequence[Item], *, seed: int = 0, guidelines: str = "", **head: Any) -> None:
    """A new folder, made aside and renamed: whole or not there. UserError if something is there that is no empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a folder of labels", hint="choose another --out: freedive never deletes your files")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            aside = folder.with_name(f".{folder.name}.partial")
            for name in ("", "guidelines", "judgements", "drafts"):
                (aside / name).mkdir(exist_ok=True)
            write_atomic(aside / "items.jsonl", (json_line(i.record()) for i in items))
            head = {"format": FORMAT, "version": VERSION, "seed": seed, "items": len(items), **head}
            if guidelines:
                head["guidelines"] = keep_guidelines(aside, guidelines)
            write_json_atomic(aside / "label.json", head)
            if folder.exists():
                os.rmdir(folder)
            os.rename(aside, folder)
            fsync_folder(folder.parent)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}", hint="choose another --out") from error


def keep_guidelines(folder: Path, text: str) -> str:
    """Keep a sheet in the folder; returns its hash."""
    name = guidelines_hash(text)
    path = folder / "guidelines" / f"{name}.md"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, [text.encode("utf-8", "surrogatepass")])
    return name


def work_by(folder: Path, text: str) -> str:
    """Keep a sheet and name it as the one that is worked by now; returns its hash."""
    name, head = keep_guidelines(folder, text), read_json(folder / "label.json")
    if head.get("guidelines") != name:
        write_json_atomic(folder / "label.json", {**head, "guidelines": name})
    return name


def check(one: Judgement, item: Item) -> None:
    """UserError unless a judgement is about this item's answers and whole."""
    ids = {a.id for a in item.answers}
    if one.ranks and set(one.ranks) != (set(one.order) or ids):
        raise UserError("a ranking has every answer that was shown, once")
    for what in (one.ranks, one.scores, one.answer_notes, one.order):
        if not set(what) <= ids:
            raise UserError(f"the item {item.id} has no answer {sorted(set(what) - ids)[0]!r}")
    if one.ranks and sorted(set(one.ranks.values())) != list(range(len(set(one.ranks.values())))):
        raise UserError("ranks begin with 0 and have no gaps")
    if any(score not in SCORES for score in one.scores.values()):
        raise UserError(f"scores go from {SCORES[0]} to {SCORES[-1]}")
    if not one.skipped and not one.text and not one.ranks and not one.scores:
        raise UserError("there is nothing in this judgement")


def check_name(labeller: str) -> str:
    """A labeller's name, which is a file's too. UserError for one that cannot be."""
    if not _NAME.fullmatch(labeller):
        raise UserError(f"the labeller's name is {labeller!r:.80}", hint="letters, digits, and . _ - @ + after the first, up to 64 characters: --labeller ada")
    return labeller


def clean_name(text: Any) -> str:
    """A name of somebody elsewhere as one that can be a file's: two that were different stay so."""
    told = str(text).strip()
    if _NAME.fullmatch(told):
        return told
    mark = hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    kept = re.sub(r"[^\w.@+-]+", "-", told).strip("-._@+")[:50] or "labeller"
    return f"{kept}-{mark}"


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def append(path: Path, *records: dict[str, Any]) -> None:
    """A line for each record at the end of a file, in one write, on the disk when this returns. What a killed process left half-written stays a line by itself."""
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        write_all(descriptor, b"\n" * torn + b"".join(map(json_line, records)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        fsync_folder(path.parent)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a JSONL file; a torn last line is passed over. UserError for damage elsewhere."""
    if not path.is_file():
        return
    data = path.read_bytes()
    for number, raw in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8", "surrogatepass"))
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is no JSON object: {raw[:60]!r}", hint="remove the line, or mend it")
        yield number, row


def _cut_torn(path: Path) -> None:
    """Remove an unfinished last line, which would swallow the next one."""
    if path.is_file():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def _drafts(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except (OSError, ValueError):  # a draft is no reason not to begin
        return {}
    return {str(k): v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}
