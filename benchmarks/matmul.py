"""float32 matmul at training shapes: share of this machine's FMA peak, beside NumPy's BLAS, interleaved in one run.

    python benchmarks/matmul.py [--threads 2]

One JSON line per shape and layout: GFLOP/s (median, min, max), ratio to the peak measured around it, and NumPy's figure (its own thread
setting: set OPENBLAS_NUM_THREADS to compare at one thread). The last line is the geometric mean of the ratios to peak.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time

import numpy as np

from freedive import _core, ops

SHAPES = {  # name: (N tokens, C in, O out)
    "768 attention": (1024, 768, 2304), "768 projection": (1024, 768, 768), "768 up": (1024, 768, 3072), "768 down": (1024, 3072, 768),
    "128 qkv": (4096, 128, 256), "128 up": (4096, 128, 704), "128 down": (4096, 352, 128),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    ratios = []
    for name, (N, C, O) in SHAPES.items():
        x, w, dout = (rng.standard_normal(s, dtype=np.float32) for s in ((N, C), (O, C), (N, O)))
        out, dx, dw = np.empty((N, O), np.float32), np.empty((N, C), np.float32), np.zeros((O, C), np.float32)
        layouts = {
            "forward": (lambda: ops.call("matmul_forward", out=out, x=x, weight=w, accumulate=0, threads=a.threads), lambda: np.matmul(x, w.T, out=out)),
            "backward_input": (lambda: ops.call("matmul_backward_input", dx=dx, dout=dout, weight=w, accumulate=0, threads=a.threads), lambda: np.matmul(dout, w, out=dx)),
            "backward_weight": (lambda: ops.call("matmul_backward_weight", dweight=dw, dout=dout, x=x, threads=a.threads), lambda: np.matmul(dout.T, x, out=dw)),
        }
        for layout, (ours, numpys) in layouts.items():
            times: dict[str, list[float]] = {"ours": [], "numpy": []}
            peaks = []
            for _ in range(a.repeats + 1):
                peaks.append(_core.measure_peak(a.threads))
                for who, f in (("ours", ours), ("numpy", numpys)):
                    began = time.perf_counter()
                    f()
                    times[who].append(2.0 * N * C * O / (time.perf_counter() - began) / 1e9)
            mine, theirs, peak = times["ours"][1:], statistics.median(times["numpy"][1:]), max(peaks) / 1e9
            ratios.append(statistics.median(mine) / peak)
            print(json.dumps({"benchmark": "matmul", "case": f"{name} {layout}", "threads": a.threads, "gflops": round(statistics.median(mine), 1),
                              "min": round(min(mine), 1), "max": round(max(mine), 1), "peak": round(peak, 1), "ratio_to_peak": round(ratios[-1], 3),
                              "numpy_gflops": round(theirs, 1)}), flush=True)  # fmt: skip
    print(json.dumps({"benchmark": "matmul", "case": "geometric mean", "threads": a.threads, "ratio_to_peak": round(math.exp(statistics.mean(map(math.log, ratios))), 3)}))


if __name__ == "__main__":
    main()
