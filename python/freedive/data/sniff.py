"""What a file is, by how it begins, where its name does not say: WARC, parquet, HTML, JSON, text, each plain, .gz or .zst.

The marks of HTML are those of the MIME Sniffing Standard, section 7.1 (https://mimesniff.spec.whatwg.org), which browsers follow.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from .sources import Source

HEAD = 1 << 16  # bytes that are looked at
PACKED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
HTML = re.compile(
    rb"\s*(<!--|<(!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p)[\s>/]|<\?xml.{0,1000}?<html[\s>])", re.I | re.S
)
JSON = re.compile(rb'\s*(\{\s*"|\[\s*\{\s*")')
UNICODE = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # byte order marks of UTF-16 and UTF-32, whose text holds zero bytes
BINARY = (b"%PDF-",)  # may begin without a zero byte


def sniff(file: Source) -> Source | None:
    """The same source with its form filled in; None if it holds neither text nor an archive. Raises what reading it raises."""
    packed = file.compression
    if not packed:
        head = _head(file)
        packed = next((suffix for magic, suffix in PACKED.items() if head.startswith(magic)), "")
    if packed:
        file = replace(file, form=packed)
        head = _head(file)
    if head.startswith(b"WARC/"):
        return replace(file, form=".warc" + packed)
    if head.startswith(b"PAR1"):
        return replace(file, form=".parquet") if not packed else None
    if head.startswith(BINARY) or b"\0" in head and not head.startswith(UNICODE):
        return None
    plain = head.removeprefix(b"\xef\xbb\xbf")
    kind = ".html" if HTML.match(plain) else ".json" if JSON.match(plain) else ".txt"
    return replace(file, form=kind + packed)


def json_lines(head: bytes) -> bool:
    """True if a .json file that begins so holds a value a line, False if it is one array or object over several lines."""
    lines = [line.strip() for line in head.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    if not lines or lines[0].startswith(b"["):
        return not lines
    try:
        json.loads(lines[0])
        return True
    except (ValueError, RecursionError):  # cut off by the end of the head, damaged, or going on in the next line
        return len(lines) == 1 or lines[1].startswith(b"{")


def _head(file: Source) -> bytes:
    with file.open_plain() as stream:
        return stream.read(HEAD)
