"""llm.c's CPU program (train_gpt2.c) beside the same GPT-2 124M step of ours, 4 sequences of 64 tokens, in turns.

    git clone https://github.com/karpathy/llm.c somewhere
    python benchmarks/llmc.py --source somewhere [--threads 2] [--rounds 6]

Its program is compiled in a temporary folder with the flags of its own Makefile (-Ofast, -march=native, OpenMP) and given a model of its format with
random weights and random tokens. It runs by itself and times its own steps; between ours it is stopped (SIGSTOP), and the step during which it was is
not counted. One JSON line per number of threads: tokens a second, `ratio`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import ours, spread
from train import CASES, DTYPES

FLAGS = ["-Ofast", "-march=native", "-fopenmp", "-DOMP"]


def build(source: Path, folder: Path) -> None:
    command = ["cc", *FLAGS, "-Wno-unused-result", str(source / "train_gpt2.c"), "-lm", "-o", str(folder / "train_gpt2")]
    if subprocess.run(command, cwd=source).returncode:
        sys.exit("llm.c did not compile")


def write_inputs(folder: Path) -> None:
    """A checkpoint of GPT-2 124M with random weights (version 3 of its format) and tokens, where the program looks for them."""
    rng, L, C, V, padded, T = np.random.default_rng(0), 12, 768, 50257, 50304, 1024
    header = np.zeros(256, np.int32)
    header[:8] = 20240326, 3, T, V, L, 12, C, padded
    sizes = [padded * C, T * C, L * C, L * C, L * 3 * C * C, L * 3 * C, L * C * C, L * C, L * C, L * C, L * 4 * C * C, L * 4 * C, L * C * 4 * C, L * C, C, C]
    norms = {2, 8, 14}
    with open(folder / "gpt2_124M.bin", "wb") as file:
        file.write(header.tobytes())
        for i, size in enumerate(sizes):
            weights = np.ones(size, np.float32) if i in norms else rng.standard_normal(size, dtype=np.float32) * np.float32(0.02)
            file.write(weights.tobytes())
    data = folder / "dev" / "data" / "tinyshakespeare"
    data.mkdir(parents=True)
    for name in ("train", "val"):
        n = 40_000
        header = np.zeros(256, np.int32)
        header[:3] = 20240520, 1, n
        (data / f"tiny_shakespeare_{name}.bin").write_bytes(header.tobytes() + rng.integers(0, V, n).astype(np.uint16).tobytes())


def next_step(program: subprocess.Popen) -> float | None:
    """Seconds of the program's next training step, or None at its end."""
    for line in program.stdout:  # type: ignore[union-attr]
        if found := re.match(rb"step \d+: .*took ([\d.]+) ms", line):
            return float(found[1]) / 1e3
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a checkout of llm.c")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=6)
    a = parser.parse_args()
    model = CASES["gpt2_4x256"][0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(a.source.resolve(), folder)
        write_inputs(folder)
        for threads in a.threads:
            workers = {dtype: ours(threads) for dtype in DTYPES}
            for dtype, worker in workers.items():
                worker.ask("make", kind="train", mode=dtype, model=model, vocabulary=model["vocabulary"], batch=4, length=64)
            program = subprocess.Popen(["stdbuf", "-oL", "./train_gpt2"], cwd=folder, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
            theirs: list[float] = []
            mine: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
            next_step(program)
            for _ in range(a.rounds):
                program.send_signal(signal.SIGSTOP)
                time.sleep(0.05)
                for dtype, worker in workers.items():
                    mine[dtype].append(256 * 3 / sum(worker.ask("work", n=3)["seconds"]))
                program.send_signal(signal.SIGCONT)
                if next_step(program) is None or (seconds := next_step(program)) is None:  # the first was stopped in its middle
                    break
                theirs.append(256 / seconds)
            program.kill()
            program.wait()
            for worker in workers.values():
                worker.stop()
            line = {"benchmark": "llmc", "case": "gpt2_124M_4x64", "threads": threads, "llmc": spread(theirs), **{f"ours_{d}": spread(v) for d, v in mine.items()}}
            for dtype in DTYPES:
                line["ratio" if dtype == DTYPES[0] else f"ratio_{dtype}"] = round(statistics.median(mine[dtype]) / statistics.median(theirs), 2)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
