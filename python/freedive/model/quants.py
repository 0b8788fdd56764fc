"""ggml's blocks of quantised numbers, to float32 and back (ggml-quants.c; sizes in gguf.TYPES).

A tensor's rows are cut into blocks of 32 or 256 numbers, each with scales of its own, so a row is always a whole number of blocks.
Both ways are exact: `dequantize` gives the very float32 that ggml computes, `quantize` the very bytes of ggml's reference quantisers.
Reads and writes arrays only; nothing here allocates by a number found in a file.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from freedive.model.gguf import TYPES
from freedive.runs import UserError

_F16 = "<f2"
PIECE = 1 << 16  # bytes of blocks turned into numbers at once
_SIZES = {name: (block, size) for name, block, size in TYPES.values()}


def dequantize(kind: str, raw: np.ndarray) -> np.ndarray:
    """float32 [elements] of `raw`, uint8 [bytes]: a whole number of blocks of the type `kind`. UserError for a type that cannot be read."""
    if kind not in _READ:
        raise UserError(f"tensors of type {kind} cannot be read yet", hint=f"types that can: {', '.join(_READ)}")
    block, size = _SIZES[kind]
    step = max(1, PIECE // size) * size
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged block's scale may be no number: so are its values then
        if kind == "F32" or len(raw) <= step:
            return _READ[kind](raw)
        out = np.empty(len(raw) // size * block, np.float32)  # piece by piece: temporaries stay in the cache, and their memory in hand
        for at in range(0, len(raw), step):
            out[at // size * block : (at + step) // size * block] = _READ[kind](raw[at : at + step])
        return out


def quantize(kind: str, values: np.ndarray) -> np.ndarray:
    """uint8 [bytes] of `values`, float32 [..., columns], in the type `kind`. UserError for a type that is not written."""
    if kind not in _WRITE:
        raise UserError(f"tensors of type {kind} cannot be written", hint=f"types that can: {', '.join(_WRITE)}")
    return np.ascontiguousarray(_WRITE[kind](np.ascontiguousarray(values, np.float32))).view(np.uint8).reshape(-1)


# ---- reading ---------------------------------------------------------------------------------------------------


def _blocks(raw: np.ndarray, fields: list[tuple[str, str, int]]) -> np.ndarray:
    return raw.view(np.dtype([(name, kind, (n,)) if n > 1 else (name, kind) for name, kind, n in fields]))


def _f32(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float32)[:, None]


def _nibbles(qs: np.ndarray) -> np.ndarray:
    """[B, n] bytes to [B, 2n] values: all low nibbles of a block, then all high ones."""
    return np.concatenate([qs & 15, qs >> 4], axis=1)


def _fifth_bit(qh: np.ndarray) -> np.ndarray:
    """uint32 [B]: bit i belongs to number i of the block; as 0 or 16, uint8 [B, 32]."""
    return np.unpackbits(np.ascontiguousarray(qh).view(np.uint8).reshape(-1, 4), axis=1, bitorder="little") << 4


def _q8_0(raw: np.ndarray) -> np.ndarray:
    b = _blocks(raw, [("d", _F16, 1), ("q", "i1", 32)])
    return (b["q"].astype(np.float32) * _f32(b["d"])).reshape(-1)


def _q4_0(raw: np.ndarray) -> np.ndarray:
    b = _blocks(raw, [("d", _F16, 1), ("q", "u1", 16)])
    return ((_nibbles(b["q"]).astype(np.float32) - np.float32(8)) * _f32(b["d"])).reshape(-1)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    b = _blocks(raw, [("d", _F16, 1), ("m", _F16, 1), ("q", "u1", 16)])
    return (_nibbles(b["q"]).astype(np.float32) * _f32(b["d"]) + _f32(b["m"])).reshape(-1)


def _q5_0(raw: np.ndarray) -> np.ndarray:
    b = _blocks(raw, [("d", _F16, 1), ("h", "<u4", 1), ("q", "u1", 16)])
    return (((_nibbles(b["q"]) | _fifth_bit(b["h"])).astype(np.float32) - np.float32(16)) * _f32(b["d"])).reshape(-1)


def _q5_1(raw: np.ndarray) -> np.ndarray:
    b = _blocks(raw, [("d", _F16, 1), ("m", _F16, 1), ("h", "<u4", 1), ("q", "u1", 16)])
    return ((_nibbles(b["q"]) | _fifth_bit(b["h"])).astype(np.float32) * _f32(b["d"]) + _f32(b["m"])).reshape(-1)


def _six_bit_scales(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 12 bytes of a K block, [B, 12], to eight scales and eight minima of 6 bits, [B, 8] each."""
    low, mid, high = s[:, :4], s[:, 4:8], s[:, 8:]
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minimum = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    return scale, minimum


def _k_blocks(b: np.ndarray, high_bits: np.ndarray | None) -> np.ndarray:
    """Q4_K and Q5_K: eight groups of 32; bytes 32j..32j+31 hold group 2j in their low nibbles and group 2j+1 in their high ones."""
    scale, minimum = _six_bit_scales(b["s"])
    qs = b["q"].reshape(-1, 4, 1, 32)
    q = np.concatenate([qs & 15, qs >> 4], axis=2).reshape(-1, 8, 32)
    if high_bits is not None:
        q = q | (((high_bits[:, None, :] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1) << 4)
    d = (_f32(b["d"]) * scale.astype(np.float32))[:, :, None]
    m = (_f32(b["m"]) * minimum.astype(np.float32))[:, :, None]
    return (d * q.astype(np.float32) - m).reshape(-1)


def _q4_k(raw: np.ndarray) -> np.ndarray:
    return _k_blocks(_blocks(raw, [("d", _F16, 1), ("m", _F16, 1), ("s", "u1", 12), ("q", "u1", 128)]), None)


def _q5_k(raw: np.ndarray) -> np.ndarray:
    b = _blocks(raw, [("d", _F16, 1), ("m", _F16, 1), ("s", "u1", 12), ("h", "u1", 32), ("q", "u1", 128)])
    return _k_blocks(b, b["h"])


def _q6_k(raw: np.ndarray) -> np.ndarray:
    b = _blocks(raw, [("q", "u1", 128), ("h", "u1", 64), ("s", "i1", 16), ("d", _F16, 1)])
    ql, qh = b["q"].reshape(-1, 2, 2, 32), b["h"].reshape(-1, 2, 1, 32)  # two halves of 128 numbers
    low = np.concatenate([ql & 15, ql >> 4], axis=2)  # [B, 2, 4, 32]
    high = (qh >> np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]) & 3
    q = (low | (high << 4)).astype(np.int8) - np.int8(32)
    d = (_f32(b["d"]) * b["s"].astype(np.float32)).reshape(-1, 16, 1)
    return (d * q.reshape(-1, 16, 16).astype(np.float32)).reshape(-1)


_READ: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F32": lambda raw: raw.view("<f4"),
    "F16": lambda raw: raw.view(_F16).astype(np.float32),
    "BF16": lambda raw: (raw.view("<u2").astype(np.uint32) << 16).view(np.float32),
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip


# ---- writing ---------------------------------------------------------------------------------------------------


def _reciprocal(d: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(d != 0, np.float32(1) / d, np.float32(0)).astype(np.float32)


def _write_q8_0(values: np.ndarray) -> np.ndarray:
    x = values.reshape(-1, 32)
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    q = x * _reciprocal(d)
    out = np.zeros(len(x), np.dtype([("d", _F16), ("q", "i1", (32,))]))
    out["d"], out["q"] = d[:, 0], np.trunc(q + np.copysign(np.float32(0.5), q))  # roundf: halves away from zero
    return out


def _write_q4_0(values: np.ndarray) -> np.ndarray:
    x = values.reshape(-1, 32)
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = largest / np.float32(-8)
    q = np.minimum(np.trunc(x * _reciprocal(d) + np.float32(8.5)), 15).astype(np.uint8)
    out = np.zeros(len(x), np.dtype([("d", _F16), ("q", "u1", (16,))]))
    out["d"], out["q"] = d[:, 0], q[:, :16] | (q[:, 16:] << 4)
    return out


_WRITE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F32": lambda x: x.astype("<f4"),
    "F16": lambda x: x.astype(_F16),
    "BF16": lambda x: x.astype(ml_dtypes.bfloat16),
    "Q8_0": _write_q8_0,
    "Q4_0": _write_q4_0,
}
