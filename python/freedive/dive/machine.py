"""What the numbers of a report were measured on. Says nothing that names a person or a path."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from freedive.runs import default_threads, usable_cores
from freedive.runs.machine import total_memory

PEAK_REPEATS = 8


def machine(threads: int | None = None) -> dict[str, Any]:
    """CPU, cores, memory, system, Python and freedive's kernels, as far as they can be found out."""
    from freedive import __version__, _core

    found: dict[str, Any] = {"cpu": _cpu(), "cores": usable_cores(), "threads": threads or default_threads(), "memory_gib": _memory()}
    found |= {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(), "freedive": __version__}
    if hasattr(_core, "cpu_tier"):
        found["kernels"] = _core.cpu_tier()
    if hasattr(_core, "measure_peak"):
        # The best of several: other work on the machine can only make a measurement too low (by 5 times, seen on a busy one).
        found["peak_gflops"] = round(max(_core.measure_peak(threads or default_threads()) for _ in range(PEAK_REPEATS)) / 1e9, 1)
    if hasattr(os, "getloadavg"):
        found["load_at_start"] = round(os.getloadavg()[0], 1)
    return {k: v for k, v in found.items() if v is not None}


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(total_memory() / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
