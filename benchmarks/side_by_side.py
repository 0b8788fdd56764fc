"""Two programs on one machine, in turns: each is a process of its own that stays, works when asked and sleeps meanwhile.

A worker (`our_worker.py`, `torch_worker.py`) reads one JSON line, does what it says, answers one JSON line. The two sides take turns in
blocks of about a second, so both see the same noise; ratios are of the medians, with the spread beside them. Which of a peer's modes is
best is found once per machine, case and number of threads, and kept in ~/.cache/freedive/peers.json (XDG_CACHE_HOME); delete it to look again.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "freedive", "peers.json")
# glibc's malloc gives freed memory back and gets it again as zeroed pages, which costs torch up to 40 %. "Tuned" keeps it, in huge pages.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000", "MALLOC_TOP_PAD_": "268435456", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Worker:
    """One persistent process. `ask` sends a request and waits for its answer."""

    def __init__(self, python: str, script: str, threads: int, environment: dict[str, str] | None = None) -> None:
        own = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FREEDIVE_THREADS")}
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or python == sys.executable}
        self.process = subprocess.Popen([python, str(HERE / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=inherited | own | (environment or {}))  # fmt: skip
        self.script = script

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.script} stopped; is what it imports installed in its Python?")
        return json.loads(answer)

    def stop(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def torch_python() -> str | None:
    """The Python that has torch, or None."""
    return os.environ.get("FREEDIVE_TORCH_PYTHON")


def ours(threads: int) -> Worker:
    return Worker(sys.executable, "our_worker.py", threads)


def torch(threads: int, tuned: bool) -> Worker:
    python = torch_python()
    assert python is not None
    return Worker(python, "torch_worker.py", threads, TUNED if tuned else None)


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every side once a round, the order turning with the round; what each returned. One unmeasured round first."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for round_ in range(rounds + 1):
        for name in names if round_ % 2 else reversed(names):
            time.sleep(0.05)  # threads of the other side that still spin fall asleep
            value = sides[name]()
            if round_ > 0:
                found[name].append(value)
    return found


class Others:
    """How many CPUs other programs kept busy since this was made, these workers and this process not counted: noise to be told with a figure."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self.pids = [os.getpid(), *(w.process.pid for w in workers)]
        self.began, self.busy, self.own = time.perf_counter(), self._busy(), self._own()

    def cpus(self) -> float:
        others = (self._busy() - self.busy) - (self._own() - self.own)
        return round(max(0.0, others / TICKS / (time.perf_counter() - self.began)), 2)

    def _busy(self) -> int:
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
        return user + nice + system + irq + softirq + steal

    def _own(self) -> int:
        return sum(sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) for pid in self.pids)


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    """Median, least and most."""
    short = lambda x: float(f"{x:.{digits}g}")
    return {"median": short(statistics.median(values)), "min": short(min(values)), "max": short(max(values)), "n": len(values)}


def best_mode(key: str, modes: list[str], seconds: Callable[[str], float]) -> tuple[str, dict[str, float]]:
    """The peer's fastest mode for `key` on this machine, and the seconds of all when it was chosen. Chosen once; then read from CACHE.
    Of one mode nothing is measured and nothing kept."""
    if len(modes) == 1:
        return modes[0], {}
    known: dict[str, Any] = json.loads(CACHE.read_text()) if CACHE.exists() else {}
    host = f"{platform.node()} {platform.machine()} {os.cpu_count()}"
    entry = known.setdefault(host, {}).get(key)
    if entry is None or entry["mode"] not in modes:
        measured = {mode: round(seconds(mode), 5) for mode in modes}
        entry = {"mode": min(measured, key=lambda mode: measured[mode]), "seconds": measured}
        if CACHE.exists():  # somebody else may have chosen meanwhile
            known = json.loads(CACHE.read_text())
        known.setdefault(host, {})[key] = entry
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        aside = CACHE.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(known, indent=1))
        aside.replace(CACHE)
    return entry["mode"], entry["seconds"]
