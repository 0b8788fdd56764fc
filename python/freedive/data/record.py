"""One raw document, as the readers give it and the steps take it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    id: str = ""  # WARC-Record-ID, or the id of a JSONL or parquet row
    date: str = ""
    meta: dict[str, Any] = field(default_factory=dict)  # numbers and short texts of a JSONL or parquet row
