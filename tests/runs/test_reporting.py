"""Metrics in TensorBoard, wandb and Trackio: what metrics.jsonl has, once each, also after a run that was stopped; missing packages before training."""

from __future__ import annotations

import importlib.machinery
import json
import signal
import struct
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from freedive.cli import main
from freedive.runs import UserError, folder_hash, option, stage
from freedive.runs.reporting import parse


@dataclass(frozen=True)
class Toy:
    out: Path = Path("out")
    steps: int = 10
    report_to: str = option("", hash=False)


def train(c: Toy, die_at: int = 0) -> None:
    """A stage of 10 steps with a checkpoint every third, the last step logged twice as RL does after its evaluation."""
    with stage("toy", c, out=c.out) as run:
        step = run.resume["step"] if run.resume else 0
        while step < c.steps and not run.done:
            step += 1
            run.log(step=step, loss=1 / step, name="text", **{"rewards/answer/mean": None if step == 2 else float(step)})
            if step == die_at:
                raise KeyboardInterrupt
            if step % 3 == 0:
                run.checkpoint({"step": step})
        if not run.done:
            run.log(step=step, **{"eval/pass@1": 0.5})


def wanted() -> dict[str, list[tuple[int, float]]]:
    rewards = [(s, float(s)) for s in range(1, 11) if s != 2]
    return {"loss": [(s, 1 / s) for s in range(1, 11)], "rewards/answer/mean": rewards, "eval/pass@1": [(10, 0.5)]}


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of event files: length, its checksum, a message, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def leveldb(data: bytes, at: int) -> Iterator[bytes]:
    """Records of a log in LevelDB's form: blocks of 32 KiB, in them checksum, length, kind (1 whole, 2 first, 3 middle, 4 last) and bytes."""
    data, whole = b"\0" * at + data, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


def close(a: dict[str, list[tuple[int, float]]], b: dict[str, list[tuple[int, float]]]) -> bool:
    return a.keys() == b.keys() and all([s for s, _ in a[k]] == [s for s, _ in b[k]] and all(abs(x - y) < 1e-6 for (_, x), (_, y) in zip(a[k], b[k])) for k in a)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stopped_and_gone_on(c: Toy) -> None:
    for at in (2, 5, 8):  # before the first checkpoint; with two lines after one
        with pytest.raises(KeyboardInterrupt):
            train(c, at)
    train(c)
    train(c)  # finished: nothing more
    assert [json.loads(line)["step"] for line in (c.out / "metrics.jsonl").read_text().splitlines()] == [*range(1, 11), 10]


def test_tensorboard_has_what_metrics_have_and_nothing_twice(here: Path):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX: pip install 'freedive[report]'")
    c = Toy(report_to="tensorboard")
    stopped_and_gone_on(c)
    assert close(events(Path("tensorboard/out")), wanted())
    train(Toy(Path("plain")))
    assert folder_hash("plain") == folder_hash("out")  # what is reported changes nothing of the artefact


def test_tensorboards_own_reader(here: Path):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX: pip install 'freedive[report]'")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard: pip install tensorboard")
    train(Toy(report_to="tensorboard"))
    found = reader.EventAccumulator("tensorboard/out")
    found.Reload()
    assert close({tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}, wanted())


def test_wandb_offline_goes_on_in_one_run_without_doubles(here: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb", reason="needs wandb: pip install 'freedive[report]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(here))
    stopped_and_gone_on(Toy(report_to="wandb"))
    ids, found = offline_runs()
    assert len(ids) == 1 and close(found, wanted())


def offline_runs() -> tuple[set[str], dict[str, list[tuple[int, float]]]]:
    """(ids, metrics) of wandb's files, by a reader of our own."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    ids = set()
    for path in sorted(Path("wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime_ns):
        ids.add(path.stem.rsplit("-", 1)[-1])
        for data in leveldb(path.read_bytes()[7:], 7):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") != "history":
                continue
            row = {("/".join(i.nested_key) or i.key): json.loads(i.value_json) for i in record.history.item}
            for key, value in row.items():
                if not key.startswith("_") and key != "step":
                    found.setdefault(key, []).append((row["step"], value))
    return ids, {k: sorted(v) for k, v in found.items()}


def test_trackio_goes_on_in_one_run_without_doubles(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(here / "trackio"))
    pytest.importorskip("trackio", reason="needs trackio: pip install 'freedive[report]'")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", here / "trackio", raising=False)
    stopped_and_gone_on(Toy(report_to="trackio"))
    assert close(local_database(), wanted())


def local_database() -> dict[str, list[tuple[int, float]]]:
    from trackio.sqlite_storage import SQLiteStorage

    [name] = SQLiteStorage.get_runs("freedive")
    found: dict[str, list[tuple[int, float]]] = {}
    for row in SQLiteStorage.get_logs("freedive", name):
        for key, value in row.items():
            if key not in ("step", "timestamp"):
                found.setdefault(key, []).append((row["step"], value))
    return found


KILLED = """
import os, signal, sys, time
sys.path.insert(0, {folder!r})
from freedive.runs import Artefact
from test_reporting import Toy, train
log = Artefact.log
def dying(self, **numbers):
    log(self, **numbers)
    if numbers["step"] == int(sys.argv[2]):
        time.sleep(float(sys.argv[3]))
        os.kill(os.getpid(), signal.SIGKILL)
Artefact.log = dying
train(Toy(report_to=sys.argv[1]))
"""


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_kill_loses_no_line_and_doubles_none(here: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """kill -9 before and after the service has written what it was handed: it is asked what it holds, and gets the rest."""
    pytest.importorskip(name, reason=f"needs {name}: pip install 'freedive[report]'")
    for key, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(here), "TRACKIO_DIR": str(here / "trackio")}.items():
        monkeypatch.setenv(key, value)
    if name == "trackio":
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", here / "trackio", raising=False)
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # of this process's earlier runs: each process that is killed has its own
    for at, pause in ((2, 0.0), (5, 2.0), (8, 0.0)):
        run = subprocess.run([sys.executable, "-c", KILLED.format(folder=str(Path(__file__).parent)), name, str(at), str(pause)], capture_output=True, text=True, timeout=120)
        assert run.returncode == -signal.SIGKILL, run.stderr
    train(Toy(report_to=name))
    ids, found = offline_runs() if name == "wandb" else ({""}, local_database())
    assert len(ids) == 1 and close(found, wanted())


def test_wandbs_server_says_how_many_lines_it_has(here: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in for the server, which kept three of the five lines that it was handed before a kill: it gets the others, and no line of the three."""
    kept: dict[int, dict[str, float]] = {}

    class Run:
        offline = False

        def __init__(self) -> None:
            self.step = max(kept, default=-1) + 1

        def define_metric(self, *_: Any, **__: Any) -> None:
            pass

        def log(self, row: dict[str, float], step: int, commit: bool) -> None:
            assert commit and step not in kept
            kept[step] = row

        def finish(self, exit_code: int) -> None:
            pass

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init, module.Settings = lambda **_: Run(), lambda **_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(KeyboardInterrupt):
        train(Toy(report_to="wandb"), 5)
    assert sorted(kept) == [1, 2, 3, 4, 5]
    for lost in (4, 5):
        del kept[lost]
    train(Toy(report_to="wandb"))
    assert sorted(kept) == list(range(1, 12)) and [kept[i]["step"] for i in range(1, 12)] == [*range(1, 11), 10] and kept[5]["loss"] == 1 / 5 and kept[11] == {"step": 10, "eval/pass@1": 0.5}


@pytest.mark.parametrize("name, package", [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")])
def test_a_missing_package_is_told_before_training(here: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, package, None)
    Path("text.txt").write_text("a text " * 200)
    assert main(["pretrain", "--text", "text.txt", "--tokenizer", "bytes", "--out", "run", "--report-to", name]) == 2
    error = capsys.readouterr().err
    assert f"needs the Python package {package}" in error and f"pip install {package}" in error
    assert sorted(p.name for p in here.iterdir()) == ["text.txt"]


def test_names():
    assert parse("") == parse("none") == []
    with pytest.raises(UserError, match="report_to is 'mlflow'"):
        parse("mlflow")


def test_a_reporter_that_fails_does_not_stop_the_training(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from freedive.runs import reporting

    class Broken:
        keeps = True

        def __init__(self, *_: Any) -> None:
            pass

        def held(self) -> int | None:
            return None

        def log(self, line: int, step: int, numbers: dict[str, float]) -> None:
            raise ConnectionError("gone")

    monkeypatch.setitem(reporting.PACKAGES, "broken", "json")
    monkeypatch.setitem(reporting._REPORTERS, "broken", Broken)
    train(Toy(report_to="broken"))
    assert (Path("out") / "run.json").is_file() and capsys.readouterr().err.count("broken fails") == 1

    class Unreachable(Broken):
        def __init__(self, *_: Any) -> None:
            raise ConnectionError("no network")

    monkeypatch.setitem(reporting._REPORTERS, "broken", Unreachable)
    with pytest.raises(UserError, match="broken could not be begun: ConnectionError: no network"):
        train(Toy(Path("other"), report_to="broken"))
