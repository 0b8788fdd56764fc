"""A stage is a function from folders to a folder; `stage()` makes that true under Ctrl-C, kill -9 and a full disk.

While it runs, everything lies in `OUT.partial/`, with the bookkeeping in `OUT.partial/.state/` (identity.json and two checkpoint
slots). At the end: all files are forced to disk, run.json is written (from that instant the artefact is complete), .state
is removed and OUT.partial is renamed to OUT. Each step may be killed and is finished by the next call, whatever that call wants:

    OUT.partial/run.json exists                 -> publish it
    .OUT.freedive-replaced exists, OUT does     -> an old artefact that --force replaced: delete it
    .OUT.freedive-replaced exists, OUT doesn't  -> rename it back (only if nothing is there to publish)
    OUT.partial/.state/identity.json            -> an unfinished run: resume if the identity is the same

Identity is the stage's name, the identifying part of its config and the content hashes of its inputs. Versions are
recorded, not compared.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from . import checkpoint as slots
from .atomic import fsync_file, fsync_folder, json_line, plain, read_json, write_json_atomic
from .config import config_json, differences, input_paths, told
from .errors import UserError, disk_full, is_disk_full
from .hashing import files_below, folder_hash
from .lock import locked
from .reporting import parse, reporting

if TYPE_CHECKING:
    import numpy as np

StrPath = str | os.PathLike[str]
METRICS, TIMINGS, RUN, STATE = "metrics.jsonl", "timings.jsonl", "run.json", ".state"


class Artefact:
    """What a stage holds while it writes its folder; made by `stage()`."""

    def __init__(self, out: Path, identity: dict[str, Any], seed: int | None):
        self.out = out  # the folder in the end
        self.work = _beside(out, ".partial")  # the folder being written
        self.done = False  # True: out is finished already, there is nothing to do
        self.resume: dict[str, Any] | None = None  # the state of the last checkpoint
        self.arrays: dict[str, np.ndarray] = {}  # its arrays; writable; forgotten at the next checkpoint
        self.metrics: dict[str, Any] = {}  # what summary() gathered
        self.lines = 0  # of metrics.jsonl
        self.listeners: list[Callable[[int, dict[str, Any]], None]] = []  # of (line's number from 1, line): reporting.py
        self._identity, self._seed = identity, seed
        self._sequence = 0
        self._slot: str | None = None  # the latest
        self._files: dict[str, BinaryIO] = {}
        self._synced: dict[str, tuple[int, int]] = {}
        self._writing: Future[str] | None = None  # a checkpoint in the background

    # What a stage calls

    @property
    def inputs(self) -> dict[str, dict[str, str]]:
        """{"hash"} of the content of each input, as run.json has it."""
        return dict(self._identity["inputs"])

    def log(self, **numbers: Any) -> None:
        """Appends one line to metrics.jsonl. Deterministic values only: they are part of the artefact's hash."""
        row = plain(numbers)
        self.append(METRICS, json_line(row))
        self._files[METRICS].flush()  # somebody may be watching
        self.lines += 1
        for listener in self.listeners:
            listener(self.lines, row)

    def time(self, **numbers: Any) -> None:
        """Appends one line to timings.jsonl: wall-clock numbers, not hashed, not cut back on resume."""
        self.append(TIMINGS, json_line(numbers))
        self._files[TIMINGS].flush()

    def append(self, name: str, data: str | bytes) -> None:
        """Appends to the output file `name` (relative to work). Flushed at checkpoints, cut back to them on resume."""
        if self.done:
            raise RuntimeError(f"{self.out} is finished; check run.done before writing")
        if name not in self._files:
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = open(path, "ab")  # noqa: SIM115 - closed at the end of the stage
        self._files[name].write(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)

    def summary(self, **numbers: Any) -> None:
        """Numbers for run.json "metrics"; later calls add to earlier ones. Kept by checkpoints."""
        self.metrics.update(numbers)

    def checkpoint(self, state: dict[str, Any], arrays: Mapping[str, np.ndarray] | Callable[[], Mapping[str, np.ndarray]] | None = None,
                   background: bool = False) -> None:  # fmt: skip
        """Saves a point to resume from, atomically. `state` is JSON (tuples return as lists). arrays: themselves, or what gives them when they are written.

        Files are cut back to their present size on resume: write them once or append, and flush those you opened yourself.

        background: returns before it is written, so that work goes on meanwhile; arrays must not change. The next checkpoint and the end of the stage wait for
        it, and raise what went wrong.
        """
        self._await_checkpoint()
        self.arrays = {}
        self._sync_files()
        self._sequence += 1
        saved = slots.Checkpoint(self._sequence, copy.deepcopy(state), copy.deepcopy(self.metrics), self._sizes())

        def write() -> str:
            saved.arrays = dict(arrays() if callable(arrays) else arrays or {})
            return slots.save(self.work / STATE, saved, self._slot)

        if background:
            writer = ThreadPoolExecutor(1, "checkpoint")
            self._writing = writer.submit(write)
            writer.shutdown(wait=False)  # its thread ends with the work
        else:
            self._slot = write()

    def _await_checkpoint(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            self._slot = writing.result()

    def _let_checkpoint_end(self) -> None:
        """The stage ends by an error, which is the one to tell."""
        with contextlib.suppress(Exception):
            self._await_checkpoint()

    # Starting

    def _start(self, force: bool) -> None:
        """Under the lock: finish what was interrupted, then find out whether to skip, resume or begin."""
        self._recover()
        replace = "add --force to replace it, or choose another --out"
        if self.out.exists() and not _is_empty(self.out):
            if not (self.out / RUN).is_file():
                told = f"{self.out} exists and is not a freedive artefact (it has no run.json)"
                raise UserError(told, hint="choose another --out: freedive never deletes your files")
            if not force:
                self._check(read_json(self.out / RUN), self.out, replace)
                self.done = True
                return
        state = self.work / STATE
        if self.work.is_dir() and not (state / "identity.json").is_file() and any(p.name != STATE for p in self.work.iterdir()):
            raise UserError(f"{self.work} exists and was not made by freedive", hint="move it away, or choose another --out")
        if (state / "identity.json").is_file():
            try:
                restart = "add --force to start over, choose another --out, or go on with the old settings"
                self._check(read_json(state / "identity.json"), self.work, restart)
            except UserError:
                if not force and any((state / s).is_file() for s in slots.SLOTS):
                    raise
                self._wipe()  # --force, or there is no checkpoint: nothing would be lost
            else:
                self._load()
        state.mkdir(parents=True, exist_ok=True)
        write_json_atomic(state / "identity.json", self._identity)

    def _check(self, found: dict[str, Any], where: Path, hint: str) -> None:
        """UserError naming what differs between this run and the one found on disk."""
        mine = self._identity
        if found.get("stage") != mine["stage"]:
            raise UserError(f"{where} is the work of another stage: {found.get('stage')} instead of {mine['stage']}", hint=hint)
        wrong = differences(found.get("config", {}), mine["config"])
        old, new = found.get("inputs", {}), mine["inputs"]
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                wrong.append(f"{name}: {'not given then' if name not in old else 'given then' if name not in new else 'what the files hold is not what it was'}")
        if wrong:
            raise UserError(f"{where} was made with other settings: {told(wrong)}", hint=hint)

    def _recover(self) -> None:
        aside = _aside(self.out)
        if (self.work / RUN).is_file():
            self._publish()
        elif aside.exists() and not self.out.exists():
            os.rename(aside, self.out)
        if aside.exists():
            _delete(aside)

    def _load(self) -> None:
        """Takes the newest whole checkpoint and cuts the folder back to it; without any, clears the folder."""
        state = self.work / STATE
        present = [slot for slot in slots.SLOTS if (state / slot).is_file()]
        present.sort(key=lambda slot: slots.sequence_of(state / slot), reverse=True)
        problems = []
        for slot in present:
            try:
                found = slots.load(state / slot)
                self._cut_back(found.sizes)
            except slots.Damaged as problem:
                problems.append(str(problem))
                continue
            for text in problems:
                print(f"freedive: a checkpoint in {state} is damaged ({text}); going on from the other", file=sys.stderr)
            self.resume, self.arrays, self.metrics = found.state, found.arrays, found.summary
            self._sequence, self._slot = found.sequence, slot
            return
        if problems:
            told = f"no checkpoint in {state} can be used: {'; '.join(problems)}"
            raise UserError(told, hint=f"delete {self.work} and run the command again: it starts over")
        self._cut_back({})

    def _cut_back(self, sizes: dict[str, int]) -> None:
        """Output files as they were: later ones removed, longer ones cut. Damaged (and nothing changed) if one is shorter."""
        present = {name: (self.work / name).stat().st_size for name in self._outputs()}
        for name, size in sizes.items():
            if present.get(name, -1) < size:
                raise slots.Damaged(f"{name} should have {size} bytes and has {present.get(name, 'none')}")
        for name, size in present.items():
            if name not in sizes and name != TIMINGS:
                (self.work / name).unlink()
            elif name in sizes and size > sizes[name]:
                os.truncate(self.work / name, sizes[name])
        for at, _, _ in os.walk(self.work, topdown=False):
            if Path(at) not in (self.work, self.work / STATE) and not os.listdir(at):
                os.rmdir(at)
        _cut_last_line(self.work / TIMINGS)

    def _wipe(self) -> None:
        """Empties OUT.partial: checkpoints first and the identity last, so that a half-wiped folder can only start afresh."""
        for slot in slots.SLOTS:
            (self.work / STATE / slot).unlink(missing_ok=True)
        for path in self.work.iterdir():
            if path.name != STATE:
                _delete(path)
        shutil.rmtree(self.work / STATE)

    # Ending

    def _finish(self) -> None:
        """The stage ended well: everything to disk, run.json, then OUT."""
        self._await_checkpoint()
        self._close_files()
        self._sync_files()
        import numpy as np

        from freedive import __version__

        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        versions = {"freedive": __version__, "python": python, "numpy": np.__version__}
        write_json_atomic(self.work / RUN, {**self._identity, "seed": self._seed, "versions": versions, "metrics": self.metrics})
        self._publish()

    def _publish(self) -> None:
        """OUT.partial holds run.json: drop the bookkeeping and rename to OUT. Every step can be repeated."""
        if (self.work / STATE).exists():
            shutil.rmtree(self.work / STATE)
        aside = _aside(self.out)
        if self.out.exists():
            if _is_empty(self.out):
                os.rmdir(self.out)
            elif (self.out / RUN).is_file():
                if aside.exists():
                    _delete(aside)
                os.rename(self.out, aside)
            else:
                told = f"{self.out} appeared meanwhile and is not a freedive artefact"
                raise UserError(told, hint=f"the finished run is in {self.work}")
        os.rename(self.work, self.out)
        fsync_folder(self.out.parent)
        if aside.exists():
            _delete(aside)

    # Files

    def _outputs(self) -> list[str]:
        return [name for name in files_below(self.work) if not name.startswith(STATE + "/")]

    def _sizes(self) -> dict[str, int]:
        return {name: (self.work / name).stat().st_size for name in self._outputs() if name != TIMINGS}

    def _sync_files(self) -> None:
        """Forces to disk what changed since the last time."""
        for file in self._files.values():
            if not file.closed:
                file.flush()
        for name in self._outputs():
            stat = (self.work / name).stat()
            if self._synced.get(name) != (stat.st_size, stat.st_mtime_ns):
                fsync_file(self.work / name)
                self._synced[name] = (stat.st_size, stat.st_mtime_ns)
        for at, _, _ in os.walk(self.work):
            fsync_folder(at)

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()

    def _abandon(self) -> None:
        """The stage failed: OUT.partial stays for the next call."""
        self._let_checkpoint_end()
        for file in self._files.values():
            with contextlib.suppress(OSError, ValueError):
                file.close()


@contextlib.contextmanager
def stage(
    name: str,
    config: Any,
    *,
    out: StrPath,
    inputs: Mapping[str, StrPath | Sequence[StrPath] | None] | None = None,
    force: bool = False,
) -> Iterator[Artefact]:
    """Runs the body of a stage; see the top of this file, and docs/contracts.md for an example.

    `config` is a frozen dataclass (its `seed`, if any, is recorded). `inputs` maps names to files or folders, or lists of them,
    or None.
    UserError: an input is missing, OUT belongs to other settings and not `force`, another process writes OUT, the disk is full.
    """
    names = parse(getattr(config, "report_to", ""))  # before anything is read
    inputs = dict(inputs or {})
    folder = Path(os.path.realpath(out))
    hashes = {key: {"hash": _input_hash(key, value)} for key, value in inputs.items() if value is not None}
    identity = {"stage": name, "config": config_json(config, inputs), "inputs": hashes}
    run = Artefact(folder, identity, getattr(config, "seed", None))
    with _friendly(run):
        try:
            os.makedirs(folder.parent, exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            raise UserError(f"the folder {folder.parent} cannot be made: {error.strerror}", hint="choose another --out") from error
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file; --out must name a folder to be made")
        with locked(folder):
            run._start(force)
            try:
                if run.done:
                    yield run
                else:
                    metrics = run.work / METRICS
                    run.lines = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
                    with reporting(run, names, identity["config"]):
                        yield run
                if not run.done:
                    run._finish()
                    run.done = True
            except Exception as error:
                run._let_checkpoint_end()
                users = isinstance(error, UserError) or is_disk_full(error)
                if users and run._slot is None and not run.done:  # nothing to resume: leave nothing half-written either
                    run._abandon()
                    shutil.rmtree(run.work, ignore_errors=True)
                raise
            finally:
                run._abandon()


@contextlib.contextmanager
def _friendly(run: Artefact) -> Iterator[None]:
    """Full disks and missing permissions are the user's business, not bugs."""
    out = run.out
    try:
        yield
    except PermissionError as error:
        where = str(error.filename or "")
        if not where.startswith(str(out.parent)):
            raise
        raise UserError(f"no permission to write {where}", hint="choose an --out in a folder that is yours") from error
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(out, resumes=run._slot is not None) from error
        raise


def _input_hash(name: str, value: Any) -> str:
    hashes = []
    for path in input_paths(value):
        if not os.path.exists(path):
            hint = "the stage that makes it did not finish: run it again" if os.path.exists(path + ".partial") else None
            raise UserError(f"{name}: no such file or folder: {path}", hint=hint)
        hashes.append(folder_hash(path))
    return hashes[0] if isinstance(value, (str, os.PathLike)) else "+".join(hashes)


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.freedive-replaced")  # a name nobody gives to a folder of their own


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _cut_last_line(path: Path) -> None:
    """Removes an unfinished last line of a JSONL file."""
    if path.is_file():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)
