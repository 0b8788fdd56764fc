"""Damaged files: whatever happens to the bytes of a GGUF file, a safetensors folder or a tokenizer, the answer is a model or a sentence."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_cases import make_model

from freedive.inference.export import ExportConfig
from freedive.inference.export import run as export
from freedive.model import open_weights, preset, save_pretrained
from freedive.model.weights import parameter_shapes
from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, byte_tokenizer, save_hf, train_tokenizer
from freedive.tokenizer.sentencepiece import SentencePiece

many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SIZES = [0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
mutation = st.one_of(
    st.tuples(st.just("byte"), st.floats(0, 1), st.integers(0, 255)),
    st.tuples(st.just("u64"), st.floats(0, 1), st.sampled_from(SIZES)),
    st.tuples(st.just("u32"), st.floats(0, 1), st.sampled_from([s for s in SIZES if s < 2**32])),
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.integers(0, 255)),
    st.tuples(st.just("double"), st.floats(0, 1), st.integers(1, 200)),
)
mutations = st.lists(mutation, min_size=1, max_size=4)


def mutated(data: bytes, changes: list[tuple[str, float, int]], header: int) -> bytes:
    """`data` with changes somewhere in its first `header` bytes."""
    for kind, where, value in changes:
        at = int(where * (min(header, len(data)) - 1)) if data else 0
        if kind == "byte":
            data = data[:at] + bytes([value]) + data[at + 1 :]
        elif kind == "u64":
            data = data[:at] + struct.pack("<Q", value) + data[at + 8 :]
        elif kind == "u32":
            data = data[:at] + struct.pack("<I", value) + data[at + 4 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + bytes([value]) + data[at:]
        else:
            data = data[:at] + data[at : at + value] + data[at:]
    return data


def model_or_sentence(what: Callable[[], Any]) -> None:
    began = time.perf_counter()
    try:
        what()
    except UserError as error:
        assert len(str(error)) < 3000
    assert time.perf_counter() - began < 20


def read_all(path: Path) -> None:
    weights = open_weights(path)
    for name in parameter_shapes(weights.config):
        assert weights.read(name).dtype == np.float32


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llama with a trained tokenizer, as a folder, a Hugging Face folder and a GGUF file."""
    room = tmp_path_factory.mktemp("fuzz")
    tok = train_tokenizer(["the town lies on a river, and 12 boats lie there; naïve 你好 " * 20], 300)
    config = preset("llama3", vocab_size=tok.vocab_size, n_layer=1, max_positions=32, n_head=2, n_kv_head=1, d_model=32, head_dim=16, d_ff=32)
    save_pretrained(make_model(config), room / "ours")
    tok.save(room / "ours" / "tokenizer")
    export(ExportConfig(room / "ours", room / "m.gguf"))
    export(ExportConfig(room / "ours", room / "hf", to="hf"))
    return room


def header_of(gguf: bytes, room: Path) -> int:
    from freedive.model.gguf import read_gguf

    return min(t.offset for t in read_gguf(room / "m.gguf").tensors.values())


@many
@given(changes=mutations)
def test_gguf(room: Path, changes):
    data = (room / "m.gguf").read_bytes()
    path = room / "x.gguf"
    path.write_bytes(mutated(data, changes, header_of(data, room)))
    model_or_sentence(lambda: read_all(path))
    model_or_sentence(lambda: Tokenizer.load(path))


@many
@given(changes=mutations)
def test_safetensors(room: Path, changes):
    folder = room / "x"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(room / "hf" / "config.json", folder)
    data = (room / "hf" / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(mutated(data, changes, 8 + struct.unpack("<Q", data[:8])[0]))
    model_or_sentence(lambda: read_all(folder))


json_values = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.lists(st.integers(-3, 3), max_size=3), st.just({}))


def replaced(draw: Any, content: Any) -> Any:
    """JSON with one value at random replaced or left out."""
    if isinstance(content, dict) and content and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(content)))
        if draw(st.integers(0, 6)) == 0:
            return {k: v for k, v in content.items() if k != key}
        return content | {key: replaced(draw, content[key])}
    if isinstance(content, list) and content and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(content) - 1))
        return [*content[:at], replaced(draw, content[at]), *content[at + 1 :]]
    return draw(json_values)


@many
@given(data=st.data())
def test_config_json(room: Path, data):
    folder = room / "x"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(replaced(data.draw, json.loads((room / "hf" / "config.json").read_text()))))
    (folder / "model.safetensors").symlink_to(room / "hf" / "model.safetensors")
    model_or_sentence(lambda: read_all(folder))


@pytest.mark.parametrize("which", ["ours", "hf", "bytes", "spm"])
@many
@given(data=st.data())
def test_tokenizer_files(room: Path, which: str, data):
    source = room / f"tok-{which}"
    if not source.is_dir():
        if which == "hf":
            save_hf(Tokenizer.load(room / "ours"), source)
        elif which == "spm":
            pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), " ", "a", "b", " a", "ab", " ab"]
            SentencePiece(pieces, [-float(i) for i in range(len(pieces))], [2, 3, 3] + [6] * 256 + [1] * 6).save(source)
        else:
            (byte_tokenizer() if which == "bytes" else Tokenizer.load(room / "ours")).save(source)
    folder = room / "x"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    file = folder / data.draw(st.sampled_from(sorted(p.name for p in source.iterdir())))
    raw = file.read_bytes()
    if file.suffix == ".json" and data.draw(st.booleans()):
        file.write_text(json.dumps(replaced(data.draw, json.loads(raw))))
    else:
        file.write_bytes(mutated(raw, data.draw(mutations), len(raw)))

    def use() -> None:
        tok = Tokenizer.load(folder)
        tok.decode(tok.encode("the town lies"))

    model_or_sentence(use)


@many
@given(changes=mutations)
def test_llama2c(room: Path, changes):
    model = np.zeros(7, np.int32)
    model[:] = 8, 16, 1, 2, 1, 262, 8
    floats = 262 * 8 + 8 + 8 * 8 + 2 * 4 * 8 + 8 * 8 + 8 + 3 * 16 * 8 + 8 + 8 * 4
    path = room / "x.bin"
    path.write_bytes(mutated(model.tobytes() + bytes(4 * floats), changes, 28))
    model_or_sentence(lambda: read_all(path))
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256)), b" ", b"a", b" a"]
    whole = struct.pack("<i", 7) + b"".join(struct.pack("<fi", -float(i), len(p)) + p for i, p in enumerate(pieces))
    path.write_bytes(mutated(whole, changes, len(whole)))
    model_or_sentence(lambda: Tokenizer.load(path).encode("a naïve one"))


def test_the_files_are_whole_before_they_are_damaged(room: Path):
    for path in (room / "m.gguf", room / "hf", room / "ours"):
        read_all(path)
        assert Tokenizer.load(path).decode(Tokenizer.load(path).encode("the town, naïve")) == "the town, naïve"
