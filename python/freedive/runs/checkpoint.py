"""Checkpoints of a stage: two slots written in turn, so that one whole checkpoint exists at every instant after the first.

A slot is one safetensors file: the arrays, and in its metadata the stage's own state (JSON), the size of every output file at
that moment, and a CRC of each array. Resuming cuts output files back to those sizes and removes later ones; so what a stage
writes between checkpoints must be appended or written once. Order of a save: the older slot is deleted first, which keeps the
disk at two checkpoints, then the new one is written aside and renamed. Slots are compared by `sequence`, never by time.

Written by hand rather than with safetensors' writer because that copies every array before writing; the format is its own.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import write_atomic

if TYPE_CHECKING:
    import numpy as np

SLOTS = ("checkpoint-0.safetensors", "checkpoint-1.safetensors")
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip


class Damaged(Exception):
    """A checkpoint that cannot be used; the text says why."""


@dataclass
class Checkpoint:
    sequence: int  # 1, 2, 3 ...
    state: dict[str, Any]  # what the stage passed
    summary: dict[str, Any]  # what run.summary had gathered
    sizes: dict[str, int]  # bytes of every output file, by relative path
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint, latest: str | None) -> str:
    """Writes into the slot that is not `latest`; returns its name."""
    slot = SLOTS[1] if latest == SLOTS[0] else SLOTS[0]
    (folder / slot).unlink(missing_ok=True)
    write_atomic(folder / slot, _serialise(checkpoint))
    return slot


def _serialise(checkpoint: Checkpoint) -> Iterator[bytes | memoryview]:
    import numpy as np

    header: dict[str, Any] = {}
    buffers: list[memoryview] = []
    checks: dict[str, int] = {}
    offset = 0
    for name, array in checkpoint.arrays.items():
        array = np.asarray(array)
        if array.dtype.name not in DTYPES:
            raise TypeError(f"checkpoint array {name!r} has dtype {array.dtype}; allowed: {', '.join(DTYPES)}")
        shape = list(array.shape)
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        buffers.append(flat.data)
        checks[name] = zlib.crc32(flat.data)
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": shape, "data_offsets": [offset, offset + flat.nbytes]}
        offset += flat.nbytes
    own = {"sequence": checkpoint.sequence, "state": checkpoint.state, "summary": checkpoint.summary, "sizes": checkpoint.sizes}
    own["crc32"] = checks
    text = json.dumps(own, default=_jsonable)
    header["__metadata__"] = {"freedive": text, "crc32": str(zlib.crc32(text.encode()))}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # safetensors asks for an aligned start of the data
    yield len(encoded).to_bytes(8, "little") + encoded
    yield from buffers


def _jsonable(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a checkpoint's state must be JSON; {type(value).__name__} belongs in arrays: {value!r}")


def load(path: Path) -> Checkpoint:
    """Reads a slot. Damaged if it is cut short or altered."""
    import numpy as np

    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise Damaged(f"{path.name} is cut short ({size} bytes)")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__")
            if str(zlib.crc32(metadata["freedive"].encode())) != metadata["crc32"]:
                raise Damaged(f"the header of {path.name} was altered")
            own = json.loads(metadata["freedive"])
            names = {short: name for name, short in DTYPES.items()}
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if size != 8 + length + end:
                raise Damaged(f"{path.name} is cut short ({size} bytes instead of {8 + length + end})")
            arrays = {}
            for name, entry in header.items():
                start, stop = entry["data_offsets"]
                raw = np.empty(stop - start, np.uint8)
                file.readinto(raw.data)  # type: ignore[attr-defined]
                if zlib.crc32(raw.data) != own["crc32"][name]:
                    raise Damaged(f"{name} in {path.name} was altered")
                arrays[name] = raw.view(_dtype(names[entry["dtype"]])).reshape(entry["shape"])
            return Checkpoint(own["sequence"], own["state"], own["summary"], own["sizes"], arrays)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{path.name} is not a checkpoint ({type(error).__name__}: {error})") from None


def _dtype(name: str) -> np.dtype:
    import numpy as np

    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def sequence_of(path: Path) -> int:
    """The slot's sequence number, from its header; of an unreadable slot a huge one: it is tried first, and so told."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size)))
        return int(json.loads(header["__metadata__"]["freedive"])["sequence"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize
