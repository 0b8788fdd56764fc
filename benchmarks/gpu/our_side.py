"""freedive's side of benchmarks/gpu: the cases of cases.py, run when asked and timed by the device's own clock.

{"do": "make", "case": {..}, "skip": variants} -> {"ways": {name: {"default": bool, "error": relative error of a sample, "workspace": bytes}}, "failed": {name: why}}
{"do": "time", "way": name, "seconds": about how long} -> {"seconds": of a call, "calls": how many}
{"do": "copy", "bytes": n} -> {"rate": bytes a second, read and written, of the device's copies}
{"do": "about"} -> versions; {"do": "memory"} -> {"free": bytes of the device}
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import our_worker
from answering import answer_lines
from check import error_of
from our_arguments import arguments_of
from process_memory import high_water

from freedive import _core, ops

DEVICE = os.environ["GPU_BENCH_DEVICE"]
BEYOND_CACHES = 256e6 if DEVICE == "cuda" else 0  # bytes; L2 of an H200 holds 60 MB
MOST_SETS = 16
TENSOR_CORES = ("sm80", "sm90")  # told apart in every case; rungs below them in the ladder's
BFLOAT16, FLOAT32 = 0.02, 1e-4  # relative errors of products and of what memory bounds, which rounds nothing; what is worse is wrong and is not timed


class Op:
    """The variants of an op on one case's arguments"""

    def __init__(self, case: dict[str, Any], skip: list[str]) -> None:
        self.ways: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.resident: dict[str, _core.ResidentOp] = {}
        self.calls: dict[str, int] = {}
        inputs, fresh = arguments_of(case, DEVICE)
        *others, default = ops.ladder(case["op"], DEVICE)
        for variant in (default, *others):
            if variant in skip or not (variant == default or case["ladder"] or variant in TENSOR_CORES):
                continue
            try:
                outputs = fresh()
                arguments = inputs | outputs
                size = sum(a.nbytes for a in arguments.values() if isinstance(a, np.ndarray))
                op = ops.resident(case["op"], variant=variant, device=DEVICE, sets=max(1, min(MOST_SETS, int(-(-BEYOND_CACHES // size)))), **arguments)
                op.seconds(1)
                op.read()
                wrong = error_of(case["op"], inputs, outputs, fresh())
                if not wrong <= (FLOAT32 if case["kind"] == "memory" else BFLOAT16):
                    raise RuntimeError(f"wrong: a sample differs from the CPU's by {wrong:.2g}")
                self.resident[variant] = op
                self.ways[variant] = {"default": variant == default, "error": wrong, "workspace": op.workspace_bytes}
            except (RuntimeError, MemoryError) as e:
                self.failed[variant] = str(e) or type(e).__name__

    def time(self, way: str, seconds: float) -> dict[str, Any]:
        op = self.resident[way]
        if way not in self.calls:
            self.calls[way] = int(min(2000, max(1, seconds / max(1e-9, op.seconds(1)))))
        return {"seconds": op.seconds(self.calls[way]), "calls": self.calls[way]}


class Steps:
    """A model's steps: our_worker.py's, on the device"""

    def __init__(self, case: dict[str, Any]) -> None:
        request = case["sizes"] | {"device": DEVICE}
        self.step: Callable[[], float] = {"train": our_worker.make_train, "decode": our_worker.make_decode}[case["kind"]](request)
        self.step()
        self.ways, self.failed = {"freedive": {"default": True}}, dict[str, str]()

    def time(self, way: str, seconds: float) -> dict[str, Any]:
        first = self.step()
        times = [first] + [self.step() for _ in range(int(min(50, seconds / max(1e-9, first))))]
        return {"seconds": sum(times) / len(times), "calls": len(times)}


def about() -> dict[str, Any]:
    ladders = {op: ops.ladder(op, DEVICE) for op in ops.schemas()}
    return {"device": DEVICE, "variants": ladders, "tier": _core.cpu_tier(), "python": platform.python_version(), "numpy": np.__version__}


class Answers:
    """Each request by the word in its "do"; the last case made is kept, with its memory."""

    def __init__(self) -> None:
        self.work: Op | Steps | None = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "make":
            self.work = None  # its memory first
            case = request["case"]
            self.work = Steps(case) if case["kind"] in ("train", "decode") else Op(case, request["skip"])
            return {"ways": self.work.ways, "failed": self.work.failed}
        if request["do"] == "time":
            assert self.work is not None
            return self.work.time(request["way"], request["seconds"])
        if request["do"] == "copy":
            return {"rate": 2 * request["bytes"] / _core.copy_seconds(DEVICE, int(request["bytes"]), 10)}
        if request["do"] == "memory":
            return {"free": _core.free_memory(DEVICE), "high_water": high_water()}
        return about()


if __name__ == "__main__":
    answer_lines(Answers(), tell_failures=True)
