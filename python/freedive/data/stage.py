"""`freedive data INPUT... --out DIR`: raw pages to clean text (talk 1.1).

read -> extract -> language -> Gopher repetition -> Gopher quality -> C4 -> FineWeb -> personal data -> duplicates -> train /
val shards
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from freedive.runs import Artefact, UserError, default_threads, human_bytes, json_line, option, progress, stage, write_json_atomic

from .dedup import Seen
from .language import Language
from .process import Result, Steps, Workers
from .quality import PRESETS, Rules
from .read import input_files, read_records
from .waterfall import Waterfall, print_waterfall

CHECKPOINT_BYTES = 8_000_000  # of input files between two checkpoints
SMALL_INPUT = 4_000_000  # bytes of input files below which starting worker processes costs more than it brings
SAMPLE_CHARACTERS = 1000
TITLE = "data"


@dataclass(frozen=True)
class DataConfig:
    """From WARC, WET, HTML, text or JSONL files to a folder of clean documents, with a report of what was removed and why."""

    inputs: tuple[Path, ...] = option(
        help="files or folders: .warc(.gz) .wet(.gz) .html .txt .md .rst .py .jsonl(.gz)", positional=True
    )
    out: Path = option(help="folder to be made")
    preset: Literal["none", "basic", "gopher", "fineweb", "fineweb-paper"] = option("basic", "set of quality rules")
    languages: tuple[str, ...] = option(("en",), "languages to keep (ISO codes); none given: all")
    language_threshold: float = option(0.65, "smallest score of the language detector")
    exact_dedup: bool = option(True, "keep the first of documents with the same text")
    max_line_copies: int = option(0, "remove lines that this many earlier documents had; 0: leave lines alone")
    pii: bool = option(True, "replace e-mail addresses and public IPv4 addresses")
    val_fraction: float = option(0.02, "part of the documents, by hash, that goes to the val shards")
    max_record_bytes: int = option(20_000_000, "larger pages, files and lines are left out")
    shard_bytes: int = option(256_000_000, "start a new shard after this many bytes")
    samples: int = option(5, "rejected texts to keep for each reason")
    workers: int = option(0, "processes; 0: one per core for large inputs", hash=False)
    dry_run: bool = option(False, "say what would be read, and stop")
    force: bool = option(False, "replace OUT if it was made with other settings")


@dataclass(frozen=True)
class _Identity:
    config: DataConfig
    rules: Rules


def run(config: DataConfig, rules: Rules | None = None) -> Path:
    """Runs the stage and returns its folder; `rules` replaces those of the preset.

    UserError: an input is missing or empty, a setting is out of range, or no document was left.
    """
    _check(config)
    files = input_files(config.inputs)
    total = sum(file.stat().st_size for file, _ in files)
    if total == 0:
        raise UserError(f"the input is empty: {', '.join(map(str, config.inputs))}", hint="give files that hold text or pages")
    if config.dry_run:
        print(f"would read {len(files)} file(s), {human_bytes(total)}, and write {config.out} (preset {config.preset})")
        return config.out
    rules = rules or PRESETS[config.preset]
    steps = Steps(Language(config.languages, config.language_threshold), rules, config.pii)
    workers = config.workers or (1 if total < SMALL_INPUT else default_threads())
    with stage(
        TITLE, _Identity(config, rules), out=config.out, inputs={"inputs": list(config.inputs)}, force=config.force
    ) as artefact:
        if not artefact.done:
            writer = _Writer(artefact, config)
            with Workers(workers, steps) as pool, progress.bar(len(files), TITLE) as bar:
                since = 0
                for index in range(writer.next_file, len(files)):
                    file, name = files[index]
                    for result in pool.map(read_records(file, name, config.max_record_bytes)):
                        writer.take(result)
                        bar.advance(0, text=f"{writer.kept:,} documents kept")
                    bar.advance(1)
                    since += file.stat().st_size
                    if since >= CHECKPOINT_BYTES and index + 1 < len(files):
                        writer.checkpoint(index + 1)
                        since = 0
            writer.finish()
    if not progress.quiet:
        print_waterfall(artefact.out)
    return artefact.out


class _Writer:
    """Duplicates, the split, shards, samples of the rejected: all that needs the documents in order."""

    def __init__(self, artefact: Artefact, config: DataConfig):
        state = artefact.resume or {}
        self.artefact, self.config = artefact, config
        self.next_file: int = state.get("next_file", 0)
        self.kept: int = state.get("kept", 0)
        self.waterfall = Waterfall(state.get("waterfall"))
        self.rejected: dict[str, list[dict[str, str]]] = state.get("rejected", {})
        self.shards: dict[str, list[int]] = state.get(
            "shards", {"train": [0, 0, 0], "val": [0, 0, 0]}
        )  # number, its bytes, documents
        self.held: dict[str, str] | None = state.get("held")
        self.seen = Seen(config.max_line_copies)
        for row in [*_written(artefact.work), *([self.held] if self.held else [])]:
            self.seen.add(row)

    def take(self, result: Result) -> None:
        """One document, in input order."""
        trail, removed, text = list(result.trail), result.removed, result.text
        if removed is None and self.config.exact_dedup:
            if self.seen.duplicate(result.id):
                removed = ("exact_dedup", "exact_duplicate")
            else:
                trail.append(("exact_dedup", len(text.encode())))
        if removed is None and self.config.max_line_copies:
            text = self.seen.trim(text)
            if text.strip():
                trail.append(("line_dedup", len(text.encode())))
            else:
                removed, text = ("line_dedup", "no_line_left"), result.text
        self.waterfall.add(result.size, trail, removed)
        if removed is not None:
            self._sample("/".join(removed), result, text)
            return
        row = {"text": text, "id": result.id, "url": result.url, "source": result.source}
        self.seen.add(row)
        self.kept += 1
        self._split(row)

    def _split(self, row: dict[str, str]) -> None:
        """By hash of the text. As long as val is empty, the training document with the smallest hash is held back for it."""
        chosen = int(row["id"][:8], 16) < self.config.val_fraction * 2**32
        if self.config.val_fraction == 0 or self.shards["val"][2]:
            self._write("val" if chosen else "train", row)
        elif chosen and self.kept > 1:
            self._write("val", row)
            if self.held:
                self._write("train", self.held)
                self.held = None
        elif self.held is None:
            self.held = row
        else:
            first, second = sorted((self.held, row), key=lambda document: document["id"])
            self.held = first
            self._write("train", second)

    def _write(self, split: str, row: dict[str, str]) -> None:
        shard = self.shards[split]
        line = json_line(row)
        if shard[1] and shard[1] + len(line) > self.config.shard_bytes:
            shard[0], shard[1] = shard[0] + 1, 0
        self.artefact.append(f"{split}-{shard[0]:05d}.jsonl", line)
        shard[1] += len(line)
        shard[2] += 1

    def _sample(self, reason: str, result: Result, text: str) -> None:
        samples = self.rejected.setdefault(reason, [])
        if len(samples) < self.config.samples:
            samples.append({"reason": reason, "url": result.url, "source": result.source, "text": text[:SAMPLE_CHARACTERS]})

    def checkpoint(self, next_file: int) -> None:
        state = {"next_file": next_file, "kept": self.kept, "waterfall": self.waterfall.state(), "rejected": self.rejected}
        self.artefact.checkpoint({**state, "shards": self.shards, "held": self.held})

    def finish(self) -> None:
        if not self.kept:
            reasons = ", ".join(f"{len(samples)}+ {reason}" for reason, samples in self.rejected.items()) or "the files hold none"
            raise UserError(
                f"no document was left: {reasons}", hint="try --preset none, or --languages for a language other than English"
            )
        if self.held:
            self._write("train" if self.kept == 1 else "val", self.held)
        result = self.waterfall.result()
        write_json_atomic(self.artefact.work / "waterfall.json", result)
        for reason in sorted(self.rejected):
            for sample in self.rejected[reason]:
                self.artefact.append("rejected.jsonl", json_line(sample))
        counts = {f"{split}_documents": shard[2] for split, shard in self.shards.items()}
        self.artefact.summary(
            documents_in=result["documents_in"], documents_out=result["documents_out"], bytes_out=result["bytes_out"], **counts
        )


def _written(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted([*folder.glob("train-*.jsonl"), *folder.glob("val-*.jsonl")]):
        with open(file, encoding="utf-8", errors="surrogatepass") as lines:
            for line in lines:
                yield json.loads(line)


def _check(config: DataConfig) -> None:
    if not config.inputs:
        raise UserError("no input was given", hint="freedive data FILE_OR_FOLDER... --out DIR")
    for path in config.inputs:
        if not path.exists():
            raise UserError(f"{path} does not exist", hint="give files or folders with WARC, HTML, text or JSONL")
    for name, value, low, high in (
        ("val-fraction", config.val_fraction, 0, 0.5),
        ("language-threshold", config.language_threshold, 0, 1),
        ("max-record-bytes", config.max_record_bytes, 1, 2**31),
        ("shard-bytes", config.shard_bytes, 1, 2**63),
        ("workers", config.workers, 0, 1024),
        ("samples", config.samples, 0, 1000),
        ("max-line-copies", config.max_line_copies, 0, 2**31),
    ):
        if not low <= value <= high:
            raise UserError(f"--{name} is {value}", hint=f"allowed: {low} to {high}")
