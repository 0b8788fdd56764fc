"""Timing against the machine's limit in float32 or bfloat16, on a machine that other people use too. `matmul.py` and `attention.py` are its users.

The limit moves from one second to the next (another guest on the core, another clock), so it is probed right before and right after
every single call (independent multiply-adds on registers, half a millisecond), and each call is divided by the mean of its own two probes.
With one thread the clock is that thread's CPU time, so waiting for the core does not count; with more it is the wall clock, and calls
whose threads waited for a core, taken by another program, for more than 2 % of the time are thrown away.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from freedive import _core

TASKS = Path("/proc/self/task")
PROBE = 300_000  # iterations: half a millisecond on a 3 GHz core


def clock(threads: int) -> Callable[[], float]:
    return time.thread_time if threads == 1 else time.perf_counter


def timed(call: Callable[[], object], threads: int) -> float:
    """Seconds of one call."""
    now = clock(threads)
    began = now()
    call()
    return now() - began


def probe(threads: int, compute: int = 0) -> float:
    """GFLOP/s of multiply-adds on registers, this instant; compute 0: float32, 1: bfloat16."""
    now = clock(threads)
    began = now()
    flops = _core.run_peak(threads, PROBE, compute)
    return flops / (now() - began) / 1e9


PATIENCE = 0.02  # of the time of all threads may pass in waiting for a core


def waited() -> float:
    """Seconds that the threads of this process were ready to run and had no core, all together (Linux's /proc; elsewhere 0)."""
    return sum(int(Path(f"{task.path}/schedstat").read_text().split()[1]) for task in os.scandir(TASKS)) / 1e9 if TASKS.exists() else 0.0


def share_of_peak(seconds: dict[str, Callable[[], float]], gflop: float, threads: int, repeats: int, compute: int = 0) -> dict[str, Any]:
    """Call everybody in turn, `repeats` times after one unmeasured round. seconds: name -> function which does the work once and says
    how long it took (nan: do not count it). Returns name -> {gflops: median, share: median of rate / probe, best: highest rate / highest probe, calls}.

    With several threads a call and its probes are thrown away when they had to wait for a core, and up to four times `repeats` rounds are
    made to have enough (none more when none was left of the first `repeats`); `calls` says how many were left, and figures of fewer than three are None."""
    rates: dict[str, list[float]] = {who: [] for who in seconds}
    shares: dict[str, list[float]] = {who: [] for who in seconds}
    probes = []
    for round_ in range((repeats if threads == 1 else 4 * repeats) + 1):
        if min(map(len, rates.values())) >= repeats or (round_ > repeats and not probes):
            break
        for who, work in seconds.items():
            queued, began = waited(), time.perf_counter()
            before = probe(threads, compute)
            rate = gflop / work()
            after = probe(threads, compute)
            allowed = PATIENCE * threads * (time.perf_counter() - began)
            if round_ > 0 and rate == rate and (threads == 1 or waited() - queued <= allowed):
                rates[who].append(rate)
                shares[who].append(rate / ((before + after) / 2))
                probes.append(after)
    found: dict[str, Any] = {}
    for who, calls in rates.items():
        enough = len(calls) >= 3
        found[who] = {
            "gflops": round(statistics.median(calls), 1) if enough else None,
            "share": round(statistics.median(shares[who]), 3) if enough else None,
            "best": round(max(calls) / max(probes), 3) if enough else None,
            "calls": len(calls),
        }
    return found


def each_thread_count(script: str, threads: list[int], rest: list[str]) -> None:
    """Run the script once per number of threads in a process of its own: BLAS reads its number of threads when it is loaded."""
    for count in threads:
        own = {"OPENBLAS_NUM_THREADS": str(count), "OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}
        code = subprocess.run([sys.executable, script, "--threads", str(count), "--one", *rest], env={**os.environ, **own}).returncode
        if code:
            sys.exit(code)
