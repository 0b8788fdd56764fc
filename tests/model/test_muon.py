"""Muon: against the NumPy float64 reference step by step, its properties, and resuming in the middle bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from model_cases import CONFIGS, make_batch, make_model, relative, same_bits

from freedive.model import DecoderConfig, Model
from freedive.reference.optimizer import Muon, muon_scale, newton_schulz, takes_muon

SCALES = ("match_rms_adamw", "original", "spectral")


def gradients_of(model: Model, seed: int) -> float:
    """One batch's gradients into the model; their norm is that of reference and model alike."""
    batch = make_batch(model.config, seed=seed)
    d = np.where(batch.targets >= 0, -1.0 / (batch.targets >= 0).sum(), 0.0).astype(np.float32)
    model.zero_grad()
    return float(np.dot(model.forward_backward(batch, d).logprobs, d))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scale", SCALES)
def test_steps_equal_the_reference(name: str, scale: str):
    """Every step from the same float32 weights and gradients: each matrix's step to 1e-3 of its length (rounding of singular values that
    are nearly 0 is amplified by up to 8.4, 4.0, 3.5 and 2.5 in the four iterations), the norm to 1e-5."""
    model, reference = make_model(CONFIGS[name], scale=0.1), Muon()
    for step in range(4):
        gradients_of(model, 10 + step)
        before = {k: p.astype(np.float64) for k, p in model.parameters.items()}
        wanted = dict(before)
        norm = reference.step(wanted, model.gradients, 0.02, 3e-3, scale=scale)
        assert abs(model.muon(0.02, adamw_lr=3e-3, scale=scale) - norm) < 1e-5 * norm
        for key, p in model.parameters.items():
            travelled = np.linalg.norm(wanted[key] - before[key])
            # float32 weights of about 0.1 to 1 round by 1e-8 to 6e-8 each
            assert np.linalg.norm(p - wanted[key]) < 2e-3 * travelled + 1e-7 * np.linalg.norm(before[key]), key


@pytest.mark.parametrize("name", ["qwen3_tied", "gpt2", "wide_heads"])
def test_embeddings_and_head_have_rates_of_their_own(name: str):
    rates = {"embedding_lr": 0.03, "head_lr": 0.0}
    model, reference = make_model(CONFIGS[name], scale=0.1), Muon()
    gradients_of(model, 3)
    before = {k: p.astype(np.float64) for k, p in model.parameters.items()}
    wanted = dict(before)
    reference.step(wanted, model.gradients, 0.02, 3e-3, **rates)
    model.muon(0.02, adamw_lr=3e-3, **rates)
    for key, p in model.parameters.items():
        travelled = np.linalg.norm(wanted[key] - before[key])
        assert np.linalg.norm(p - wanted[key]) < 2e-3 * travelled + 1e-7 * np.linalg.norm(before[key]), key
    assert (model.parameters["lm_head.weight"] == before["lm_head.weight"]).all() if "lm_head.weight" in before else True


def test_blocks_that_begin_as_zero_give_all_tokens_alike():
    model = make_model(DecoderConfig(64, 2, 4, 2, 64, 16, 96, 64, tie_embeddings=False)).init(0, zero_outputs=True)
    batch = make_batch(model.config, seed=1)
    out = model.score(batch)
    assert np.abs(out.entropy[batch.targets >= 0] - np.log(64)).max() < 1e-3


def test_singular_values_of_a_step_are_about_one():
    """Whatever the gradient's are: q, k, v, gate and up each, though they lie next to each other."""
    config = DecoderConfig(64, 2, 4, 2, 64, 16, 96, 64)
    model = make_model(config, scale=0.1)
    before = {k: p.copy() for k, p in model.parameters.items()}
    for gradient in model.gradients.values():
        gradient[...] = np.random.default_rng(gradient.size).standard_normal(gradient.shape)
    model.muon(1.0, adamw_lr=1.0, weight_decay=0.0, momentum=0.0)
    for key, p in model.parameters.items():
        if takes_muon(key, p):
            values = np.linalg.svd((before[key] - p) / muon_scale("match_rms_adamw", *p.shape), compute_uv=False)
            assert values.max() < 1.3, key
            assert np.quantile(values, 0.1) > 0.6, key  # of a square matrix some are nearly 0


def test_a_zero_gradient_moves_nothing():
    model = make_model(CONFIGS["qwen3_tied"])
    before = model.state()["parameters"]
    model.zero_grad()
    assert model.muon(0.1, adamw_lr=0.1, weight_decay=0.0) == 0.0
    assert same_bits(model.state()["parameters"], before)


def test_one_matrix_without_a_gradient_stays_while_others_move():
    model = make_model(CONFIGS["qwen3_tied"])
    before = {k: p.copy() for k, p in model.parameters.items()}
    gradients_of(model, 1)
    model.gradients["layers.1.k_proj.weight"][...] = 0
    model.muon(0.1, adamw_lr=0.1, weight_decay=0.0)
    after = model.parameters
    assert same_bits(after["layers.1.k_proj.weight"], before["layers.1.k_proj.weight"])
    for key in ("layers.1.q_proj.weight", "layers.1.v_proj.weight", "embed_tokens.weight", "final_norm.weight"):
        assert not np.array_equal(after[key], before[key]), key


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float):
    model = make_model(CONFIGS["gpt2"])
    gradients_of(model, 1)
    model.muon(0.01, adamw_lr=0.01)
    before = model.state()
    gradients_of(model, 2)
    model.gradients["layers.0.up_proj.weight"][1, 2] = bad
    assert not np.isfinite(model.muon(0.01, adamw_lr=0.01))
    after = model.state()
    assert all(same_bits(before[key], after[key]) for key in before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("d_ff", [96, 16400])
def test_resumed_runs_and_threads_change_no_bit(d_ff: int, dtype: str):
    """d_ff 16400: matrices of more than a million numbers, on which all threads work; the others are a thread's own on the CPU."""
    config = DecoderConfig(64, 1 if d_ff > 96 else 2, 4, 2, 64, 16, d_ff, 64)
    whole = make_model(config, dtype=dtype)
    halves = [make_model(config, dtype=dtype, threads=2)]
    for step in range(6):
        if step == 3:
            state = halves[0].state()
            halves.append(Model(config, max_tokens=256, max_seqs=16, threads=1, dtype=dtype, device=whole.device))
            halves[-1].load_state(state)
        for model in (whole, halves[-1]):
            gradients_of(model, step)
            model.muon(0.02, adamw_lr=3e-3)
    assert all(same_bits(whole.state()[key], halves[-1].state()[key]) for key in ("parameters", "m", "v"))


def test_bfloat16_products_give_nearly_the_same_step():
    config = DecoderConfig(64, 2, 4, 2, 64, 16, 96, 64)
    model = make_model(config, dtype="bfloat16")
    gradients_of(model, 3)
    key = "layers.0.gate_proj.weight"
    before, gradient = model.parameters[key].copy(), model.gradients[key].astype(np.float64)
    model.muon(1.0, adamw_lr=0.0, weight_decay=0.0)
    assert relative(before - model.parameters[key], muon_scale("match_rms_adamw", *before.shape) * newton_schulz(gradient)) < 0.05


def test_the_moment_of_its_matrices_stays_zero_and_adamw_has_its_own():
    model = make_model(CONFIGS["qwen3_tied"])
    gradients_of(model, 1)
    model.muon(0.01, adamw_lr=0.01)
    v = model._views("v", model._table)
    assert all((v[k] == 0).all() == takes_muon(k, p) for k, p in model.parameters.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["of rank 1", "constant", "nearly of rank 1"])
def test_a_gradient_of_rank_one_makes_no_long_step(dtype: str, kind: str):
    """Its one singular value is all of the norm, so the iteration begins at the end of its interval, and rounding goes beyond"""
    model, rng = make_model(DecoderConfig(64, 2, 4, 2, 64, 16, 96, 64), dtype=dtype, scale=0.1), np.random.default_rng(3)
    before = {key: p.copy() for key, p in model.parameters.items()}
    for g in (g for g in model.gradients.values() if g.ndim == 2):
        g[...] = 1.0 if kind == "constant" else np.outer(rng.standard_normal(len(g)), rng.standard_normal(g.shape[1]))
        if kind == "nearly of rank 1":
            g += 0.01 * np.linalg.norm(g) / g.size**0.5 * rng.standard_normal(g.shape)
    model.muon(1.0, adamw_lr=0.0, weight_decay=0.0, momentum=0.0)
    for key, p in model.parameters.items():
        if takes_muon(key, p):
            step = (before[key].astype(np.float64) - p) / muon_scale("match_rms_adamw", *p.shape)
            assert np.linalg.norm(step, 2) < 1.3, key


def test_bad_arguments():
    model = make_model(CONFIGS["gpt2"])
    with pytest.raises(ValueError, match="match_rms_adamw, original or spectral"):
        model.muon(0.01, adamw_lr=0.01, scale="shape")
    with pytest.raises(ValueError, match="trainable"):
        Model(CONFIGS["gpt2"], trainable=False).muon(0.01, adamw_lr=0.01)


def test_it_learns():
    """Thirty steps on one batch halve its loss."""
    config = DecoderConfig(64, 2, 4, 2, 64, 16, 96, 64)
    model = Model(config, max_tokens=256, max_seqs=16, threads=1).init(0)
    losses = []
    for _ in range(30):
        losses.append(gradients_of(model, 5))
        model.muon(0.01, adamw_lr=0.01)
    assert losses[-1] < 0.5 * losses[0]
