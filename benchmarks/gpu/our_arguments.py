"""The arguments of freedive's ops at a case's sizes: random numbers, outputs full of NaN."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from freedive import ops
from freedive.bench.ops import memory_cases

Arguments = dict[str, Any]
NOISE = 1 << 22
BF16 = np.dtype(ml_dtypes.bfloat16)


@lru_cache(maxsize=1)
def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(NOISE, dtype=np.float32)


def normal(seed: int, *shape: int, std: float = 1.0) -> np.ndarray:
    """Four million normal numbers, begun at a place that the seed tells and then again: gigabytes of others would take most of the time there is"""
    start = seed * 999_983 % NOISE
    flat = np.empty(int(np.prod(shape)), np.float32)
    at = 0
    while at < flat.size:
        n = min(NOISE - start, flat.size - at)
        np.multiply(noise()[start : start + n], np.float32(std), out=flat[at : at + n])
        at, start = at + n, 0
    return flat.reshape(shape)


@lru_cache(maxsize=1)
def shared_memory_cases(megabytes: int) -> dict[str, Arguments]:
    return {case.op: case.arguments for case in memory_cases(megabytes)}


def arguments_of(case: Arguments, device: str) -> tuple[Arguments, Callable[[], Arguments]]:
    """The op's inputs, and a function that makes its outputs anew: NaN, or what the op adds to"""
    op, z = case["op"], case["sizes"]
    if case["kind"] == "memory":
        given = shared_memory_cases(z["megabytes"])[op]
    elif case["kind"] == "product":
        given = product(op, z, device)
    elif case["kind"] == "activated":
        given = activated(op, z, device)
    elif case["kind"] == "attention":
        given = attention(op, z, device)
    elif case["kind"] == "cached":
        given = cached(z)
    elif case["kind"] == "quantized":
        weight = ops.quantized_pack(quantized_rows(z["O"], z["C"]), Q8_0, z["C"], device=device)
        given = {"out": np.empty((z["N"], z["O"]), np.float32), "x": normal(1, z["N"], z["C"]), "weight": weight, "type": Q8_0, "compute": "int8"}
    else:
        given = head(z, device)
    schema = {a.name: a for a in ops.schemas()[op]}
    written = {name for name in given if name in schema and schema[name].written}
    read = {name for name in written if schema[name].read and not (given.get("accumulate") == 0 and given[name].ndim > 1)}

    def fresh() -> Arguments:
        return {name: given[name].copy() if name in read else np.full_like(given[name], np.nan) for name in written}

    return {name: value for name, value in given.items() if name not in written}, fresh


def product(op: str, z: Arguments, device: str) -> Arguments:
    N, C, O = z["N"], z["C"], z["O"]
    x, weight, dout = normal(1, N, C), normal(2, O, C, std=0.02), normal(3, N, O)
    if op == "matmul_forward":  # the weight is rounded once an optimizer step, as in a model
        packed = ops.matmul_pack(weight, compute="bfloat16", device=device)
        return {"out": dout, "x": x, "weight": weight, "packed": packed if packed.size else None, "accumulate": 0, "compute": "bfloat16"}
    if op == "matmul_backward_input":
        return {"dx": x, "dout": dout, "weight": weight, "accumulate": 0, "compute": "bfloat16"}
    return {"dweight": weight, "dout": dout, "x": x, "compute": "bfloat16"}


def activated(op: str, z: Arguments, device: str) -> Arguments:
    """As in training: what the backward pass keeps and what the next product reads are bfloat16"""
    given = product("matmul_forward", z, device)
    N, O = z["N"], z["O"]
    written = {"aux": np.empty((N, O), BF16), "out": np.empty((N, O // 2 if "swiglu" in op else O), BF16)}
    return written | {key: given[key] for key in ("weight", "packed", "compute")} | {"x": given["x"].astype(BF16), "bias": normal(4, O)}


def attention(op: str, z: Arguments, device: str) -> Arguments:
    B, T, H, D = (z[letter] for letter in "BTHD")
    q, k, v, dout = (normal(seed, B * T, H, D) for seed in (1, 2, 3, 4))
    given: Arguments = {"q": q, "k": k, "v": v, "cu_seqlens": np.arange(B + 1, dtype=np.int32) * T, "scale": D**-0.5, "compute": "bfloat16"}
    out, lse = np.empty_like(q), np.empty((B * T, H), np.float32)
    if op == "attention_forward":
        return given | {"out": out, "lse": lse}
    forward = ops.resident("attention_forward", device=device, out=out, lse=lse, **given)
    forward.seconds(1)
    forward.read()
    return given | {"dq": np.empty_like(q), "dk": np.empty_like(q), "dv": np.empty_like(q), "dout": dout, "out": out, "lse": lse}


def cached(z: Arguments) -> Arguments:
    S, T, H, G, D = (z[letter] for letter in "STHGD")
    M = -(-T // ops.KV_BLOCK)
    k_cache, v_cache = (normal(seed, *empty.shape).astype(empty.dtype) for seed, empty in zip((2, 3), ops.new_cache(S * M, G, D, "bfloat16")))
    return {"out": np.empty((S, H, D), np.float32), "q": normal(1, S, H, D), "k_cache": k_cache, "v_cache": v_cache, "cu_seqlens": np.arange(S + 1, dtype=np.int32),
            "past_lens": np.full(S, T - 1, np.int32), "block_table": np.random.default_rng(4).permutation(S * M).reshape(S, M).astype(np.int32),
            "scale": D**-0.5, "compute": "bfloat16"}  # fmt: skip


Q8_0 = 8


@lru_cache(maxsize=1)
def quantized_rows(O: int, C: int) -> np.ndarray:
    """As a file holds them: 34 bytes for 32 numbers, a scale first"""
    r = np.random.default_rng(5)
    rows = r.integers(0, 256, (O, C // 32, 34), dtype=np.uint8)
    rows[:, :, :2] = r.uniform(-2e-4, 2e-4, (O, C // 32, 1)).astype(np.float16).view(np.uint8)
    return rows.reshape(O, -1)


def head(z: Arguments, device: str) -> Arguments:
    N, C, V = z["N"], z["C"], z["V"]
    weight = normal(2, V, C, std=0.02)
    packed = ops.matmul_pack(weight, compute="bfloat16", device=device)
    empty = lambda: np.empty(N, np.float32)
    targets = np.random.default_rng(1).integers(0, V, (N, 1)).astype(np.int32)
    return {"logprobs": np.empty((N, 1), np.float32), "entropy": empty(), "lse": empty(), "dx": np.empty((N, C), np.float32), "dweight": normal(5, V, C),
            "x": normal(1, N, C), "weight": weight, "packed": packed if packed.size else None, "targets": targets, "temperature": np.ones(1, np.float32),
            "dlogprobs": np.full((N, 1), -1 / N, np.float32), "compute": "bfloat16"}  # fmt: skip
