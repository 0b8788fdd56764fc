"""What must not change a bit, or change only rounding: packing, the order of calls, threads, micro-batches, masked rows."""

from __future__ import annotations

import numpy as np
import pytest
from model_cases import CONFIGS, DEVICE, generator, gradients, make_batch, make_model, relative, same_bits

from freedive.model import Batch, DecoderConfig, Model

every_config = pytest.mark.parametrize("name", CONFIGS)
FIELDS = ("logprobs", "entropy", "lse")


def split(batch: Batch) -> list[Batch]:
    """Every sequence of a batch on its own."""
    cu = batch.cu_seqlens
    return [Batch(batch.tokens[a:b], batch.targets[a:b], batch.positions[a:b], np.array([0, b - a], np.int32)) for a, b in zip(cu, cu[1:])]


@every_config
def test_packed_equals_unpacked(name: str):
    """A sequence's numbers do not depend on its neighbours, nor on where in the batch it lies."""
    config = CONFIGS[name]
    model, batch = make_model(config), make_batch(config, lengths=(9, 33, 1, 40, 5))
    packed = model.forward(batch, 0.9)
    alone = [model.forward(b, 0.9) for b in split(batch)]
    for field in FIELDS:
        assert same_bits(getattr(packed, field), np.concatenate([getattr(o, field) for o in alone])), field
    backwards = split(batch)[::-1]
    again = model.forward(Batch.pack((b.tokens, b.targets) for b in backwards), 0.9)
    assert same_bits(again.logprobs, np.concatenate([o.logprobs for o in alone[::-1]]))


@every_config
def test_a_prefix_does_not_see_its_future(name: str):
    config = CONFIGS[name]
    model, (batch,) = make_model(config), split(make_batch(config, lengths=(40,)))
    whole = model.score(batch).logprobs
    for n in (1, 7, 32, 33):
        part = Batch(batch.tokens[:n], batch.targets[:n], batch.positions[:n], np.array([0, n], np.int32))
        assert same_bits(model.score(part).logprobs, whole[:n])


@every_config
@pytest.mark.parametrize("k", [1, 2])
def test_forward_score_and_forward_backward_are_one(name: str, k: int):
    config = CONFIGS[name]
    model, batch = make_model(config, max_targets=2), make_batch(config, k=k)
    d = generator(5).standard_normal(batch.targets.shape).astype(np.float32)
    first = model.forward(batch, 0.8)
    model.zero_grad()
    model.backward(d)
    two_calls = gradients(model)
    scored = model.score(batch, 0.8)
    model.zero_grad()
    fused = model.forward_backward(batch, d, 0.8)
    for field in FIELDS:
        assert same_bits(getattr(first, field), getattr(scored, field)), field
        assert same_bits(getattr(first, field), getattr(fused, field)), field
    for key, g in gradients(model).items():
        assert same_bits(g, two_calls[key]), key


@every_config
def test_rows_without_a_target_are_zero(name: str):
    batch = make_batch(CONFIGS[name])
    out, without = make_model(CONFIGS[name]).score(batch), batch.targets < 0
    assert without.any()
    for field in FIELDS:
        assert not getattr(out, field)[without].any() and getattr(out, field)[~without].all()


@every_config
def test_micro_batches_change_rounding_only(name: str):
    config = CONFIGS[name]
    batch = make_batch(config, lengths=(9, 33, 1, 38, 5, 17, 2, 30))
    d = (-generator(6).random(batch.n_tokens) / batch.n_tokens).astype(np.float32)
    collected = []
    for size in (8, 1):  # sequences in a micro-batch
        model, at = make_model(config), 0
        model.zero_grad()
        for part in [batch] if size == 8 else split(batch):
            model.forward_backward(part, d[at : at + part.n_tokens])
            at += part.n_tokens
        collected.append(gradients(model))
    whole = np.sqrt(sum(np.linalg.norm(g) ** 2 for g in collected[0].values()))
    for key, g in collected[0].items():
        zero = key.endswith("k_proj.bias") and np.linalg.norm(g) < 1e-6 * whole  # what is 0 in exact arithmetic
        assert np.linalg.norm(collected[1][key] - g) < 1e-5 * (whole if zero else np.linalg.norm(g)), key


@pytest.mark.skipif(DEVICE != "cpu", reason="only the CPU goes by chunks of rows; a CUDA device's sums over rows are parted by their number")
@every_config
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_long_batch_has_the_gradients_of_its_halves(name: str, dtype: str):
    """1,536 rows go through an MLP in two chunks, 768 in one; sums over rows go on from chunk to chunk as from call to call. Not a tied
    embedding's: its head and its rows take turns there."""
    config = CONFIGS[name]
    batch = make_batch(config, lengths=(32,) * 48, skip=0.0)
    model, n = make_model(config, max_tokens=1536, max_seqs=48, dtype=dtype), batch.n_tokens // 2
    d = (-generator(6).random(batch.n_tokens) / batch.n_tokens).astype(np.float32)
    model.zero_grad()
    whole = model.forward_backward(batch, d)
    once = gradients(model)
    model.zero_grad()
    halves = []
    for rows in (slice(0, n), slice(n, 2 * n)):
        half = Batch(batch.tokens[rows], batch.targets[rows], batch.positions[rows], np.arange(25, dtype=np.int32) * 32)
        halves.append(model.forward_backward(half, d[rows]).logprobs)
    assert same_bits(whole.logprobs, np.concatenate(halves))
    for key, g in gradients(model).items():
        if key != "embed_tokens.weight" or not config.tie_embeddings:
            assert same_bits(g, once[key]), key


def trained(config: DecoderConfig, threads: int, steps: int = 5) -> Model:
    model = Model(config, max_tokens=512, max_seqs=16, threads=threads).init(3)
    for step in range(steps):
        batch = make_batch(config, seed=20 + step, lengths=(60, 3, 38, 40, 1, 77))
        model.zero_grad()
        model.forward_backward(batch, np.full(batch.n_tokens, -1 / batch.n_tokens, np.float32))
        model.adamw(1e-2)
    return model


@every_config
def test_two_runs_and_any_threads_are_bit_equal(name: str):
    """After five training steps: weights and both moments."""
    first = trained(CONFIGS[name], 1).state()
    for threads in (1, 2, 3):
        again = trained(CONFIGS[name], threads).state()
        for key in first:
            assert same_bits(first[key], again[key]), (threads, key)


@every_config
def test_a_batch_without_targets_trains_nothing(name: str):
    config = CONFIGS[name]
    model, batch = make_model(config), make_batch(config, skip=1.1)
    assert (batch.targets == -1).all()
    model.zero_grad()
    out = model.forward_backward(batch, np.ones(batch.n_tokens, np.float32))
    assert all(not getattr(out, field).any() for field in FIELDS)
    model.forward(batch)
    ones = np.ones(batch.n_tokens, np.float32)
    model.backward(ones, ones, ones)
    assert all(not g.any() for g in model.gradients.values())
    before = model.state()
    assert model.adamw(1e-2, weight_decay=0.0) == 0.0
    after = model.state()
    assert all(same_bits(before[key], after[key]) for key in ("parameters", "m", "v"))  # a zero gradient gives a zero update


def test_gradients_accumulate_until_zeroed():
    config = CONFIGS["qwen3_tied"]
    model, batch = make_model(config), make_batch(config)
    d = np.full(batch.n_tokens, -0.1, np.float32)
    model.zero_grad()
    model.forward_backward(batch, d)
    once = gradients(model)
    model.forward_backward(batch, d)
    assert all(relative(model.gradients[key], 2.0 * once[key].astype(np.float64)) < 1e-6 for key in once)
    model.zero_grad()
    assert all(not g.any() for g in model.gradients.values())


def test_a_gradient_that_is_not_finite_changes_nothing():
    config = CONFIGS["qwen3_tied"]
    model, batch = make_model(config), make_batch(config)
    before = model.state()
    model.forward_backward(batch, np.full(batch.n_tokens, np.inf, np.float32))
    assert not np.isfinite(model.adamw(1e-2))
    after = model.state()
    assert all(same_bits(before[key], after[key]) for key in before) and model.step_count == 0


def test_masked_ids_get_no_probability():
    config = CONFIGS["qwen3_tied"]
    model = make_model(config)
    mask = np.ones(config.vocab_size, np.uint8)
    mask[[0, 7, 63]] = 0
    model.set_vocab_mask(mask)
    tokens = generator(8).integers(0, config.vocab_size, 12).astype(np.int32)
    allowed = np.flatnonzero(mask)
    total = np.zeros(len(tokens))
    for i in allowed:
        batch = Batch.pack([(tokens, np.full(len(tokens), i))])
        total += np.exp(model.score(batch).logprobs.astype(np.float64))
    assert np.allclose(total, 1, atol=1e-5)  # what is left sums to one
    batch = Batch.next_token([allowed[:20]])
    model.zero_grad()
    model.forward_backward(batch, np.full(batch.n_tokens, -1.0, np.float32))
    assert not model.gradients["embed_tokens.weight"][63].any()  # neither looked up nor predicted
