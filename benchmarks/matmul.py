"""float32 matmul at training shapes: share of this machine's FMA peak, beside NumPy's BLAS, interleaved in one run.

    python benchmarks/matmul.py [--threads 1 2] [--repeats 40]

One JSON line per shape and layout: ours and NumPy's GFLOP/s (medians), share of the peak probed around every call (median) and best
(highest rate over highest probe). The last line of each number of threads holds geometric means of the shares. How timed: against_peak.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics

import numpy as np
from against_peak import each_thread_count, share_of_peak, timed

from freedive import ops

# name: (N tokens, C in, O out). 768 wide: GPT-2 small and, with 512 tokens, short enough calls that most of them run undisturbed
SHAPES = {
    "768 qkv": (512, 768, 2304), "768 projection": (512, 768, 768), "768 up": (512, 768, 3072), "768 down": (512, 3072, 768),
    "128 qkv": (4096, 128, 256), "128 up": (4096, 128, 704), "128 down": (4096, 352, 128),
}  # fmt: skip


def measure(threads: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    shares: dict[str, list[float]] = {}
    for name, (N, C, O) in SHAPES.items():
        x, w, dout = (rng.standard_normal(s, dtype=np.float32) for s in ((N, C), (O, C), (N, O)))
        out, dx, dw = np.empty((N, O), np.float32), np.empty((N, C), np.float32), np.zeros((O, C), np.float32)
        forward = {"out": out, "x": x, "weight": w, "accumulate": 0}
        layouts = {
            "forward": ("matmul_forward", forward, lambda: np.matmul(x, w.T, out=out)),
            "forward packed": ("matmul_forward", {**forward, "packed": ops.matmul_pack(w)}, lambda: np.matmul(x, w.T, out=out)),
            "backward_input": ("matmul_backward_input", {"dx": dx, "dout": dout, "weight": w, "accumulate": 0}, lambda: np.matmul(dout, w, out=dx)),
            "backward_weight": ("matmul_backward_weight", {"dweight": dw, "dout": dout, "x": x}, lambda: np.matmul(dout.T, x, out=dw)),
        }  # fmt: skip
        for layout, (op, arguments, numpys) in layouts.items():
            work = {"ours": lambda: timed(lambda: ops.call(op, **arguments, threads=threads), threads), "numpy": lambda: timed(numpys, threads)}  # fmt: skip  # noqa: B023
            found = share_of_peak(work, 2e-9 * N * C * O, threads, repeats)
            for who, width in (("ours", name.split()[0]), ("numpy", f"numpy {name.split()[0]}")):
                if found[who]["share"] is not None:
                    shares.setdefault(width, []).append(found[who]["share"])
            print(json.dumps({"benchmark": "matmul", "case": f"{name} {layout}", "threads": threads, **found}), flush=True)
    means = {f"{who} ({len(values)} cases)": round(math.exp(statistics.mean(map(math.log, values))), 3) for who, values in shares.items()}
    print(json.dumps({"benchmark": "matmul", "case": "geometric means of share", "threads": threads, **means}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # this process measures the one number of threads given
    a = parser.parse_args()
    if a.one:
        measure(a.threads[0], a.repeats)
    else:
        each_thread_count(__file__, a.threads, ["--repeats", str(a.repeats)])


if __name__ == "__main__":
    main()
