"""Following runs from outside: what their metrics.jsonl and samples say so far, read on from where the last look ended.

A run is named by its OUT; while it is written it is OUT.partial, and the name stays the same when it is finished. A run that was stopped and gone on
cuts its files back to its checkpoint: a file that is shorter than what was read, or another one, is read anew.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError

SILENT = 120.0  # seconds without a line after which an unfinished run is taken for stopped
SAMPLES = ("trajectories.jsonl", "conversations.jsonl")  # of freedive rl, of freedive sft
FIRST = ("loss", "val_loss", "reward", "eval/pass@1", "entropy", "completions/mean_length", "frac_reward_zero_std", "kl", "accuracy", "rewards/margins", "lr", "grad_norm")
HIDDEN = ("step", "epoch")


@dataclass
class _Tail:
    """Lines of a file that grows."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    at: int = 0
    file: int = 0  # inode

    def read(self, path: Path) -> bool:
        """Whether there is anything new."""
        try:
            found = os.stat(path)
        except OSError:
            return False
        before = len(self.rows)
        again = found.st_size < self.at or (self.file and found.st_ino != self.file)
        if again:
            self.rows, self.at = [], 0
        self.file = found.st_ino
        if found.st_size == self.at:
            return bool(again)
        with open(path, "rb") as file:
            file.seek(self.at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.at += len(whole)
        for raw in whole.split(b"\n"):
            try:
                row = json.loads(raw.decode("utf-8", "surrogatepass")) if raw.strip() else None
            except ValueError:
                continue
            if isinstance(row, dict):
                self.rows.append(row)
        return bool(again) or len(self.rows) > before


@dataclass
class Run:
    """One run: `look()` again and again."""

    out: Path
    name: str
    _metrics: _Tail = field(default_factory=_Tail)
    _timings: _Tail = field(default_factory=_Tail)
    _samples: dict[str, _Tail] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its files are now."""
        partial = self.out.with_name(self.out.name + ".partial")
        return partial if partial.is_dir() else self.out

    def look(self) -> bool:
        """Read on; whether there is anything new."""
        folder = self.folder
        new = self._metrics.read(folder / "metrics.jsonl")
        new |= self._timings.read(folder / "timings.jsonl")
        for name in SAMPLES:
            new |= self._samples.setdefault(name, _Tail()).read(folder / name)
        return new

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Metric -> (step, value). Of two lines of one step the last counts."""
        found: dict[str, dict[float, float]] = {}
        for row in self._metrics.rows:
            step = row.get("step")
            if isinstance(step, (int, float)):
                for key, value in row.items():
                    if key not in HIDDEN and isinstance(value, (int, float)) and not isinstance(value, bool):
                        found.setdefault(key, {})[float(step)] = float(value)
        return {key: sorted(points.items()) for key, points in found.items()}

    def step(self) -> int:
        return int(max((row["step"] for row in self._metrics.rows if isinstance(row.get("step"), (int, float))), default=0))

    def state(self) -> str:
        """finished, running, or stopped: nothing came for two minutes."""
        if self.folder == self.out and (self.out / "run.json").is_file():
            return "finished"
        try:
            silent = time.time() - max((self.folder / n).stat().st_mtime for n in ("metrics.jsonl", "timings.jsonl") if (self.folder / n).is_file())
        except ValueError:
            return "waiting"
        return "running" if silent < SILENT else "stopped"

    def speed(self) -> dict[str, Any]:
        """The last line of its timings."""
        return self._timings.rows[-1] if self._timings.rows else {}

    def samples(self) -> list[dict[str, Any]]:
        """What it said, oldest first: {"step" or "val_loss", "prompt", "text", "reward"?}."""
        return next((tail.rows for tail in self._samples.values() if tail.rows), [])


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Runs of folders: of a run, finished or not, or of a folder of runs. UserError for one that is neither."""
    found: dict[Path, Run] = {}
    for path in paths:
        here = [Path(p) for p in dict.fromkeys(map(str, _runs_of(path)))]
        if not here:
            hint = "give the --out of a training verb, or the folder that it is in"
            raise UserError(f"{path} holds no run" if path.is_dir() else f"{path} does not exist", hint=hint)
        for out in here:
            found.setdefault(out, Run(out, out.name))
    names = [run.name for run in found.values()]
    for run in found.values():
        if names.count(run.name) > 1:
            run.name = f"{run.out.parent.name}/{run.out.name}"
    return list(found.values())


def _runs_of(path: Path) -> Iterator[Path]:
    plain = path.with_name(path.name.removesuffix(".partial")) if path.name else path
    if _is_run(plain):
        yield plain
        return
    if path.is_dir():
        for below in sorted(p for p in path.iterdir() if p.is_dir()):
            if _is_run(one := below.with_name(below.name.removesuffix(".partial"))):
                yield one


def _is_run(out: Path) -> bool:
    return any((folder / "metrics.jsonl").is_file() for folder in (out, out.with_name(out.name + ".partial")))


def ordered(metrics: Sequence[str]) -> list[str]:
    """Names as people want to see them: what is learned first, details of rewards and of sampling last."""
    rank = {name: i for i, name in enumerate(FIRST)}
    return sorted(dict.fromkeys(metrics), key=lambda name: (rank.get(name, len(rank)), not name.startswith("eval/"), name))
