"""Reading and writing beside llama-cpp-python, the same GGUF file, one run, turn by turn: python benchmarks/llama_cpp.py --file model.gguf.

FREEDIVE_LLAMACPP_PYTHON names a Python with llama-cpp-python (tests/oracle/test_llama_cpp.py says how). Each side loads the file once in a
process of its own and measures when told to, so that only one computes at a time. Prints one JSON line a case: tokens per second of both,
the median of the rounds, and ours / theirs. Reading: a prompt of 512 tokens. Writing: 64 tokens after it, one by one (llama.cpp is not asked to choose them).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

OURS = """
import json, sys, time
import numpy as np
import freedive
file, threads = sys.argv[1], int(sys.argv[2])
began = time.perf_counter()
lm = freedive.load(file, threads=threads, max_tokens=512, max_seqs=16, dtype=sys.argv[3])
def once(n, new, seed):
    ids = np.random.Generator(np.random.Philox(key=[seed, 1])).integers(20, lm.tokenizer.vocab_size, n).tolist()
    t = time.perf_counter()
    lm.engine.generate([ids], max_new_tokens=1, temperature=0)
    read = time.perf_counter() - t
    request = lm.engine.submit(ids[:-1] + [ids[0]], freedive.inference.Params(max_new_tokens=new + 1, temperature=0.0))
    while len(lm.engine.so_far(request)) < 1: lm.engine.step()
    t = time.perf_counter()
    while lm.engine.busy: lm.engine.step()
    return read, time.perf_counter() - t
once(8, 1, 0)
print(json.dumps({"ready": time.perf_counter() - began}), flush=True)
for line in sys.stdin:
    print(json.dumps(once(*json.loads(line))), flush=True)
"""
THEIRS = """
import json, sys, time
import numpy as np
from llama_cpp import Llama
file, threads = sys.argv[1], int(sys.argv[2])
began = time.perf_counter()
m = Llama(file, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
def once(n, new, seed):
    ids = np.random.Generator(np.random.Philox(key=[seed, 1])).integers(20, m.n_vocab(), n).tolist()
    m.reset()
    t = time.perf_counter()
    m.eval(ids)
    read = time.perf_counter() - t
    t = time.perf_counter()
    for _ in range(new):
        m.eval([ids[0]])
    return read, time.perf_counter() - t
once(8, 1, 0)
print(json.dumps({"ready": time.perf_counter() - began}), flush=True)
for line in sys.stdin:
    print(json.dumps(once(*json.loads(line))), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", required=True, nargs="+")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", default="float32", help="of our products")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64)
    c = parser.parse_args()
    python = os.environ.get("FREEDIVE_LLAMACPP_PYTHON")
    if not python:
        sys.exit("FREEDIVE_LLAMACPP_PYTHON names no Python with llama-cpp-python")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for file in c.file:
        for threads in c.threads:
            sides = {
                "ours": subprocess.Popen([sys.executable, "-c", OURS, file, str(threads), c.dtype], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True),
                "theirs": subprocess.Popen([python, "-c", THEIRS, file, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean),
            }
            ready = {}
            times: dict[str, list[list[float]]] = {name: [] for name in sides}
            for name, side in sides.items():
                assert side.stdout is not None
                ready[name] = json.loads(side.stdout.readline())["ready"]
            for turn in range(c.rounds):
                for name, side in sides.items():
                    assert side.stdin is not None and side.stdout is not None
                    side.stdin.write(json.dumps([512, c.new, turn + 1]) + "\n")
                    side.stdin.flush()
                    times[name].append(json.loads(side.stdout.readline()))
            for side in sides.values():
                assert side.stdin is not None
                side.stdin.close()
                side.wait()
            for which, tokens in ((0, 512), (1, c.new)):
                speed = {name: statistics.median(tokens / t[which] for t in rows) for name, rows in times.items()}
                print(json.dumps({"file": os.path.basename(file), "dtype": c.dtype, "threads": threads, "test": ("pp512", f"tg{c.new}@512")[which],
                                  "ours": round(speed["ours"], 1), "llama.cpp": round(speed["theirs"], 1), "ratio": round(speed["ours"] / speed["theirs"], 3),
                                  "ready_seconds": ready}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
