"""Matmul at training shapes: share of this machine's peak in float32 (beside NumPy's BLAS, interleaved) and in bfloat16.

    python benchmarks/matmul.py [--threads 1 2] [--repeats 40] [--dtype float32 bfloat16] [--only gpt2]

One JSON line per shape, layout and dtype: GFLOP/s (medians), share of that dtype's peak probed around every call (median) and best
(highest rate over highest probe). The last line of each dtype and number of threads holds geometric means of the shares. The 15 "gpt2"
cases are GPT-2 124M's products on 1,024 tokens. How timed: against_peak.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics

import numpy as np
from against_peak import each_thread_count, share_of_peak, timed

from freedive import ops
from freedive.bench.ops import aligned

# name: (N tokens, C in, O out). With 512 tokens, calls are short enough that most of them run undisturbed
SHAPES = {
    "gpt2 qkv": (1024, 768, 2304), "gpt2 projection": (1024, 768, 768), "gpt2 up": (1024, 768, 3072), "gpt2 down": (1024, 3072, 768),
    "gpt2 head": (1024, 768, 50304),
    "768 qkv": (512, 768, 2304), "768 projection": (512, 768, 768), "768 up": (512, 768, 3072), "768 down": (512, 3072, 768),
    "128 qkv": (4096, 128, 256), "128 up": (4096, 128, 704), "128 down": (4096, 352, 128),
}  # fmt: skip


def measure(threads: int, repeats: int, dtype: str, only: str) -> None:
    compute = ops.compute_code(dtype)
    rng = np.random.default_rng(0)
    shares: dict[str, list[float]] = {}
    for name, (N, C, O) in SHAPES.items():
        if not name.startswith(only):
            continue
        x, w, dout = (aligned(s, lambda array: rng.standard_normal(dtype=np.float32, out=array)) for s in ((N, C), (O, C), (N, O)))
        out, dx, dw = (aligned(s) for s in ((N, O), (N, C), (O, C)))
        forward = {"out": out, "x": x, "weight": w, "accumulate": 0}
        layouts = {
            "forward": ("matmul_forward", forward, lambda: np.matmul(x, w.T, out=out)),
            "forward packed": ("matmul_forward", {**forward, "packed": ops.matmul_pack(w, compute=dtype)}, lambda: np.matmul(x, w.T, out=out)),
            "backward_input": ("matmul_backward_input", {"dx": dx, "dout": dout, "weight": w, "accumulate": 0}, lambda: np.matmul(dout, w, out=dx)),
            "backward_weight": ("matmul_backward_weight", {"dweight": dw, "dout": dout, "x": x}, lambda: np.matmul(dout.T, x, out=dw)),
        }  # fmt: skip
        if name.startswith("gpt2"):
            del layouts["forward packed"]
        for layout, (op, arguments, numpys) in layouts.items():
            work = {"ours": lambda: timed(lambda: ops.call(op, **arguments, threads=threads, compute=dtype), threads)}  # noqa: B023
            if dtype == "float32":
                work["numpy"] = lambda: timed(numpys, threads)  # noqa: B023
            found = share_of_peak(work, 2e-9 * N * C * O, threads, max(3, repeats // 8) if O > 10000 else repeats, compute)
            for who, width in (("ours", name.split()[0]), ("numpy", f"numpy {name.split()[0]}")):
                if who in found and found[who]["share"] is not None:
                    shares.setdefault(width, []).append(found[who]["share"])
            print(json.dumps({"benchmark": "matmul", "case": f"{name} {layout}", "dtype": dtype, "threads": threads, **found}), flush=True)
    means = {f"{who} ({len(values)} cases)": round(math.exp(statistics.mean(map(math.log, values))), 3) for who, values in shares.items()}
    print(json.dumps({"benchmark": "matmul", "case": "geometric means of share", "dtype": dtype, "threads": threads, **means}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"] if ops.fast_bf16() else ["float32"])
    parser.add_argument("--only", default="", help="names of cases begin with this")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # this process measures the one number of threads given
    a = parser.parse_args()
    if a.one:
        for dtype in a.dtype:
            measure(a.threads[0], a.repeats, dtype, a.only)
    else:
        each_thread_count(__file__, a.threads, ["--repeats", str(a.repeats), "--only", a.only, "--dtype", *a.dtype])


if __name__ == "__main__":
    main()
