"""Reading and writing beside llama-cpp-python on the same GGUF file, in turns, with the speed at which memory can be read beside both.

    FREEDIVE_LLAMACPP_PYTHON=/path/to/python FREEDIVE_SMOLLM2_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf python benchmarks/llama_cpp.py
        [--types Q4_1 Q8_0 Q4_0 F16 BF16] [--threads 1 2] [--rounds 3] [--exact]

The first names a Python with llama-cpp-python (tests/oracle/test_llama_cpp.py says how), which also makes the other types of the file, once, in
--folder, by requantising. Each side is a process of its own that loads the file once and works when told to, so only one computes at a time; the
order turns with the round. decode: 48 tokens one by one after 5 (llama.cpp is not asked to choose them). prefill: a prompt of 512 tokens.
One thread counts CPU-seconds of its process, several the wall. Ours: files of 8 and 4 bits with dtype int8, BF16 with bfloat16, F16 in float32;
--exact: all in float32. One JSON line a case: medians with least and most, `ratio` ours / theirs, and for decode the share of what reading the weights
once a token from memory allows (`read_gb_per_s`, measured in the same turns). Small files of 48 tokens: the whole selection takes under 4 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import spread

FTYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}  # llama.h: what its quantiser is asked for; Q4_1 is the file itself
DTYPES = {"F16": "float32", "BF16": "bfloat16", "F32": "float32"}
CLOCK = """
import json, sys, time
import numpy as np
file, threads = sys.argv[1], int(sys.argv[2])
clock = time.process_time if threads == 1 else time.perf_counter
def ids_of(n, seed, vocabulary): return np.random.Generator(np.random.Philox(key=[seed, 1])).integers(20, vocabulary, n).tolist()
def serve(once):
    once("prefill", 8, 0), once("decode", 1, 0)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin: print(json.dumps(once(*json.loads(line))), flush=True)
"""
OURS = (
    CLOCK
    + """
import freedive
lm = freedive.load(file, threads=threads, max_tokens=512, max_seqs=16, dtype=sys.argv[3])
def once(what, n, seed):
    if what == "prefill":
        prompt = ids_of(n, seed, lm.tokenizer.vocab_size)
        t = clock()
        lm.engine.generate([prompt], max_new_tokens=1, temperature=0)
        return clock() - t
    request = lm.engine.submit(ids_of(5, seed, lm.tokenizer.vocab_size), freedive.inference.Params(max_new_tokens=n + 1, temperature=0.0))
    while len(lm.engine.so_far(request)) < 1: lm.engine.step()
    t = clock()
    while lm.engine.busy: lm.engine.step()
    return clock() - t
serve(once)
"""
)
THEIRS = (
    CLOCK
    + """
from llama_cpp import Llama
m = Llama(file, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
def once(what, n, seed):
    m.reset()
    ids = ids_of(n if what == "prefill" else 5, seed, m.n_vocab())
    if what == "decode": m.eval(ids)
    t = clock()
    if what == "prefill": m.eval(ids)
    else:
        for _ in range(n): m.eval([ids[0]])
    return clock() - t
serve(once)
"""
)
REQUANTISE = """
import ctypes, sys, llama_cpp
p = llama_cpp.llama_model_quantize_default_params()
p.allow_requantize, p.ftype = True, int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(p)))
"""


class Side:
    def __init__(self, python: str, script: str, *arguments: str) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or python == sys.executable} | {"OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen([python, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a side stopped: its error is above")
        return json.loads(line)

    def ask(self, *what: Any) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


_memory = np.ones(48 << 20)  # 384 MB, more than any cache


def read_speed(threads: int) -> float:
    """Bytes a second that a sum over memory reads, on so many threads."""
    clock = time.process_time if threads == 1 else time.perf_counter
    parts = np.array_split(_memory, threads)
    with ThreadPoolExecutor(threads) as pool:
        began = clock()
        list(pool.map(np.sum, parts)) if threads > 1 else _memory.sum()
        return _memory.nbytes / (clock() - began)


def file_of(kind: str, source: Path, folder: Path, python: str) -> Path:
    """The model in another type, made once."""
    if kind not in FTYPES:
        return source
    path = folder / f"{source.name.split('.')[0]}.{kind}.gguf"
    if not path.exists():
        aside = path.with_suffix(".new")
        subprocess.run([python, "-c", REQUANTISE, str(source), str(aside), str(FTYPES[kind])], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        aside.rename(path)
    return path


def weight_bytes(file: Path) -> int:
    """What a token reads of the file: its tensors, the embedding being the head."""
    from freedive.model.gguf import read_gguf

    return sum(t.nbytes for t in read_gguf(file).tensors.values())


def measure(kind: str, file: Path, threads: int, c: argparse.Namespace, python: str) -> None:
    dtype = "float32" if c.exact else DTYPES.get(kind, "int8")
    sides = {"ours": Side(sys.executable, OURS, str(file), str(threads), dtype), "theirs": Side(python, THEIRS, str(file), str(threads))}
    rates: dict[tuple[str, str], list[float]] = {}
    reads: list[float] = []
    for turn in range(c.rounds):
        reads.append(read_speed(threads))
        for what, n in (("decode", 48), ("prefill", 512)):
            if what in c.tests:
                for name in sides if turn % 2 else reversed(sides):
                    rates.setdefault((what, name), []).append(n / sides[name].ask(what, n, turn + 1))
    for side in sides.values():
        side.stop()
    for what in c.tests:
        ours, theirs = spread(rates[what, "ours"]), spread(rates[what, "theirs"])
        line = {"benchmark": "llama_cpp", "case": f"{what}_{kind}_threads{threads}", "ratio": round(ours["median"] / theirs["median"], 3), "dtype": dtype,
                "ours": ours, "llama.cpp": theirs, "unit": "tokens per CPU-second" if threads == 1 else "tokens per second"}  # fmt: skip
        if what == "decode":
            read = spread(reads)
            line |= {"read_share": round(ours["median"] * weight_bytes(file) / read["median"], 3), "read_gb_per_s": round(read["median"] / 1e9, 2)}
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=os.environ.get("FREEDIVE_SMOLLM2_GGUF"), help="the GGUF file to begin with")
    parser.add_argument("--types", nargs="+", default=["Q4_1", "Q8_0", "Q4_0", "F16", "BF16"], help="a name that cannot be made is the file itself")
    parser.add_argument("--tests", nargs="+", default=["decode", "prefill"], choices=["decode", "prefill"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exact", action="store_true", help="our products in float32 at every type")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "freedive-llama-cpp", help="where the other types are kept")
    c = parser.parse_args()
    python = os.environ.get("FREEDIVE_LLAMACPP_PYTHON")
    if not python or c.model is None:
        sys.exit("FREEDIVE_LLAMACPP_PYTHON must name a Python with llama-cpp-python, and --model or FREEDIVE_SMOLLM2_GGUF a GGUF file")
    c.folder.mkdir(parents=True, exist_ok=True)
    for kind in c.types:
        file = file_of(kind, Path(c.model), c.folder, python)
        for threads in c.threads:
            measure(kind, file, threads, c, python)


if __name__ == "__main__":
    main()
