"""Two threads on a machine where another process takes a core: never slower than one.

    python benchmarks/busy_neighbour.py [--case 6x384_16x256] [--rounds 7]

A neighbour runs an endless loop: nowhere, on any core (the system may move it), pinned to the last core, on every core. Beside it a training step runs
with one thread and with two, in turns. One JSON line per neighbour: seconds of a step, `ratio` = one thread's median / two threads'. Linux, two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from side_by_side import Worker, in_turns, ours, spread
from train import CASES, DTYPES

LOOP = "import os, sys\nif len(sys.argv) > 1: os.sched_setaffinity(0, {int(sys.argv[1])})\nprint(1, flush=True)\nwhile True: pass"


def neighbours(where: str) -> list[subprocess.Popen]:
    cores = sorted(os.sched_getaffinity(0))
    pins = {"none": [], "anywhere": [[]], "pinned": [[str(cores[-1])]], "everywhere": [[str(core)] for core in cores]}[where]
    found = [subprocess.Popen([sys.executable, "-c", LOOP, *pin], stdout=subprocess.PIPE) for pin in pins]
    for process in found:
        process.stdout.readline()  # type: ignore[union-attr]
    return found


def wall(worker: Worker, steps: int) -> float:
    """Seconds of a step by the clock on the wall: one thread's own time is its CPU's, in which no neighbour shows."""
    began = time.perf_counter()
    worker.ask("work", n=steps)
    return (time.perf_counter() - began) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), nargs="+", default=["4x128_32x128", "6x384_16x256"])
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    for case in a.case:
        model, B, T = CASES[case]
        workers = {threads: ours(threads) for threads in (1, 2)}
        for worker in workers.values():
            worker.ask("make", kind="train", mode=DTYPES[0], model=model, vocabulary=model["vocabulary"], batch=B, length=T)
        steps = max(1, round(0.5 / workers[1].ask("work", n=1)["seconds"][0]))
        for where in ("none", "anywhere", "pinned", "everywhere"):
            loops = neighbours(where)
            try:
                found = in_turns({str(t): (lambda w=w: wall(w, steps)) for t, w in workers.items()}, a.rounds)
            finally:
                for loop in loops:
                    loop.kill()
                    loop.wait()
            print(json.dumps({"benchmark": "busy_neighbour", "case": case, "neighbour": where, "one_thread": spread(found["1"]), "two_threads": spread(found["2"]),
                              "ratio": round(statistics.median(found["1"]) / statistics.median(found["2"]), 3)}), flush=True)  # fmt: skip
        for worker in workers.values():
            worker.stop()


if __name__ == "__main__":
    main()
