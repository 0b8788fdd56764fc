"""One raw record through all the steps that look at one document only; this is what worker processes run, page after page.

The order is FineWeb's: URL, extraction, language, Gopher repetition, Gopher quality, C4, FineWeb, then what comes on top
(decontamination, educational score) and personal data. The MinHash signature is of the text before personal data is replaced, as in
FineWeb, where that is the last step.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import decontaminate, quality
from .decontaminate import Decontamination
from .dedup import text_id
from .edu import Edu, edu_filter
from .extract import Extractor, extract
from .extract import prepare as prepare_extractor
from .language import Language, language_filter
from .pii import scrub, scrub_phones
from .record import Record
from .urls import UrlRules, load, url_filter

_ASCII_CONTROLS = bytes([*range(9), *range(11, 32), 127])
_C1_CONTROLS = re.compile(rb"\xc2[\x80-\x9f]")  # in UTF-8
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]+")
MAX_CONTROLS = 0.01  # part of the characters


@dataclass(frozen=True)
class Steps:
    """What to do with each document. Part of every shard's recipe; what is slow to load is loaded once, by `prepare`."""

    language: Language
    rules: quality.Rules
    pii: bool
    text_key: str | None = None
    max_record_bytes: int = 20_000_000
    minhash: bool = False
    urls: UrlRules | None = None
    extractor: Extractor = "resiliparse"
    decontamination: Decontamination | None = None
    edu: Edu | None = None
    phones: tuple[str, ...] = ()  # countries

    def prepare(self) -> None:
        """Loads models and lists, so that worker processes forked from this one share them."""
        if self.language.languages:
            language_filter("A warm-up text.", self.language)
        if self.urls is not None:
            load(self.urls)
        if self.decontamination is not None:
            decontaminate.load(self.decontamination)
        prepare_extractor(self.extractor)


@dataclass(frozen=True)
class Result:
    """What became of a record: the text if it is still there, else the (step, rule) that removed it and the text before."""

    url: str
    source: str
    size: int
    trail: list[tuple[str, int]]  # (step, bytes that left it)
    removed: tuple[str, str] | None
    text: str
    id: str = ""
    record: str = ""  # WARC-Record-ID
    date: str = ""
    scores: dict[str, Any] = field(default_factory=dict)  # what the steps measured
    signature: np.ndarray | None = None  # uint64 [14, 8]
    why: str = ""  # more about what removed it, for its sample


def process(record: Record, steps: Steps) -> Result:
    """All steps in order; the first failing rule wins."""
    trail: list[tuple[str, int]] = []
    scores: dict[str, Any] = {}

    def result(text: str, removed: tuple[str, str] | None = None, **more: Any) -> Result:
        return Result(record.url, record.source, record.size, trail, removed, text, record=record.id, date=record.date, scores=scores, **more)

    if record.reason:
        return result("", ("read", record.reason))
    trail.append(("read", record.size))
    if steps.urls is not None:
        place = record.url == record.source or record.url.startswith(f"{record.source}:")  # in a file: the record came without a URL
        reason = "" if place else url_filter(record.url, steps.urls)
        if reason:
            return result("", ("url", reason))
        trail.append(("url", record.size))
    text, reason = extract(record, steps.extractor)
    if text is not None:
        text, reason = _without_controls(text)
    if text is None:
        return result("", ("extract", reason))
    trail.append(("extract", _bytes(text)))
    kept, reason = language_filter(text, steps.language, scores)
    if kept is None:
        return result(text, ("language", reason))
    trail.append(("language", _bytes(text)))
    rules = steps.rules
    chain: tuple[tuple[str, Any, Callable[[str, Any], quality.Decision]], ...] = (
        ("gopher_repetition", rules.gopher_repetition, quality.gopher_repetition),
        ("gopher_quality", rules.gopher_quality, quality.gopher_quality),
        ("c4", rules.c4, quality.c4),
        ("fineweb", rules.fineweb, quality.fineweb),
    )
    for name, settings, decide in chain:
        if settings is None:
            continue
        kept, reason = decide(text, settings)
        if kept is None:
            return result(text, (name, reason))
        text = kept
        trail.append((name, _bytes(text)))
    if steps.decontamination is not None:
        shared = decontaminate.matches(text, steps.decontamination)
        if shared and steps.decontamination.action == "remove":
            return result(text, ("decontamination", shared[0].name), why=f"item {shared[0].item}: {shared[0].text}")
        if shared:
            scores["contamination"] = [match.name for match in shared]
        trail.append(("decontamination", _bytes(text)))
    if steps.edu is not None:
        reason = edu_filter(text, record.meta, steps.edu, scores)
        if reason:
            return result(text, ("edu", reason), why=f"score {scores['edu_score']}" if "edu_score" in scores else "")
        trail.append(("edu", _bytes(text)))
    signature = None
    if steps.minhash:
        from . import minhash

        signature = minhash.signature(text)
    if steps.pii or steps.phones:
        text = scrub(text) if steps.pii else text
        text = scrub_phones(text, steps.phones) if steps.phones else text
        trail.append(("pii", _bytes(text)))
    return result(text, id=text_id(text), signature=signature)


def _without_controls(text: str) -> tuple[str | None, str]:
    """Line ends as \\n, no other control characters; a text with many is none."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data.translate(None, _ASCII_CONTROLS)) == len(data) and not _C1_CONTROLS.search(data):
        return (text, "") if text.strip() else (None, "no_text")
    clean = _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text)
    if len(text) - len(clean) > MAX_CONTROLS * len(text) + text.count("\r\n"):
        return None, "control_characters"
    return (clean, "") if clean.strip() else (None, "no_text")


@functools.lru_cache(maxsize=1)  # most steps leave a text as it is
def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))
