"""Documents as flat files of token ids that training maps into memory, and the way back from a token to its page.

`freedive data shards` writes them (docs/shards-format.md), `TokenShards` reads them.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.runs import Artefact, UserError, json_line, option, progress, read_json, stage, write_json_atomic
from freedive.tokenizer import Tokenizer, encode_documents, find

from .texts import is_artefact, iter_documents, iter_rows, shard_paths

FORMAT = "freedive-shards-1"
SPLITS = ("train", "val")
BATCH_CHARACTERS = 8_000_000  # encoded at once
CHECKPOINT_TOKENS = 50_000_000
SOURCE = ("id", "url", "source", "record")
CONTEXT = 40  # tokens shown on each side of a position


@dataclass(frozen=True)
class ShardsConfig:
    """From clean documents to token shards; or, with --position, from a token of shards to its page."""

    data: Path = option(help="folder made by `freedive data` (or a text or JSONL file); with --position: a folder of token shards", positional=True)
    tokenizer: str = option("", "tokenizer folder or file, or a name such as gpt2")
    out: Path = option(Path("runs/shards"), "folder to be made")
    shard_tokens: int = option(100_000_000, "tokens of a file, about")
    position: int | None = option(None, "say which page this token of the shards comes from")
    split: str = option("train", "the split that --position is in")
    threads: int | None = option(None, "CPU threads for encoding (default: all)")
    fast: bool = option(False, "encode with the package gigatoken, if it gives the same ids on this machine", hash=False)
    dry_run: bool = option(False, "check the input and say what would be done")
    force: bool = option(False, "replace OUT if it was made with other settings")


def run(c: ShardsConfig) -> Path:
    """Writes the shards and returns their folder. UserError for documents or a tokenizer that cannot be used."""
    if c.position is not None:
        if not is_shards(c.data):
            raise UserError(f"{c.data} is no folder of token shards", hint="`freedive data shards DATA --tokenizer NAME --out SHARDS` makes one")
        TokenShards(c.data).show(c.position, c.split)
        return c.data
    if not c.tokenizer:
        raise UserError("no tokenizer was given", hint="--tokenizer FOLDER (made by `freedive tokenizer`) or a name such as gpt2")
    if c.shard_tokens < 1:
        raise UserError(f"--shard-tokens is {c.shard_tokens}", hint="it must be at least 1")
    tok = find(c.tokenizer)
    next(iter_documents(c.data))
    if c.dry_run:
        print(f"would encode {c.data} with {tok.vocab_size:,} ids and write {c.out}")
        return c.out
    inputs: dict[str, Path | None] = {"data": c.data, "tokenizer": Path(c.tokenizer) if Path(c.tokenizer).exists() else None}
    with stage("shards", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if artefact.done:
            print(f"{c.out} is finished already: nothing to do")
            return artefact.out
        _Shards(artefact, c, tok).write()
    return artefact.out


class _Shards:
    """The files of both splits while they are written."""

    def __init__(self, artefact: Artefact, c: ShardsConfig, tok: Tokenizer):
        self.artefact, self.c, self.tok = artefact, c, tok
        self.dtype = np.dtype("<u2" if tok.vocab_size <= 1 << 16 else "<u4")
        self.edge = tok.bos_id
        state = artefact.resume or {}
        self.files: dict[str, list[dict[str, Any]]] = state.get("files", {split: [] for split in SPLITS})
        self.done: dict[str, int] = state.get("done", {split: 0 for split in SPLITS})
        self.source_bytes: int = state.get("source_bytes", 0)
        self.since = 0

    def write(self) -> None:
        splits = SPLITS if is_artefact(self.c.data) else ("train",)
        with progress.bar(None, "data: tokens") as bar:
            for split in splits:
                if split == "val" and not shard_paths(self.c.data, "val"):
                    continue
                documents = iter_documents(self.c.data, split if is_artefact(self.c.data) else None)
                for batch in _batches(itertools.islice(documents, self.done[split], None)):
                    for row, ids in zip(batch, encode_documents(self.tok, [row["text"] for row in batch], self.c.threads, self.c.fast), strict=True):
                        self._document(split, row, ids)
                    bar.advance(len(batch), text=f"{sum(f['tokens'] for f in self.files[split]):,} tokens")
                    if self.since >= CHECKPOINT_TOKENS:
                        self.artefact.checkpoint({"files": self.files, "done": self.done, "source_bytes": self.source_bytes})
                        self.since = 0
                self._end(split)
        self.tok.save(self.artefact.work / "tokenizer")
        told = {"format": FORMAT, "dtype": "uint16" if self.dtype.itemsize == 2 else "uint32", "vocab_size": self.tok.vocab_size, "edge": self.edge}
        write_json_atomic(self.artefact.work / "shards.json", {**told, "recipe": _recipe(self.c.data), "files": self.files})
        totals = {f"{split}_{key}": sum(f[key] for f in self.files[split]) for split in SPLITS for key in ("tokens", "documents")}
        self.artefact.summary(**totals)
        print(f"{totals['train_tokens']:,} training tokens in {len(self.files['train'])} file(s), {totals['val_tokens']:,} held out: {self.c.out}")

    def _document(self, split: str, row: dict[str, Any], ids: np.ndarray) -> None:
        files = self.files[split]
        if not files or files[-1]["tokens"] and files[-1]["tokens"] + len(ids) > self.c.shard_tokens:
            self._end(split)
            files.append({"name": f"{split}-{len(files):05d}", "tokens": 0, "documents": 0, "bytes": 0})
            self.source_bytes = 0
        file = files[-1]
        line = json_line({key: row.get(key, "") for key in SOURCE})
        self._append(file, "index", np.uint64(file["tokens"]).tobytes())
        self._append(file, "sources.index", np.uint64(self.source_bytes).tobytes())
        self._append(file, "sources", line)
        self._append(file, "bin", np.concatenate([[self.edge], ids]).astype(self.dtype).tobytes())
        file["tokens"] += len(ids) + 1
        file["documents"] += 1
        file["bytes"] += len(row["text"].encode("utf-8", "replace"))
        self.source_bytes += len(line)
        self.done[split] += 1
        self.since += len(ids)

    def _end(self, split: str) -> None:
        """Closes a file: the last edge, the ends of its indices."""
        if self.files[split]:
            file = self.files[split][-1]
            self._append(file, "index", np.uint64(file["tokens"]).tobytes())
            self._append(file, "sources.index", np.uint64(self.source_bytes).tobytes())
            self._append(file, "bin", np.array([self.edge], self.dtype).tobytes())
            file["tokens"] += 1

    def _append(self, file: dict[str, Any], suffix: str, data: bytes) -> None:
        self.artefact.append(f"{file['name']}.{suffix}", data)


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row["text"])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _recipe(data: Path) -> str:
    if not is_artefact(data):
        return ""
    _, row = next(iter(iter_rows(shard_paths(data, "train")[0])))
    return str(row.get("recipe") or "")


def is_shards(path: str | os.PathLike[str]) -> bool:
    """True for a folder of token shards."""
    return Path(path, "shards.json").is_file()


@dataclass(frozen=True)
class TokenFile:
    """One file, mapped: ids uint16 or uint32 [tokens]; starts uint64 [documents + 1], see docs/shards-format.md."""

    name: str
    ids: np.ndarray
    starts: np.ndarray
    bytes: int


class TokenShards:
    """A folder of token shards, mapped into memory. UserError for a folder that is none, or is damaged."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        told = read_json(self.folder / "shards.json")
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise UserError(f"{folder} holds no token shards of format {FORMAT}", hint="`freedive data shards` writes them")
        try:
            self.dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[told["dtype"]])
            self.vocab_size, self.edge = int(told["vocab_size"]), int(told["edge"])
            self.recipe = str(told.get("recipe", ""))
            self.files = {split: [self._open(f) for f in told["files"].get(split, [])] for split in SPLITS}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{self.folder / 'shards.json'} is damaged", hint="make the shards again") from None

    def _open(self, told: dict[str, Any]) -> TokenFile:
        name = str(told["name"])
        if "/" in name or "\\" in name:
            raise ValueError(name)
        ids = self._map(f"{name}.bin", self.dtype, told["tokens"])
        starts = self._map(f"{name}.index", np.dtype("<u8"), told["documents"] + 1)
        if starts[0] != 0 or starts[-1] != len(ids) - 1 or np.any(starts[1:] <= starts[:-1]):
            raise UserError(f"{self.folder / name}.index is damaged", hint="make the shards again")
        return TokenFile(name, ids, starts, int(told["bytes"]))

    def _map(self, name: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        path = self.folder / name
        size = path.stat().st_size if path.is_file() else -1
        if size != count * dtype.itemsize:
            raise UserError(
                f"{path} should have {count * dtype.itemsize} bytes and has {size if size >= 0 else 'none'}", hint="make the shards again"
            )
        return np.memmap(path, dtype, "r")

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer")

    def documents(self, split: str) -> Iterator[np.ndarray]:
        """The ids of each document, without edges; views into the map."""
        for file in self.files[split]:
            for a, b in zip(file.starts[:-1], file.starts[1:], strict=True):
                yield file.ids[int(a) + 1 : int(b)]

    def find(self, position: int, split: str = "train") -> dict[str, Any]:
        """The document of the token at `position` of the split, counted over its files: id, url, source, record (WARC-Record-ID), file,
        document (number in the split), at (position in the document, its edge being 0), position and length in tokens.

        UserError for a position that is not there.
        """
        if split not in SPLITS:
            raise UserError(f'unknown split "{split}"', hint='there are "train" and "val"')
        left, before = position, 0
        for file in self.files[split]:
            if 0 <= left < len(file.ids):
                number = min(int(np.searchsorted(file.starts, left, "right")) - 1, len(file.starts) - 2)
                start, end = int(file.starts[number]), int(file.starts[number + 1])
                place = {"document": before + number, "file": file.name, "position": position, "at": left - start, "length": end - start}
                return {**self._source(file, number), **place}
            left -= len(file.ids)
            before += len(file.starts) - 1
        total = sum(len(file.ids) for file in self.files[split])
        raise UserError(f"there is no token {position} in {split}, it has {total:,}", hint=f"0 to {total - 1}")

    def _source(self, file: TokenFile, number: int) -> dict[str, Any]:
        places = np.memmap(self.folder / f"{file.name}.sources.index", "<u8", "r")
        with open(self.folder / f"{file.name}.sources", "rb") as lines:
            lines.seek(int(places[number]))
            found = json.loads(lines.readline())
        return found if isinstance(found, dict) else {}

    def show(self, position: int, split: str) -> None:
        """Prints the page of a token, and the text around it."""
        found = self.find(position, split)
        file = next(file for file in self.files[split] if file.name == found["file"])
        number = int(np.searchsorted(file.starts, self._inside(position, split), "right")) - 1
        here, tok = self._inside(position, split), self.tokenizer()
        start, end = int(file.starts[number]) + 1, int(file.starts[min(number + 1, len(file.starts) - 1)])
        before = tok.decode(int(t) for t in file.ids[max(start, here - CONTEXT) : here])
        after = tok.decode(int(t) for t in file.ids[here + 1 : min(end, here + 1 + CONTEXT)])
        for key in ("url", "source", "record", "id"):
            if found.get(key):
                print(f"{key + ':':9}{found[key]}")
        print(f"token {found['at']} of {found['length']} of document {found['document']:,} in {split} ({found['file']})")
        print(f"...{before}[{tok.decode([int(file.ids[here])])}]{after}...")

    def _inside(self, position: int, split: str) -> int:
        """The position within its file."""
        for file in self.files[split]:
            if position < len(file.ids):
                break
            position -= len(file.ids)
        return position
