"""One raw record through all the steps that look at one document only; this is what worker processes run.

Also the worker pool: results come back in the order of the input, whatever the number of workers, so the output's bytes don't
depend on it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from freedive.runs import UserError

from . import quality
from .dedup import text_id
from .extract import extract
from .language import Language, language_filter
from .pii import scrub
from .read import Record

CHUNK = 32  # records sent to a worker at once


@dataclass(frozen=True)
class Steps:
    """What to do with each document."""

    language: Language
    rules: quality.Rules
    pii: bool


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


def process(record: Record, steps: Steps) -> Result:
    """Extraction, language, quality, personal data; the first failing rule wins."""
    trail: list[tuple[str, int]] = []

    def lost(step: str, rule: str, text: str = "") -> Result:
        return Result(record.url, record.source, record.size, trail, (step, rule), text)

    if record.reason:
        return lost("read", record.reason)
    trail.append(("read", record.size))
    text, reason = extract(record)
    if text is None:
        return lost("extract", reason)
    trail.append(("extract", _bytes(text)))
    rules = steps.rules
    chain: tuple[tuple[str, Any, Callable[[str, Any], quality.Decision]], ...] = (
        ("language", steps.language, language_filter),
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
            return lost(name, reason, text)
        text = kept
        trail.append((name, _bytes(text)))
    if steps.pii:
        text = scrub(text)
        trail.append(("pii", _bytes(text)))
    return Result(record.url, record.source, record.size, trail, None, text, text_id(text))


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def process_chunk(records: list[Record], steps: Steps) -> list[Result]:
    return [process(record, steps) for record in records]


class Workers:
    """`process` over a stream of records, by `count` processes (1: in this one). Use as a context manager."""

    def __init__(self, count: int, steps: Steps):
        self._count, self._steps = count, steps
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        if count > 1:
            # fork where it is safe enough: our children only run this module, and a spawned child would re-run a user's
            # unguarded script.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(
                count, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
            )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, records: Iterable[Record]) -> Iterator[Result]:
        """Results in input order; at most a few chunks per worker are in flight, so memory stays bounded."""
        stream = iter(records)
        if self._pool is None:
            for record in stream:
                yield process(record, self._steps)
            return
        pending: collections.deque[concurrent.futures.Future[list[Result]]] = collections.deque()
        while True:
            while len(pending) < 4 * self._count and (chunk := list(islice(stream, CHUNK))):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads
                    pending.append(self._pool.submit(process_chunk, chunk, self._steps))
            if not pending:
                return
            try:
                yield from pending.popleft().result()
            except concurrent.futures.process.BrokenProcessPool:
                raise UserError("a worker process died, perhaps for lack of memory", hint="try --workers 1") from None


def _start_worker(parent: int) -> None:
    """Ctrl-C is the parent's business; a parent that was killed must not leave its workers behind, waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
