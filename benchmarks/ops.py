"""Ops bound by memory: gigabytes a second, and the share of this machine's memory bandwidth measured around every call.

    python benchmarks/ops.py [--threads 1 2] [--megabytes 64] [--repeats 15]

Bytes are what an op must read and write once; caches that hold less than the tensors are assumed (--megabytes sizes each tensor). The
yardstick is a copy of the same size (NumPy's, one thread: bytes read plus bytes written), so an op that reads more than it writes can
exceed 1. One JSON line per op: every registered variant's GB/s (median), share (median of rate / yardstick). CPU time with one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics

import numpy as np
from against_peak import each_thread_count, timed

from freedive import ops

C, H, D = 768, 12, 64


def cases(rng: np.random.Generator, floats: int) -> dict[str, tuple[str, dict, float]]:
    """name -> op, arguments, bytes that must move"""
    N = floats // C
    x, y, z, out, other = (rng.standard_normal((N, C), dtype=np.float32) for _ in range(5))
    weight, bias, mean, rstd = rng.random(C, dtype=np.float32), rng.random(C, dtype=np.float32), np.zeros(N, np.float32), np.ones(N, np.float32)
    heads = {"out": out.reshape(N, H, D), "x": x.reshape(N, H, D)}
    positions = np.arange(N, dtype=np.int32) % 1024
    cos, sin = (rng.random((1024, D // 2), dtype=np.float32) for _ in range(2))
    row = {"x": x[:, None], "weight": weight}  # one head of C: the residual stream
    flat = {"param": out.ravel(), "grad": x.ravel(), "m": y.ravel(), "v": np.abs(z).ravel(), "norm": np.ones(1, np.float32)}
    hyper = np.array([1e-6, 0.9, 0.95, 1e-8, 0.1, 1, 0.5, 0.5], np.float32)
    tokens = rng.integers(0, N, N).astype(np.int32)
    tensor = 4.0 * N * C
    return {
        "rmsnorm_forward": ("rmsnorm_forward", {**row, "out": out[:, None], "rstd": rstd[:, None], "eps": 1e-6}, 2 * tensor),
        "rmsnorm_backward": ("rmsnorm_backward", {**row, "dx": out[:, None], "dweight": bias, "dout": y[:, None], "rstd": rstd[:, None], "accumulate": 0}, 3 * tensor),
        "layernorm_forward": ("layernorm_forward", {"out": out, "mean": mean, "rstd": rstd, "x": x, "weight": weight, "bias": bias, "eps": 1e-5}, 2 * tensor),
        "layernorm_backward": ("layernorm_backward", {"dx": out, "dweight": bias, "dbias": bias.copy(), "dout": y, "x": x, "weight": weight, "mean": mean, "rstd": rstd, "accumulate": 0}, 3 * tensor),
        "rope": ("rope", {**heads, "cos": cos, "sin": sin, "positions": positions, "inverse": 0}, 2 * tensor),
        "gelu_forward": ("gelu_forward", {"out": out, "x": x}, 2 * tensor),
        "gelu_backward": ("gelu_backward", {"dx": out, "dout": y, "x": x}, 3 * tensor),
        "swiglu_forward": ("swiglu_forward", {"out": out, "gate": x, "up": y}, 3 * tensor),
        "swiglu_backward": ("swiglu_backward", {"dgate": out, "dup": other, "dout": z, "gate": x, "up": y}, 5 * tensor),
        "embedding_forward": ("embedding_forward", {"out": out, "tokens": tokens, "wte": x}, 2 * tensor),
        "matmul_pack": ("matmul_pack", {"packed": np.empty(-(-N // 16) * 16 * C, np.float32), "weight": x}, 2 * tensor),
        "global_norm": ("global_norm", {"out": np.ones(1, np.float32), "x": x.ravel()}, tensor),
        "adamw": ("adamw", {**flat, "hyper": hyper}, 7 * tensor),
    }  # fmt: skip


def measure(threads: int, megabytes: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    floats = megabytes * 250_000 // C * C
    source, target = rng.standard_normal(floats, dtype=np.float32), np.empty(floats, np.float32)

    def yardstick() -> float:
        return 8e-9 * floats / timed(lambda: np.copyto(target, source), threads)

    for name, (op, arguments, size) in cases(rng, floats).items():
        found = {}
        for variant in ops.variants(op):
            rates, shares = [], []
            for repeat in range(repeats + 1):
                before = yardstick()
                rate = 1e-9 * size / timed(lambda: ops.call(op, **arguments, variant=variant, threads=threads), threads)  # noqa: B023
                if repeat > 0:
                    rates.append(rate)
                    shares.append(rate / ((before + yardstick()) / 2))
            found[variant] = {"gigabytes_per_second": round(statistics.median(rates), 1), "share": round(statistics.median(shares), 2)}
        print(json.dumps({"benchmark": "ops", "case": name, "threads": threads, **found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # this process measures the one number of threads given
    a = parser.parse_args()
    if a.one:
        measure(a.threads[0], a.megabytes, a.repeats)
    else:
        each_thread_count(__file__, a.threads, ["--megabytes", str(a.megabytes), "--repeats", str(a.repeats)])


if __name__ == "__main__":
    main()
