"""What a GGUF file says about itself: metadata and where each tensor lies. Reads no weights.

GGUF (ggml's docs/gguf.md, versions 2 and 3, little-endian) is a list of counts, each believed by a naive reader before it is
checked: a 43-byte file can ask for 2^63 array elements. The one idea here: a count is compared with the bytes that are left in
the file *before* anything is allocated or looped over, so work is bounded by the size of the file.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from freedive.runs import UserError

MAGIC = b"GGUF"
MAX_ENTRIES = 65_536  # of metadata and of tensors; published files have some dozens and some thousands
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_NESTING = 4  # arrays of arrays
_STRING, _ARRAY, _BOOL = 8, 9, 7
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "|b1", 10: "<u8", 11: "<i8", 12: "<f8"}

# type id -> (name, elements in a block, bytes of a block): ggml.h and ggml-common.h
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is in NumPy's order (last varies fastest), the reverse of the file's."""

    name: str
    shape: tuple[int, ...]
    type: str  # "F32", "Q4_1", ...
    offset: int  # bytes from the beginning of the file
    nbytes: int
    part: int = 0  # which of GGUF.parts


@dataclass(frozen=True)
class GGUF:
    """The header of one file, or of all parts of a split one (the first has the metadata). Metadata values: str, int, float, bool, list[str] or
    lists of these, numbers as ndarray."""

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    parts: tuple[Path, ...] = ()

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """metadata[key] if it has the type `kind` (a missing key gives `default`). Raises UserError for another type."""
        value = self.metadata.get(key, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            raise UserError(f"{self.path}: {key!r} is of type {type(value).__name__}, not {kind.__name__}", hint=_DAMAGED)
        return value


_DAMAGED = "the file is damaged or made to look like a GGUF file: fetch it again from where you trust it"


_last: dict[str, Any] = {}  # of _read_one


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """True for a file that begins as GGUF files do."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_gguf(path: str | os.PathLike[str]) -> GGUF:
    """Read and check the header of a GGUF file; every tensor is known to lie inside of its file and apart from the others. Of a file split as
    llama-gguf-split does it, NAME-00001-of-00003.gguf, any part stands for all; they lie beside each other.

    Raises UserError naming the file and what is wrong with it.
    """
    path = Path(path)
    file = _read_one(path)
    return replace(file, parts=(path,)) if file.get("split.count", int, 0) < 2 else _read_parts(path, file)


def part_path(path: Path, number: int) -> Path | None:
    """Where part `number` (from 1) of the file that `path` is a part of lies; None if its name is not that of a part."""
    name = _PART.fullmatch(path.name)
    return path.with_name(f"{name[1]}-{number:05d}-of-{name[3]}.gguf") if name else None


def _read_parts(path: Path, named: GGUF) -> GGUF:
    count = named.get("split.count", int)
    name = _PART.fullmatch(path.name)
    if name is None or int(name[3]) != count:
        raise UserError(f"{path} says that it is one of {count:,} parts", hint=f"they are found by their names: give it back its own, NAME-00001-of-{count:05d}.gguf")
    tensors: dict[str, TensorInfo] = {}
    parts: list[Path] = []
    first = named
    for number in range(1, count + 1):  # ends at the first that is not there
        part = part_path(path, number)
        assert part is not None
        if not part.is_file():
            raise UserError(f"part {number} of {count} is missing: {part}", hint="all parts of a model lie in one folder: fetch it")
        file = named if part == path else _read_one(part)
        if (file.get("split.no", int, 0), file.get("split.count", int, 0)) != (number - 1, count):
            said = f"part {file.get('split.no', int, 0) + 1} of {file.get('split.count', int, 0)}"
            raise UserError(f"{part} says that it is {said}, its name that it is {number} of {count}", hint=_DAMAGED)
        first = file if number == 1 else first
        if twice := next((t for t in file.tensors if t in tensors), None):
            raise UserError(f"{part}: the tensor {twice!r:.80} is in an earlier part too", hint=_DAMAGED)
        tensors |= {t: replace(info, part=number - 1) for t, info in file.tensors.items()}
        parts.append(part)
    promised = first.get("split.tensors.count", int, len(tensors))
    if promised != len(tensors):
        raise UserError(f"{first.path} and its other parts hold {len(tensors):,} tensors, and {promised:,} are promised", hint=_DAMAGED)
    return replace(first, tensors=tensors, parts=tuple(parts))


def map_gguf(file: GGUF) -> list[np.ndarray]:
    """The bytes of each part of a file, uint8, mapped: nothing is read yet."""
    return [np.memmap(part, np.uint8, mode="r") for part in file.parts]


def _read_one(path: Path) -> GGUF:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size < 24:
                raise UserError(f"{path} is no GGUF file: it has {status.st_size} bytes", hint=_DAMAGED)
            # Tokenizer and weights are read one after the other: the header of the last file is at hand, unless it may have changed since. Of
            # one written a moment ago times do not tell
            key = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if _last.get("key") == key:
                return _last["header"]
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _Reader(path, data).read()
            if time.time_ns() - status.st_mtime_ns > 2_000_000_000:
                _last.update(key=key, header=header)
            return header
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}", hint="check the path and its permissions") from None


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def read(self) -> GGUF:
        if self.data[:4] != MAGIC:
            raise UserError(f"{self.path} is no GGUF file: it begins with {bytes(self.data[:4])!r}", hint="expected b'GGUF'")
        self.at = 4
        version = self.number("<I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "a big-endian file" if swapped in (2, 3) else f"version {version}"
            raise UserError(f"{self.path} is {what}; freedive reads GGUF versions 2 and 3, little-endian")
        tensor_count, entry_count = self.number("<Q"), self.number("<Q")
        for count, what in ((tensor_count, "tensors"), (entry_count, "metadata entries")):
            if count > MAX_ENTRIES:
                raise self.wrong(f"it claims {count:,} {what}; the limit is {MAX_ENTRIES:,}")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self.string()
            if key in metadata:
                raise self.wrong(f"the key {key!r:.80} occurs twice")
            metadata[key] = self.value(self.number("<I"), key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.wrong(f"general.alignment is {alignment!r:.40}, not a power of two from 8 on")
        infos = [self.tensor() for _ in range(tensor_count)]
        start = -(-self.at // alignment) * alignment
        return GGUF(self.path, version, alignment, metadata, self.place(infos, start, alignment))

    def tensor(self) -> TensorInfo:
        """One entry of the tensor list; its offset still counts from the beginning of the data."""
        name = self.string()
        dimensions = self.number("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.wrong(f"tensor {name!r:.80} has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))
        kind = self.number("<I")
        if kind not in TYPES:
            raise UserError(f"{self.path}: tensor {name!r:.80} has the type {kind}, which freedive does not know")
        type_name, block, block_bytes = TYPES[kind]
        elements = 1
        for extent in shape:  # Python's integers do not overflow
            if not 1 <= extent <= 2**31:
                raise self.wrong(f"tensor {name!r:.80} has the shape {shape}")
            elements *= extent
        if shape[0] % block:
            raise self.wrong(f"tensor {name!r:.80} of type {type_name} has rows of {shape[0]}, not a multiple of {block}")
        return TensorInfo(name, shape[::-1], type_name, self.number("<Q"), elements // block * block_bytes)

    def place(self, infos: list[TensorInfo], start: int, alignment: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for info in infos:
            if info.name in tensors:
                raise self.wrong(f"the tensor {info.name!r:.80} occurs twice")
            if info.offset % alignment:
                raise self.wrong(f"tensor {info.name!r:.80} begins at {info.offset}, not a multiple of {alignment}")
            if start + info.offset + info.nbytes > self.size:
                end = start + info.offset + info.nbytes
                raise self.wrong(f"tensor {info.name!r:.80} ends at byte {end:,}, the file at {self.size:,}")
            tensors[info.name] = TensorInfo(info.name, info.shape, info.type, start + info.offset, info.nbytes)
        ordered = sorted(tensors.values(), key=lambda info: info.offset)
        for left, right in zip(ordered, ordered[1:], strict=False):
            if left.offset + left.nbytes > right.offset:
                raise self.wrong(f"the tensors {left.name!r:.80} and {right.name!r:.80} overlap")
        return tensors

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string(key)
        if kind in _NUMBERS:
            return self.numbers(kind, 1, key)[0].item()
        if kind != _ARRAY:
            raise self.wrong(f"{key!r:.80} has a value of the unknown type {kind}")
        if depth == MAX_NESTING:
            raise self.wrong(f"{key!r:.80} is an array nested over {MAX_NESTING} deep")
        element, count = self.number("<I"), self.number("<Q")
        if element in _NUMBERS:
            return self.numbers(element, count, key)
        smallest = 8 if element == _STRING else 12  # bytes of an empty string, of an empty array
        if count > (self.size - self.at) // smallest:
            raise self.wrong(f"{key!r:.80} claims {count:,} elements, {self.size - self.at:,} bytes are left")
        if element == _STRING:
            return self.strings(count, key)
        return [self.value(element, key, depth + 1) for _ in range(count)]

    def numbers(self, kind: int, count: int, key: str) -> np.ndarray:
        dtype = np.dtype(_NUMBERS[kind])
        raw = self.take(count * dtype.itemsize, key)
        if kind == _BOOL and raw.translate(None, b"\0\1"):
            raise self.wrong(f"{key!r:.80} has a truth value that is neither 0 nor 1")
        return np.frombuffer(raw, dtype)

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self, key: str = "") -> str:
        raw = self.take(self.number("<Q"), key)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"text before byte {self.at:,} is not UTF-8: {raw[:40]!r}") from None

    def strings(self, count: int, key: str) -> list[str]:
        """As so many calls of `string`, a fifth of the time: a vocabulary has a hundred thousand."""
        data, at, size, length = self.data, self.at, self.size, struct.Struct("<Q").unpack_from
        out = []
        for _ in range(count):
            end = at + 8
            if end <= size:
                end += length(data, at)[0]
            if end > size:
                self.at = at
                out.append(self.string(key))  # raises, and says what is wrong
            try:
                out.append(data[at + 8 : end].decode("utf-8"))
            except UnicodeDecodeError:
                self.at = at
                self.string(key)
            at = end
        self.at = at
        return out

    def take(self, count: int, key: str = "") -> bytes:
        if count > self.size - self.at:
            where = f" of {key!r:.80}" if key else ""
            raise self.wrong(f"{count:,} bytes{where} are claimed at byte {self.at:,}, {self.size - self.at:,} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def wrong(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}", hint=_DAMAGED)
