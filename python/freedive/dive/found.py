"""What lies in a folder of artefacts, for the report: any folder made of `freedive` stages, a dive's or one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from freedive.runs import UserError, read_json
from freedive.tokenizer import Tokenizer

MODELS = ("pretrain", "sft", "rl")  # stages whose folder is a model, in the order of training


@dataclass(frozen=True)
class Answer:
    """One reply to one question."""

    question: str
    reply: str
    expected: str
    right: bool
    stopped: bool  # the model ended its turn itself
    kind: dict[str, str]  # the texts among the question's meta data

    def shown(self) -> str:
        """The reply, with a mark where it was cut off."""
        return self.reply + ("" if self.stopped else " …")


@dataclass(frozen=True)
class Exam:
    """One evaluation: its answers, and which model gave them."""

    name: str  # of its folder
    answers: list[Answer]
    groups: tuple[str, ...] = ()  # the keys of meta that it was asked to group by

    def share(self, meta: dict[str, str] | None = None, of: str = "right") -> tuple[float | None, int]:
        """The part that is right (or that `stopped`) of the answers to questions with this `meta`, and their number."""
        chosen = [getattr(a, of) for a in self.answers if (meta or {}).items() <= a.kind.items()]
        return (sum(chosen) / len(chosen) if chosen else None), len(chosen)

    def values(self, key: str) -> list[str]:
        """The values that `key` has in the questions' meta."""
        return list(dict.fromkeys(a.kind[key] for a in self.answers if key in a.kind))


class Found:
    """The artefacts below a folder, or the folder itself if it is one. Of several of one stage, the first by name counts."""

    def __init__(self, root: Path):
        self.root = root
        if not root.is_dir():
            raise UserError(f"no such folder: {root}")
        candidates = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
        self.runs = {p: read_json(p / "run.json") for p in candidates if (p / "run.json").is_file()}
        self.folders: dict[str, Path] = {}
        for path, run in self.runs.items():
            self.folders.setdefault(run.get("stage", ""), path)

    def metrics(self, stage: str) -> dict[str, Any]:
        """The "metrics" of a stage's run.json; {} if it is not here."""
        return self.runs[self.folders[stage]].get("metrics", {}) if stage in self.folders else {}

    def config(self, stage: str) -> dict[str, Any]:
        return self.runs[self.folders[stage]].get("config", {}) if stage in self.folders else {}

    def lines(self, stage: str, name: str) -> list[dict[str, Any]]:
        """A stage's JSONL file; [] if it is missing."""
        return list(jsonl(self.folders[stage] / name)) if stage in self.folders else []

    def json(self, stage: str, name: str) -> Any:
        """A stage's JSON file; None if it is missing."""
        path = self.folders[stage] / name if stage in self.folders else None
        return read_json(path) if path and path.is_file() else None

    @cached_property
    def machine(self) -> dict[str, Any]:
        """What a dive noted of its machine, the last time; the highest peak of all its starts. {} for other folders."""
        notes = [row["machine"] for row in jsonl(self.root / "timings.jsonl") if "machine" in row]
        peaks = [note["peak_gflops"] for note in notes if "peak_gflops" in note]
        return {**notes[-1], **({"peak_gflops": max(peaks)} if peaks else {})} if notes else {}

    @cached_property
    def source(self) -> str:
        """What a dive was made of: "town", the invented pages, or "own", a user's files; "own" for folders that are no dive."""
        path = self.root / "dive.json"
        return str(read_json(path).get("source", "town")) if path.is_file() else "own"

    @property
    def models(self) -> list[str]:
        """The stages here that made a model."""
        return [stage for stage in MODELS if stage in self.folders]

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of this folder: its own stage's, or the copy in a model."""
        places = [self.folders["tokenizer"]] if "tokenizer" in self.folders else []
        places += [self.folders[stage] / "tokenizer" for stage in self.models]
        return Tokenizer.load(places[0]) if places else None

    @cached_property
    def exams(self) -> list[Exam]:
        """Evaluations in the order base, sft, rl, then others by name."""

        def order(path: Path) -> tuple[int, str]:
            return next((i for i, part in enumerate(("base", "sft", "rl")) if path.name.endswith(part)), 9), path.name

        folders = sorted((p for p, run in self.runs.items() if run.get("stage") == "eval"), key=order)
        return [
            Exam(
                p.name, [a for row in jsonl(p / "answers.jsonl") for a in _answers(row)],
                tuple(self.runs[p].get("config", {}).get("group_by") or ()),
            )
            for p in folders
        ]  # fmt: skip

    def exam(self, end: str) -> Exam | None:
        """The first evaluation with answers whose folder's name ends so ("base", "sft", "rl")."""
        return next((e for e in self.exams if e.name.endswith(end) and e.answers), None)


def last_words(prompt: str | list[dict[str, str]]) -> str:
    """What the user said last, in a prompt that is text or messages."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _answers(row: dict[str, Any]) -> Iterator[Answer]:
    """A line of answers.jsonl: one question, and one or more replies."""
    kind = {key: value for key, value in row.get("meta", {}).items() if isinstance(value, str)}
    for reply, right, stopped in zip(row["replies"], row["right"], row["stopped"], strict=True):
        yield Answer(last_words(row["prompt"]), reply, str(row["answer"]), right, stopped, kind)


def jsonl(path: Path, most: int | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL file, at most `most`; nothing if it is missing."""
    if path.is_file():
        with open(path, encoding="utf-8", errors="surrogatepass") as file:
            yield from (json.loads(line) for line in islice(file, most))
