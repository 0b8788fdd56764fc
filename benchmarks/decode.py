"""Decoding a batch of 16 sequences with GPT-2 124M beside a torch loop with a static key-value cache, in turns.

    FREEDIVE_TORCH_PYTHON=/path/to/python python benchmarks/decode.py [--threads 2] [--batch 16]

64 greedy tokens for each sequence after a prompt of 64 whose time is not counted. torch: the best of eager/compile x float32/bfloat16, chosen once
(~/.cache/freedive/peers.json), malloc as installed and tuned. One JSON line per peer: tokens a second of all sequences together, `ratio`, and the share of
the speed at which the weights could be read once a token from memory (a copy's, measured here).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import numpy as np
from side_by_side import CACHE, best_mode, in_turns, ours, spread, torch, torch_python
from train import CASES, DTYPES

MODES = ["eager_float32", "eager_bfloat16", "compile_float32", "compile_bfloat16"]


def read_speed() -> float:
    """Bytes a second of a sum over 256 MB: the best of five."""
    x = np.ones(32 << 20)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        x.sum()
        best = max(best, x.nbytes / (time.perf_counter() - began))
    return best


def measure(threads: int, options: argparse.Namespace) -> None:
    model = CASES["gpt2_4x256"][0]
    request = {"kind": "decode", "model": model, "vocabulary": model["vocabulary"], "batch": options.batch, "prompt": 64, "new": 64}
    tokens = options.batch * 64
    for peer, tuned in (("installed", False), ("tuned", True)) if torch_python() else (("none", False),):
        workers, mode = {}, None
        if torch_python():

            def try_mode(mode: str) -> float:
                with torch(threads, tuned) as worker:  # noqa: B023
                    worker.ask("make", mode=mode, **request)
                    return min(worker.ask("work", n=2)["seconds"])

            mode, _ = best_mode(f"decode_b{options.batch} {peer} threads {threads}", MODES, try_mode)
            workers["torch"] = torch(threads, tuned)
            workers["torch"].ask("make", mode=mode, **request)
        for dtype in DTYPES:
            workers[dtype] = ours(threads)
            workers[dtype].ask("make", mode=dtype, **request)
        found = in_turns({n: (lambda w=w: tokens / w.ask("work", n=1)["seconds"][0]) for n, w in workers.items()}, options.rounds)
        for worker in workers.values():
            worker.stop()
        matrices = 12 * model["layers"] * model["width"] ** 2 + model["vocabulary"] * model["width"]
        line = {"benchmark": "decode", "case": f"gpt2_124M_batch{options.batch}", "peer": peer, "threads": threads, "mode": mode}
        for dtype in DTYPES:
            bound = read_speed() / (matrices * (2 if dtype == "bfloat16" else 4)) * options.batch
            ours_ = statistics.median(found[dtype])
            if "torch" in found:
                line["ratio" if dtype == DTYPES[0] else f"ratio_{dtype}"] = round(ours_ / statistics.median(found["torch"]), 3)
            line |= {f"ours_{dtype}": spread(found[dtype]), f"weight_read_share_{dtype}": round(ours_ / bound, 3)}
        if "torch" in found:
            line["torch"] = spread(found["torch"])
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if torch_python():
        print(f"torch's best modes are kept in {CACHE}", file=sys.stderr)
    for threads in options.threads:
        measure(threads, options)


if __name__ == "__main__":
    main()
