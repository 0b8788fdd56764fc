"""Open models as published: SmolLM2 and stories260K reproduce what their own programs say, quantised blocks are ggml's, exports come back."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from model_cases import make_model, same_bits

import freedive
from freedive.inference.export import ExportConfig
from freedive.inference.export import run as export
from freedive.model import DecoderConfig, Model, load_pretrained, open_weights, preset, save_pretrained
from freedive.model.gguf import TYPES
from freedive.model.gguf_weights import READABLE, gguf_name
from freedive.model.gguf_write import gguf_metadata, gguf_tensors, write_gguf
from freedive.model.quants import dequantize, quantize
from freedive.model.weights import halves_to_interleaved, interleaved_to_halves, parameter_shapes
from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, byte_tokenizer, render

SMALL: dict[str, Any] = dict(vocab_size=byte_tokenizer().vocab_size, n_layer=2, max_positions=64)
STRETCHED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
FAMILIES: dict[str, DecoderConfig] = {
    "gpt2": preset("gpt2", **SMALL, n_head=4, n_kv_head=4, d_model=32, head_dim=8, d_ff=96),
    "llama3": preset("llama3", **SMALL, n_head=4, n_kv_head=2, d_model=32, head_dim=8, d_ff=64),
    "llama3.1": preset("llama3.1", **SMALL, n_head=4, n_kv_head=1, d_model=32, head_dim=8, d_ff=64, rope_scaling=STRETCHED),
    "llama_biases": preset("llama3", **SMALL, n_head=4, n_kv_head=2, d_model=32, head_dim=8, d_ff=64, attention_bias=True, attention_out_bias=True),
    "qwen2.5": preset("qwen2.5", **SMALL, n_head=4, n_kv_head=2, d_model=32, head_dim=8, d_ff=64),
    "qwen3": preset("qwen3", **SMALL, n_head=4, n_kv_head=2, d_model=32, head_dim=16, d_ff=64),
}  # fmt: skip
every_family = pytest.mark.parametrize("name", FAMILIES)


def folder(tmp_path: Path, name: str) -> tuple[Path, Model]:
    model = make_model(FAMILIES[name])
    save_pretrained(model, tmp_path / name)
    byte_tokenizer().save(tmp_path / name / "tokenizer")
    return tmp_path / name, model


# ---- real models -----------------------------------------------------------------------------------------------


def test_smollm2_says_what_llama_cpp_says_of_the_same_numbers(smollm2: Path, shared_data: Path):
    truth = json.loads((shared_data / "models" / "smollm2_truth.json").read_text(encoding="utf-8"))
    lm = freedive.load(smollm2, max_tokens=256, max_seqs=8)
    assert lm.model.config.n_params() == 134_515_008 and lm.tokenizer.stop_ids == (0, 2)
    assert render(lm.tokenizer, [{"role": "user", "content": "What is 2+2?"}], True)[0] == truth["runs"][1]["prompt_ids"]  # default system text and all
    for run in truth["runs"]:
        lm.engine.generate([run["prompt_ids"]], max_new_tokens=1, temperature=0)
        logits = lm.model.logits(np.array([len(run["prompt_ids"]) - 1]))[0]
        assert max(abs(logits[i] - wanted) for i, wanted in run["first_logits_top10"]) < 0.02
        out = lm.engine.generate([run["prompt_ids"]], max_new_tokens=64, temperature=0, stop_ids=lm.tokenizer.stop_ids)[0]
        assert out.ids == run["gen_ids"]
    assert lm.chat("What is the capital of France?") == "The capital of France is Paris."


def test_stories260k_tells_its_documented_story(shared_data: Path):
    model = shared_data / "models" / "stories260K" / "stories260K.bin"
    if not model.is_file():
        pytest.skip(f"{model} is not there")
    lm = freedive.load(model)
    wanted = (model.parent / "greedy.txt").read_text(encoding="utf-8").strip()
    out = lm.engine.generate([[1]], max_new_tokens=256, temperature=0, stop_ids=lm.tokenizer.stop_ids)[0]
    assert out.text.strip() == wanted
    assert [1, *lm.tokenizer.encode(wanted)] == [1, *out.ids][: len(out.ids) + 1]


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_stories260k_goes_out_and_comes_back(shared_data: Path, tmp_path: Path, kind: str):
    model = shared_data / "models" / "stories260K" / "stories260K.bin"
    if not model.is_file():
        pytest.skip(f"{model} is not there")
    before = freedive.load(model)
    for to, path in (("gguf", tmp_path / "s.gguf"), ("hf", tmp_path / "s")):
        export(ExportConfig(model, path, to=to, type=kind))
        after = freedive.load(path)
        text = "Once upon a time, naïve 你好  two  spaces\n12"
        assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
        assert after.tokenizer.add_bos and after.tokenizer.bos_id == 1
        loss = [float(m.score("Once upon a time, there was a little girl named Lily.")[1].mean()) for m in (before, after)]
        assert abs(loss[0] - loss[1]) < (1e-9 if kind == "f32" else 0.02)


# ---- quantised blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", READABLE)
def test_blocks_are_read_as_ggml_reads_them(kind: str):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    number = next(n for n, (name, _, _) in TYPES.items() if name == kind)
    _, block, size = TYPES[number]
    rng = np.random.Generator(np.random.Philox(key=[1, number]))
    raw = rng.integers(0, 256, 64 * size * (1 if block > 1 else 32), np.uint8)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(number)).astype(np.float32).reshape(-1)
    ours = dequantize(kind, raw)
    assert ours.dtype == np.float32 and len(ours) == len(raw) // size * block
    kept = ~np.isnan(theirs)  # random bytes make scales that are no numbers
    assert np.array_equal(ours[kept], theirs[kept]) and np.isnan(ours[~kept]).all()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_blocks_are_written_as_ggml_writes_them(kind: str):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    rng = np.random.Generator(np.random.Philox(key=[2, 2]))
    values = (rng.standard_normal((37, 96)) * np.exp(rng.normal(0, 3, (37, 1)))).astype(np.float32)
    values[3], values[4, :32] = 0, 0.5
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    assert quantize(kind, values).tobytes() == theirs.tobytes()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (3, 64), elements=st.floats(-1e3, 1e3, width=32)))
def test_what_was_quantised_is_near(values: np.ndarray):
    largest = np.abs(values).reshape(-1, 32).max(axis=1)
    for kind, steps in (("Q8_0", 127), ("Q4_0", 8)):
        error = np.abs(dequantize(kind, quantize(kind, values)) - values.reshape(-1)).reshape(-1, 32).max(axis=1)
        # half a step, a whole one at Q4_0's short end; scales are float16: 2^-11 of them, and nothing below 2^-25
        assert (error <= largest * ((1.0 if kind == "Q4_0" else 0.5) / steps + 2**-10) + steps * 2.0**-24).all()


def test_two_ways_to_rotate_are_each_others_inverse():
    rows = np.arange(24 * 3.0).reshape(24, 3)
    assert np.array_equal(halves_to_interleaved(interleaved_to_halves(rows, 3), 3), rows)
    assert interleaved_to_halves(np.arange(8), 1).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


# ---- out and in ------------------------------------------------------------------------------------------------


@every_family
def test_a_float_gguf_comes_back_bit_for_bit(name: str, tmp_path: Path):
    path, model = folder(tmp_path, name)
    export(ExportConfig(path, tmp_path / "m.gguf"))
    again = load_pretrained(tmp_path / "m.gguf", max_tokens=64, max_seqs=4)
    assert again.config == model.config
    assert all(same_bits(p, again.parameters[key]) for key, p in model.parameters.items())
    ours, theirs = byte_tokenizer(), Tokenizer.load(tmp_path / "m.gguf")
    assert theirs.encode("naïve 12  x") == ours.encode("naïve 12  x") and theirs.special_tokens == ours.special_tokens and theirs.chat == ours.chat


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@every_family
def test_a_quantised_gguf_holds_what_its_blocks_stand_for(name: str, kind: str, tmp_path: Path):
    path, model = folder(tmp_path, name)
    export(ExportConfig(path, tmp_path / "m.gguf", type=kind))
    again = open_weights(tmp_path / "m.gguf")
    for key, p in model.parameters.items():
        error = np.abs(again.read(key) - p).max() / np.abs(p).max()
        assert error < {"q8_0": 0.006, "q4_0": 0.13}[kind] and (error > 0) == (p.ndim == 2 and key != "embed_positions.weight")


@every_family
def test_an_hf_folder_comes_back(name: str, tmp_path: Path):
    path, model = folder(tmp_path, name)
    export(ExportConfig(path, tmp_path / "hf", to="hf"))
    again = freedive.load(tmp_path / "hf")
    assert again.model.config == model.config and again.tokenizer.stop_ids == byte_tokenizer().stop_ids
    assert all(same_bits(p, again.model.parameters[key]) for key, p in model.parameters.items())


def test_shards_are_read_through_their_index(tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    path, model = folder(tmp_path, "qwen3")
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    places = {n: f"model-{1 + i % 3:05d}-of-00003.safetensors" for i, n in enumerate(names)}
    for file in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == file}, path / file)
    (path / "model.safetensors").rename(path / "other.safetensors")  # not named by the index: not read
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    again = load_pretrained(path)
    assert all(same_bits(p, again.parameters[key]) for key, p in model.parameters.items())
    (path / "model-00002-of-00003.safetensors").rename(path / "gone")
    with pytest.raises(UserError, match="lacks model-00002"):
        load_pretrained(path)
    for bad in ({}, {"weight_map": {"a": "../x.safetensors"}}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "x.pkl"}}, []):
        index.write_text(json.dumps(bad))
        with pytest.raises(UserError, match="index.json"):
            load_pretrained(path)


# ---- what is refused -------------------------------------------------------------------------------------------


@pytest.fixture
def qwen3(tmp_path: Path) -> tuple[Path, dict[str, Any], list[Any]]:
    path, model = folder(tmp_path, "qwen3")
    config = FAMILIES["qwen3"]
    return tmp_path / "x.gguf", gguf_metadata(config, "x", "f32", config.vocab_size), gguf_tensors(config, lambda n: model.parameters[n], "f32", config.vocab_size)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'"),
        ({"qwen3.block_count": 3}, "lacks the tensor"),
        ({"qwen3.block_count": 1}, "which a qwen3 model does not"),
        ({"qwen3.block_count": 2**31}, "n_layer"),
        ({"qwen3.context_length": 2**31}, "max_positions"),
        ({"qwen3.attention.head_count": 0}, "head_count is 0"),
        ({"qwen3.attention.head_count": "4"}, "str"),
        ({"qwen3.attention.head_count_kv": 3}, "multiple"),
        ({"qwen3.attention.head_count_kv": 1}, "has shape"),
        ({"qwen3.attention.value_length": 8}, "value_length"),
        ({"qwen3.rope.scaling.type": "yarn"}, "yarn"),
        ({"qwen3.rope.freq_base": -1.0}, "rope_theta"),
        ({"qwen3.embedding_length": 64}, "has shape"),
        ({"qwen3.feed_forward_length": None}, "lack qwen3.feed_forward_length"),
    ],
)
def test_gguf_metadata_that_does_not_fit(qwen3, change, what):
    path, metadata, tensors = qwen3
    write_gguf(path, {k: v for k, v in (metadata | change).items() if v is not None}, tensors)
    with pytest.raises(UserError, match=what):
        open_weights(path)


def test_every_tensor_is_needed_and_none_may_be_left_over(qwen3):
    path, metadata, tensors = qwen3
    for at in range(len(tensors)):
        write_gguf(path, metadata, tensors[:at] + tensors[at + 1 :])
        with pytest.raises(UserError, match="lacks|token_embd"):
            open_weights(path)


def test_other_files_are_named(tmp_path: Path):
    for name, data, what in (
        ("m.pt", b"\x80\x02", "pickled"), ("m.bin", b"x" * 10, "10 bytes"), ("m.bin", struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512), "asks for"),
        ("m.bin", struct.pack("<7i", -64, 172, 5, 8, 4, 512, 512), "no llama2.c"), ("m.bin", struct.pack("<7i", 64, 172, 5, 0, 4, 512, 512), "0 heads"),
        ("m.txt", b"hello", "no model file"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=what):
            open_weights(tmp_path / name)


def test_names_are_known_for_every_parameter():
    for config in FAMILIES.values():
        for architecture in ("llama", "gpt2"):
            names = [gguf_name(architecture, name) for name in parameter_shapes(config)]
            assert all(names)
