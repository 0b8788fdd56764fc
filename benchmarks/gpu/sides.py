"""One side of a comparison: a program in a process of its own, asked by lines of JSON. A kernel that takes its process with it, or stands still, loses a case and
not the run: the next one gets a new process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Lost(Exception):
    """The process ended or did not answer in time; the message says which, with its last words"""


class Side:
    def __init__(self, python: str, script: str, environment: dict[str, str]) -> None:
        self.command, self.environment = [python, str(HERE / script)], environment
        self.said = tempfile.TemporaryFile("w+")
        self.process: subprocess.Popen[str] | None = None
        self.began = 0.0  # when the process was launched, by time.perf_counter

    def ask(self, wait: float = 120, **request: Any) -> dict[str, Any]:
        """Its answer; Lost if there is none within `wait` seconds"""
        if self.process is None:
            self.began = time.perf_counter()
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True, env=os.environ | self.environment)
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._lost("ended") from None
        if not select.select([self.process.stdout], [], [], wait)[0]:
            raise self._lost(f"took more than {wait:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise self._lost("ended")
        return json.loads(line)

    def _lost(self, how: str) -> Lost:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        self.process = None
        self.said.seek(0)
        words = [line for line in self.said.read().splitlines() if line.strip()]
        return Lost(f"{Path(self.command[1]).name} {how}" + (f": {words[-1].strip()[:300]}" if words else ""))

    def stop(self) -> None:
        """Ends the process; the next `ask` starts another"""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


def torch_python() -> str | None:
    """FREEDIVE_TORCH_PYTHON, or this Python if it has torch"""
    return os.environ.get("FREEDIVE_TORCH_PYTHON") or (sys.executable if importlib.util.find_spec("torch") else None)


ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # nvidia-smi's: clocks and memory are read of the GPU that works


def ours(device: str, threads: int = 2) -> Side:  # two, so that our_worker.py reads the wall clock
    return Side(sys.executable, "our_side.py", {"GPU_BENCH_DEVICE": device, "FREEDIVE_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "4", **ORDER})


def torch(device: str, caches: str | None = None) -> Side | None:
    """None where there is no torch. caches: an empty folder, so that nothing compiled before is found"""
    python = torch_python()
    if python is None:
        return None
    fresh = {} if caches is None else {"TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor", "TRITON_CACHE_DIR": f"{caches}/triton"}
    return Side(python, "torch_side.py", {"GPU_BENCH_DEVICE": device, "OMP_NUM_THREADS": "2", "PYTHONPATH": "", "PYTHONWARNINGS": "ignore", **ORDER, **fresh})
