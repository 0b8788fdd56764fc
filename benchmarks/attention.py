"""Causal attention forward and backward: share of this machine's peak in float32 and bfloat16, beside torch's
scaled_dot_product_attention in both types.

    python benchmarks/attention.py [--threads 1 2] [--repeats 20] [--compute float32 bfloat16] [--shapes 0 3]
    FREEDIVE_TORCH_PYTHON=/path/to/python python benchmarks/attention.py     # that environment has torch; interleaved with ours

Counted are only the operations of the causal half, T(T+1)/2 scores of a sequence: 2 products of 2 D operations forward, 5 backward (torch
computes more or less as it likes). One JSON line per shape, direction, type and number of threads: GFLOP/s (median), share of the
peak of our type probed around every call (median), best (highest rate over highest probe). A last line per shape adds both
directions up: milliseconds, and how many times torch's (its better type, each direction by itself) are ours. Ours in bfloat16 takes
float32 tensors and rounds inside; torch's takes and gives bfloat16. How it is timed: against_peak.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import numpy as np
from against_peak import each_thread_count, share_of_peak, timed

from freedive import ops
from freedive.bench.ops import aligned

# name: (B sequences, T positions, H heads, G key-value heads, D head_dim)
SHAPES = {
    "GPT-2 small B4 H12 T1024 hd64": (4, 1024, 12, 12, 64), "grouped B4 H16/4 T1024 hd64": (4, 1024, 16, 4, 64),
    "grouped B1 H16/8 T2048 hd128": (1, 2048, 16, 8, 128), "the dive's B8 H4/2 T256 hd32": (8, 256, 4, 2, 32),
    "one long sequence B1 H2/1 T4096 hd64": (1, 4096, 2, 1, 64),
}  # fmt: skip

COMPUTES = ("float32", "bfloat16")

# The other process: reads a line "shape direction type", does the work once, answers the seconds it took,
# or nan when several threads were to work and had to wait for a core.
TORCH = """
import glob, sys, time, torch
threads = int(sys.argv[1])
torch.set_num_threads(threads)
now = time.thread_time if threads == 1 else time.perf_counter
waited = lambda: sum(int(open(f).read().split()[1]) for f in glob.glob("/proc/self/task/*/schedstat")) / 1e9
held = {}
for line in sys.stdin:
    B, T, H, G, D, direction, kind = line.split()
    shape = (*map(int, (B, T, H, G, D)), getattr(torch, kind))
    if shape not in held:
        B, T, H, G, D, dtype = shape
        held = {shape: [torch.randn(B, n, T, D, dtype=dtype, requires_grad=True) for n in (H, G, G)] + [torch.randn(B, H, T, D, dtype=dtype)]}
    q, k, v, dout = held[shape]
    enable_gqa = shape[2] != shape[3]
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=enable_gqa)
    out = attend() if direction == "backward" else None
    queued, began = waited(), time.perf_counter()
    started = now()
    if direction == "forward":
        with torch.no_grad():
            attend()
    else:
        torch.autograd.grad(out, (q, k, v), dout)
    seconds = now() - started
    allowed = 0.02 * threads * (time.perf_counter() - began)
    print(seconds if threads == 1 or waited() - queued <= allowed else "nan", flush=True)
"""


class Torch:
    """torch in a process of its own, which times itself."""

    def __init__(self, python: str, threads: int) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen([python, "-c", TORCH, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)  # fmt: skip

    def seconds(self, shape: tuple[int, ...], direction: str, kind: str) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, shape)) + f" {direction} {kind}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("the torch process stopped; is torch in the environment of FREEDIVE_TORCH_PYTHON?")
        return float(answer)


def measure(threads: int, repeats: int, computes: list[str], shapes: list[str]) -> None:
    rng = np.random.default_rng(0)
    python = os.environ.get("FREEDIVE_TORCH_PYTHON")
    torches = {kind: Torch(python, threads) for kind in COMPUTES} if python else {}
    for name in shapes:
        shape = B, T, H, G, D = SHAPES[name]
        normal = lambda *shape: aligned(shape, lambda array: rng.standard_normal(dtype=np.float32, out=array))  # noqa: B023
        q, dout = normal(B * T, H, D), normal(B * T, H, D)
        k, v = normal(B * T, G, D), normal(B * T, G, D)
        cu_seqlens = np.arange(B + 1, dtype=np.int32) * T
        given = {"q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens, "scale": D**-0.5}
        out, lse = aligned(q.shape), ops.attention_forward(q, k, v, cu_seqlens)[1]
        dq, dk, dv = aligned(q.shape), aligned(k.shape), aligned(v.shape)
        directions = {
            "forward": (2, "attention_forward", {"out": out, "lse": lse, **given}),
            "backward": (5, "attention_backward", {"dq": dq, "dk": dk, "dv": dv, "dout": dout, "out": out, "lse": lse, **given}),
        }
        for compute in computes:
            both: dict[str, float] = {}  # milliseconds
            for direction, (products, op, arguments) in directions.items():

                def ours(direction: str = direction, op: str = op, arguments: dict = arguments, compute: str = compute) -> float:
                    if direction == "backward":  # comes after its forward pass, as torch's does
                        ops.call("attention_forward", **directions["forward"][2], compute=compute, threads=threads)  # noqa: B023
                    return timed(lambda: ops.call(op, **arguments, compute=compute, threads=threads), threads)

                work = {"ours": ours}
                for kind, torch in torches.items():
                    work[f"torch {kind}"] = lambda torch=torch, kind=kind: torch.seconds(shape, direction, kind)  # noqa: B023
                gflop = 1e-9 * products * 2 * D * B * H * T * (T + 1) / 2
                found = share_of_peak(work, gflop, threads, repeats, ops.compute_code(compute))
                case = {"benchmark": "attention", "case": f"{name} {direction}", "compute": compute, "threads": threads}
                print(json.dumps(case | found), flush=True)
                rates = {who: found[who]["gflops"] or float("nan") for who in found}
                rates["torch"] = max((rates[who] for who in found if who != "ours"), default=float("nan"))
                for who in ("ours", "torch"):
                    both[who] = both.get(who, 0.0) + 1e3 * gflop / rates[who]
            total = {f"{who}_ms": round(ms, 2) for who, ms in both.items() if ms == ms}
            if len(total) == 2:
                total["ratio"] = round(both["torch"] / both["ours"], 2)
            case = {"benchmark": "attention", "case": f"{name} forward + backward", "compute": compute, "threads": threads}
            print(json.dumps(case | total), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compute", nargs="+", choices=COMPUTES, default=list(COMPUTES))
    parser.add_argument("--shapes", type=int, nargs="+", default=list(range(len(SHAPES))), help="which of the shapes, from 0")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # this process measures the one number of threads given
    a = parser.parse_args()
    if a.one:
        measure(a.threads[0], a.repeats, a.compute, [list(SHAPES)[i] for i in a.shapes])
    else:
        rest = ["--repeats", str(a.repeats), "--compute", *a.compute, "--shapes", *map(str, a.shapes)]
        each_thread_count(__file__, a.threads, rest)


if __name__ == "__main__":
    main()
