"""Weights in and out in the Hugging Face layout: bit-equal round trips for every preset family, and clear words about bad folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_cases import DEVICE, LLAMA31_TINY, make_batch, make_model, same_bits
from safetensors.numpy import load_file, save_file

from freedive.model import DecoderConfig, Model, load_pretrained, preset, read_config, save_pretrained
from freedive.model.config import from_hf, to_hf
from freedive.runs import UserError

SMALL: dict[str, Any] = dict(vocab_size=71, n_layer=2, max_positions=48)
FAMILIES: dict[str, DecoderConfig] = {
    "gpt2": preset("gpt2", **SMALL, n_head=3, n_kv_head=3, d_model=24, head_dim=8, d_ff=96),
    "llama3": preset("llama3", **SMALL, n_head=4, n_kv_head=2, d_model=32, head_dim=8, d_ff=40),
    "llama3.1": preset("llama3.1", **SMALL, n_head=4, n_kv_head=1, d_model=32, head_dim=8, d_ff=40, rope_scaling=LLAMA31_TINY),
    "qwen3": preset("qwen3", **SMALL, n_head=4, n_kv_head=2, d_model=24, head_dim=16, d_ff=40),
    "qwen2.5": preset("qwen2.5", **SMALL, n_head=4, n_kv_head=2, d_model=24, head_dim=6, d_ff=40),
    "smollm2": preset("smollm2", **SMALL, n_head=3, n_kv_head=1, d_model=24, head_dim=8, d_ff=32),
}
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_pretrained(make_model(FAMILIES["qwen3"]), tmp_path / "model")
    return tmp_path / "model"


def small(folder: Path, **arguments: Any) -> Model:
    return load_pretrained(folder, **({"max_tokens": 256, "max_seqs": 16, "threads": 1, "device": DEVICE} | arguments))


@every_family
def test_round_trip_is_bit_equal(name: str, tmp_path: Path):
    model, batch = make_model(FAMILIES[name]), make_batch(FAMILIES[name])
    save_pretrained(model, tmp_path / "a", special={"eos_token_id": 5})
    again = small(tmp_path / "a")
    assert again.config == model.config
    assert all(same_bits(p, again.parameters[key]) for key, p in model.parameters.items())
    assert same_bits(model.score(batch).logprobs, again.score(batch).logprobs)
    save_pretrained(again, tmp_path / "b", special={"eos_token_id": 5})
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "llama3", "llama3.1", "qwen3", "qwen2.5", "smollm2"])
def test_configurations_survive_the_way_out_and_in(name: str):
    assert from_hf(json.loads(json.dumps(to_hf(preset(name))))) == preset(name)


def test_published_sizes():
    sizes = {"gpt2": 124_439_808, "gpt2-xl": 1_557_611_200, "llama3": 8_030_261_248, "qwen3": 596_049_920, "qwen2.5": 494_032_768, "smollm2": 134_515_008}
    assert {name: preset(name).n_params() for name in sizes} == sizes


def test_padding_of_the_vocabulary_changes_no_probability(saved: Path, tmp_path: Path):
    plain, padded, batch = small(saved), small(saved, vocab_multiple=32), make_batch(FAMILIES["qwen3"])
    assert padded.config.vocab_size == 96 and not padded.parameters["embed_tokens.weight"][71:].any()
    assert np.allclose(plain.score(batch).logprobs, padded.score(batch).logprobs, rtol=1e-6, atol=1e-6)
    save_pretrained(padded, tmp_path / "stripped", vocab_size=71)
    assert (tmp_path / "stripped" / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_widened_exactly(saved: Path, dtype: str):
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    tensors = {key: t.astype(kind) for key, t in load_file(saved / "model.safetensors").items()}
    save_file(tensors, saved / "model.safetensors")
    model = small(saved)
    assert same_bits(model.parameters["final_norm.weight"], tensors["model.norm.weight"].astype(np.float32))


def test_weights_in_several_files(saved: Path):
    tensors = load_file(saved / "model.safetensors")
    whole, half = small(saved).state()["parameters"], list(tensors)[: len(tensors) // 2]
    save_file({k: tensors[k] for k in half}, saved / "model-00001-of-00002.safetensors")
    save_file({k: t for k, t in tensors.items() if k not in half}, saved / "model-00002-of-00002.safetensors")
    (saved / "model.safetensors").unlink()
    assert same_bits(whole, small(saved).state()["parameters"])


def test_gpt2_files_without_the_prefix(tmp_path: Path):
    model = make_model(FAMILIES["gpt2"])
    save_pretrained(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({key.removeprefix("transformer."): t for key, t in tensors.items()}, tmp_path / "model.safetensors")
    assert same_bits(model.state()["parameters"], small(tmp_path).state()["parameters"])


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, 0.99])
def test_a_truncated_file(saved: Path, keep: float):
    file = saved / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="model.safetensors cannot be read") as caught:
        small(saved)
    assert "truncated" in caught.value.hint


def test_a_missing_tensor(saved: Path):
    tensors = load_file(saved / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(UserError, match="lacks the tensor 'model.layers.1.self_attn.q_norm.weight'"):
        small(saved)


@pytest.mark.parametrize("key, change", [
    ("model.layers.0.mlp.up_proj.weight", lambda t: t[:-1]), ("model.norm.weight", lambda t: t[None]),
    ("model.embed_tokens.weight", lambda t: t[:-1]), ("model.embed_tokens.weight", lambda t: np.concatenate([t, t])),
])  # fmt: skip
@pytest.mark.parametrize("multiple", [1, 32])
def test_a_tensor_of_the_wrong_shape(saved: Path, key: str, change: Any, multiple: int):
    tensors = load_file(saved / "model.safetensors")
    want = list(tensors[key].shape)
    tensors[key] = np.ascontiguousarray(change(tensors[key]))
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(UserError) as caught:
        small(saved, vocab_multiple=multiple)
    assert f"{key!r} has shape {list(tensors[key].shape)}, config.json wants {want}" in str(caught.value)


@pytest.mark.parametrize("edit, says", [
    (lambda c: c.pop("hidden_size"), "lacks 'hidden_size'"), (lambda c: c.update(model_type="mamba"), "mamba"),
    (lambda c: c.update(rope_scaling={"rope_type": "yarn", "factor": 4}), "yarn"), (lambda c: c.update(use_sliding_window=True), "sliding_window"),
    (lambda c: c.update(hidden_act="relu"), "relu"), (lambda c: c.update(hidden_size="wide"), "wrong kind"),
    (lambda c: c.update(num_key_value_heads=3), "not a multiple"), (lambda c: c.update(model_type="llama", mlp_bias=True), "mlp_bias"),
])  # fmt: skip
def test_a_configuration_we_cannot_run(saved: Path, edit: Any, says: str):
    config = json.loads((saved / "config.json").read_text())
    edit(config)
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=says):
        read_config(saved)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_config(saved: Path, text: str):
    (saved / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        small(saved)


def test_folders_that_hold_no_model(tmp_path: Path, saved: Path):
    with pytest.raises(UserError, match="no such model"):
        small(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no config.json"):
        small(tmp_path / "empty")
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no .*safetensors"):
        small(saved)


def test_what_no_hugging_face_class_computes_is_not_exported(tmp_path: Path):
    model = make_model(FAMILIES["qwen3"].replace(mlp="gelu_tanh"))
    with pytest.raises(UserError, match="no Hugging Face equivalent"):
        save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_published_bfloat16_file(shared_data: Path):
    """A random llama of 16 ids that transformers wrote in bfloat16."""
    folder = shared_data / "models" / "llama_random_bf16"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    model = small(folder, trainable=False)
    batch = make_batch(model.config)
    out = model.score(batch)
    kept = batch.targets >= 0
    assert model.config.vocab_size == 16 and np.isfinite(out.logprobs).all() and (out.logprobs[kept] < 0).all()
    assert abs(out.entropy[kept].mean() - np.log(16)) < 0.5  # random weights know next to nothing
