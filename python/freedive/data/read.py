"""Raw documents out of files: WARC and WET, HTML, text, JSONL. Damage is a record with a reason, never an exception.

A crawl always holds truncated files, wrong charsets and lines of 100 MB; the run goes on and the waterfall counts them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .texts import text_files

WARC_SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")
SUFFIXES = WARC_SUFFIXES + HTML_SUFFIXES + TEXT_SUFFIXES + JSONL_SUFFIXES
HTML_TYPES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class Record:
    """One raw document; with a `reason` there is none, something was wrong with it."""

    url: str
    source: str  # name of the file it came from
    data: bytes = b""
    html: bool = False
    charset: str | None = None  # as the HTTP header says
    reason: str = ""
    size: int = 0  # bytes read for it


def input_files(inputs: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """(file, name) of every readable file of the inputs, in order; names are relative to the input they were found in."""
    files = []
    for path in inputs:
        for file in text_files(path, SUFFIXES):
            files.append((file, file.name if path.is_file() else file.relative_to(path).as_posix()))
    return files


def read_records(file: Path, name: str, max_bytes: int) -> Iterator[Record]:
    """All records of one file. Anything larger than `max_bytes` becomes a record with the reason "too_large"."""
    lower = file.name.lower()
    try:
        if lower.endswith(WARC_SUFFIXES):
            yield from _warc(file, name, max_bytes)
        elif lower.endswith(JSONL_SUFFIXES):
            with gzip.open(file, "rb") if lower.endswith(".gz") else open(file, "rb") as stream:
                yield from _jsonl(stream, name, max_bytes)
        else:
            yield _whole(file, name, max_bytes, html=lower.endswith(HTML_SUFFIXES))
    except EOFError:
        yield Record(name, name, reason="truncated_file")
    except (OSError, zlib.error):
        yield Record(name, name, reason="unreadable_file")


def _whole(file: Path, name: str, max_bytes: int, html: bool) -> Record:
    size = file.stat().st_size
    if size > max_bytes:
        return Record(name, name, reason="too_large", size=size)
    data = file.read_bytes()
    return Record(name, name, data, html=html, size=len(data), reason="" if data.strip() else "empty")


def _jsonl(stream: BinaryIO | gzip.GzipFile, name: str, max_bytes: int) -> Iterator[Record]:
    number = 0
    while line := stream.readline(max_bytes + 1):
        number += 1
        size = len(line)
        if size > max_bytes:
            while not line.endswith(b"\n") and (line := stream.readline(max_bytes)):
                size += len(line)
            yield Record(f"{name}:{number}", name, reason="too_large", size=size)
        elif line.strip():
            yield _row(line, number, name)


def _row(line: bytes, number: int, name: str) -> Record:
    where = f"{name}:{number}"
    try:
        row: Any = json.loads(line)
    except UnicodeDecodeError:
        return Record(where, name, reason="bad_encoding", size=len(line))
    except (ValueError, RecursionError):
        return Record(where, name, reason="bad_json", size=len(line))
    if isinstance(row, dict):
        for key in ("text", "html"):
            if isinstance(row.get(key), str):
                data = row[key].encode("utf-8", "replace")  # lone surrogates, which JSON can hold, are no text
                url = row["url"] if isinstance(row.get("url"), str) and row["url"] else where
                return Record(url, name, data, html=key == "html", charset="utf-8", size=len(data))
    return Record(where, name, reason="no_text_field", size=len(line))


def _warc(file: Path, name: str, max_bytes: int) -> Iterator[Record]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    found = 0
    with open(file, "rb") as stream:
        try:
            kinds = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
            for warc in ArchiveIterator(stream, record_types=kinds, parse_http=True):
                found += 1
                yield _page(warc, name, max_bytes)
        except EOFError:
            yield Record(name, name, reason="truncated_file")
            return
        except Exception:  # fastwarc raises its own errors, OSError or ValueError, depending on where the damage is
            yield Record(name, name, reason="broken_record")
            return
        if found == 0 or not _whole_gzip(file):
            yield Record(name, name, reason="truncated_file" if found else "no_records")


def _page(warc: Any, name: str, max_bytes: int) -> Record:
    url = str(warc.headers.get("WARC-Target-URI") or warc.record_id or name).strip("<>")
    http = warc.http_headers
    status = http.status_code if http is not None else None
    kind = str(warc.headers.get("WARC-Identified-Payload-Type") or warc.http_content_type or "").split(";")[0].strip().lower()
    if http is None and not kind:
        kind = str(warc.headers.get("Content-Type") or "").split(";")[0].strip().lower()
    if status is not None and status != 200:
        return Record(url, name, reason="http_status", size=warc.content_length)
    if kind not in HTML_TYPES and kind != "text/plain":
        return Record(url, name, reason="not_html", size=warc.content_length)
    if warc.content_length > max_bytes:
        return Record(url, name, reason="too_large", size=warc.content_length)
    encoding = str(http.get("Content-Encoding") or "").lower() if http is not None else ""
    data = warc.reader.read()
    if encoding in ("gzip", "x-gzip", "deflate"):
        data = _inflate(data, max_bytes)
        if data is None:
            return Record(url, name, reason="bad_content_encoding", size=warc.content_length)
    return Record(
        url, name, data, html=kind in HTML_TYPES, charset=warc.http_charset if http is not None else "utf-8", size=len(data)
    )


def _inflate(data: bytes, max_bytes: int) -> bytes | None:
    """The HTTP body of a page that the crawler stored compressed; at most `max_bytes` of it (a bomb is cut)."""
    for bits in (47, -15):  # gzip or zlib by its header, then raw deflate
        try:
            return zlib.decompressobj(bits).decompress(data, max_bytes)
        except zlib.error:
            continue
    return None


def _whole_gzip(file: Path) -> bool:
    """False for a gzip file whose last member is cut off: fastwarc ends silently there."""
    if not file.name.lower().endswith(".gz"):
        return True
    try:
        with gzip.open(file) as stream:
            while stream.read(1 << 20):
                pass
    except (EOFError, OSError, zlib.error):
        return False
    return True
