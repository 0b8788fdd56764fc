"""Bytes to text: charset, then the main content of HTML (resiliparse), without navigation, banners and scripts."""

from __future__ import annotations

import re

from .read import Record

MAX_DEPTH = 2000  # of nested elements; the parser takes quadratic time: 13 s for 20,000
MAX_REPLACED = 0.01  # part of U+FFFD characters above which the charset was guessed wrong
_TAG = re.compile(
    rb"<(/?)(div|span|section|article|main|a|b|i|u|s|em|strong|small|big|font|center|table|ul|ol|dl|blockquote|form|code|pre|nav)\b",
    re.I,
)
_TABS = re.compile(r"\s*\t\s*")
_BLANK = re.compile(r"\n{3,}")


def extract(record: Record) -> tuple[str | None, str]:
    """(text, "") or (None, reason) of one raw record."""
    text, reason = (_html if record.html else _plain)(record)
    if text is None:
        return None, reason
    if text.count("\ufffd") > MAX_REPLACED * len(text) and "\ufffd" in text:
        return None, "bad_encoding"
    if "\0" in text:
        return None, "binary"
    return (text, "") if text.strip() else (None, "no_text")


def _plain(record: Record) -> tuple[str | None, str]:
    try:
        return record.data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        return None, "binary" if b"\0" in record.data else "bad_encoding"


def _html(record: Record) -> tuple[str | None, str]:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    opened = record.data.count(b"<") - record.data.count(b"</")  # an upper bound of the depth, at hardly any cost
    if opened > MAX_DEPTH and _depth(record.data) > MAX_DEPTH:
        return None, "too_deep"
    try:
        page = record.data.decode("utf-8-sig")  # most pages; a page of another charset is practically never valid UTF-8
    except UnicodeDecodeError:
        charset = (
            record.charset if record.charset and record.charset.lower() not in ("utf-8", "utf8") else detect_encoding(record.data)
        )
        try:
            page = bytes_to_str(record.data, charset or "windows-1252", errors="replace", fallback_encodings=("windows-1252",))
        except (LookupError, ValueError):
            return None, "bad_encoding"
    try:
        text = extract_plain_text(page, main_content=True, alt_texts=False, preserve_formatting=True)
    except Exception:  # the parser's own error classes; a page it cannot parse is no reason to stop
        return None, "bad_html"
    return tidy(text), ""


def _depth(html: bytes) -> int:
    """Deepest nesting of elements whose end tag is not optional; an estimate, since browsers repair what is not closed."""
    depth = deepest = 0
    for tag in _TAG.finditer(html):
        if tag.group(1):
            depth = max(0, depth - 1)
        else:
            depth += 1
            deepest = max(deepest, depth)
    return deepest


def tidy(text: str) -> str:
    """No blanks at line ends, table cells joined by " | ", at most one empty line."""
    lines = (line.rstrip() for line in text.split("\n"))
    return _BLANK.sub("\n\n", "\n".join(_TABS.sub(" | ", line.strip()) if "\t" in line else line for line in lines)).strip("\n")
