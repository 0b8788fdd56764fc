"""The compiled decoder against freedive.reference in float64: outputs, all gradients, and ten optimizer steps.

Tolerance: relative 2-norm of 1e-5 for every output, the project's bar for one float32 op, and of 2e-5 for every single gradient
tensor, which has gone through two or three layers twice. What is measured is mostly below 2e-6.
"""

from __future__ import annotations

import numpy as np
import pytest
from model_cases import CONFIGS, generator, make_batch, make_model, relative

from freedive.model import DecoderConfig
from freedive.reference.decoder import Decoder, parameter_shapes
from freedive.reference.optimizer import AdamW

TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 2e-5
every_config = pytest.mark.parametrize("name", CONFIGS)


def test_parameter_names_and_shapes_agree():
    for config in CONFIGS.values():
        shapes = {name: view.shape for name, view in make_model(config).parameters.items()}
        assert shapes == parameter_shapes(config)
        assert config.n_params() == sum(int(np.prod(s)) for s in shapes.values())


@every_config
@pytest.mark.parametrize("k, temperature, masked", [(1, 1.0, False), (1, 0.7, True), (3, 1.3, False)])
def test_outputs_and_all_gradients(name: str, k: int, temperature: float, masked: bool):
    config = CONFIGS[name]
    model, batch = make_model(config, max_targets=3), make_batch(config, k=k)
    mask = None
    if masked:  # holes in the vocabulary that no target names
        mask = np.ones(config.vocab_size, np.uint8)
        mask[[i for i in range(0, config.vocab_size, 5) if i not in batch.targets]] = 0
        model.set_vocab_mask(mask)
    reference = Decoder(config, model.parameters)
    out, want = model.forward(batch, temperature), reference.forward(batch, temperature, mask)
    for field in ("logprobs", "entropy", "lse"):
        assert relative(getattr(out, field), getattr(want, field)) < TOLERANCE, field

    rng, n = generator(3), batch.n_tokens
    dlogprobs = rng.standard_normal(batch.targets.shape).astype(np.float32)
    dentropy, dlse = rng.standard_normal((2, n)).astype(np.float32)
    for derivatives in ((dlogprobs, dentropy, dlse), (dlogprobs, None, None), (None, dentropy, None), (None, None, dlse)):
        model.zero_grad()
        model.forward(batch, temperature)
        model.backward(*derivatives)
        expected = reference.backward(*derivatives)
        assert model.gradients.keys() == expected.keys()
        whole = np.sqrt(sum(np.linalg.norm(g) ** 2 for g in expected.values()))
        for key, wanted in expected.items():
            # A bias on all keys moves no probability unless positions rotate: its derivative is 0, and what is left is rounding.
            zero = key.endswith("k_proj.bias") and np.linalg.norm(wanted) < 1e-9 * whole
            error = np.linalg.norm(model.gradients[key] - wanted) / (whole if zero else np.linalg.norm(wanted))
            assert error < GRADIENT_TOLERANCE, key


@every_config
def test_ten_optimizer_steps(name: str):
    """Weights start as in training; the reference starts from the same float32 numbers. The distance travelled agrees to 1 %, the loss to 1e-5.

    Adam divides by sqrt(v): where a gradient is nearly 0 its rounding decides the sign of the first steps, so single weights may
    differ by a step; the whole may not.
    """
    config = CONFIGS[name]
    model = make_model(config, scale=0.1)
    start = {key: p.astype(np.float64) for key, p in model.parameters.items()}
    parameters, optimizer = {key: p.copy() for key, p in start.items()}, AdamW()
    for step in range(10):
        batch = make_batch(config, seed=10 + step)
        d = np.where(batch.targets >= 0, -1.0 / (batch.targets >= 0).sum(), 0.0).astype(np.float32)
        reference = Decoder(config, parameters)
        want = reference.forward(batch)
        norm = optimizer.step(parameters, reference.backward(d), lr=3e-3)
        model.zero_grad()
        out = model.forward_backward(batch, d)
        assert abs(model.adamw(3e-3) - norm) < 1e-5 * norm
        assert abs(float(np.dot(out.logprobs, d)) - float(np.dot(want.logprobs, d))) < 1e-5 * abs(float(np.dot(want.logprobs, d)))
    flat = lambda named: np.concatenate([np.ravel(named[key]) for key in start])
    travelled = np.linalg.norm(flat(parameters) - flat(start))
    assert np.linalg.norm(flat(model.parameters) - flat(parameters)) < 0.01 * travelled


def test_the_reference_notices_a_wrong_term():
    """The bar is sharp: a change of 1e-4 in one weight of one norm is seen."""
    config = DecoderConfig(64, 2, 4, 2, 32, 8, 64, 64)
    model, batch = make_model(config), make_batch(config)
    parameters = {key: p.astype(np.float64) for key, p in model.parameters.items()}
    parameters["layers.0.q_norm.weight"][0] *= 1.001
    assert relative(model.score(batch).logprobs, Decoder(config, parameters).forward(batch).logprobs) > TOLERANCE
