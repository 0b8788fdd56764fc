"""Shards of clean documents: train-00000.jsonl, .jsonl.zst or .parquet, a new one after `shard_bytes` of JSON.

Every document carries the recipe: a hash over all settings that decided about it.
"""

from __future__ import annotations

import json
from typing import Any

from freedive.runs import Artefact, UserError

from .texts import zstandard

FRAME_BYTES = 1 << 20  # of JSON in a zstd frame
ROWS = 512  # of a parquet row group
LEVEL = 3
TEXTS = ("text", "id", "url", "source", "record", "date", "recipe")
SCORES = {"language": "string", "language_score": "float64", "contamination": "list", "edu_score": "float64", "edu_int_score": "int64"}


def check_format(kind: str) -> None:
    """UserError if what writes this kind of shards is not installed."""
    if kind == "jsonl.zst":
        zstandard()
    elif kind == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError("parquet needs the package pyarrow", hint="pip install 'freedive[data]'") from None


class ShardWriter:
    """Writes lines of JSON objects into an artefact. `can_stop`: whether it can go on from `state()` after a checkpoint."""

    def __init__(self, artefact: Artefact, kind: str, shard_bytes: int, recipe: str, state: dict[str, list[int]] | None):
        self.artefact, self.kind, self.shard_bytes = artefact, kind, shard_bytes
        self.recipe, self.suffix = recipe, {"jsonl": "jsonl", "jsonl.zst": "jsonl.zst", "parquet": "parquet"}[kind]
        self.shards = state or {"train": [0, 0], "val": [0, 0]}  # number, bytes in it
        self.can_stop = kind != "parquet"
        self._ending = f', "recipe": "{recipe}"}}\n'.encode()
        self._buffers: dict[str, bytearray] = {"train": bytearray(), "val": bytearray()}
        self._rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
        self._tables: dict[str, Any] = {}
        self._compressor = zstandard().ZstdCompressor(level=LEVEL) if kind == "jsonl.zst" else None

    def state(self) -> dict[str, list[int]]:
        return self.shards

    def write(self, split: str, line: bytes) -> None:
        """`line`: one JSON object and a line end, as json_line makes it."""
        line = line[:-2] + self._ending
        shard = self.shards[split]
        if shard[1] and shard[1] + len(line) > self.shard_bytes:
            self._end(split)
            shard[0], shard[1] = shard[0] + 1, 0
        shard[1] += len(line)
        if self.kind == "parquet":
            row = json.loads(line)
            if unknown := row.keys() - {*TEXTS, *SCORES}:
                raise ValueError(f"fields without a column: {sorted(unknown)}")  # from_pylist would drop them without a word
            self._rows[split].append(row)
            if len(self._rows[split]) >= ROWS:
                self._write_rows(split)
        elif self._compressor is not None:
            self._buffers[split] += line
            if len(self._buffers[split]) >= FRAME_BYTES:
                self._write_frame(split)
        else:
            self.artefact.append(self._name(split), line)

    def flush(self) -> None:
        """Everything into the files, before a checkpoint."""
        for split in self.shards:
            self._write_frame(split)

    def close(self) -> None:
        for split in self.shards:
            self._end(split)

    def _name(self, split: str) -> str:
        return f"{split}-{self.shards[split][0]:05d}.{self.suffix}"

    def _end(self, split: str) -> None:
        self._write_frame(split)
        self._write_rows(split)
        if split in self._tables:
            self._tables.pop(split).close()

    def _write_frame(self, split: str) -> None:
        if self._compressor is not None and self._buffers[split]:
            self.artefact.append(self._name(split), self._compressor.compress(bytes(self._buffers[split])))
            self._buffers[split].clear()

    def _write_rows(self, split: str) -> None:
        if not self._rows[split]:
            return
        import pyarrow
        import pyarrow.parquet

        texts = [(name, pyarrow.string()) for name in TEXTS]
        scores = [(name, pyarrow.list_(pyarrow.string()) if kind == "list" else pyarrow.type_for_alias(kind)) for name, kind in SCORES.items()]
        schema = pyarrow.schema(texts + scores, metadata={"freedive.recipe": self.recipe})
        if split not in self._tables:
            self._tables[split] = pyarrow.parquet.ParquetWriter(self.artefact.work / self._name(split), schema, compression="zstd")
        self._tables[split].write_table(pyarrow.Table.from_pylist(self._rows[split], schema))
        self._rows[split].clear()
