"""One unit of work: one input file (or a few small ones) through the steps of `process`, into a few files named after the inputs.

    NAME.jsonl     the documents that are left, in order     NAME.keys     their ids, bytes, and whether they have a signature
    NAME.minhash   uint64 [14, 8] each                        NAME.decisions.jsonl   what became of every record, if asked for
    NAME.json      written last: source, recipe, counts, samples of the rejected. A job with this file is done.

NAME is a hash of the inputs' paths, not the job's place: a list of files that gains or loses some leaves the others' jobs done.
A job that was stopped goes on from its last note (NAME.note.json: how many records were read and how long the files were then).
The result does not depend on where it was stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.runs import UserError, json_line, locked, write_json_atomic

from .process import Result, Steps, process
from .read import read_records
from .record import Record
from .remote import PATIENCE, be_patient
from .sources import Source
from .waterfall import Waterfall

NOTE_RECORDS, NOTE_SECONDS = 256, 2.0  # a note at most so often
LOCK_SECONDS = 5.0  # a worker whose run was killed ends within two
SAMPLE_CHARACTERS = 1000
KEY = np.dtype([("id", "V16"), ("bytes", "<u8"), ("signed", "u1"), ("split", "<u4")])  # split: the id's first 32 bits
FILES = ("jsonl", "keys", "minhash", "decisions.jsonl")


@dataclass(frozen=True)
class Job:
    """Files, where their results go, and the settings they are made with."""

    index: int  # place among the jobs of this run
    sources: tuple[Source, ...]
    folder: str
    steps: Steps
    recipe: str
    samples: int = 5
    decisions: bool = False
    again: int = 0  # so many earlier jobs have the same files, which were named more than once
    network_seconds: float = PATIENCE

    @property
    def name(self) -> str:
        """Of its files."""
        paths = [source.path if source.remote else os.path.abspath(source.path) for source in self.sources]
        return hashlib.sha256(json.dumps([paths, self.again]).encode()).hexdigest()[:16]

    def path(self, suffix: str) -> Path:
        return Path(self.folder, f"{self.name}.{suffix}")

    def stamp(self) -> dict[str, Any]:
        """What the results depend on; a local file counts by its size and time of change."""
        sources = []
        for source in self.sources:
            version = source.version if source.remote else str(os.stat(source.path).st_mtime_ns)
            sources.append([source.name, source.size, version])
        return {"sources": sources, "recipe": self.recipe, "samples": self.samples, "decisions": self.decisions}

    def done(self) -> bool:
        return _read(self.path("json")).get("stamp") == self.stamp()


# What a job tells while it runs: phase ("read" or "page"), number of the record, documents kept
Tell = Callable[[str, int, int], None]


def run_job(job: Job, poison: dict[tuple[str, int], str], tell: Tell) -> None:
    """Runs the job, or does nothing if it is done. `poison` names the (phase, record) not to be touched, with the reason.

    Raises RemoteError if the network failed, UserError if something is missing; the job can be called again.
    """
    if job.done():
        return
    be_patient(job.network_seconds)
    with contextlib.ExitStack() as stack:
        _lock(job, stack)
        if not job.done():  # by another rank, meanwhile
            _run(job, poison, tell)


def _lock(job: Job, stack: contextlib.ExitStack) -> None:
    """Two ranks with the same number, or a killed run's last worker, must not write the same files."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            stack.enter_context(locked(job.path("job")))
            return
        except UserError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _run(job: Job, poison: dict[tuple[str, int], str], tell: Tell) -> None:
    writer = _Writer(job)
    number = 0
    tell("read", 0, writer.kept)
    for number, record in enumerate(_records(job, poison), 1):
        if number > writer.records:
            tell("page", number, writer.kept)
            reason = poison.get(("page", number))
            writer.take(_lost(record, reason) if reason else _processed(record, job.steps))
        tell("read", number, writer.kept)
    writer.finish()


def _processed(record: Record, steps: Steps) -> Result:
    """`process`, where an unforeseen exception is a reason too: a crawl of a month must not end by one page."""
    try:
        return process(record, steps)
    except (UserError, ImportError, MemoryError):
        raise
    except Exception as error:
        return _lost(record, f"exception_{type(error).__name__}", traceback.format_exc())


def _lost(record: Record, reason: str, text: str = "") -> Result:
    return Result(record.url, record.source, record.size, [], ("read", reason), text, record=record.id, date=record.date)


def _records(job: Job, poison: dict[tuple[str, int], str]) -> Iterator[Record]:
    """The records of the files; where reading itself killed the process, that file ends."""
    stops = {number: reason for (phase, number), reason in poison.items() if phase == "read"}
    number = 0
    for source in job.sources:
        records = read_records(source, source.name, job.steps.max_record_bytes, job.steps.text_key)
        while True:
            reason = stops.pop(number, None)
            record = Record(source.name, source.name, reason=reason) if reason else next(records, None)
            if record is None:
                break
            number += 1
            yield record
            if reason:
                break


class _Writer:
    """The files of a job, and the counts that go with them."""

    def __init__(self, job: Job):
        self.job, self.stamp = job, job.stamp()
        note = _read(job.path("note.json"))
        sizes: dict[str, int] = note.get("sizes", {})
        if note.get("stamp") != self.stamp or any(_size(job.path(name)) < size for name, size in sizes.items()):
            note, sizes = {}, {}
        job.path("json").unlink(missing_ok=True)
        self.records: int = note.get("records", 0)
        self.kept: int = note.get("kept", 0)
        self.waterfall = Waterfall(note.get("waterfall"))
        self.rejected: dict[str, list[dict[str, str]]] = note.get("rejected", {})
        self.files = {}
        for name in FILES:
            path = job.path(name)
            path.touch()
            os.truncate(path, sizes.get(name, 0))
            self.files[name] = open(path, "ab")  # noqa: SIM115 - closed in finish
        self._noted, self._time = self.records, time.monotonic()

    def take(self, result: Result) -> None:
        """The next record's result."""
        self.records += 1
        self.waterfall.add(result.size, result.trail, result.removed)
        if result.removed is not None:
            self._reject(result, "/".join(result.removed))
        else:
            self._keep(result)
        if self.job.decisions:
            fate = "/".join(result.removed) if result.removed else ""
            row = {"url": result.url, "source": result.source, "record": result.record, "reason": fate, "id": result.id}
            self.files["decisions.jsonl"].write(json_line(row))
        if self.records - self._noted >= NOTE_RECORDS and time.monotonic() - self._time > NOTE_SECONDS:
            self._note()

    def _keep(self, result: Result) -> None:
        self.kept += 1
        row = {"text": result.text, "id": result.id, "url": result.url, "source": result.source, "record": result.record, "date": result.date}
        self.files["jsonl"].write(json_line({**row, **result.scores}))
        identity = bytes.fromhex(result.id)
        signed = result.signature is not None
        key = np.array([(identity, len(result.text.encode()), signed, int.from_bytes(identity[:4], "big"))], KEY)
        self.files["keys"].write(key.tobytes())
        if result.signature is not None:
            self.files["minhash"].write(np.ascontiguousarray(result.signature, "<u8").tobytes())

    def _reject(self, result: Result, reason: str) -> None:
        samples = self.rejected.setdefault(reason, [])
        if len(samples) < self.job.samples:
            why = {"why": result.why} if result.why else {}
            samples.append({"reason": reason, **why, "url": result.url, "source": result.source, "text": result.text[:SAMPLE_CHARACTERS]})

    def _state(self) -> dict[str, Any]:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: _size(self.job.path(name)) for name in FILES}
        counts = {"records": self.records, "kept": self.kept, "waterfall": self.waterfall.state(), "rejected": self.rejected}
        return {"stamp": self.stamp, "sizes": sizes, **counts}

    def _note(self) -> None:
        write_json_atomic(self.job.path("note.json"), self._state())
        self._noted, self._time = self.records, time.monotonic()

    def finish(self) -> None:
        state = self._state()
        for file in self.files.values():
            file.close()
        write_json_atomic(self.job.path("json"), {**state, "settings": asdict(self.job.steps)})
        self.job.path("note.json").unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
