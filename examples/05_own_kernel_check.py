"""Your own kernel: every variant of an operation against NumPy in float64, and how fast each is.   python 05_own_kernel_check.py

Write a variant in csrc/cpu, register it, rebuild: it appears here, and in the tests, by being there.
"""

import time

import numpy as np

from freedive import ops
from freedive.reference import ops as reference

N, C, O = 512, 768, 768
rng = np.random.default_rng(0)
x = rng.standard_normal((N, C), dtype=np.float32)
weight = rng.standard_normal((O, C), dtype=np.float32)
wanted = reference.matmul_forward(x, weight)

print(f"matmul_forward, {N} x {C} by {C} x {O}, tier {ops.tier()}, one thread")
for variant in ops.variants("matmul_forward"):
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        out = ops.matmul_forward(x, weight, variant=variant)
        best = min(best, time.perf_counter() - began)
    error = np.linalg.norm(out - wanted) / np.linalg.norm(wanted)
    assert error < 1e-5, f"{variant} is wrong: relative error {error:.1e}"
    print(f"  {variant:12} error {error:.1e}   {best * 1e3:7.2f} ms   {2e-9 * N * C * O / best:6.1f} GFLOP/s")
    same = np.array_equal(out, ops.matmul_forward(x, weight, variant=variant, threads=2))
    print(f"  {'':12} two threads give the same bits: {same}")
