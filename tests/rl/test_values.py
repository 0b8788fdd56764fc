"""A head of one's own on the hidden states: its derivative reaches every weight, checked by finite differences; PPO learns with it."""

from __future__ import annotations

import numpy as np
import pytest

from freedive.model import Batch, LoRA, Model, from_depth, init_adapter
from freedive.rl.values import ValueModel


def made(lora: bool = False, trainable: bool = True) -> Model:
    model = Model(from_depth(1, 32, 64), max_tokens=64, max_seqs=4, threads=1, trainable=trainable, lora=LoRA(4, 8.0) if lora else None).init(0)
    rng = np.random.default_rng(1)
    for p in model.parameters.values():
        p += rng.normal(0, 0.1, p.shape).astype(np.float32)
    if lora:
        init_adapter(model, 0)
        for a in model.adapter.values():
            a += rng.normal(0, 0.1, a.shape).astype(np.float32)
    model.touch()
    return model


BATCH = Batch.pack([([1, 2, 3, 4, 5], [2, -1, 4, 5, 6]), ([7, 8, 9], [-1, 9, 1])])


@pytest.mark.parametrize("lora", [False, True])
def test_the_derivative_by_hidden_states_reaches_every_weight(lora: bool):
    model = made(lora)
    rng = np.random.default_rng(0)
    w, d = rng.normal(size=(8, model.config.d_model)).astype(np.float32), rng.normal(size=8).astype(np.float32)

    def loss() -> float:
        out = model.score(BATCH)
        return float((w.astype(np.float64) * model.last_hidden()).sum() + (d.astype(np.float64) * out.logprobs)[BATCH.targets >= 0].sum())

    model.zero_grad()
    model.forward(BATCH)
    model.backward(np.where(BATCH.targets >= 0, d, 0), dhidden=w)
    for name, gradient in model.gradients.items():
        view = (model.adapter if lora else model.parameters)[name]
        for at in [np.unravel_index(i, view.shape) for i in (0, view.size // 2, view.size - 1)]:
            kept, e = view[at], np.float32(2e-2)
            values = []
            for sign in (1, -1):
                view[at] = kept + sign * e
                model.touch()
                values.append(loss())
            view[at] = kept
            model.touch()
            assert gradient[at] == pytest.approx((values[0] - values[1]) / float(2 * e), rel=0.03, abs=0.03), name


def test_without_it_nothing_changes():
    a, b = made(), made()
    for model, more in ((a, {}), (b, {"dhidden": np.zeros((8, a.config.d_model))})):
        model.zero_grad()
        model.forward(BATCH)
        model.backward(np.ones(8), **more)
    for name, gradient in a.gradients.items():
        np.testing.assert_array_equal(gradient, b.gradients[name])
    a.forward(BATCH)
    with pytest.raises(ValueError, match="dhidden"):
        a.backward(dhidden=np.zeros(3))


def test_values_are_learned_and_kept():
    value, target = ValueModel(made()), np.array([0.1, 0.5, -0.3, 0.8, 0.2, 0.0, -1.0, 1.0])
    assert (value.values(BATCH) == 0).all()
    for _ in range(80):
        value.zero_grad()
        v = value.values(BATCH, keep=True)
        value.backward(2 * (v - target) / 8)
        value.step(1e-2)
    assert np.abs(value.values(BATCH) - target).max() < 0.05
    other = ValueModel(made())
    other.load_state(value.state())
    np.testing.assert_array_equal(other.values(BATCH), value.values(BATCH))
    before = value.values(BATCH)
    value.zero_grad()
    value.values(BATCH, keep=True)
    value.backward(np.full(8, np.nan))
    assert not np.isfinite(value.step(1e-2))
    np.testing.assert_array_equal(value.values(BATCH), before)
    with pytest.raises(RuntimeError, match="keep"):
        value.backward(np.zeros(8))
