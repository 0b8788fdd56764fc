"""Writes WARC 1.0 files as Common Crawl does: one gzip member per record. By hand: the bytes depend on the content only."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from freedive.runs import write_atomic

DATE = "2025-02-07T00:00:00Z"  # a date of the fixture, not of the day it was made


def write_warc(path: Path, pages: Iterable[tuple[str, bytes]]) -> None:
    """`pages` are (url, HTML as UTF-8 bytes)."""

    def records() -> Iterable[bytes]:
        yield _member(
            _record("warcinfo", "", b"software: freedive\r\nformat: WARC File Format 1.0\r\n", "application/warc-fields")
        )
        for url, html in pages:
            http = (
                f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(html)}\r\n\r\n".encode()
                + html
            )
            yield _member(_record("response", url, http, "application/http; msgtype=response"))

    write_atomic(path, records())


def _record(kind: str, url: str, block: bytes, content_type: str) -> bytes:
    identity = hashlib.sha256(url.encode() + block).hexdigest()
    uuid = f"{identity[:8]}-{identity[8:12]}-4{identity[13:16]}-8{identity[17:20]}-{identity[20:32]}"
    lines = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Record-ID: <urn:uuid:{uuid}>", f"WARC-Date: {DATE}"]
    if url:
        lines += [f"WARC-Target-URI: {url}", "WARC-Identified-Payload-Type: text/html"]
    lines += [f"Content-Type: {content_type}", f"Content-Length: {len(block)}", "", ""]
    return "\r\n".join(lines).encode() + block + b"\r\n\r\n"


def _member(data: bytes) -> bytes:
    """One gzip member with a fixed header (gzip.compress writes another one on each Python version)."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = deflate.compress(data) + deflate.flush()
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
