"""torch's side of benchmarks/gpu: the same cases in the ways torch has for them, timed by CUDA events. Knows nothing of freedive.

Small ops whose launches would show are captured into a CUDA graph and replayed: the peer at its best. On the CPU (a dry run) a clock of the host takes the place of
events and nothing is compiled for real; what comes out is no measurement. Requests and answers as of our_side.py; "rate": FLOP/s of a large bfloat16 product.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from answering import answer_lines
from process_memory import high_water
from torch_models import Steps
from torch_ops import WAYS

DEVICE = os.environ["GPU_BENCH_DEVICE"]
CUDA = DEVICE == "cuda"
BEYOND_CACHES, MOST_SETS = 256e6 if CUDA else 0, 16
SHORT = 150e-6  # seconds of a call below which its launch would show


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds_of(work) -> float:
    """By the device's clock"""
    if not CUDA:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e-3


class Op:
    """The ways of torch to do one case, each as a list of calls, one on each set of arguments"""

    def __init__(self, case: dict) -> None:
        self.ways: dict[str, dict] = {}
        self.failed: dict[str, str] = {}
        self.calls: dict[str, list] = {}
        self.passes: dict[str, int] = {}
        self.graphs: dict[str, torch.cuda.CUDAGraph] = {}
        for way in case["peers"]:
            try:
                before = torch.cuda.memory_allocated() if CUDA else 0
                make, size = WAYS[case["kind"]](case, way, DEVICE)
                sets = max(1, min(MOST_SETS, int(-(-BEYOND_CACHES // size))))
                calls = [make() for _ in range(sets)]
                for call in calls:
                    call()
                wait()
                held = torch.cuda.memory_allocated() if CUDA else 0
                if CUDA:
                    torch.cuda.reset_peak_memory_stats()
                once = seconds_of(calls[0])
                more = (torch.cuda.max_memory_allocated() - held) if CUDA else 0
                self.calls[way] = calls
                self.ways[way] = {"sets": sets, "bytes": held - before, "scratch": more, "graph": self.capture(way, calls, once)}
            except Exception as e:  # a backend that is not there for these sizes, memory
                self.failed[way] = f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"
                if CUDA:
                    torch.cuda.empty_cache()

    def capture(self, way: str, calls: list, once: float) -> bool:
        if not CUDA or once > SHORT:
            return False
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
            graph.replay()
            torch.cuda.synchronize()
            self.graphs[way] = graph
        except RuntimeError:  # some cannot be captured: then as it is
            torch.cuda.synchronize()
        return way in self.graphs

    def one_pass(self, way: str) -> None:
        if way in self.graphs:
            self.graphs[way].replay()
        else:
            for call in self.calls[way]:
                call()

    def time(self, way: str, seconds: float) -> dict:
        sets = len(self.calls[way])
        if way not in self.passes:
            self.passes[way] = int(min(2000, max(1, seconds / max(1e-9, seconds_of(lambda: self.one_pass(way))))))
        n = self.passes[way]

        def work() -> None:
            for _ in range(n):
                self.one_pass(way)

        return {"seconds": seconds_of(work) / (n * sets), "calls": n * sets}


operands: dict[int, tuple] = {}


def peak(n: int) -> float:
    """FLOP/s of an n x n x n product of random bfloat16 numbers, which is what the tensor cores give here and now"""
    if n not in operands:
        operands[n] = tuple(torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    a, b = operands[n]
    torch.mm(a, b)

    def work() -> None:
        for _ in range(5):
            torch.mm(a, b)

    return 5 * 2.0 * n**3 / seconds_of(work)


def about() -> dict:
    found = {"torch": torch.__version__, "python": platform.python_version()}
    if CUDA:
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count}
        try:
            import importlib.metadata

            found["cublas"] = next(importlib.metadata.version(name) for name in ("nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cublas-cu13"))
        except Exception:
            found["cublas"] = None
        try:
            import triton

            found["triton"] = triton.__version__
        except ImportError:
            found["triton"] = None
    return found


def memory() -> dict:
    free = torch.cuda.mem_get_info()[0] if CUDA else None
    return {"free": free, "allocated": torch.cuda.max_memory_allocated() if CUDA else None, "high_water": high_water()}


class Answers:
    """Each request by the word in its "do"; the last case made is kept, with its memory."""

    def __init__(self) -> None:
        self.work: Op | Steps | None = None

    def __call__(self, request: dict) -> dict:
        if request["do"] == "make":
            self.work = None  # its memory first
            if CUDA:
                torch.cuda.empty_cache()
            case = request["case"]
            self.work = Steps(case, DEVICE) if case["kind"] in ("train", "decode") else Op(case)
            return {"ways": self.work.ways, "failed": self.work.failed}
        if request["do"] == "time":
            return self.work.time(request["way"], request["seconds"])
        if request["do"] == "peak":
            return {"rate": peak(request["n"])}
        return memory() if request["do"] == "memory" else about()


if __name__ == "__main__":
    answer_lines(Answers(), tell_failures=True)
