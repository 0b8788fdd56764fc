"""Bytes to text: charset, then the main content of HTML, without navigation, banners and scripts.

`resiliparse` is the fast extractor and the default, `trafilatura` (extra [data]) FineWeb's, with its settings; `plain` takes all that
a reader of the page sees, as Common Crawl's WET files do.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any, Literal

from freedive import _core
from freedive.runs import UserError

from .record import Record

Extractor = Literal["resiliparse", "trafilatura", "plain"]

MAX_DEPTH = 2000  # of nested elements; the parser takes quadratic time: 13 s for 20,000
MAX_REPLACED = 0.01  # part of U+FFFD characters above which the charset was guessed wrong
_BLANK = re.compile(r"\n{3,}")


def extract(record: Record, extractor: Extractor = "resiliparse") -> tuple[str | None, str]:
    """(text, "") or (None, reason) of one raw record. There is no time limit here: `supervise` ends a process that takes too long."""
    text, reason = _html(record, extractor) if record.html else _plain(record)
    if text is None:
        return None, reason
    if "\ufffd" in text and text.count("\ufffd") > MAX_REPLACED * len(text):
        return None, "bad_encoding"
    if "\0" in text:
        return None, "binary"
    return (text, "") if text.strip() else (None, "no_text")


def prepare(extractor: Extractor) -> None:
    """Imports the extractor, so that worker processes forked from this one share it. UserError if it is not installed."""
    _EXTRACTORS[extractor]("<p>A warm-up text.</p>")


def _plain(record: Record) -> tuple[str | None, str]:
    try:
        return record.data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        return None, "binary" if b"\0" in record.data else "bad_encoding"


def _html(record: Record, extractor: Extractor) -> tuple[str | None, str]:
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    if _core.html_depth(record.data) > MAX_DEPTH:
        return None, "too_deep"
    try:
        page = record.data.decode("utf-8-sig")  # most pages; a page of another charset is practically never valid UTF-8
    except UnicodeDecodeError:
        charset = record.charset if record.charset and record.charset.lower() not in ("utf-8", "utf8") else detect_encoding(record.data)
        try:
            page = bytes_to_str(record.data, charset or "windows-1252", errors="replace", fallback_encodings=("windows-1252",))
        except (LookupError, ValueError):
            return None, "bad_encoding"
    try:
        return _EXTRACTORS[extractor](page), ""
    except UserError:
        raise
    except Exception:  # the parser's own error classes; a page it cannot parse is no reason to stop
        return None, "bad_html"


def _resiliparse(page: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return tidy(extract_plain_text(page, main_content=True, alt_texts=False, preserve_formatting=True))


def _all_text(page: str) -> str:
    """The title, and every word that is shown, on buttons too."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(page)
    text = extract_plain_text(tree, main_content=False, alt_texts=False, form_fields=True, preserve_formatting=True)
    return tidy(f"{tree.title or ''}\n{text}")


def _trafilatura(page: str) -> str:
    """FineWeb's settings. What repeats is looked for within the page: trafilatura's memory of earlier pages, which datatrove leaves
    on, would make a page's text depend on which pages the same process saw before."""
    extract_page, seen = _load_trafilatura()
    seen.clear()
    return extract_page(page, favor_precision=True, include_comments=False, deduplicate=True) or ""


@functools.cache
def _load_trafilatura() -> tuple[Callable[..., str | None], Any]:
    try:
        import trafilatura
        from trafilatura.deduplication import LRU_TEST
    except ImportError as error:  # lxml_html_clean is a package of its own and may be what is missing
        raise UserError(f"--extractor trafilatura: {error}", hint="pip install trafilatura lxml_html_clean") from None
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it tells of every odd page on stderr
    return trafilatura.extract, LRU_TEST


_EXTRACTORS: dict[str, Callable[[str], str]] = {"resiliparse": _resiliparse, "trafilatura": _trafilatura, "plain": _all_text}


def tidy(text: str) -> str:
    """No blanks at line ends, table cells joined by " | ", at most one empty line."""
    lines = [line.rstrip() if "\t" not in line else _cells(line) for line in text.split("\n")]
    tidied = "\n".join(lines)
    return (_BLANK.sub("\n\n", tidied) if "\n\n\n" in tidied else tidied).strip("\n")


def _cells(line: str) -> str:
    return " | ".join(cell for cell in map(str.strip, line.split("\t")) if cell)
