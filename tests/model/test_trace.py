"""The trace of a forward: against freedive.reference in float64 for every kind of model, and its last row against the head's own logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from model_cases import CONFIGS, generator, make_model, relative, same_bits

import freedive
from freedive.model import Batch
from freedive.model.trace import MAX_TRACE_TOKENS, lens, lens_logits, likeliest, trace
from freedive.reference.decoder import Decoder
from freedive.runs import UserError

every_config = pytest.mark.parametrize("name", CONFIGS)


def ids_for(name: str, n: int = 23) -> np.ndarray:
    return generator(5).integers(0, CONFIGS[name].vocab_size, n).astype(np.int32)


@every_config
def test_residual_stream_and_attention_are_the_reference_s(name: str):
    config, model, ids = CONFIGS[name], make_model(CONFIGS[name]), ids_for(name)
    seen, reference = trace(model, ids), Decoder(config, model.parameters)
    batch = Batch.pack([(ids, ids)])
    last, kept = reference.hidden(batch)
    for layer, keep in enumerate(kept):
        assert relative(seen.residual[layer], keep["input_norm"][0]) < 1e-5  # what a layer reads is what the one before wrote
        assert relative(seen.q[layer], keep["q"]) < 1e-5 and relative(seen.k[layer], keep["k"]) < 1e-5
        v = keep["v"].repeat(config.n_head // config.n_kv_head, axis=1)
        weights = np.stack([seen.attention(layer, head) for head in range(config.n_head)])
        assert np.allclose(weights.sum(axis=2), 1, atol=1e-6) and not np.triu(weights, 1).any()
        assert relative(np.einsum("hij,jhd->ihd", weights, v), keep["attended"]) < 1e-5
    assert relative(seen.residual[-1], last) < 1e-5
    assert relative(seen.norms(), np.sqrt(np.mean(np.square(np.stack([*(k["input_norm"][0] for k in kept), last])), axis=2))) < 1e-5


@every_config
def test_the_lens_of_the_last_layer_is_the_prediction_bit_for_bit(name: str):
    config, model, ids = CONFIGS[name], make_model(CONFIGS[name], trainable=False, max_seqs=32), ids_for(name)
    seen = trace(model, ids)
    logits = model.logits(np.arange(len(ids)))  # of the batch the trace ran
    assert same_bits(lens_logits(model, seen.residual[-1]), logits)
    mask = np.ones(config.vocab_size, np.uint8)
    mask[::7] = 0
    model.set_vocab_mask(mask)
    found = lens(model, seen, k=4)
    assert found.layers == tuple(range(config.n_layer + 1)) and found.ids.shape == (config.n_layer + 1, len(ids), 4)
    assert mask[found.ids].all()
    targets = found.ids[-1, :, 0]
    out = model.score(Batch.pack([(ids, targets)]))
    assert np.allclose(found.logprobs[-1, :, 0], out.logprobs, atol=1e-5) and np.allclose(found.entropy[-1], out.entropy, atol=1e-4)


def test_likeliest_against_a_sort():
    logits = generator(6).standard_normal((5, 40)).astype(np.float32)
    logits[2, 3] = logits[2, 9] = 9.0  # a tie: the lower id first
    ids, logprobs, entropy = likeliest(logits, None, 40)
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True)
    assert np.array_equal(ids, np.argsort(-logits, axis=1, kind="stable")) and ids[2, :2].tolist() == [3, 9]
    assert np.allclose(np.exp(logprobs), np.sort(p, axis=1)[:, ::-1], atol=1e-6)
    assert np.allclose(entropy, -(p * np.log(p)).sum(axis=1), atol=1e-6)


def test_packed_weights_are_seen_as_their_float32_copy(smollm2: Path):
    ids = [504, 3575, 282, 4649, 314]  # "The capital of France is"
    packed, floats = (freedive.load(smollm2, max_tokens=64, max_seqs=16, weights=w).model for w in ("auto", "float32"))
    assert packed.packed and not floats.packed
    a, b = trace(packed, ids), trace(floats, ids)
    assert same_bits(a.residual, b.residual) and same_bits(a.q, b.q) and same_bits(a.k, b.k)
    x, y = lens(packed, a, layers=[0, 15, 30], k=3), lens(floats, b, layers=[0, 15, 30], k=3)
    assert same_bits(x.ids, y.ids) and same_bits(x.logprobs, y.logprobs)
    assert x.ids[-1, -1, 0] == 7042  # " Paris", which llama.cpp says too
    assert x.ids[0, -1, 0] != 7042  # and the embedding alone does not


def test_training_goes_on_after_a_look():
    model, ids = make_model(CONFIGS["qwen3_tied"]), ids_for("qwen3_tied")
    batch = Batch.pack([(ids[:-1], ids[1:])])
    weights = np.full(len(ids) - 1, -1 / len(ids), np.float32)
    model.forward_backward(batch, weights)
    before = {name: g.copy() for name, g in model.gradients.items()}
    model.zero_grad()
    model.forward(batch)
    lens_logits(model, trace(model, ids[:-1]).residual[1, :2])
    with pytest.raises(RuntimeError, match="backward"):  # the look took the place of what was kept
        model.backward(weights)
    model.forward_backward(batch, weights)
    assert all(np.array_equal(before[name], g) for name, g in model.gradients.items())


@pytest.mark.parametrize(
    "ids, told",
    [([], "1 to 48"), ([1] * 49, "1 to 48"), ([67], "outside"), ([-1], "outside"), ([0.5], "outside"), ([[1]], "1 to 48")],
)
def test_bad_input_is_a_sentence(ids: list, told: str):
    with pytest.raises(UserError, match=told):
        trace(make_model(CONFIGS["gpt2"]), ids)


def test_bounds():
    model = make_model(CONFIGS["llama_gqa"])
    seen = trace(model, [1, 2])
    for arguments in ({"layers": [3]}, {"layers": [-1]}, {"layers": []}, {"k": 0}, {"k": 101}):
        with pytest.raises(UserError):
            lens(model, seen, **arguments)
    for layer, head in ((2, 0), (0, 4), (-1, 0)):
        with pytest.raises(IndexError):
            seen.attention(layer, head)
    for x in (np.zeros((0, 32)), np.zeros((1, 31)), np.zeros((17, 32)), np.zeros(32)):
        with pytest.raises(ValueError, match="lens takes"):
            lens_logits(model, x)
    assert MAX_TRACE_TOKENS == 256
