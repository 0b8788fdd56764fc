"""Cores and memory as the container allows: cgroup files of both versions, made up in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from freedive.runs import available_memory, default_threads, machine, usable_cores


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the process believe in `own` (its /proc/self/cgroup), the given files below /sys/fs/cgroup, eight cores and 8 GiB free."""

    def make(own: str, files: dict[str, str]) -> None:
        for name, content in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(content)
        (tmp_path / "own").write_text(own)
        (tmp_path / "meminfo").write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n")
        monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
        monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
        monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(machine, "total_memory", lambda: 16 << 30)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
        monkeypatch.delenv("FREEDIVE_THREADS", raising=False)

    return make


@pytest.mark.parametrize("own, files, cores", [
    ("0::/\n", {}, 8),
    ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
    ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # a part of a core counts as one
    ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
    ("0::/\n", {"cpu.max": "9900000 100000\n"}, 8),
    ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),  # a limit of the group above counts too
    ("0::/../../x\n", {"cpu.max": "200000 100000\n"}, 2),  # a group outside of what is mounted here
    ("4:cpu,cpuacct:/d\n2:memory:/d\n", {"cpu/d/cpu.cfs_quota_us": "400000\n", "cpu/d/cpu.cfs_period_us": "100000\n"}, 4),
    ("4:cpu:/d\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ("nonsense", {"cpu.max": "x y z"}, 8),
])  # fmt: skip
def test_usable_cores(cgroups, own: str, files: dict[str, str], cores: int):
    cgroups(own, files)
    assert usable_cores() == default_threads() == cores


def test_the_environment_overrides_the_threads(cgroups, monkeypatch: pytest.MonkeyPatch):
    cgroups("0::/\n", {})
    monkeypatch.setenv("FREEDIVE_THREADS", "3")
    assert default_threads() == 3 and usable_cores() == 8
    for wrong in ("0", "-2", "many", ""):
        monkeypatch.setenv("FREEDIVE_THREADS", wrong)
        assert default_threads() == 8


COUNT = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
from freedive.model import Model, from_depth
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
model = Model(from_depth(1, 64), max_tokens=8, max_seqs=1)
print(model.threads, 1 + threads() - before)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
@pytest.mark.parametrize("cores", [1, 2])
def test_a_pool_has_a_thread_for_each_core_the_process_may_use(cores: int):
    """Nothing made up: the mask is set, as `taskset` and containers do, and the threads of the process are counted"""
    if usable_cores() < cores:
        pytest.skip(f"needs {cores} cores")
    environment = {name: value for name, value in os.environ.items() if name != "FREEDIVE_THREADS"}
    done = subprocess.run([sys.executable, "-c", COUNT, str(cores)], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(cores)] * 2, done.stderr


GIB = 1 << 30


@pytest.mark.parametrize("own, files, limit, free", [
    ("0::/\n", {"memory.max": "max\n"}, None, 8 * GIB),
    ("0::/\n", {"memory.max": f"{4 * GIB}\n", "memory.current": f"{GIB}\n"}, 4 * GIB, 3 * GIB),
    ("0::/\n", {"memory.max": f"{4 * GIB}", "memory.current": f"{4 * GIB}", "memory.stat": f"anon 5\ninactive_file {2 * GIB}\n"}, 4 * GIB, 2 * GIB),
    ("0::/a\n", {"a/memory.max": f"{6 * GIB}", "memory.max": f"{5 * GIB}"}, 5 * GIB, 5 * GIB),
    ("2:memory:/d\n", {"memory/d/memory.limit_in_bytes": f"{2 * GIB}", "memory/d/memory.usage_in_bytes": f"{GIB}"}, 2 * GIB, GIB),
    ("2:memory:/d\n", {"memory/d/memory.limit_in_bytes": "9223372036854771712"}, None, 8 * GIB),
])  # fmt: skip
def test_memory(cgroups, own: str, files: dict[str, str], limit: int | None, free: int):
    cgroups(own, files)
    assert machine.memory_limit() == limit and available_memory() == free
