"""The most this machine's processor can multiply and add, probed once for a second and kept: what "percent of peak" is of.

Kept in ~/.cache/freedive/peak.json (XDG_CACHE_HOME) by host, processor, kernels, dtype and number of threads. A probe on a busy machine finds less than there
is; `seen` raises what is kept when somebody measures more. A cache that cannot be read or written is done without.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from .atomic import write_atomic
from .machine import usable_cores

PROBES = 60  # of a few milliseconds each: about a second with what starting them costs


def cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "freedive", "peak.json")


def machine_peak(threads: int, dtype: str = "float32") -> float:
    """FLOP/s of independent multiply-adds on registers, on this many threads: from the cache, else measured now for about a second."""
    from freedive import _core

    known = _read().get(_key(threads, dtype))
    if known:
        return known
    return seen(threads, dtype, _core.measure_peak(threads, PROBES, *_code(dtype)))


def seen(threads: int, dtype: str, flops: float) -> float:
    """Somebody measured this many FLOP/s: kept if it is 1 % more than what is known. Returns the most known."""
    known = _read()
    before = known.get(_key(threads, dtype), 0.0)
    if flops <= 1.01 * before:
        return max(before, flops)
    try:
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cache_file(), [json.dumps(known | {_key(threads, dtype): flops}, indent=1).encode()])
    except OSError:
        pass
    return flops


def _code(dtype: str) -> list[int]:
    return [1] if dtype == "bfloat16" else []


def _key(threads: int, dtype: str) -> str:
    from freedive import _core

    return f"{platform.node()}, {_processor()}, {usable_cores()} cores, {_core.cpu_tier()}, {dtype}, {threads} threads"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def _read() -> dict[str, float]:
    try:
        found = json.loads(cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, (int, float)) and v > 0} if isinstance(found, dict) else {}
