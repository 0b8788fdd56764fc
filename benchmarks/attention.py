"""Causal attention forward and backward: share of this machine's float32 FMA peak, beside torch's scaled_dot_product_attention.

    python benchmarks/attention.py [--threads 1 2] [--repeats 20]
    FREEDIVE_TORCH_PYTHON=/path/to/python python benchmarks/attention.py     # that environment has torch; interleaved with ours

Counted are only the operations of the causal half, T(T+1)/2 scores of a sequence: 2 products of 2 D operations forward, 5 backward (torch
computes more or less as it likes). One JSON line per shape, direction and number of threads: GFLOP/s (median), share of the peak probed
around every call (median), best (highest rate over highest probe). How it is timed: against_peak.py.
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

# name: (B sequences, T positions, H heads, G key-value heads, D head_dim)
SHAPES = {
    "GPT-2 small B4 H12 T1024 hd64": (4, 1024, 12, 12, 64), "grouped B4 H16/4 T1024 hd64": (4, 1024, 16, 4, 64),
    "grouped B1 H16/8 T2048 hd128": (1, 2048, 16, 8, 128), "the dive's B8 H4/2 T256 hd32": (8, 256, 4, 2, 32),
    "one long sequence B1 H2/1 T4096 hd64": (1, 4096, 2, 1, 64),
}  # fmt: skip

# The other process: reads a line "shape direction", does the work once, answers the seconds it took,
# or nan when several threads were to work and one lost its core meanwhile.
TORCH = """
import resource, sys, time, torch
threads = int(sys.argv[1])
torch.set_num_threads(threads)
now = time.thread_time if threads == 1 else time.perf_counter
lost = lambda: 0 if threads == 1 else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
held = {}
for line in sys.stdin:
    B, T, H, G, D, direction = line.split()
    shape = tuple(map(int, (B, T, H, G, D)))
    if shape not in held:
        B, T, H, G, D = shape
        held = {shape: [torch.randn(B, n, T, D, requires_grad=True) for n in (H, G, G)] + [torch.randn(B, H, T, D)]}
    q, k, v, dout = held[shape]
    enable_gqa = shape[2] != shape[3]
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=enable_gqa)
    if direction == "forward":
        with torch.no_grad():
            before, began = lost(), now()
            attend()
            seconds = now() - began
    else:
        out = attend()
        before, began = lost(), now()
        torch.autograd.grad(out, (q, k, v), dout)
        seconds = now() - began
    print(seconds if lost() == before else "nan", flush=True)
"""


class Torch:
    """torch in a process of its own, which times itself."""

    def __init__(self, python: str, threads: int) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen([python, "-c", TORCH, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)  # fmt: skip

    def seconds(self, shape: tuple[int, ...], direction: str) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, shape)) + f" {direction}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("the torch process stopped; is torch in the environment of FREEDIVE_TORCH_PYTHON?")
        return float(answer)


def measure(threads: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    python = os.environ.get("FREEDIVE_TORCH_PYTHON")
    torch = Torch(python, threads) if python else None
    for name, shape in SHAPES.items():
        B, T, H, G, D = shape
        q, dout = (rng.standard_normal((B * T, H, D), dtype=np.float32) for _ in range(2))
        k, v = (rng.standard_normal((B * T, G, D), dtype=np.float32) for _ in range(2))
        cu_seqlens = np.arange(B + 1, dtype=np.int32) * T
        given = {"q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens, "scale": D**-0.5}
        out, lse = ops.attention_forward(q, k, v, cu_seqlens)
        dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
        directions = {
            "forward": (2, "attention_forward", {"out": out, "lse": lse, **given}),
            "backward": (5, "attention_backward", {"dq": dq, "dk": dk, "dv": dv, "dout": dout, "out": out, "lse": lse, **given}),
        }
        for direction, (products, op, arguments) in directions.items():
            work = {"ours": lambda: timed(lambda: ops.call(op, **arguments, threads=threads), threads)}  # noqa: B023
            if torch:
                work["torch"] = lambda: torch.seconds(shape, direction)  # noqa: B023
            gflop = 1e-9 * products * 2 * D * B * H * T * (T + 1) / 2
            found = share_of_peak(work, gflop, threads, repeats)
            print(json.dumps({"benchmark": "attention", "case": f"{name} {direction}", "threads": threads, **found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # this process measures the one number of threads given
    a = parser.parse_args()
    if a.one:
        measure(a.threads[0], a.repeats)
    else:
        each_thread_count(__file__, a.threads, ["--repeats", str(a.repeats)])


if __name__ == "__main__":
    main()
