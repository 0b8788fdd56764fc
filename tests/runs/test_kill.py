"""A stage killed at any moment leaves OUT absent or whole, and calling it again ends in the bits of an undisturbed run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from freedive.runs import UserError, folder_hash, read_json
from freedive.runs.checkpoint import load

sys.path.insert(0, os.path.dirname(__file__))
from toy import ToyConfig, toy  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "truncate", "ftruncate")


@contextlib.contextmanager
def at_call(number: int, act: Callable[[str], None]):
    """Calls `act` before the number-th (from 0) call of one of CALLS; a write is half done by then. Yields the count of calls."""
    originals = {name: getattr(os, name) for name in CALLS}
    count, mine = [0], threading.get_ident()

    def wrap(name):
        def call(*args, **kwargs):
            if threading.get_ident() != mine:  # a thread that an earlier test left behind
                return originals[name](*args, **kwargs)
            count[0] += 1
            if count[0] - 1 == number:
                if name == "write":
                    originals["write"](args[0], bytes(args[1])[: len(args[1]) // 2])
                act(name)
            return originals[name](*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))
    try:
        yield count
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process; its exit status (negative: the signal that killed it)."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(number: int, config: ToyConfig, **kwargs) -> bool:
    """Runs the toy stage, killed at its number-th call. False if it came to its end before."""

    def work():
        with at_call(number, die):
            toy(config, **kwargs)

    status = in_child(work)
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.fixture
def reference(tmp_path: Path) -> str:
    return folder_hash(toy(ToyConfig(out=tmp_path / "reference", steps=8)))


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in ("reference", "out"))


def test_killed_at_every_call(tmp_path, reference):
    """Exhaustive: one kill at each system call, then an undisturbed second try."""
    config = ToyConfig(out=tmp_path / "out", steps=8)
    number = 0
    while killed_at(number, config):
        if config.out.exists():
            assert folder_hash(config.out) == reference
        assert folder_hash(toy(config)) == reference, f"killed at call {number}"
        assert leftovers(tmp_path) == []
        subprocess.run(["rm", "-rf", config.out], check=True)
        number += 1
    assert number > 60


def test_a_kill_never_costs_a_saved_checkpoint(tmp_path):
    """The later the kill, the later (or equal) the step from which the stage resumes."""
    state, reached, number = tmp_path / "out.partial" / ".state", [0], 0
    while killed_at(number, ToyConfig(out=tmp_path / "out", steps=8)):
        if (tmp_path / "out.partial" / "run.json").exists() or (tmp_path / "out").exists():
            break  # from here on the whole run is saved
        reached.append(max([load(path).state["step"] for path in state.glob("checkpoint-?.safetensors")], default=0))
        subprocess.run(["rm", "-rf", tmp_path / "out.partial"], check=True)
        number += 1
    assert reached == sorted(reached)
    assert set(reached) == {0, 3, 6}


def test_killed_again_and_again(tmp_path, reference):
    """Kills during recovery from kills, at random calls."""
    chance = random.Random(11)
    for trial in range(15):
        config = ToyConfig(out=tmp_path / f"out{trial}", steps=8)
        while killed_at(chance.randrange(45), config, each=2):
            pass
        assert folder_hash(config.out) == reference
    assert leftovers(tmp_path) == sorted(f"out{t}" for t in range(15))


def test_killed_while_replacing(tmp_path, reference):
    """With force over an older artefact: at each kill the old or the new one can be had back whole, and it ends with the new."""
    old = ToyConfig(out=tmp_path / "out", steps=2)
    new = ToyConfig(out=tmp_path / "out", steps=8, force=True)
    old_hash = folder_hash(toy(old))
    number = 0
    while killed_at(number, new):
        if new.out.exists():
            assert folder_hash(new.out) in (old_hash, reference)
        assert folder_hash(toy(new)) == reference
        assert leftovers(tmp_path) == []
        subprocess.run(["rm", "-rf", new.out], check=True)
        toy(old)
        number += 7 if number < 60 else 1  # the end is where the replacing happens
    assert number > 60


def test_killed_while_starting_over(tmp_path, reference):
    """With force over another unfinished run: half-wiped folders never mix into the new run."""
    new = ToyConfig(out=tmp_path / "out", steps=8, force=True)
    old = ToyConfig(out=tmp_path / "out", steps=9, rate=2.0)
    old_hash = folder_hash(toy(dataclasses.replace(old, out=tmp_path / "reference-old")))
    subprocess.run(["rm", "-rf", tmp_path / "reference-old"], check=True)
    for number in range(40):
        killed_at(70, old)
        killed_at(number, new)
        if number % 2:  # the user thinks again and goes back to the old settings
            try:
                assert folder_hash(toy(old)) == old_hash
            except UserError as error:
                assert "rate was" in error.message
        assert folder_hash(toy(new)) == reference
        subprocess.run(["rm", "-rf", new.out], check=True)


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path):
    """Twenty kills by the clock, of a real process, as a user would."""
    script = os.path.join(os.path.dirname(__file__), "toy.py")
    expected = folder_hash(toy(ToyConfig(out=tmp_path / "reference", steps=40)))
    chance = random.Random(5)
    out, kills = tmp_path / "out", 0
    for _ in range(200):
        process = subprocess.Popen([sys.executable, script, str(out), "40", "0.01"])
        try:
            assert process.wait(0.1 + chance.random() * 0.35) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert folder_hash(out) == expected
        if kills >= 20:
            break
        subprocess.run(["rm", "-rf", out], check=True)
    assert kills >= 20


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_every_call_failing(tmp_path, reference, error):
    """The same with errors instead of kills: reported, resumable, and the lock released."""
    config = ToyConfig(out=tmp_path / "out", steps=8)
    number = 0

    def fail(name: str) -> None:
        raise error

    while True:
        with at_call(number, fail) as count:
            try:
                toy(config)
            except type(error):
                pass
        if count[0] <= number:
            break
        assert folder_hash(toy(config)) == reference, f"failed at call {number}"
        subprocess.run(["rm", "-rf", config.out], check=True)
        number += 1
    assert number > 60


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: what a shell starts in the background inherits it ignored, and CI may be such."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_resume_continues_instead_of_restarting(tmp_path, interruptible):
    config = ToyConfig(out=tmp_path / "out", steps=8)
    with at_call(-1, die) as calls:
        toy(dataclasses.replace(config, out=tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        with at_call(calls[0] // 2, lambda _: signal.raise_signal(signal.SIGINT)):
            toy(config)
    toy(config)
    steps = [line for line in (config.out / "timings.jsonl").read_text().splitlines()]
    assert len(steps) < 2 * config.steps
    assert read_json(config.out / "run.json")["metrics"]["halfway"] == 4
