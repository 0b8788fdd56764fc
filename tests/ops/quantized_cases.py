"""Cases of the ops on weights of 16, 8 and 4 bits, in every type of a file that is held packed: see op_cases.py."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from op_case import COMPUTE, FILE_ROWS, TOLERANCE, Case, cases, ids, normal, rounded

from freedive import ops
from freedive.model.gguf import TYPES
from freedive.model.quants import dequantize, quantize
from freedive.reference import ops as reference

# what is held packed: ggml's name -> its number
PACKED = {name: number for number, (name, _, _) in TYPES.items() if ops.quantized_size(16, 256, number)}
QUANTIZED_COMPUTE = ("float32", "bfloat16", "int8")


def file_rows(r: np.random.Generator, kind: str, O: int, C: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a weight as a file of the type `kind` holds them, uint8 [O, bytes], and their values, float32 [O, C]."""
    if kind in ("F32", "F16", "BF16", "Q8_0"):
        rows = quantize(kind, normal(r, O, C) if C else np.zeros((O, 0), np.float32)).reshape(O, -1)
    else:  # any quants; scales and minima, which come first, of a common size
        _, block, size = TYPES[PACKED[kind]]
        rows = r.integers(0, 256, (O, C // block, size), dtype=np.uint8)
        scales = 1 if kind in ("Q4_0", "Q5_0") else 2
        rows[:, :, : 2 * scales] = r.uniform(-0.1, 0.1, (O, C // block, scales)).astype(np.float16).view(np.uint8)
        rows = rows.reshape(O, -1)
    return rows, dequantize(kind, rows.reshape(-1)).reshape(O, C)


def packed_rows(raw: np.ndarray, type: int, C: int) -> np.ndarray:
    packed = ops.quantized_pack(raw, type, C)
    FILE_ROWS[packed.tobytes()] = raw, type, C
    return packed


def quantized_inputs(r: np.random.Generator, shapes: Any, compute: tuple[str, ...] = QUANTIZED_COMPUTE, logits: bool = False) -> Iterator[tuple]:
    """name, {x, weight, type, compute}, and what products take of x and of the weight; logits: products of about 1"""
    for kind, (N, C, rows), how in product(PACKED, shapes, compute):
        if not ops.quantized_size(rows, C, PACKED[kind]):
            continue  # rows that are no whole blocks
        raw, values = file_rows(r, kind, rows, C)
        x = {"x": normal(r, N, C), "weight": packed_rows(raw, PACKED[kind], C), "type": PACKED[kind], "compute": how}
        if logits:
            x["x"] *= np.float32(1 / (values.std() * C**0.5))
        int8 = how == "int8" and kind not in ("F32", "F16", "BF16")
        taken = reference.rounded_int8(x["x"]) if int8 else rounded(x["x"], how)
        yield f"{kind} {N}x{C}x{rows} {how}", x, taken, rounded(values, how)


@cases("quantized_pack")
def quantized_pack(r):
    """The layout is the device's own: that it is right is quantized_embedding's cases"""
    return iter(())


@cases("quantized_matmul")
def quantized_matmul(r):
    shapes = ((1, 32, 1), (1, 256, 70), (5, 288, 33), (7, 512, 16), (21, 256, 100), (16, 1280, 9), (40, 70, 48), (2, 33, 40), (0, 256, 8))
    for name, x, operand, weight in quantized_inputs(r, shapes):
        O = len(weight)
        for extras in ("", "bias+residual"):
            more = {"bias": normal(r, O) if extras else None, "residual": normal(r, len(operand), O) if extras else None}
            out = reference.matmul_forward(operand, weight, more["bias"], more["residual"])
            yield Case(f"{name} {extras}", x | more, {"out": out}, TOLERANCE["bfloat16"] if x["compute"] == "bfloat16" else 1e-5)


@cases("quantized_matmul_backward_input")
def quantized_matmul_backward_input(r):
    shapes = ((1, 32, 1), (1, 256, 70), (5, 288, 33), (7, 512, 16), (21, 256, 100), (40, 70, 48), (2, 33, 40), (2, 8192, 100), (0, 256, 8))
    for name, x, _, weight in quantized_inputs(r, shapes, COMPUTE):
        N, O, how = len(x.pop("x")), len(weight), x["compute"]
        for accumulate in (0, 1):
            more = {"dout": normal(r, N, O), "accumulate": accumulate} | ({"dx": normal(r, N, weight.shape[1])} if accumulate else {})
            dx = reference.matmul_backward_input(rounded(more["dout"], how), weight) + (more["dx"] if accumulate else 0)
            yield Case(f"{name} {'+=' * accumulate}", x | more, {"dx": dx}, TOLERANCE[how])


@cases("quantized_embedding")
def quantized_embedding(r):
    for kind, (N, C, V), learned in product(PACKED, ((9, 256, 20), (0, 256, 4), (3, 36, 33)), (False, True)):
        if not ops.quantized_size(V, C, PACKED[kind]):
            continue
        raw, values = file_rows(r, kind, V, C)
        x = {"tokens": ids(r, V, N), "weight": packed_rows(raw, PACKED[kind], C), "vocab": V, "type": PACKED[kind]}
        if learned:
            x |= {"positions": ids(r, 12, N), "wpe": normal(r, 12, C)}
        out = reference.embedding_forward(x["tokens"], x.get("positions"), values, x.get("wpe"))
        yield Case(f"{kind} {N}x{C}x{V}{'+positions' * learned}", x, {"out": out})


@cases("quantized_head_forward")
def quantized_head_forward(r):
    for name, x, operand, weight in quantized_inputs(r, ((6, 256, 70), (20, 32, 33)), logits=True):
        N, V = len(operand), len(weight)
        targets, mask = ids(r, V, N, 2, low=-1), (np.arange(V) % 5 != 3).astype(np.uint8)
        targets[targets % 5 == 3] = 0  # a target that is masked has log-prob -inf
        x |= {"targets": targets, "temperature": np.array([0.7], np.float32), "vocab_mask": mask, "vocab": V}
        expected = dict(zip(("logprobs", "entropy", "lse"), reference.head_forward(operand, weight, targets, 0.7, mask)))
        yield Case(name, x, expected, TOLERANCE["bfloat16"] if x["compute"] == "bfloat16" else 1e-5)


@cases("quantized_head_backward")
def quantized_head_backward(r):
    for name, x, operand, weight in quantized_inputs(r, ((6, 256, 70), (20, 32, 33)), COMPUTE, logits=True):
        N, V = len(operand), len(weight)
        targets, mask = ids(r, V, N, 2, low=-1), (np.arange(V) % 5 != 3).astype(np.uint8)
        targets[targets % 5 == 3] = 0
        _, entropy, lse = reference.head_forward(operand, weight, targets, 0.7, mask)
        x |= {"targets": targets, "temperature": np.array([0.7], np.float32), "vocab_mask": mask, "vocab": V}
        x |= {"entropy": entropy.astype(np.float32), "lse": lse.astype(np.float32)}
        every = {"dlogprobs": normal(r, N, 2), "dentropy": normal(r, N), "dlse": normal(r, N)}
        for given in ("dlogprobs", "dentropy dlse", "dlogprobs dentropy dlse"):
            y = x | {key: every[key] for key in given.split()}
            dx, _ = reference.head_backward(operand, weight, targets, 0.7, mask, *(y.get(key) for key in every))
            yield Case(f"{name} {given}", y, {"dx": dx}, TOLERANCE[x["compute"]])


@cases("quantized_head_forward_backward")
def quantized_head_forward_backward(r):
    for name, x, operand, weight in quantized_inputs(r, ((6, 256, 70), (20, 32, 33)), COMPUTE, logits=True):
        N, V = len(operand), len(weight)
        targets = ids(r, V, N, 1, low=-1)
        x |= {"targets": targets, "temperature": np.array([1.3], np.float32), "vocab_mask": None, "vocab": V, "dlogprobs": normal(r, N, 1)}
        *forward, dx, _ = reference.head_forward_backward(operand, weight, targets, x["dlogprobs"], 1.3)
        yield Case(name, x, dict(zip(("logprobs", "entropy", "lse"), forward)) | {"dx": dx}, TOLERANCE[x["compute"]])


@cases("quantized_head_sample")
def quantized_head_sample(r):
    for name, x, operand, weight in quantized_inputs(r, ((5, 256, 33), (1, 256, 500)), ("float32", "int8"), logits=True):
        S = len(operand)
        for key, dtype, value in (("temperature", "f4", 0), ("top_k", "i4", 3), ("top_p", "f4", 0.5), ("min_p", "f4", 0.1)):
            x[key] = np.full(S, value, dtype)
        x |= {key: r.integers(0, 2**63, size=S).astype(np.uint64) for key in ("seeds", "counters")} | {"vocab": len(weight), "vocab_mask": None}
        logp, _ = reference.head_log_softmax(operand, weight, 1.0, None)
        yield Case(name, x, {"tokens": logp.argmax(1), "logprobs": logp.max(1)})
