"""What a user sees of artefact folders: identity, errors, damaged checkpoints, full disks, locks."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from freedive.runs import UserError, artefact, checkpoint, file_hash, folder_hash, locked, read_json, stage, write_json_atomic

sys.path.insert(0, os.path.dirname(__file__))
from toy import ToyConfig, toy  # noqa: E402


@pytest.fixture
def config(tmp_path: Path) -> ToyConfig:
    (tmp_path / "data.txt").write_text("some text")
    return ToyConfig(out=tmp_path / "out", data=tmp_path / "data.txt", steps=8)


def interrupted(config: ToyConfig, after: int = 7) -> Path:
    """Runs the toy stage up to step `after`; returns OUT.partial."""
    seen = [0]
    original = artefact.Artefact.log

    def log(self, **numbers):
        if seen[0] == after:
            raise KeyboardInterrupt
        seen[0] += 1
        original(self, **numbers)

    artefact.Artefact.log = log  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            toy(config)
    finally:
        artefact.Artefact.log = original  # type: ignore[method-assign]
    return config.out.with_name("out.partial")


def test_run_json(config):
    out = toy(config)
    run = read_json(out / "run.json")
    assert run["stage"] == "toy" and run["seed"] == 7
    assert run["config"] == {"data": "(input data)", "steps": 8, "rate": 0.5, "names": ["a", "b"], "seed": 7}
    assert run["inputs"] == {"data": {"hash": file_hash(config.data)}}
    assert set(run["versions"]) == {"freedive", "python", "numpy"}
    assert run["metrics"]["halfway"] == 4
    assert str(out.parent) not in json.dumps(run)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(8))
    assert lines[0]["odd"] is None  # NaN is not JSON


def test_the_same_elsewhere_is_the_same(config, tmp_path):
    """Neither where things lie, nor their names, nor threads, nor when, are part of an artefact."""
    first = toy(config)
    elsewhere = tmp_path / "deep" / "er"
    elsewhere.mkdir(parents=True)
    (elsewhere / "renamed.txt").write_text("some text")
    second = toy(dataclasses.replace(config, out=elsewhere / "b", data=elsewhere / "renamed.txt", threads=3))
    assert folder_hash(first) == folder_hash(second)
    assert (first / "timings.jsonl").read_bytes() != (second / "timings.jsonl").read_bytes()


def test_finished_is_not_run_again(config):
    out = toy(config)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    toy(dataclasses.replace(config, threads=2))
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


@pytest.mark.parametrize("unfinished", [False, True])
def test_other_settings_are_told(config, unfinished):
    before = interrupted(config) if unfinished else toy(config)
    kept = folder_hash(before)
    with pytest.raises(UserError, match=r"rate was 0\.5, now 0\.25; seed was 7, now 8") as error:
        toy(dataclasses.replace(config, rate=0.25, seed=8))
    assert "--force" in error.value.hint
    config.data.write_text("other text")
    with pytest.raises(UserError, match="data: what the files hold is not what it was"):
        toy(config)
    with pytest.raises(UserError, match="data was .*data: given then"):
        toy(dataclasses.replace(config, data=None))
    with pytest.raises(UserError, match="work of another stage: toy instead of bottle"):
        with stage("bottle", config, out=config.out):
            pass
    assert folder_hash(before) == kept
    out = toy(dataclasses.replace(config, rate=0.25, force=True))
    assert read_json(out / "run.json")["config"]["rate"] == 0.25
    assert sorted(p.name for p in out.parent.iterdir()) == ["data.txt", "out"]


def test_force_resumes_its_own_partial(config):
    toy(config)
    forced = dataclasses.replace(config, force=True)
    partial = interrupted(forced)
    toy(forced)
    assert len((config.out / "timings.jsonl").read_text().splitlines()) == 9  # 7 before, 2 after the checkpoint of step 6
    assert not partial.exists()


def test_missing_input(config, tmp_path):
    with pytest.raises(UserError, match="data: no such file or folder"):
        toy(dataclasses.replace(config, data=tmp_path / "nowhere"))
    (tmp_path / "nowhere.partial").mkdir()
    with pytest.raises(UserError, match="did not finish"):
        toy(dataclasses.replace(config, data=tmp_path / "nowhere"))
    assert not config.out.with_name("out.partial").exists()


@pytest.mark.parametrize("force", [False, True])
def test_the_users_own_files_are_never_touched(config, force):
    config = dataclasses.replace(config, force=force)
    for folder in (config.out, config.out.with_name("out.partial")):
        folder.mkdir()
        (folder / "thesis.txt").write_text("three years")
        with pytest.raises(UserError, match="not"):
            toy(config)
        assert (folder / "thesis.txt").read_text() == "three years"
        (folder / "thesis.txt").unlink()
        folder.rmdir()
    config.out.write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        toy(config)
    assert config.out.read_text() == "a file"


def test_an_empty_out_folder_is_fine(config):
    expected = folder_hash(toy(dataclasses.replace(config, out=config.out.with_name("other"))))
    config.out.mkdir()
    assert folder_hash(toy(config)) == expected


def test_out_may_be_a_link(config, tmp_path):
    (tmp_path / "big-disk").mkdir()
    config.out.symlink_to(tmp_path / "big-disk" / "run")
    toy(config)
    assert (tmp_path / "big-disk" / "run" / "run.json").is_file() and config.out.is_symlink()


# Damage


def cut(path: Path, bytes_: int) -> None:
    os.truncate(path, max(0, path.stat().st_size - bytes_))


def newest(partial: Path) -> list[Path]:
    return sorted((partial / ".state").glob("checkpoint-?.safetensors"), key=checkpoint.sequence_of, reverse=True)


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "array", "text"])
def test_damaged_checkpoint_falls_back(config, damage, capsys):
    expected = folder_hash(toy(dataclasses.replace(config, out=config.out.with_name("other"))))
    path = newest(interrupted(config))[0]
    data = bytearray(path.read_bytes())
    if damage == "cut":
        cut(path, 10)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_bytes(b"not a checkpoint at all" * 10)
    else:
        data[60 if damage == "header" else -5] ^= 1
        path.write_bytes(data)
    assert folder_hash(toy(config)) == expected
    assert "is damaged" in capsys.readouterr().err


def test_no_usable_checkpoint_is_told(config):
    partial = interrupted(config)
    for path in newest(partial):
        cut(path, 30)
    with pytest.raises(UserError, match="no checkpoint in .* can be used: .*cut short") as error:
        toy(config)
    assert f"delete {partial}" in error.value.hint


def test_lost_output_is_told(config):
    partial = interrupted(config)
    cut(partial / "metrics.jsonl", 10_000)
    with pytest.raises(UserError, match="metrics.jsonl should have"):
        toy(config)


def test_checkpoint_round_trip(tmp_path):
    """Every dtype and odd shape returns in the same bits, and other programs can read the file."""
    import ml_dtypes
    from safetensors.numpy import load_file

    rng = np.random.Generator(np.random.Philox(key=[3, 0]))
    arrays = {name: rng.integers(0, 2, (3, 5)).astype(name) for name in checkpoint.DTYPES if name != "bfloat16"}
    arrays |= {"bf16": rng.standard_normal((7, 1)).astype(ml_dtypes.bfloat16), "transposed": rng.standard_normal((4, 6)).T}
    arrays |= {"empty": np.zeros((0, 4), np.float32), "scalar": np.float64(0.1)}
    state = {
        "step": np.int64(3),
        "loss": float("inf"),
        "text": "ü\ud800",
        "big": 2**64 - 1,
        "rng": np.random.Philox(key=[1, 2]).state,
    }
    slot = checkpoint.save(tmp_path, checkpoint.Checkpoint(5, state, {"a": 1}, {"x": 10}, arrays), None)
    found = checkpoint.load(tmp_path / slot)
    assert (found.sequence, found.summary, found.sizes) == (5, {"a": 1}, {"x": 10})
    assert found.state["loss"] == float("inf") and found.state["big"] == 2**64 - 1 and found.state["text"] == "ü\ud800"
    for name, array in arrays.items():
        assert found.arrays[name].dtype == np.asarray(array).dtype and found.arrays[name].shape == np.shape(array)
        assert found.arrays[name].tobytes() == np.ascontiguousarray(array).tobytes()
    found.arrays["float32"] += 1  # writable
    peers = load_file(tmp_path / slot)
    assert np.array_equal(peers["transposed"], arrays["transposed"])
    with pytest.raises(TypeError, match="belongs in arrays"):
        checkpoint.save(tmp_path, checkpoint.Checkpoint(6, {"f": object()}, {}, {}), slot)
    with pytest.raises(TypeError, match="dtype"):
        checkpoint.save(tmp_path, checkpoint.Checkpoint(6, {}, {}, {}, {"c": np.zeros(2, np.complex64)}), slot)
    assert checkpoint.load(tmp_path / slot).sequence == 5


# Disk, permissions, locks


def test_full_disk(config, monkeypatch):
    """A full disk is the user's business; what is done so far stays and is resumed."""
    expected = folder_hash(toy(dataclasses.replace(config, out=config.out.with_name("other"))))
    room, write = [1200], os.write

    def full(descriptor, data):
        if len(data) > room[0]:
            done = write(descriptor, bytes(data)[: room[0]])
            room[0] = 0
            if done:
                return done
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(data)
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match="the disk is full") as error:
            toy(config)
        assert "free some space" in error.value.hint
    assert not config.out.exists()
    assert not list(config.out.with_name("out.partial").rglob("*.tmp"))  # gives its space back
    assert folder_hash(toy(config)) == expected


def test_a_checkpoint_in_the_background_is_the_state_of_its_moment(config):
    """Work goes on while it is written; what is appended meanwhile is cut off on resume; the next one waits for it"""
    go = threading.Event()
    state, weights = {"step": 1, "seen": [1]}, np.arange(5.0)
    with pytest.raises(KeyboardInterrupt), stage("toy", config, out=config.out) as run:
        run.log(step=1)
        run.checkpoint(state, lambda: {"weights": weights} if go.wait(20) else {}, background=True)
        state["seen"].append(2)
        run.log(step=2)
        assert not list((run.work / ".state").glob("checkpoint-*"))
        go.set()
        raise KeyboardInterrupt
    with stage("toy", config, out=config.out) as run:
        assert run.resume == {"step": 1, "seen": [1]} and run.arrays["weights"].tolist() == weights.tolist() and run.lines == 1
        for step in (2, 3):
            run.log(step=step)
            run.checkpoint({"step": step}, {"weights": weights + step}, background=True)
    assert [json.loads(line)["step"] for line in (config.out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_what_goes_wrong_in_the_background_is_told_by_the_next_one(config):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="the disk is full") as error, stage("toy", config, out=config.out) as run:
        run.checkpoint({"step": 1}, {"a": np.zeros(3)})
        run.checkpoint({"step": 2}, full, background=True)
        run.checkpoint({"step": 3})
    assert "resumes from the last checkpoint" in error.value.hint
    with stage("toy", config, out=config.out) as run:
        assert run.resume == {"step": 1}


def test_a_disk_that_fills_up_before_and_after_the_first_checkpoint(config):
    with pytest.raises(UserError, match="the disk is full") as error:
        with stage("toy", config, out=config.out) as run:
            run.log(step=1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "resumes" not in error.value.hint and not run.work.exists()  # nothing to go on from: the space is given back
    with pytest.raises(UserError, match="the disk is full") as error:
        with stage("toy", config, out=config.out) as run:
            run.checkpoint({"step": 1})
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "resumes from the last checkpoint" in error.value.hint
    with stage("toy", config, out=config.out) as run:
        assert run.resume == {"step": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_full_disk_as_other_libraries_say_it(config):
    from safetensors.numpy import save_file

    with pytest.raises(UserError, match="the disk is full"):
        with stage("toy", config, out=config.out) as run:
            os.symlink("/dev/full", run.work / "full")
            with open(run.work / "full", "wb", 0) as file:
                file.write(b"x" * 10)
    with pytest.raises(UserError, match="the disk is full"):
        with stage("toy", config, out=config.out):
            raise RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")
    assert save_file


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(config):
    config.out.parent.chmod(0o500)
    try:
        with pytest.raises(UserError, match="no permission"):
            toy(config)
    finally:
        config.out.parent.chmod(0o700)


def test_second_process_is_refused_and_a_dead_ones_lock_is_taken_over(config):
    script = os.path.join(os.path.dirname(__file__), "toy.py")
    holder = subprocess.Popen([sys.executable, script, str(config.out), "1000", "0.02"])
    try:
        partial = config.out.with_name("out.partial")
        for _ in range(200):
            if (partial / "metrics.jsonl").exists():
                break
            signal.sigtimedwait([], 0.05)
        with pytest.raises(UserError, match=f"process {holder.pid} is writing"):
            toy(dataclasses.replace(config, force=True))
    finally:
        holder.kill()
        holder.wait()
    assert config.out.with_name("out.lock").exists()
    toy(dataclasses.replace(config, force=True))
    assert not config.out.with_name("out.lock").exists()


def test_a_fork_of_a_dead_process_does_not_hold_the_lock(config):
    """Workers may outlive a killed stage for a moment."""
    code = (
        "import os, sys, time; from freedive.runs import locked\n"
        f"with locked({str(config.out)!r}):\n"
        "    pid = os.fork()\n"
        "    if pid == 0: time.sleep(20); os._exit(0)\n"
        "    print(pid, flush=True); time.sleep(20)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(holder.stdout.readline())
    try:
        holder.kill()
        holder.wait()
        with locked(config.out):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_nested_use_of_one_folder_is_refused(config):
    with stage("toy", config, out=config.out):
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            toy(config)


def test_write_json_atomic_is_stable(tmp_path):
    value = {"b": np.float32(0.1), "a": (1, np.int64(2)), "path": tmp_path / "x", "nan": float("nan"), "set": {3, 1}, "ü": None}
    write_json_atomic(tmp_path / "a.json", value)
    first = (tmp_path / "a.json").read_bytes()
    write_json_atomic(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_bytes() == first
    assert list(read_json(tmp_path / "a.json")) == ["b", "a", "path", "nan", "set", "ü"]
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_folder_hash_sees_names_and_bytes_only(tmp_path):
    a = tmp_path / "a"
    (a / "sub").mkdir(parents=True)
    (a / "sub" / "x").write_text("1")
    first = folder_hash(a)
    (a / "timings.jsonl").write_text("now")
    (a / "report.html").write_text("now")
    os.utime(a / "sub" / "x", (1, 1))
    assert folder_hash(a) == first
    (a / "sub" / "x").rename(a / "sub" / "y")
    assert folder_hash(a) != first
