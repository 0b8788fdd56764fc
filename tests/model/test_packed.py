"""Weights held in 16, 8 and 4 bits: results are those of the float32 model bit for bit, or, where something is rounded, near and always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import DEVICE, make_model, same_bits
from test_open_weights import FAMILIES, folder

import freedive
from freedive import ops
from freedive.inference.export import ExportConfig
from freedive.inference.export import run as export
from freedive.model import Batch, DecoderConfig, Model, load_pretrained, save_pretrained
from freedive.model.gguf import TYPES
from freedive.model.quants import dequantize, quantize
from freedive.reference.ops import rounded_int8
from freedive.runs import UserError
from freedive.tokenizer import byte_tokenizer

CAPACITY: dict[str, Any] = dict(max_tokens=256, max_seqs=8, device=DEVICE)
NUMBER = {name: number for number, (name, _, _) in TYPES.items()}


def batch(config: DecoderConfig, lengths: tuple[int, ...] = (1, 33, 20, 3)) -> Batch:
    rng = np.random.Generator(np.random.Philox(key=[4, 4]))
    rows = [rng.integers(0, config.vocab_size, n + 1, np.int32) for n in lengths]
    return Batch.pack([(r[:-1], r[1:]) for r in rows])


def prompts() -> list[list[int]]:
    rng = np.random.Generator(np.random.Philox(key=[4, 5]))
    return [rng.integers(0, 256, n).tolist() for n in (1, 20, 33, 5, 32)]


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_held_as_it_is_gives_the_bits_of_its_float32_copy(name: str, kind: str, tmp_path: Path):
    path, _ = folder(tmp_path, name)
    export(ExportConfig(path, tmp_path / "m.gguf", type=kind))
    floats, packed = (freedive.load(tmp_path / "m.gguf", weights=w, **CAPACITY) for w in ("float32", "auto"))
    assert packed.model.packed and not floats.model.packed
    b = batch(floats.model.config)
    for dtype in ("float32", "bfloat16"):
        if dtype == "bfloat16":
            floats, packed = (freedive.load(tmp_path / "m.gguf", weights=w, dtype=dtype, **CAPACITY) for w in ("float32", "auto"))
        a, c = floats.model.score(b, 0.7), packed.model.score(b, 0.7)
        assert same_bits(a.logprobs, c.logprobs) and same_bits(a.entropy, c.entropy) and same_bits(a.lse, c.lse)
        how: dict[str, Any] = dict(max_new_tokens=12, temperature=0.9, seeds=range(5))
        for x, y in zip(floats.engine.generate(prompts(), **how), packed.engine.generate(prompts(), **how), strict=True):
            assert x.ids == y.ids and np.array_equal(x.logprobs, y.logprobs)


@pytest.mark.parametrize("weights", ["int8", "int4", "auto"])
@pytest.mark.parametrize("name", ["gpt2", "qwen2.5", "qwen3"])
def test_int8_depends_on_its_own_row_alone_and_sampler_and_scorer_agree(name: str, weights: str, tmp_path: Path):
    path, _ = folder(tmp_path, name)
    lm = freedive.load(path, weights=weights, dtype="int8", **CAPACITY)
    how: dict[str, Any] = dict(max_new_tokens=10, temperature=1.0)
    together = lm.engine.generate(prompts(), seeds=range(5), **how)
    other = freedive.load(path, weights=weights, dtype="int8", threads=1, max_tokens=7, max_seqs=2, device=DEVICE)  # prompts in pieces, on one thread
    for seed, (prompt, out) in enumerate(zip(prompts(), together, strict=True)):
        alone = other.engine.generate([prompt], seeds=[seed], **how)[0]
        assert alone.ids == out.ids and np.array_equal(alone.logprobs, out.logprobs)
        ids = [*prompt, *out.ids]
        again = lm.model.score(Batch.pack([(ids[:-1], [-1] * (len(prompt) - 1) + out.ids)])).logprobs[len(prompt) - 1 :]
        assert np.array_equal(again, np.array(out.logprobs, np.float32))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rounded_weights_are_near(dtype: str, tmp_path: Path):
    path, model = folder(tmp_path, "qwen3")
    b = batch(model.config)
    exact = load_pretrained(path, trainable=False, **CAPACITY).score(b).logprobs
    # weights of std 0.3 make log-probs of size 10: errors in nats, the largest of 57, by the bits that are left (8, 11, 8, 4)
    for weights, most in (("bfloat16", 0.2), ("float16", 0.03), ("int8", 0.2), ("int4", 3.0)):
        if dtype == "int8" and weights.startswith(("bf", "fl")):
            continue
        packed = load_pretrained(path, trainable=False, weights=weights, dtype=dtype, **CAPACITY)
        error = np.abs(packed.score(b).logprobs - exact).max()
        assert 0 < error < (most if dtype == "float32" else most + 0.2), weights
        assert packed.packed == {"bfloat16": ("BF16",), "float16": ("F16",), "int8": ("Q8_0",), "int4": ("Q4_0", "Q8_0")}[weights]


def test_a_mixed_group_is_computed_part_by_part(tmp_path: Path):
    """q, k and v of different types, as K-quant files have them; widths that are no whole blocks are float32."""
    from freedive.model.weights import open_weights

    config = FAMILIES["qwen3"]
    path, _ = folder(tmp_path, "qwen3")
    weights = open_weights(path)
    kinds = {"q_proj": "Q8_0", "k_proj": "Q4_0", "v_proj": "BF16", "gate_proj": "F32", "up_proj": "F16"}
    of = lambda name: kinds.get(name.split(".")[-2], "Q8_0")
    rounded = lambda name: dequantize(of(name), quantize(of(name), weights.read(name))).reshape(weights.read(name).shape)
    is_matrix = lambda name: weights.read(name).ndim == 2
    mixed = type(weights)(path, config, lambda n: rounded(n) if is_matrix(n) else weights.read(n),
                          lambda n: (of(n), quantize(of(n), weights.read(n)).reshape(len(weights.read(n)), -1)), of)  # fmt: skip
    a, b = (mixed.to_model(trainable=False, weights=w, **CAPACITY) for w in ("float32", "auto"))
    assert b.packed == ("BF16", "F16", "F32", "Q4_0", "Q8_0")
    assert same_bits(a.score(batch(config)).logprobs, b.score(batch(config)).logprobs)
    odd = DecoderConfig(byte_tokenizer().vocab_size, 1, 3, 1, 24, 8, 48, 64)
    save_pretrained(make_model(odd), tmp_path / "odd")
    narrow = load_pretrained(tmp_path / "odd", trainable=False, weights="int8", **CAPACITY)
    assert narrow.packed == ("F32",)
    assert same_bits(narrow.score(batch(odd)).logprobs, load_pretrained(tmp_path / "odd", trainable=False, **CAPACITY).score(batch(odd)).logprobs)


def test_what_packed_weights_cannot_do_is_told(tmp_path: Path):
    path, _ = folder(tmp_path, "qwen3")
    lm = freedive.load(path, weights="int8", device=DEVICE)
    for act in (lambda: lm.model.parameters, lm.model.state, lambda: lm.model.load_state({})):
        with pytest.raises(UserError, match="packed weights|weights are packed"):
            act()
    for bad, match in (
        (dict(weights="int7"), "int7"), (dict(weights="int8", trainable=True), "trained"), (dict(weights="bfloat16", dtype="int8"), "8 or 4 bits"),
        (dict(weights="float32", dtype="int8"), "8 or 4 bits"), (dict(dtype="int9"), "int9"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=match):
            freedive.load(path, **bad)
    for trainable, match in ((False, "8 or 4 bits"), (True, "int8 is for inference")):
        with pytest.raises(UserError, match=match):
            Model(FAMILIES["qwen3"], dtype="int8", trainable=trainable)


def test_less_memory_is_planned(tmp_path: Path):
    from freedive.model import check_fits

    config = FAMILIES["qwen3"]
    whole, packed = check_fits(config, 64, 4, False), check_fits(config, 64, 4, False, packed_bytes=1000)
    assert dict(packed.rows)["parameters"] == 1000 and packed.total < whole.total


# ---- the ops -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["Q8_0", "Q4_0", "F16", "BF16", "F32"]), st.integers(1, 40), st.integers(1, 90), st.integers(1, 9), st.integers(0, 2**32), st.floats(1e-37, 1e20))
def test_any_shape_gives_the_bits_of_the_float_product(kind: str, N: int, O: int, blocks: int, seed: int, scale: float):
    rng = np.random.Generator(np.random.Philox(key=[seed, 9]))
    C = 32 * blocks
    weight = rng.standard_normal((O, C), np.float32)
    raw = quantize(kind, weight).reshape(O, -1)
    packed = ops.quantized_pack(raw, NUMBER[kind], C)
    x = (rng.standard_normal((N, C), np.float32) * np.float32(scale)).astype(np.float32)
    values = dequantize(kind, raw.reshape(-1)).reshape(O, C)
    for compute in ("float32", "bfloat16"):
        want = ops.matmul_forward(x, values, compute=compute)
        assert np.array_equal(ops.quantized_matmul(x, packed, O, NUMBER[kind], compute=compute, threads=2), want), compute
    variants = [ops.quantized_matmul(x, packed, O, NUMBER[kind], compute="int8", variant=v, threads=2) for v in ops.variants("quantized_matmul")]
    assert all(np.array_equal(variants[0], v) for v in variants[1:])
    taken = rounded_int8(x) if kind[0] == "Q" else x.astype(np.float64)
    bound = np.abs(taken) @ np.abs(values.astype(np.float64)).T
    assert (np.abs(variants[0] - taken @ values.astype(np.float64).T) <= 1e-5 * bound + 1e-36).all()


def test_numbers_that_are_none_stay_so():
    """Activations that have diverged make NaN, not some number."""
    weight = ops.quantized_pack(quantize("Q8_0", np.ones((16, 64), np.float32)).reshape(16, -1), NUMBER["Q8_0"], 64)
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones((3, 64), np.float32)
        x[1, 40] = bad
        for variant in ops.variants("quantized_matmul"):
            out = ops.quantized_matmul(x, weight, 16, NUMBER["Q8_0"], compute="int8", variant=variant)
            assert np.isnan(out[1]).all() and np.isfinite(out[[0, 2]]).all()


def test_blocks_of_almost_nothing_are_nothing():
    """127 / 1e-38 is no number; the rest of the row counts as ever."""
    weight = ops.quantized_pack(quantize("Q8_0", np.full((16, 64), 127, np.float32)).reshape(16, -1), NUMBER["Q8_0"], 64)
    x = np.full((1, 64), 1e-38, np.float32)
    x[0, 32:] = 1.0
    for variant in ops.variants("quantized_matmul"):
        assert np.allclose(ops.quantized_matmul(x, weight, 16, NUMBER["Q8_0"], compute="int8", variant=variant), 127 * 32, rtol=1e-5)


def test_a_wrong_length_or_type_is_told():
    rows = quantize("Q8_0", np.ones((16, 64), np.float32)).reshape(16, -1)
    packed = ops.quantized_pack(rows, NUMBER["Q8_0"], 64)
    x = np.ones((2, 64), np.float32)
    for act, match in (
        (lambda: ops.quantized_matmul(x, packed[:-1], 16, NUMBER["Q8_0"]), "uint8"), (lambda: ops.quantized_matmul(x, packed, 16, 14), "14"),
        (lambda: ops.quantized_matmul(x[:, :40], packed, 16, NUMBER["Q8_0"]), "40"), (lambda: ops.quantized_matmul(x, packed, 16, NUMBER["Q8_0"], compute=3), "compute"),
        (lambda: ops.quantized_embedding(np.array([16], np.int32), packed, 16, 64, NUMBER["Q8_0"]), "16"),
        (lambda: ops.call("quantized_pack", packed=packed, rows=np.ascontiguousarray(rows[:, :-1]), type=NUMBER["Q8_0"]), "whole blocks"),
        (lambda: ops.matmul_forward(x, x, compute="int8"), "compute"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            act()
