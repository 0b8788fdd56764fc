"""The examples, run as a user runs them: one after the other in a folder of their own, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import freedive

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = sorted(p.name for p in EXAMPLES.glob("*.py"))
SAYS = {
    "01_own_text.py": "training tokens",
    "02_own_chats.py": "What is 1+2? ->",
    "03_own_reward.py": "reward per step:",
    "04_own_objective.py": "step 7: focal loss",
    "05_own_kernel_check.py": "two threads give the same bits: True",
    "06_load_and_score.py": "bits per byte",
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def test_there_are_six_short_ones():
    assert NAMES == sorted(SAYS)
    for name in NAMES:
        assert len((EXAMPLES / name).read_text().splitlines()) <= 40, name


@pytest.mark.parametrize("name", NAMES)
def test_example(name: str, room: Path):
    """In order: 02, 04 and 06 use what 01 wrote, 03 what 02 wrote."""
    where = Path(freedive.__file__).resolve().parent.parent  # the same freedive as this test's, installed or not
    environment = {**os.environ, "PYTHONPATH": f"{where}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=room, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert SAYS[name] in done.stdout
    if name.startswith("03"):
        rewards = [float(word) for word in done.stdout.split("reward per step: ")[1].splitlines()[0].split()]
        assert sum(rewards[-3:]) > 1.1 * sum(rewards[:3])
    if name.startswith("04"):
        losses = [float(line.split("focal loss ")[1].split(",")[0]) for line in done.stdout.splitlines() if "focal loss" in line]
        assert losses[-1] < 0.8 * losses[0]
    if name.startswith("06"):
        assert float(done.stdout.rsplit("tokens, ", 1)[1].split()[0]) < 6  # it learned something
