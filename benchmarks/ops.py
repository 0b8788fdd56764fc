"""Every kernel of a training step beside the limit of this machine and, where torch has the op, beside torch's, in turns.

    python benchmarks/ops.py [--threads 1 2] [--only adamw gelu] [--variants]
    FREEDIVE_TORCH_PYTHON=/path/to/python python benchmarks/ops.py            # that Python has torch

What memory bounds is compared with a copy by as many threads (bytes read plus written), products with multiply-adds on registers; both are
measured around every call (`freedive.bench.ops` holds the cases). One JSON line per case: `ratio` is the share of the limit. With a peer also
`torch_ratio`, ours over torch's in the median of turns, torch in the better of float32 and bfloat16 tensors where products dominate and in float32
where memory does (its bfloat16 tensors are half as large, so that would compare other work); malloc tuned, see side_by_side.py. The head's line
has the memory both sides needed on top of inputs and gradients. --variants measures every variant of the ladder that memory bounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

from side_by_side import in_turns, torch, torch_python
from side_by_side import ours as our_worker

from freedive import _core, ops
from freedive.bench.ops import Case, Limits, measure, memory_cases, product_cases

TORCH_OPS = {"layernorm_forward", "layernorm_backward", "gelu_forward", "gelu_backward", "adamw", "global_norm", "attention_forward", "attention_backward",
             "head_forward_backward"}  # fmt: skip
DTYPES = ["float32", "bfloat16"] if ops.fast_bf16() else ["float32"]


def seconds(case: Case, threads: int) -> float:
    began = time.perf_counter()
    case.run(threads)
    return time.perf_counter() - began


def beside_torch(case: Case, threads: int, rounds: int) -> dict[str, Any]:
    """torch's same op, in turns with ours."""
    x = case.arguments.get("x", case.arguments.get("q"))
    C = 768
    N = (x.size if x is not None else case.arguments["param"].size) // C
    name = {"global_norm": "clip"}.get(case.op, case.op)
    request = {"kind": "op", "op": name, "N": N, "C": C, "V": 50304, "attention": [4, 1024, 12, 64]}
    found = {}
    for dtype in DTYPES if not case.memory else ["float32"]:
        for compile in (False, True) if case.op.startswith("head") else (False,):
            with torch(threads, tuned=True) as worker:
                worker.ask("make", **request, dtype=dtype, compile=compile)
                turns = in_turns({"ours": lambda: seconds(case, threads), "torch": lambda w=worker: w.ask("work", n=1)["seconds"][0]}, rounds)
            found[f"{dtype}{'_compile' * compile}"] = (statistics.median(turns["torch"]), statistics.median(turns["ours"]))
    mode = min(found, key=lambda m: found[m][0])
    theirs, ours = found[mode]
    line = {"torch_ratio": round(theirs / ours, 2), "torch_mode": mode, "torch_ms": round(1e3 * theirs, 3), "ours_ms": round(1e3 * ours, 3)}
    return line | (head_memory(request, mode, threads) if case.op.startswith("head") else {})


def head_memory(request: dict[str, Any], mode: str, threads: int) -> dict[str, float]:
    """What the head takes at its most on top of inputs and gradients, both in processes of their own: torch as installed, since tuned it keeps what is freed."""
    dtype, _, compile = mode.partition("_")
    with our_worker(threads) as worker:
        mine = worker.ask("make", kind="head", mode=dtype, dtype=dtype)["needs"]
    with torch(threads, tuned=False) as worker:
        worker.ask("make", **request, dtype=dtype, compile=bool(compile))
        gradients = (request["N"] + request["V"]) * request["C"] * (4 if dtype == "float32" else 2)
        theirs = worker.ask("memory")["needs"] - gradients
    return {"torch_memory_mb": round(theirs / 1e6), "ours_memory_mb": round(mine / 1e6), "memory_ratio": round(mine / theirs, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--variants", action="store_true")
    a = parser.parse_args()
    if not torch_python():
        print("without FREEDIVE_TORCH_PYTHON there is no peer", file=sys.stderr)
    for threads in a.threads:
        limits = Limits(threads, a.megabytes)
        for make in (lambda: memory_cases(a.megabytes), *(lambda dtype=dtype: product_cases(dtype) for dtype in DTYPES)):
            for case in make():
                if a.only and not any(part in case.name for part in a.only):
                    continue
                line = {"benchmark": "ops", "case": case.name, "threads": threads, "tier": _core.cpu_tier(), "dtype": case.compute, **measure(case, limits, a.repeats)}
                if a.variants and case.memory:
                    line["variants"] = {v: measure(case, limits, 3, lambda v=v: case.run(threads, v))["value"] for v in ops.variants(case.op)}
                # the head and attention in bfloat16 are compared with torch's best; in float32 there is no second comparison
                if torch_python() and case.op in TORCH_OPS and (case.memory or case.compute == DTYPES[-1]):
                    line |= beside_torch(case, threads, max(3, a.repeats // 2))
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
