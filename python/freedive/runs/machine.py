"""What this process may use of the machine: cores and memory, within the limits that its container (cgroup) sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")


def usable_cores() -> int:
    """Cores this process may use: those of its affinity mask, cut by the CPU quota of its container (a part of a core counts as one)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroup_folders():
        quota, period = _words(folder / "cpu.max", 2)  # "max 100000" or "150000 100000", microseconds
        if quota is None:  # version 1 has a file for each
            quota, period = _words(folder / "cpu.cfs_quota_us", 1)[0], _words(folder / "cpu.cfs_period_us", 1)[0]
        if quota is not None and period:
            cores = min(cores, max(1, -(-quota // period)))
    return cores


def default_threads() -> int:
    """Threads to use where nothing else is said: the usable cores, or FREEDIVE_THREADS."""
    wanted = os.environ.get("FREEDIVE_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else usable_cores()


def total_memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit() -> int | None:
    """Bytes that the container allows this process and its siblings; None without a limit below the machine's memory."""
    limits = [limit for limit, _ in _memory_limits() if limit < total_memory()]
    return min(limits, default=None)


def available_memory() -> int:
    """Bytes this process can still take: the smaller of what the machine has free and what its container leaves."""
    free = [limit - used for limit, used in _memory_limits()]
    try:
        lines = MEMINFO.read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except (OSError, ValueError, IndexError):
        pass
    return min(free, default=1 << 62)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes, of every group that limits this process. File pages the kernel would give up first do not count as used."""
    for folder in _cgroup_folders():
        for limit_file, used_file in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, used = _words(folder / limit_file, 1)[0], _words(folder / used_file, 1)[0]
            if limit is not None:
                yield limit, max(0, (used or 0) - _given_up_first(folder / "memory.stat"))


def _given_up_first(stat: Path) -> int:
    try:
        counts = dict(line.split() for line in stat.read_text().splitlines())
        return int(counts.get("total_inactive_file") or counts["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def _cgroup_folders() -> Iterator[Path]:
    """The groups this process is in, from the innermost to the root: each of them can set a limit. In a container the root is its own."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        lines = []
    seen: set[Path] = set()
    for line in [*lines, "0::/", "0:cpu:/", "0:memory:/"]:  # "0::/path" (version 2) or "4:cpu,cpuacct:/path" (version 1)
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = [] if ".." in path else [part for part in path.split("/") if part]
        for name in controllers.split(","):
            if name in ("", "cpu", "memory"):
                for depth in range(len(parts), -1, -1):
                    folder = CGROUPS.joinpath(name, *parts[:depth])
                    if folder not in seen:
                        seen.add(folder)
                        yield folder


def _words(path: Path, count: int) -> list[int | None]:
    """The first words of a file as numbers; None for a word that is none, such as "max" or "-1", or is not there."""
    try:
        words = path.read_text().split()
    except OSError:
        words = []
    return [int(w) if w.isdigit() else None for w in [*words, *[""] * count][:count]]
