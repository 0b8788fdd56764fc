"""Raw documents out of files: WARC and WET, HTML, text, JSONL, JSON, parquet; plain, .gz or .zst. Damage is a record with a reason,
never an exception: a crawl always holds truncated files, wrong charsets and lines of 100 MB; the run goes on and counts them.
"""

from __future__ import annotations

import codecs
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from .record import Record
from .remote import Missing, RemoteError
from .sniff import HEAD, json_lines, sniff
from .sources import HTML_SUFFIXES, JSON_SUFFIXES, JSONL_SUFFIXES, PARQUET_SUFFIXES, WARC_SUFFIXES, Source, is_remote
from .warc import read_warc

__all__ = ["Record", "read_records"]
TEXT_KEYS = ("text", "html", "content", "raw_content")
GIVE_UP = 100  # times max_bytes: a line that is still going on is a bomb, and the rest of the file is left
OWN = {"id", "url", "source", "record", "date", "recipe"}  # fields of every document that `freedive data` wrote
MAX_META = 2000  # characters of a text that is taken along as metadata
BLOCK = 1 << 16  # bytes of a JSON array that are read at once
AFTER = tuple(" \t\r\n,]")  # a number
NEAR = 16  # characters before the end at which half a word or escape is no damage yet
BETWEEN = re.compile(r"[\s,]*")  # the values of an array


def read_records(file: Source | Path | str, name: str, max_bytes: int, text_key: str | None = None) -> Iterator[Record]:
    """All records of one file. Anything larger than `max_bytes` becomes a record with the reason "too_large".

    `text_key`: the field of JSONL and parquet rows that holds the text; by default the first of TEXT_KEYS that is there.
    A name that says nothing of what is in the file: it is looked at (`sniff`).
    Raises RemoteError if the network fails, UserError if a package is missing.
    """
    if not isinstance(file, Source):
        file = Source(str(file), name, -1 if is_remote(file) else Path(file).stat().st_size)
    try:
        if file.size == 0:
            yield Record(name, name, reason="empty")
            return
        if not file.kind:
            known = sniff(file)
            if known is None:
                yield Record(name, name, reason="binary_file", size=max(file.size, 0))
                return
            file = known
        if file.kind in WARC_SUFFIXES:
            yield from read_warc(file, max_bytes)
        elif file.kind in JSONL_SUFFIXES:
            with file.open_plain() as stream:
                yield from _jsonl(stream, name, max_bytes, text_key)
        elif file.kind in JSON_SUFFIXES:
            yield from _json(file, name, max_bytes, text_key)
        elif file.kind in PARQUET_SUFFIXES:
            yield from _parquet(file, name, max_bytes, text_key)
        else:
            yield _whole(file, name, max_bytes)
    except Missing as missing:
        yield Record(name, name, reason=missing.reason)
    except EOFError:
        yield Record(name, name, reason="truncated_file")
    except (OSError, zlib.error):
        yield Record(name, name, reason="unreadable_file")


def _whole(file: Source, name: str, max_bytes: int) -> Record:
    size = file.size
    if size > max_bytes and not file.compression:
        return Record(name, name, reason="too_large", size=size)
    with file.open_plain() as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        return Record(name, name, reason="zip_bomb" if file.compression else "too_large", size=max(size, 0))
    html = file.kind in HTML_SUFFIXES
    return Record(name, name, data, html=html, size=len(data), reason="" if data.strip() else "empty")


def _jsonl(stream: BinaryIO, name: str, max_bytes: int, text_key: str | None) -> Iterator[Record]:
    number, found = 0, False
    while line := stream.readline(max_bytes + 1):
        number += 1
        found = found or not line.isspace()
        size = len(line)
        if size > max_bytes:
            while not line.endswith(b"\n") and size < GIVE_UP * max_bytes and (line := stream.readline(max_bytes)):
                size += len(line)
            bomb = size >= GIVE_UP * max_bytes
            yield Record(f"{name}:{number}", name, reason="zip_bomb" if bomb else "too_large", size=size)
            if bomb:
                return
        elif line.strip():
            yield _line(line, number, name, text_key)
    if not found:
        yield Record(name, name, reason="no_records")


def _json(file: Source, name: str, max_bytes: int, text_key: str | None) -> Iterator[Record]:
    """JSON Lines, or the members of an array, or an object: a document each."""
    with file.open_plain() as stream:
        lines = json_lines(stream.read(HEAD))
    with file.open_plain() as stream:  # again from its beginning: not every stream can go back
        yield from (_jsonl if lines else _values)(stream, name, max_bytes, text_key)


def _values(stream: BinaryIO, name: str, max_bytes: int, text_key: str | None) -> Iterator[Record]:
    """JSON values that follow each other, in one array or in none; no more than one is held in memory."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    text, at, number, more, block = "", 0, 0, True, BLOCK
    inside = False  # an array
    while True:
        at = cast(re.Match[str], BETWEEN.match(text, at)).end()
        if not inside and number == 0 and text[at : at + 1] == "[":
            inside, at = True, at + 1
            continue
        ended = inside and text[at : at + 1] == "]"
        try:
            row, end = (None, at) if ended else decoder.raw_decode(text, at)
            whole = ended or isinstance(row, (dict, list, str)) or not more or text[end : end + 1] in AFTER  # 12 may go on as 123
        except (ValueError, RecursionError) as error:
            whole = False
            cut = isinstance(error, json.JSONDecodeError) and (error.pos >= len(text) - NEAR or error.msg.startswith("Unterminated string"))
            more = more and cut  # by the block's end, or damage
        if ended or not whole and not more:
            break
        if whole:
            number += 1
            size = len(text[at:end].encode("utf-8", "replace"))
            where = f"{name}:{number}"
            yield Record(where, name, reason="too_large", size=size) if size > max_bytes else _row(row, where, name, size, text_key)
            at = end
            continue
        if len(text) - at > max_bytes:
            yield Record(f"{name}:{number + 1}", name, reason="too_large", size=len(text) - at)
            return
        data = stream.read(block)
        more = bool(data)
        try:
            text, at = text[at:] + utf8.decode(data, not more), 0
        except UnicodeDecodeError:
            yield Record(f"{name}:{number + 1}", name, reason="bad_encoding", size=len(text) - at)
            return
        block = max(BLOCK, len(text))  # doubled: a value is not decoded anew for every block
    at += ended
    rest = text[at:].strip() or stream.read(BLOCK).decode("utf-8", "replace").strip()  # behind damage, or behind the array
    if rest:
        yield Record(f"{name}:{number + 1}", name, reason="bad_json", size=len(rest))
    elif inside and not ended:
        yield Record(f"{name}:{number + 1}", name, reason="truncated_file")
    elif number == 0:
        yield Record(name, name, reason="no_records")


def _line(line: bytes, number: int, name: str, text_key: str | None) -> Record:
    where = f"{name}:{number}"
    try:
        row: Any = json.loads(line)
    except UnicodeDecodeError:
        return Record(where, name, reason="bad_encoding", size=len(line))
    except (ValueError, RecursionError):
        return Record(where, name, reason="bad_json", size=len(line))
    return _row(row, where, name, len(line), text_key)


def _row(row: Any, where: str, name: str, size: int, text_key: str | None) -> Record:
    """A JSON object or a row of a table; fields of its "metadata" count as its own."""
    if isinstance(row, dict):
        inner = row.get("metadata")
        fields = {**inner, **row} if isinstance(inner, dict) else row
        for key in (text_key,) if text_key else TEXT_KEYS:
            value = fields.get(key)
            if isinstance(value, str):
                data = value.encode("utf-8", "replace")  # lone surrogates, which JSON can hold, are no text
                meta = {k: v for k, v in fields.items() if k != key and _is_small(v)}
                ours = meta.keys() >= OWN  # a shard's row names the page it first came from
                return Record(
                    _text(meta.get("url")) or where,
                    _text(meta["source"]) if ours else name,
                    data,
                    html=key == "html",
                    charset="utf-8",
                    size=len(data),
                    reason="" if data.strip() else "empty",
                    id=(_text(meta["record"]) if ours else "") or _text(meta.get("id")),
                    date=_text(meta.get("date")),
                    meta=meta,
                )
    return Record(where, name, reason="no_text_field", size=size)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _is_small(value: Any) -> bool:
    return isinstance(value, (int, float, bool)) or isinstance(value, str) and len(value) <= MAX_META


def _parquet(file: Source, name: str, max_bytes: int, text_key: str | None) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    with file.open() as stream, tempfile.TemporaryFile() as copy:
        number = 0
        if not stream.seekable():  # a server that gives whole files only; a table is read from its end
            shutil.copyfileobj(stream, copy, 1 << 20)
            stream = cast(BinaryIO, copy)
        try:
            table = pyarrow.parquet.ParquetFile(stream)
            wanted = [f.name for f in table.schema_arrow if _is_plain(f.type)]
            for batch in table.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    record = _row(row, f"{name}:{number}", name, 0, text_key)
                    yield record if record.size <= max_bytes else Record(record.url, name, reason="too_large", size=record.size)
        except pyarrow.ArrowException:
            yield Record(name, name, reason="unreadable_file")
            return
        except OSError as error:
            cause = error.__cause__
            if isinstance(cause, RemoteError):
                raise cause from None
            yield Record(name, name, reason="truncated_file" if number else "unreadable_file")
            return
        if number == 0:
            yield Record(name, name, reason="no_records")


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as t

    return any(check(kind) for check in (t.is_string, t.is_large_string, t.is_integer, t.is_floating, t.is_boolean, t.is_dictionary, t.is_timestamp))
