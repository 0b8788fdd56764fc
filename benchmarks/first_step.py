"""From the launch of `freedive pretrain` to the end of its first optimizer step: reading, encoding and hashing a text of about a megabyte,
building the default model, one step of 4,096 tokens.

    python benchmarks/first_step.py                                # a text that every Python brings: the help topics of pydoc
    python benchmarks/first_step.py --text tinyshakespeare.jsonl.gz --tokenizer chars

The whole command is launched, with --log-every 1 and otherwise its defaults, and watched from outside: the step is done when its line of
metrics.jsonl can be read. Then the process is killed. Wall clock counts from just before the launch; CPU seconds (user and system, of all
threads, from /proc) are what the launch costs whatever else runs on the machine. On a machine that is busy the least is the figure
that repeats. Linux only. A first launch, not counted, brings files into memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def help_topics() -> str:
    """The longest text in Python's own library, 0.7 MB."""
    spec = importlib.util.find_spec("pydoc_data.topics")
    assert spec is not None and spec.origin is not None
    return spec.origin


def launch(command: list[str], metrics: Path) -> tuple[float, float]:
    """Seconds until the first line of `metrics` is there, and CPU seconds the process has used by then. Kills the process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                assert process.stderr is not None
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {process.stderr.read().decode()}")
            time.sleep(0.001)
        seconds = time.perf_counter() - began
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return seconds, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    finally:
        process.kill()
        process.communicate()


def spread(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 3), "median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="*", default=[help_topics()], help="text or JSONL files")
    parser.add_argument("--tokenizer", default="bytes")
    parser.add_argument("--launches", type=int, default=7)
    options = parser.parse_args()
    for text in options.text:
        runs = []
        for _ in range(options.launches + 1):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, "out")
                command = [sys.executable, "-m", "freedive", "pretrain", "--text", text, "--tokenizer", options.tokenizer, "--log-every", "1", "--optimizer", "adamw", "--out", str(out)]
                runs.append(launch(command, Path(f"{out}.partial", "metrics.jsonl")))
        seconds, cpu = zip(*runs[1:])
        row = {"text": Path(text).name, "bytes": os.path.getsize(text), "tokenizer": options.tokenizer, "launches": options.launches}
        row |= {"seconds": spread(list(seconds)), "cpu_seconds": spread(list(cpu)), "load": round(os.getloadavg()[0], 1)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
