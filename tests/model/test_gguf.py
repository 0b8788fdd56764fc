"""The GGUF header reader: what a small writer wrote comes back, and no damaged header gets past it or makes it work long."""

import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.model.gguf import TYPES, is_gguf, read_gguf
from freedive.runs import UserError


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, v) -> bytes:
    if kind == 8:
        return text(v)
    if kind == 9:
        element, items = v
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, i) for i in items)
    return struct.pack("<" + "BbHhIif?  Qqd"[kind], v)


def gguf(metadata: dict[str, tuple], tensors: dict[str, tuple], version: int = 3, alignment: int = 32) -> bytes:
    """metadata: {key: (type, value)}; tensors: {name: (shape in file order, type, bytes)}"""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, (kind, v) in metadata.items():
        out += text(key) + struct.pack("<I", kind) + value(kind, v)
    offset, body = 0, b""
    for name, (shape, kind, raw) in tensors.items():
        out += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, offset)
        body += raw + b"\0" * (-len(raw) % alignment)
        offset = len(body)
    return out + b"\0" * (-len(out) % alignment) + body


METADATA = {
    "general.architecture": (8, "llama"),
    "a.count": (4, 30),
    "a.rate": (6, 0.5),
    "a.yes": (7, True),
    "a.words": (9, (8, ["ä", "", "b c"])),
    "a.kinds": (9, (5, [1, -3, 2])),
    "a.nested": (9, (9, [(5, [1]), (5, [])])),
}
TENSORS = {"w": ((64, 3), 3, bytes(range(120))), "b": ((5,), 0, np.arange(5, dtype="<f4").tobytes())}
GOOD = gguf(METADATA, TENSORS)


@pytest.fixture
def write(tmp_path):
    def put(data: bytes) -> Path:
        path = tmp_path / "x.gguf"
        path.write_bytes(data)
        return path

    return put


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 64])
def test_what_was_written_comes_back(write, version, alignment):
    metadata = METADATA | ({"general.alignment": (4, alignment)} if alignment != 32 else {})
    data = gguf(metadata, TENSORS, version, alignment)
    path = write(data)
    assert is_gguf(path)
    file = read_gguf(path)
    assert file.version == version and file.alignment == alignment and list(file.metadata) == list(metadata)
    assert file.metadata["a.words"] == ["ä", "", "b c"] and file.metadata["a.yes"] is True and file.metadata["a.rate"] == 0.5
    assert file.metadata["a.kinds"].tolist() == [1, -3, 2] and [a.tolist() for a in file.metadata["a.nested"]] == [[1], []]
    for name, (shape, kind, raw) in TENSORS.items():
        info = file.tensors[name]
        assert info.shape == shape[::-1] and info.type == TYPES[kind][0] and info.offset % alignment == 0
        assert data[info.offset : info.offset + info.nbytes] == raw


def test_typed_access(write):
    file = read_gguf(write(GOOD))
    assert file.get("a.count", int) == 30 and file.get("missing", str, "x") == "x"
    for key, kind in (("a.count", str), ("a.yes", int), ("general.architecture", list)):
        with pytest.raises(UserError, match="type"):
            file.get(key, kind)


def test_every_truncation_is_noticed(write):
    """No prefix of a file is a file, whatever it is cut in."""
    whole = GOOD[: read_gguf(write(GOOD)).tensors["b"].offset + 20]  # without the padding at the end
    read_gguf(write(whole))
    for end in range(len(whole)):
        with pytest.raises(UserError):
            read_gguf(write(whole[:end]))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "0 bytes"),
        (b"GGML" + GOOD[4:], "begins with"),
        (GOOD[:4] + struct.pack("<I", 1) + GOOD[8:], "version 1"),
        (GOOD[:4] + struct.pack(">I", 3) + GOOD[8:], "big-endian"),
        (GOOD[:8] + struct.pack("<Q", 2**60) + GOOD[16:], "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 5, 2**63), "claimed"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**63), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 2**63), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**64 - 1) + b"12345678", "claimed"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9 + bytes(99), "nested"),
        (gguf({"k": (4, 1)}, {}) .replace(struct.pack("<I", 4), struct.pack("<I", 77), 1), "unknown type"),
        (gguf({"general.alignment": (4, 33)}, {}) + bytes(64), "alignment"),
        (gguf({}, {"w": ((2**31, 2**31, 2**31, 2**31), 0, b"")}) + bytes(64), "ends at"),
        (gguf({}, {"w": ((0,), 0, b"")}), "shape"),
        (gguf({}, {"w": ((33,), 3, b"")}), "multiple of 32"),
        (gguf({}, {"w": ((4,), 99, b"")}), "does not know"),
        (gguf({}, {"v": ((8,), 0, b""), "w": ((8,), 0, bytes(32))}), "overlap"),
    ],
)  # fmt: skip
def test_bad_headers_say_what_is_wrong(write, data, what):
    with pytest.raises(UserError, match=what):
        read_gguf(write(data))


@given(at=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_are_read_or_refused(tmp_path_factory, at):
    data = bytearray(GOOD)
    for position, byte in at:
        data[position] = byte
    path = tmp_path_factory.getbasetemp() / f"fuzz-{os.getpid()}.gguf"
    path.write_bytes(data)
    try:
        file = read_gguf(path)
    except UserError:
        return
    assert all(0 <= t.offset and t.offset + t.nbytes <= len(data) for t in file.tensors.values())


def test_noise(write):
    rng = random.Random(0)
    for _ in range(200):
        with pytest.raises(UserError):
            read_gguf(write(b"GGUF" + struct.pack("<I", 3) + rng.randbytes(rng.randint(0, 200))))
