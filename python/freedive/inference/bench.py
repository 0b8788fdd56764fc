"""`freedive bench`: tokens per second in the shape of llama-bench: pp512 reads a prompt of 512 tokens, tg128 writes 128 tokens one by one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from freedive import _core
from freedive.runs import UserError, check_at_least, default_threads, human_bytes, option

from .engine import Engine
from .load import DTYPE_HELP, KV_CACHE_HELP, LM, WEIGHTS_HELP, load
from .params import Params


@dataclass(frozen=True)
class BenchConfig:
    """Measure how fast a model reads and writes."""

    model: Path = option(help="the model: a folder, a .gguf file or a llama2.c .bin file", positional=True)
    pp: list[int] = option([512], "tokens of the prompts read")
    tg: list[int] = option([128], "tokens written")
    depth: list[int] = option([0], "tokens that stand before those written")
    parallel: list[int] = option([1], "completions written side by side; tokens of all count")
    repetitions: int = option(5, "measurements of each, after one that does not count")
    threads: list[int] = option([], "CPU threads, several to compare (default: all)")
    weights: str = option("auto", WEIGHTS_HELP)
    dtype: str = option("float32", DTYPE_HELP)
    kv_cache_dtype: str = option("auto", KV_CACHE_HELP)
    jsonl: bool = option(False, "print one JSON object a test instead of a table")


def run(c: BenchConfig) -> int:
    """Measure and print; returns the exit code."""
    check_at_least(c, 1, "repetitions")
    for name in ("pp", "tg", "parallel", "threads"):
        if any(v < 1 for v in getattr(c, name)):
            raise UserError(f"{name} holds {min(getattr(c, name))}, it must be at least 1")
    if any(v < 0 for v in c.depth):
        raise UserError(f"depth holds {min(c.depth)}, it must not be negative")
    for number, threads in enumerate(c.threads or [default_threads()]):
        began = time.perf_counter()
        lm = load(c.model, threads=threads, max_tokens=max([512, *c.pp]), max_seqs=max([16, *c.parallel]), dtype=c.dtype, weights=c.weights, kv_cache_dtype=c.kv_cache_dtype)
        loaded = time.perf_counter() - began
        if not c.jsonl and not number:  # what is wrong with the model is said before
            print(f"| {'model':<32} | {'params':>9} | threads | {'test':>9} | {'tokens/s':>18} |\n|{'-' * 34}|{'-' * 11}|{'-' * 9}|{'-' * 11}|{'-' * 20}|")
        for n in c.pp:
            _told(c, lm, threads, loaded, f"pp{n}", n, 0, 1, lambda i, lm=lm, n=n: _read(lm, n, i))  # type: ignore[misc]
        for n, depth, rows in product(c.tg, c.depth, c.parallel):
            name = f"tg{n}" + (f"@d{depth}" if depth else "") + (f"x{rows}" if rows > 1 else "")
            _told(c, lm, threads, loaded, name, 0, n, rows, lambda i, lm=lm, n=n, d=depth, rows=rows: _write(lm, n, d, rows, i), depth)  # type: ignore[misc]
    if not c.jsonl:
        print(f"\nkeys and values: {lm.engine.kv_cache_dtype}, {human_bytes(lm.engine.stats.cache_bytes_per_token)} a token")
    return 0


def _ids(lm: LM, n: int, number: int) -> list[int]:
    """Ids at random, others each time, so that nothing is found in the cache."""
    rng = np.random.Generator(np.random.Philox(key=[number, 512]))
    return rng.integers(0, lm.tokenizer.vocab_size, n).tolist()


def _check_room(lm: LM, n: int) -> None:
    if n > lm.model.config.max_positions:
        raise UserError(f"{n} tokens are asked for; the model has {lm.model.config.max_positions} positions")


def _read(lm: LM, n: int, number: int) -> float:
    _check_room(lm, n + 1)
    prompt = _ids(lm, n, number)
    began = time.perf_counter()
    lm.engine.generate([prompt], max_new_tokens=1, temperature=0)
    return n / (time.perf_counter() - began)


def _write(lm: LM, n: int, depth: int, rows: int, number: int) -> float:
    _check_room(lm, n + depth + 1)
    engine: Engine = lm.engine
    new = n + (depth > 0)  # after a prompt the first token belongs to its reading
    requests = [engine.submit(_ids(lm, max(depth, 1), number * rows + i), Params(new, 0.0)) for i in range(rows)]
    while depth and not all(engine.so_far(r) for r in requests):
        engine.step()
    before, began = sum(len(engine.so_far(r)) for r in requests), time.perf_counter()
    while engine.busy:
        engine.step()
    return (sum(len(engine.so_far(r)) for r in requests) - before) / (time.perf_counter() - began)


def _told(c: BenchConfig, lm: LM, threads: int, loaded: float, name: str, n_prompt: int, n_gen: int, rows: int, measure: Callable[[int], float], depth: int = 0) -> None:
    measure(0)
    samples = [measure(1 + i) for i in range(c.repetitions)]
    mean = sum(samples) / len(samples)
    spread = math.sqrt(sum((s - mean) ** 2 for s in samples) / max(1, len(samples) - 1))
    params = lm.model.config.n_params()
    if c.jsonl:
        kept = {"float32": "f32", "bfloat16": "bf16", "int8": "int8"}[lm.engine.kv_cache_dtype]
        row: dict[str, Any] = {
            "model_filename": str(c.model), "model_n_params": params, "n_threads": threads, "cpu_tier": _core.cpu_tier(), "dtype": lm.model.dtype, "weights": list(lm.model.packed) or ["float32"], "type_k": kept,
            "type_v": kept, "kv_bytes_per_token": lm.engine.stats.cache_bytes_per_token, "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": depth, "n_parallel": rows, "test": name, "avg_ts": mean, "stddev_ts": spread,
            "samples_ts": samples, "load_seconds": loaded,
        }  # fmt: skip
        print(json.dumps(row), flush=True)
    else:
        print(f"| {c.model.name or str(c.model):<32.32} | {params / 1e6:>7.2f} M | {threads:>7} | {name:>9} | {f'{mean:.2f} ± {spread:.2f}':>18} |", flush=True)
