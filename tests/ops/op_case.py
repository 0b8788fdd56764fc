"""What a case of an op is, and what the files of cases are written with. They enter theirs in `CASES`; op_cases.py has all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from freedive import ops

BF16 = np.dtype(ml_dtypes.bfloat16)
COMPUTE = ("float32", "bfloat16")
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


@dataclass
class Case:
    name: str
    inputs: dict[str, Any]  # everything but pure outputs; what an op adds to has its first value here
    expected: dict[str, np.ndarray]  # float64
    tolerance: float = 1e-5  # of ||got - expected|| / ||expected||

    def arguments(self, device: str = "cpu") -> dict[str, Any]:
        """Fresh copies of the inputs, and outputs nobody has written: NaN. Weights are packed as the device packs them"""
        outputs = {key: np.full(value.shape, np.nan, np.float32) for key, value in self.expected.items() if key not in self.inputs}
        outputs |= {key: np.full(outputs[key].shape, -7, np.int32) for key in ("tokens", "out_tokens", "pairs") if key in outputs}
        copies = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in self.inputs.items()}
        if device != "cpu" and copies.get("packed") is not None:
            copies["packed"] = ops.matmul_pack(copies["weight"], compute=copies.get("compute"), device=device)
        if device != "cpu" and "type" in copies and "weight" in copies:
            copies["weight"] = ops.quantized_pack(*FILE_ROWS[copies["weight"].tobytes()], device=device)
        return outputs | copies


MIDDLE_RUNGS = ("sm90_persistent", "sm90_multicast")  # of a ladder: they differ from the next only in how tiles are handed out


def tells_something(variant: str, case: Case) -> bool:
    """Variants that in float32 are another variant's kernels run in bfloat16 alone; middle rungs on one case of a shape, with all that comes after a sum"""
    if not variant.startswith("sm90") and variant != "sm80_128x256":
        return True
    everything = any(extras in case.name for extras in ("packed+bias+residual", "+= ", "+bias bf"))
    return case.inputs.get("compute") == "bfloat16" and (variant not in MIDDLE_RUNGS or everything)


FILE_ROWS: dict[bytes, tuple[np.ndarray, int, int]] = {}  # of a weight as the CPU packs it: the file's rows, type, columns
CASES: dict[str, list[Case]] = {}


def cases(op: str) -> Callable:
    def register(make: Callable[[np.random.Generator], Iterator[Case]]) -> Callable:
        made = make(np.random.Generator(np.random.Philox(key=[len(op), 5])))
        CASES[op] = list(also_in_bfloat16(made) if op in ("attention_forward", "attention_cached") else made)
        return make

    return register


def hows(op: str) -> list[Any]:
    """Every device and variant of an op, as arguments of a call"""
    return [pytest.param({"device": d, "variant": v}, id=f"{d}-{v}") for d in ops.devices() for v in ops.variants(op, d)]


def normal(r: np.random.Generator, *shape: int) -> np.ndarray:
    return r.standard_normal(shape, dtype=np.float32)


def rounded(x: np.ndarray, compute: str) -> np.ndarray:
    """What a product takes of x: itself, or its nearest bfloat16"""
    return x.astype(ml_dtypes.bfloat16).astype(np.float32) if compute == "bfloat16" else x


def also_in_bfloat16(cases: Iterator[Case]) -> Iterator[Case]:
    """Every case, and again with compute="bfloat16": the same result within 1 %"""
    for case in cases:
        yield case
        yield Case(case.name + " bfloat16", case.inputs | {"compute": "bfloat16"}, case.expected, TOLERANCE["bfloat16"])


def ids(r: np.random.Generator, high: int, *shape: int, low: int = 0) -> np.ndarray:
    return r.integers(low, high, size=shape, dtype=np.int32)


def lengths_to_cu(lengths: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
