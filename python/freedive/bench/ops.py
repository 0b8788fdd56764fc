"""`freedive bench ops`: every kernel of a training step beside the limit of this machine, measured around every call.

What memory bounds is compared with a copy (bytes read plus bytes written, the same number of threads), what the processor bounds with
multiply-adds on registers. Bytes are those an op must read and write once; FLOPs those of its products. An op that reads more than it writes, or
whose data a cache holds, can exceed 1. One JSON line per case: `ratio` is the median over calls of rate / limit. --table prints them as the
table of csrc/README.md instead, with the naive variant of what memory bounds beside: two minutes on two quiet cores.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from freedive import _core, ops
from freedive.runs import UserError, check_at_least, default_threads, option

C, H, D, F, VOCABULARY = 768, 12, 64, 3072, 50304  # GPT-2 small
PROBE = 300_000  # iterations of the peak loop: a millisecond


@dataclass(frozen=True)
class BenchOpsConfig:
    """Measure the kernels of a training step."""

    only: list[str] = option([], "cases whose name holds one of these (default: all)")
    threads: int | None = option(None, "CPU threads (default: all)")
    dtype: str = option("auto", "of products: float32, bfloat16, or auto for the faster here")
    megabytes: int = option(64, "size of each tensor of what memory bounds; should exceed the caches")
    repetitions: int = option(5, "calls of each case, after one that does not count")
    table: bool = option(False, "print a Markdown table, with the naive variants of what memory bounds")


@dataclass(frozen=True)
class Case:
    """One call of one op. `work` is gigabytes where memory bounds it, else GFLOP."""

    name: str
    op: str
    arguments: dict[str, Any]
    work: float
    memory: bool
    compute: str = "float32"

    def run(self, threads: int, variant: str | None = None) -> None:
        ops.call(self.op, threads=threads, variant=variant, **self.arguments)


def aligned(shape: tuple[int, ...], fill: Callable[[np.ndarray], object] | None = None) -> np.ndarray:
    """float32 at a multiple of 64 bytes, as in a model, and written once, so that its pages are there."""
    room = np.empty(int(np.prod(shape)) + 16, np.float32)
    start = -(room.ctypes.data // 4) % 16
    array = room[start : start + int(np.prod(shape))].reshape(shape)
    array[...] = 0
    if fill:
        fill(array)
    return array


def memory_cases(megabytes: int) -> Iterator[Case]:
    """Norms, rotations, activations, embedding and optimizers on tensors of this size."""
    rng = np.random.default_rng(0)
    N = max(1, megabytes * 250_000 // C)
    x, y, z, out, other = (aligned((N, C), lambda array: rng.standard_normal(dtype=np.float32, out=array)) for _ in range(5))
    weight, bias, mean, rstd = rng.random(C, dtype=np.float32), rng.random(C, dtype=np.float32), np.zeros(N, np.float32), np.ones(N, np.float32)
    positions, tokens = np.arange(N, dtype=np.int32) % 1024, rng.integers(0, N, N).astype(np.int32)
    cos, sin = (rng.random((1024, D // 2), dtype=np.float32) for _ in range(2))
    row = {"x": x[:, None], "weight": weight}  # one head of C: the residual stream
    flat = {"param": out.ravel(), "grad": x.ravel(), "m": y.ravel(), "v": np.abs(z, out=z).ravel(), "norm": np.ones(1, np.float32)}
    hyper = np.array([1e-6, 0.9, 0.95, 1e-8, 0.1, 1, 0.5, 0.5], np.float32)
    muon = {"norm": flat["norm"], "hyper": np.array([1e-6, 0.95, 1, 0.1, 1], np.float32)}
    for name, arguments, tensors in (
        ("rmsnorm_forward", {**row, "out": out[:, None], "rstd": rstd[:, None], "eps": 1e-6}, 2),
        ("rmsnorm_backward", {**row, "dx": out[:, None], "dweight": bias, "dout": y[:, None], "rstd": rstd[:, None], "accumulate": 0}, 3),
        ("layernorm_forward", {"out": out, "mean": mean, "rstd": rstd, "x": x, "weight": weight, "bias": bias, "eps": 1e-5}, 2),
        ("layernorm_backward", {"dx": out, "dweight": bias, "dbias": bias.copy(), "dout": y, "x": x, "weight": weight, "mean": mean, "rstd": rstd, "accumulate": 0}, 3),
        ("rope", {"out": out.reshape(N, H, D), "x": x.reshape(N, H, D), "cos": cos, "sin": sin, "positions": positions, "inverse": 0}, 2),
        ("gelu_forward", {"out": out, "x": x}, 2),
        ("gelu_backward", {"dx": out, "dout": y, "x": x}, 3),
        ("swiglu_forward", {"out": out, "gate": x, "up": y}, 3),
        ("swiglu_backward", {"dgate": out, "dup": other, "dout": z, "gate": x, "up": y}, 5),
        ("embedding_forward", {"out": out, "tokens": tokens, "wte": x}, 2),
        ("embedding_backward", {"dwte": out, "dout": x, "tokens": tokens}, 3),
        ("global_norm", {"out": np.ones(1, np.float32), "x": x.ravel()}, 1),
        ("adamw", {**flat, "hyper": hyper}, 7),
        ("muon_momentum", {"out": out.ravel(), "m": y.ravel(), "grad": x.ravel(), **muon}, 4),
        ("muon_update", {"param": out.ravel(), "x": x.ravel(), "scale": 1.0, **muon}, 3),
    ):  # fmt: skip
        yield Case(name, name, arguments, 4e-9 * N * C * tensors, True)


def product_cases(compute: str, tokens: int = 1024) -> Iterator[Case]:
    """The products of GPT-2 small on this many tokens, attention of four sequences of 1,024, and the head with cross-entropy."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: aligned(shape, lambda array: rng.standard_normal(dtype=np.float32, out=array))
    for name, (inputs, outputs) in {"qkv": (C, 3 * C), "projection": (C, C), "up": (C, F), "down": (F, C)}.items():
        x, w, dout = normal(tokens, inputs), normal(outputs, inputs), normal(tokens, outputs)
        gflop = 2e-9 * tokens * inputs * outputs
        for op, arguments in (
            ("matmul_forward", {"out": aligned(dout.shape), "x": x, "weight": w, "accumulate": 0}),
            ("matmul_backward_input", {"dx": aligned(x.shape), "dout": dout, "weight": w, "accumulate": 0}),
            ("matmul_backward_weight", {"dweight": aligned(w.shape), "dout": dout, "x": x}),
        ):
            yield Case(f"{op} {name}", op, arguments | {"compute": compute}, gflop, False, compute)
    x, w, bias = normal(tokens, C), normal(F, C), normal(F)
    stored = lambda width: np.empty((tokens, width), ml_dtypes.bfloat16 if compute == "bfloat16" else np.float32)  # as a model in this dtype keeps it
    for op, width in (("matmul_gelu_forward", F), ("matmul_swiglu_forward", F // 2)):
        arguments = {"out": stored(width), "aux": stored(F), "x": x, "weight": w, "bias": bias, "compute": compute}
        yield Case(f"{op.removesuffix('_forward')} up", op, arguments, 2e-9 * tokens * C * F, False, compute)
    B, T = 4, 1024
    q, k, v, dout = (normal(B * T, H, D) for _ in range(4))
    given = {"q": q, "k": k, "v": v, "cu_seqlens": np.arange(B + 1, dtype=np.int32) * T, "scale": D**-0.5, "compute": compute}
    out, lse = aligned(q.shape), np.empty((B * T, H), np.float32)
    pairs = 1e-9 * 2 * D * B * H * T * (T + 1) / 2
    yield Case("attention_forward", "attention_forward", {"out": out, "lse": lse, **given}, 2 * pairs, False, compute)
    gradients = {"dq": aligned(q.shape), "dk": aligned(q.shape), "dv": aligned(q.shape), "dout": dout, "out": out, "lse": lse}
    yield Case("attention_backward", "attention_backward", {**gradients, **given}, 5 * pairs, False, compute)
    x, w = normal(tokens, C), normal(VOCABULARY, C)
    w *= np.float32(0.02)
    targets = rng.integers(0, VOCABULARY, (tokens, 1)).astype(np.int32)
    per_token = {name: np.empty(tokens, np.float32) for name in ("entropy", "lse")}
    yield Case("head_forward_backward", "head_forward_backward", {
        "logprobs": np.empty((tokens, 1), np.float32), **per_token, "dx": aligned(x.shape), "dweight": aligned(w.shape), "x": x, "weight": w, "targets": targets,
        "temperature": np.ones(1, np.float32), "dlogprobs": np.full((tokens, 1), -1 / tokens, np.float32), "compute": compute,
    }, 6e-9 * tokens * C * VOCABULARY, False, compute)  # fmt: skip


class Limits:
    """The machine's limits, as of this instant: gigabytes a second of a copy, GFLOP/s of multiply-adds on registers."""

    def __init__(self, threads: int, megabytes: int):
        self.threads = threads
        floats = max(1, megabytes * 250_000 // threads)
        self.parts = [(np.ones(floats, np.float32), np.empty(floats, np.float32)) for _ in range(threads)]
        self.helpers = ThreadPoolExecutor(threads)

    def copy(self) -> float:
        began = time.perf_counter()
        list(self.helpers.map(lambda part: np.copyto(part[1], part[0]), self.parts))
        return sum(2e-9 * part[0].nbytes for part in self.parts) / (time.perf_counter() - began)

    def peak(self, compute: str) -> float:
        began = time.perf_counter()
        flops = _core.run_peak(self.threads, PROBE, *([1] if compute == "bfloat16" else []))
        return 1e-9 * flops / (time.perf_counter() - began)

    def of(self, case: Case) -> float:
        return self.copy() if case.memory else self.peak(case.compute)


def measure(case: Case, limits: Limits, repetitions: int, call: Callable[[], object] | None = None) -> dict[str, Any]:
    """Medians of one case: rate, limit and their ratio, each call divided by the mean of the limits right before and after it."""
    rates, ratios, found = [], [], []
    for repetition in range(repetitions + 1):
        before = limits.of(case)
        began = time.perf_counter()
        case.run(limits.threads) if call is None else call()
        rate = case.work / (time.perf_counter() - began)
        limit = (before + limits.of(case)) / 2
        if repetition > 0:
            rates.append(rate)
            ratios.append(rate / limit)
            found.append(limit)
    unit = "GB/s" if case.memory else "GFLOP/s"
    return {"value": round(statistics.median(rates), 1), "min": round(min(rates), 1), "max": round(max(rates), 1), "unit": unit,
            "limit": round(statistics.median(found), 1), "ratio": round(statistics.median(ratios), 3)}  # fmt: skip


def table_row(case: Case, line: dict[str, Any], limits: Limits) -> str:
    """A row of the table: medians, and what the first rung of the ladder reaches (two calls of it) where memory bounds the op."""
    naive = ""
    if case.memory and len(ops.variants(case.op)) > 1:
        naive = str(measure(case, limits, 2, lambda: case.run(limits.threads, "naive"))["ratio"])
    return f"| {case.name} | {line['value']} {line['unit']} | {line['limit']} | {line['ratio']} | {naive} |"


def run(c: BenchOpsConfig) -> None:
    from freedive.model.model import check_dtype

    check_at_least(c, 1, "threads", "megabytes", "repetitions")
    threads, compute = c.threads or default_threads(), check_dtype(c.dtype)
    limits, found = Limits(threads, c.megabytes), False
    if c.table:
        date, products = time.strftime("%Y-%m-%d"), f"products in {compute}"
        print(f"{_core.cpu_tier()}, {threads} {'thread' if threads == 1 else 'threads'}, {products}, {date}, load {os.getloadavg()[0]:.1f}\n")
        print("| case | measured | limit | share | naive variant, share |\n|---|---|---|---|---|", flush=True)
    for make in (lambda: memory_cases(c.megabytes), lambda: product_cases(compute)):
        for case in make():
            if c.only and not any(part in case.name for part in c.only):
                continue
            found = True
            line = {"bench": "ops", "case": case.name, "tier": _core.cpu_tier(), "threads": threads, "dtype": case.compute, **measure(case, limits, c.repetitions)}
            print(table_row(case, line, limits) if c.table else json.dumps(line), flush=True)
    if not found:
        raise UserError(f"no case holds {' or '.join(c.only)} in its name", hint="`freedive bench ops` without --only lists all")
