"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, Trackio, by `--report-to tensorboard,wandb,trackio` (TRL's name).

metrics.jsonl is the truth and the others are views of it: every line with numbers is one call, with the keys it has there and its `step`. So a run that is
resumed goes on in the same run of theirs, and every line is there once (it comes out again, bit for bit, after a resume): TensorBoard's event files are written
anew from metrics.jsonl, and services are asked how many lines they hold, for what was handed to them when the process was killed may have got lost in their
queues. Only where they cannot say is it the number that was handed to them, which is kept beside the checkpoints.

A package that is missing, or a service that cannot be begun, is an error before any training; one that fails later is told once and left alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import struct
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .atomic import read_json, write_json_atomic
from .errors import UserError

if TYPE_CHECKING:
    from .artefact import Artefact

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}  # what each needs; tensorboardX writes event files and brings no torch
PROJECT = "freedive"
REPORT_HELP = "also send metrics to tensorboard, wandb, trackio (several with commas); metrics.jsonl is written in any case"


class Reporter(Protocol):
    """A view of metrics.jsonl."""

    keeps: bool  # what it got before a kill it still has: only new lines are sent

    def held(self) -> int | None:
        """How many lines it has got from earlier processes; None if it cannot say."""
        ...

    def log(self, line: int, step: int, numbers: dict[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


def parse(report_to: str | Sequence[str]) -> list[str]:
    """Names in order, without doubles; "none" is nothing. UserError for unknown ones, and for packages that are not installed."""
    given = report_to.split(",") if isinstance(report_to, str) else list(report_to)
    names = [n for n in dict.fromkeys(g.strip().lower() for g in given) if n and n != "none"]
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"report_to is {name!r}, it must be among {', '.join(PACKAGES)}", hint="--report-to tensorboard,wandb")
        if sys.modules.get(PACKAGES[name], ...) is None or importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"--report-to {name} needs the Python package {PACKAGES[name]}, which is not installed", hint=f"pip install {PACKAGES[name]}; or leave {name} out")
    return names


@contextlib.contextmanager
def reporting(run: Artefact, names: Sequence[str], config: Any) -> Iterator[None]:
    """While open, what `run` logs is reported, beginning with lines of metrics.jsonl that were not. UserError where a service cannot be begun."""
    if not names:
        yield
        return
    path = run.work / ".state" / "reported.json"
    told: dict[str, Any] = read_json(path) if path.is_file() else {}
    lines = _lines(run.work / "metrics.jsonl")
    made: dict[str, Reporter] = {}
    failed, count = True, 0  # lines with numbers so far
    try:
        for name in names:
            state = told.setdefault(name, {"id": uuid.uuid4().hex[:12], "lines": 0})
            write_json_atomic(path, told)
            made[name] = _begin(name, run.out, state["id"], config)
            if (held := _held(made[name])) is not None:
                state["lines"] = held

        def report(number: int, row: dict[str, Any]) -> None:
            nonlocal count
            numbers = _numbers(row)
            if not numbers:
                return
            count += 1
            for name, reporter in list(made.items()):
                if reporter.keeps and count <= told[name]["lines"]:
                    continue
                try:
                    reporter.log(count, int(row.get("step") or 0), numbers)
                except Exception as error:  # theirs: a network, a full disk. Training goes on
                    print(f"note: {name} fails, and gets nothing more of this run: {type(error).__name__}: {error}", file=sys.stderr)
                    del made[name]
                    continue
                told[name]["lines"] = count
            if any(r.keeps for r in made.values()) and path.parent.is_dir():
                temporary = path.with_name(path.name + ".new")  # whole or not at all, but not forced to disk
                temporary.write_text(json.dumps(told))
                os.replace(temporary, path)

        for number, row in enumerate(lines, 1):
            report(number, row)
        run.listeners.append(report)
        yield
        failed = False
    finally:
        for name, reporter in made.items():
            try:
                reporter.close(failed)
            except Exception as error:
                print(f"note: {name} could not be ended: {type(error).__name__}: {error}", file=sys.stderr)


def _held(reporter: Reporter) -> int | None:
    try:
        return reporter.held()
    except Exception as error:  # their inner workings, which may change
        print(f"note: {type(error).__name__} when it was asked what it holds: {error}", file=sys.stderr)
        return None


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()] if path.is_file() else []


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if k != "step" and isinstance(v, (int, float))}


def _begin(name: str, out: Path, id: str, config: dict[str, Any]) -> Reporter:
    try:
        return _REPORTERS[name](out, id, config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} could not be begun: {type(error).__name__}: {error}", hint=f"leave {name} out of --report-to" + ("; or WANDB_MODE=offline" if name == "wandb" else "")) from error


class _TensorBoard:
    """Event files in PARENT/tensorboard/NAME: `tensorboard --logdir PARENT/tensorboard` shows all runs of a folder."""

    keeps = False

    def __init__(self, out: Path, id: str, config: dict[str, Any]):
        from tensorboardX.writer import FileWriter

        folder = out.parent / "tensorboard" / out.name
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = FileWriter(str(folder), flush_secs=10)

    def held(self) -> None:
        return None

    def log(self, line: int, step: int, numbers: dict[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # SummaryWriter.add_scalar would rename pass@1

        self._writer.add_summary(Summary(value=[Summary.Value(tag=key, simple_value=value) for key, value in numbers.items()]), step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    """One run with an id of ours, which a resumed run goes on with. WANDB_PROJECT, WANDB_MODE and the rest of its environment count."""

    keeps = True

    def __init__(self, out: Path, id: str, config: dict[str, Any]):
        import wandb

        folder = os.environ.get("WANDB_DIR") or str(out.parent)
        self._run = wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), name=out.name, id=id, resume="allow", config=config, dir=folder,
                               settings=wandb.Settings(console="off", silent=True))  # fmt: skip
        self._run.define_metric("*", step_metric="step")
        self._files = sorted(Path(folder).glob(f"*wandb/offline-run-*-{id}*/*.wandb"))  # of each process, this one too; -1 where two began in one second

    def held(self) -> int | None:
        if not self._run.offline:
            return max(0, int(self._run.step) - 1)  # the server's: its last step and one
        lines = [line for path in self._files for line in _offline_lines(path.read_bytes())]
        return max(lines, default=0 if len(self._files) > 1 else None)  # this process's alone: there was none before, or they were synchronised and removed

    def log(self, line: int, step: int, numbers: dict[str, float]) -> None:
        """Their step is the line's number, so that they have each once and all of them, also two of one step; curves are drawn over `step`."""
        self._run.log({"step": step, **numbers}, step=line, commit=True)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _offline_lines(data: bytes) -> Iterator[int]:
    """Steps of the history that an offline run's file holds: 7 bytes, then records in LevelDB's form (blocks of 32 KiB; checksum, length, kind: 1 whole, 2 first,
    3 middle, 4 last), as far as they are whole."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made when it is imported

    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if not 1 <= kind <= 4 or at + 7 + size > len(data):
            return
        whole = (b"" if kind in (1, 2) else whole) + data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = Record.FromString(whole)
            if record.WhichOneof("record_type") == "history":
                yield record.history.step.num or next((int(i.value_json) for i in record.history.item if "_step" in (i.key, *i.nested_key)), 0)


class _Trackio:
    """One run of Trackio's, in its local database (TRACKIO_DIR), which a resumed run goes on with: `trackio show` draws it."""

    keeps = True

    def __init__(self, out: Path, id: str, config: dict[str, Any]):
        import trackio

        self._project, self._name = os.environ.get("TRACKIO_PROJECT", PROJECT), f"{out.name}-{id}"
        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(project=self._project, name=self._name, config=config, resume="allow", embed=False)

    def held(self) -> int | None:
        if any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")):
            return None  # its database is elsewhere
        from trackio.sqlite_storage import SQLiteStorage

        return len(SQLiteStorage.get_logs(self._project, self._name))

    def log(self, line: int, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self, failed: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


_REPORTERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}
