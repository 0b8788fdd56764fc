"""WARC and WET records (ISO 28500) by fastwarc, going on after damage: a broken record costs itself, not the rest of its file.

fastwarc ends at the first bad header and says nothing of a cut-off end. So after an error the next record is searched for (its
gzip or zstd member, or "WARC/1." in a plain file), a record whose length or digest is wrong is told apart, and the end of the
file is compared with the end of its last record.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from .record import Record
from .remote import RemoteError
from .sources import Source
from .texts import zstandard

HTML_TYPES = ("text/html", "application/xhtml+xml")
MEMBER = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd", "": b"WARC/1."}  # how a record begins
SWALLOWED = b"\r\n\r\nWARC/1.0\r\nWARC-Type:"  # inside a page: its length is wrong, and other records are in it
BLOCK, SMALL = 1 << 20, 1 << 14
MAX_MEMBER = 1 << 28  # bytes of a record that is looked at again


def read_warc(source: Source, max_bytes: int) -> Iterator[Record]:
    """Every page of the file (response, resource and conversion records), and a record with a reason for each damage."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    pages = (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.conversion)
    name, found, offset = source.name, 0, 0
    with source.open() as stream:
        seekable = stream.seekable()
        while True:
            if offset:
                stream.seek(offset)
            start, held, failed, single, came = offset, None, False, False, 0
            records = iter(ArchiveIterator(stream, parse_http=False))
            while True:
                try:
                    warc = next(records)
                    found, came = found + 1, came + 1
                    if held is not None:
                        yield held
                        held = None
                    single = single or came > 1 and warc.stream_pos == start
                    start = warc.stream_pos
                    if warc.record_type not in pages:
                        continue
                    page, complete, sure = _page(warc, name, max_bytes)
                except StopIteration:
                    break
                except RemoteError:
                    raise
                except Exception:  # fastwarc: its own errors, OSError or ValueError, depending on where the damage is
                    failed = True
                    break
                if sure and complete:
                    yield page
                else:
                    held = page  # without a digest, only the next header shows whether the length was right
                if not complete:
                    failed = True
                    break
            if came and not failed and (not seekable or _ends_well(stream, source, start, single)):
                if held is not None:
                    yield held
                return
            if held is not None and failed and held.data and not held.reason and not single and seekable and _fits(stream, source, start):
                yield held
                held = None
            next_record = None if single or not seekable else _search(stream, start + 1, MEMBER[source.compression])
            cut = next_record is None and seekable and _cut_off(stream, source, offset if single else start, offset)
            if held is not None:
                yield replace(held, data=b"", reason="truncated_file" if cut else "wrong_length") if failed else held
            if held is None or not failed:
                ended = next_record is None and not failed
                yield Record(name, name, reason="truncated_file" if cut or ended and found else "no_records" if ended else "broken_record")
            if next_record is None:
                if single and failed:
                    yield Record(name, name, reason="rest_of_file")
                return
            offset = next_record


def _page(warc: Any, name: str, max_bytes: int) -> tuple[Record, bool, bool]:
    """(record, all of its bytes were there, a digest says that they are right)."""
    length, headers = warc.content_length, warc.headers
    url = str(headers.get("WARC-Target-URI") or warc.record_id or name).strip("<>")
    base = Record(url, name, size=length, id=str(headers.get("WARC-Record-ID") or "").strip("<>"), date=str(headers.get("WARC-Date") or ""))
    if length > max_bytes:
        seen = 0
        while block := warc.reader.read(BLOCK):
            seen += len(block)
        return replace(base, reason="too_large"), seen == length, False
    sure = wrong = False
    if _sha1(headers.get("WARC-Block-Digest")):
        sure = warc.verify_block_digest()
        wrong = not sure
    warc.parse_http()
    http = warc.http_headers
    chunked = http is not None and "chunked" in str(http.get("Transfer-Encoding") or "").lower()
    if not (sure or wrong or chunked) and http is not None and _sha1(headers.get("WARC-Payload-Digest")):
        sure = warc.verify_payload_digest()  # of chunked pages, writers disagree about what is digested
        wrong = not sure
    charset = warc.http_charset if http is not None else "utf-8"
    data = warc.reader.read()
    complete = len(data) == warc.content_length  # of what follows the HTTP header
    if not sure and SWALLOWED in data:
        return replace(base, reason="wrong_length"), False, False
    if wrong:
        return replace(base, reason="wrong_digest"), complete, complete
    if http is not None and http.status_code not in (None, 200):
        return replace(base, reason="http_status"), complete, sure
    kind = headers.get("WARC-Identified-Payload-Type") or warc.http_content_type
    kind = str(kind or (headers.get("Content-Type") if http is None else "") or "").split(";")[0].strip().lower()
    if kind not in HTML_TYPES and kind != "text/plain":
        return replace(base, reason="not_html"), complete, sure
    if chunked:
        data = _dechunk(data)
    encoding = str(http.get("Content-Encoding") or "").strip().lower() if http is not None else ""
    data, reason = _decode(data, encoding, max_bytes)
    return replace(base, data=data, html=kind in HTML_TYPES, charset=charset, size=len(data) or length, reason=reason), complete, sure


def _sha1(digest: Any) -> bool:
    return str(digest or "").lower().startswith("sha1:")


def _decode(data: bytes, encoding: str, max_bytes: int) -> tuple[bytes, str]:
    """(body, reason) of a page that the crawler stored compressed; one that grows above `max_bytes` is a zip bomb."""
    if encoding in ("", "identity", "none"):
        return data, ""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return b"", "bad_content_encoding"
    for bits in (47, -15):  # gzip or zlib by its header, then raw deflate
        stream = zlib.decompressobj(bits)
        try:
            plain = stream.decompress(data, max_bytes)
        except zlib.error:
            continue
        if stream.unconsumed_tail:
            return b"", "zip_bomb"
        return (plain, "") if stream.eof else (b"", "bad_content_encoding")
    if data[:1].isspace() or data[:1] == b"<":  # some crawlers store the page decoded and keep the header
        return data, ""
    return b"", "bad_content_encoding"


def _dechunk(data: bytes) -> bytes:
    """The body of an HTTP message in chunks; as it is if the crawler has joined them already."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\r\n", at, at + 64)
        try:
            size = int(data[at:end].split(b";")[0], 16) if end > at else -1
        except ValueError:
            size = -1
        if size < 0 or end + 2 + size > len(data):
            return data
        if size == 0:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def _search(stream: BinaryIO, start: int, mark: bytes) -> int | None:
    """Where the next record might begin, from byte `start` of the file."""
    stream.seek(start)
    at, rest = start, b""
    while block := stream.read(BLOCK):
        window = rest + block
        place = window.find(mark)
        if place >= 0:
            return at - len(rest) + place
        at += len(block)
        rest = window[-len(mark) + 1 :]
    return None


def _ends_well(stream: BinaryIO, source: Source, start: int, single: bool) -> bool:
    """False if the file goes on, or should, after its last record, which begins at byte `start`."""
    if source.compression == ".gz" and single:
        return _whole_gzip(source)
    if not source.compression:
        end = _end(_head(stream, start))
        return end is not None and 0 <= stream.seek(0, 2) - (start + end) <= 4
    member, _ = _member(stream, source, start)
    return member is not None and not member.unused_data and not stream.read(1)


def _cut_off(stream: BinaryIO, source: Source, start: int, before: int) -> bool:
    """True if the file ends inside the record at byte `start`, or inside one that follows it, which is not damaged otherwise.

    before: a record's beginning to go from where `start` is none: inside a file that is one gzip member, fastwarc says how far it has read."""
    size = stream.seek(0, 2)
    start = before if start >= size else start
    while start < size:
        if source.compression:
            stream.seek(start)
            member = _decompressor(source)
            try:
                while not member.eof and (block := stream.read(SMALL)):
                    member.decompress(block)
            except Exception:  # zlib's and zstd's own
                return False
            if not member.eof:
                return True
            start = stream.tell() - len(member.unused_data)
        else:
            head = _head(stream, start)
            end = _end(head)
            if end is None:
                return b"\r\n\r\n" not in head and head[:7] == MEMBER[""][: len(head)]
            start += end + 4
    return start > size


def _fits(stream: BinaryIO, source: Source, start: int) -> bool:
    """True if the record at byte `start` ends where its header says, so that what follows it is to blame."""
    if not source.compression:
        end = _end(_head(stream, start))
        return end is not None and stream.seek(start + end) >= 0 and stream.read(4) == b"\r\n\r\n"
    member, plain = _member(stream, source, start)
    end = _end(plain)
    return member is not None and end is not None and plain[end:] == b"\r\n\r\n"


def _head(stream: BinaryIO, start: int) -> bytes:
    stream.seek(start)
    return stream.read(1 << 16)


def _end(record: bytes) -> int | None:
    """Where the content of a record ends, by its header."""
    head = record.find(b"\r\n\r\n")
    line = next((line for line in record[: max(head, 0)].split(b"\r\n") if line.lower().startswith(b"content-length:")), b"")
    digits = line.partition(b":")[2].strip()
    return head + 4 + int(digits) if head >= 0 and digits.isdigit() and len(digits) < 19 else None


def _member(stream: BinaryIO, source: Source, start: int) -> tuple[Any, bytes]:
    """The decompressor after the gzip member or zstd frame at byte `start` (None: cut off or damaged), and the plain bytes."""
    stream.seek(start)
    member = _decompressor(source)
    plain = bytearray()
    try:
        while not member.eof and len(plain) < MAX_MEMBER and (block := stream.read(SMALL)):
            plain += member.decompress(block)
    except Exception:  # zlib's and zstd's own
        return None, b""
    return (member if member.eof else None), bytes(plain)


def _decompressor(source: Source) -> Any:
    return zlib.decompressobj(31) if source.compression == ".gz" else zstandard().ZstdDecompressor().decompressobj()


def _whole_gzip(source: Source) -> bool:
    try:
        with source.open() as stream, gzip.GzipFile(fileobj=stream) as plain:
            while plain.read(BLOCK):
                pass
    except (EOFError, OSError, zlib.error):
        return False
    return True
