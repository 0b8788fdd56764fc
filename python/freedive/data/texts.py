"""Reading text the simple way: a file or a folder becomes a stream of documents, in the same order on every machine.

Used by every verb that takes `--text` or a data artefact. No filtering happens here (that is `freedive.data.stage`); what
cannot be read is a `UserError` that names the file and the byte, because a training run must not silently leave out half of
somebody's folder.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from freedive.runs import UserError

NO_TEXT = {b"\x1f\x8b": "gzip-compressed", b"\x28\xb5\x2f\xfd": "zstd-compressed", b"WARC/": "a web archive (WARC)"}  # by how a file begins
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET_SUFFIXES = (".parquet",)
SHARD_SUFFIXES = (".jsonl", ".jsonl.zst", ".parquet")  # of a data artefact
PACKED_BYTES = 1 << 11  # read at once of a .zst file; up to 2^15 times as much can come out


def iter_texts(path: str | os.PathLike[str], split: str | None = None) -> Iterator[str]:
    """The text of every document of `iter_documents`."""
    for document in iter_documents(path, split):
        yield document["text"]


def iter_documents(path: str | os.PathLike[str], split: str | None = None) -> Iterator[dict[str, Any]]:
    """Documents of a text file, a JSONL(.gz) file, a folder of these or a data artefact, each with text, id, url and source.

    `split` ("train" or "val") picks the shards of a data artefact, where the default is "train"; other inputs have no split.
    Raises UserError for a missing, empty, binary, non-UTF-8 or damaged file, and for a folder without any text.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist", hint="give a text file, a .jsonl file or a folder of these")
    if split not in (None, "train", "val"):
        raise UserError(f'unknown split "{split}"', hint='a data artefact has "train" and "val"')
    if is_artefact(path):
        split = split or "train"
        files = shard_paths(path, split)
        if not files:
            raise UserError(f"{path} has no {split} documents", hint=f"expected {split}-00000.jsonl in the folder")
    elif split is not None:
        raise UserError(f"{path} has no train/val split, {split} was asked for", hint="`freedive data` makes a folder that has one")
    else:
        files = text_files(path)
    found = False
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        for document in _documents(file, name):
            found = True
            yield document
    if not found:
        raise UserError(f"{path} is empty: no document with text in {len(files)} file(s)", hint="give a file that holds text")


def is_artefact(path: str | os.PathLike[str]) -> bool:
    """True for a folder that `freedive data` wrote (it holds train-*.jsonl, .jsonl.zst or .parquet)."""
    path = Path(path)
    return path.is_dir() and bool(shard_paths(path, "train"))


def shard_paths(folder: str | os.PathLike[str], split: str) -> list[Path]:
    """The shards of a data artefact, in order."""
    return sorted(file for file in Path(folder).glob(f"{split}-*") if file.name.endswith(SHARD_SUFFIXES))


def text_files(path: Path, suffixes: tuple[str, ...] = TEXT_SUFFIXES + JSONL_SUFFIXES + PARQUET_SUFFIXES) -> list[Path]:
    """`path` itself, or the files below the folder with one of the suffixes, sorted by path; hidden ones are left out."""
    if path.is_file():
        return [path]
    files = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(folder, name) for name in names if not name.startswith(".") and name.lower().endswith(suffixes)]
    if not files:
        raise UserError(f"{path} holds no file that can be read", hint="looked for " + ", ".join(suffixes))
    return sorted(files, key=lambda file: file.relative_to(path).parts)


def decode_utf8(raw: bytes, file: Path | str, start: int = 0) -> str:
    """Text of UTF-8 bytes that begin at byte `start` of `file`; a UserError names file and byte offset of what is not text."""
    try:
        text = raw.decode("utf-8-sig" if start == 0 else "utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start + (3 if start == 0 and raw.startswith(b"\xef\xbb\xbf") else 0)
        value = raw[offset - start] if offset - start < len(raw) else 0
        raise UserError(
            f"{file} is not UTF-8 text: byte 0x{value:02x} at offset {offset}", hint="convert it, for example with iconv -t UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(
            f"{file} looks binary: a zero byte at offset {start + raw.index(0)}",
            hint="give text files; `freedive data` reads HTML and WARC",
        )
    return text


def _documents(file: Path, name: str) -> Iterator[dict[str, Any]]:
    if file.name.lower().endswith(JSONL_SUFFIXES + PARQUET_SUFFIXES):
        yield from _jsonl_documents(file, name)
        return
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} could not be read: {error.strerror}", hint="check the file and its permissions") from None
    for magic, kind in NO_TEXT.items():
        if raw.startswith(magic):
            raise UserError(f"{file} is {kind}, not text", hint=f"`freedive data {file} --out my-data` reads it; then give my-data instead")
    text = decode_utf8(raw, file)
    if text.strip():
        yield {"text": text, "id": name, "url": "", "source": name}


def _jsonl_documents(file: Path, name: str) -> Iterator[dict[str, Any]]:
    for number, row in iter_rows(file):
        text = row.get("text")
        if not isinstance(text, str):
            raise UserError(f'{file}, line {number} has no "text" string', hint='each line is {"text": "..."}')
        if text.strip():
            default = {"id": f"{name}:{number}", "url": "", "source": name}
            more = {"record": str(row["record"])} if row.get("record") else {}  # the WARC record it came from
            yield {"text": text, **{key: str(row.get(key) or value) for key, value in default.items()}, **more}


def iter_rows(path: str | os.PathLike[str], remote: Any = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line of a JSONL(.gz, .zst) file, or (row number, row) of a parquet file.

    remote: its `Source`, where the path is an address. UserError for what is damaged, not UTF-8 or no object, and where the network fails.
    """
    file = str(path) if remote is not None else Path(path)
    lower = remote.kind if remote is not None else Path(path).name.lower()
    if lower.endswith(PARQUET_SUFFIXES):
        yield from _parquet_rows(file, remote)
        return
    offset = 0  # bytes of (uncompressed) JSONL before the line
    try:
        with _lines(Path(path)) if remote is None else remote.open_plain() as lines:
            for number, raw in enumerate(lines, 1):
                line = decode_utf8(raw, file, offset).strip()
                offset += len(raw)
                if not line:
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    raise UserError(f"{file}, line {number} is no JSON object: {line[:60]!r}", hint="one JSON object a line")
                yield number, row
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} could not be read to its end: {error}", hint="the file may be missing or truncated") from None


def _lines(file: Path) -> BinaryIO:
    lower = file.name.lower()
    if lower.endswith(".gz"):
        return cast(BinaryIO, gzip.open(file, "rb"))
    if lower.endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(cast(Any, Zstd(open(file, "rb"))), 1 << 20))  # noqa: SIM115 - closed by the reader
    return open(file, "rb")


def zstandard() -> Any:
    """The package zstandard; UserError if it is not installed."""
    try:
        import zstandard as package
    except ImportError:
        raise UserError("zstd files need the package zstandard, which is not installed", hint="pip install zstandard") from None
    return package


class Zstd(io.RawIOBase):
    """The plain bytes of a .zst stream of any number of frames. EOFError for a cut-off end, OSError for damage, as gzip does."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._zstd = stream, zstandard()
        self._frame: Any = None  # the frame being read
        self._plain, self._packed = memoryview(b""), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not len(self._plain):
            if not self._packed:
                self._packed = self._stream.read(PACKED_BYTES)
                if not self._packed:
                    if self._frame is not None:
                        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                    return 0
            if self._frame is None:
                self._frame = self._zstd.ZstdDecompressor().decompressobj()
            try:
                self._plain = memoryview(self._frame.decompress(self._packed))
            except self._zstd.ZstdError as error:
                raise OSError(f"not a zstd file, or damaged: {error}") from None
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _parquet_rows(file: Path | str, remote: Any = None) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{file}: parquet files need the package pyarrow, which is not installed", hint="pip install pyarrow") from None
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(file if remote is None else remote.open()).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} could not be read: {error}", hint="the file may be missing or truncated") from None
