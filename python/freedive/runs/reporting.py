"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases, Trackio, by `--report-to tensorboard,wandb,trackio` (TRL's name).

metrics.jsonl is the truth and the others are views of it: every line is one call, with the keys it has there and its `step`. So a run that is resumed goes
on in the same run of theirs and no line comes twice: TensorBoard's event files are written anew from metrics.jsonl, and for services the number of lines
that they have got is kept beside the checkpoints (the same line comes out again, bit for bit, after a resume; it is not sent again).

A package that is missing, or a service that cannot be begun, is an error before any training; one that fails later is told once and left alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
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

    def log(self, step: int, numbers: dict[str, float]) -> None: ...

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
    failed = True
    try:
        for name in names:
            state = told.setdefault(name, {"id": uuid.uuid4().hex[:12], "lines": 0})
            write_json_atomic(path, told)
            made[name] = _begin(name, run.out, state["id"], config)

        def report(number: int, row: dict[str, Any]) -> None:
            for name, reporter in list(made.items()):
                if reporter.keeps and number <= told[name]["lines"]:
                    continue
                try:
                    reporter.log(int(row.get("step") or 0), _numbers(row))
                except Exception as error:  # theirs: a network, a full disk. Training goes on
                    print(f"note: {name} fails, and gets nothing more of this run: {type(error).__name__}: {error}", file=sys.stderr)
                    del made[name]
                    continue
                told[name]["lines"] = number
            if any(r.keeps for r in made.values()) and path.parent.is_dir():
                path.write_text(json.dumps(told))  # not forced to disk: a power cut may send a line again, under the same step

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

    def log(self, step: int, numbers: dict[str, float]) -> None:
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

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    """One run of Trackio's, in its local database (TRACKIO_DIR), which a resumed run goes on with: `trackio show` draws it."""

    keeps = True

    def __init__(self, out: Path, id: str, config: dict[str, Any]):
        import trackio

        self._trackio = trackio
        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=f"{out.name}-{id}", config=config, resume="allow", embed=False)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self, failed: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


_REPORTERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}
