"""The reference decoder's gradients against finite differences, in four configurations and on packed batches."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from freedive.reference import decoder
from freedive.reference.optimizer import AdamW, gradient_norm


@dataclass
class Config:
    vocab_size: int = 11
    n_layer: int = 2
    n_head: int = 4
    n_kv_head: int = 2
    d_model: int = 6
    head_dim: int = 4
    d_ff: int = 5
    max_positions: int = 8
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    position: str = "rope"
    rope_theta: float = 100.0
    rope_scaling: dict | None = None
    mlp: str = "swiglu"
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False


LLAMA3_SCALING = {"factor": 4.0, "low_freq_factor": 0.1, "high_freq_factor": 0.5, "original_max_position_embeddings": 4}
CONFIGS = {
    "gpt2": Config(
        n_kv_head=4,
        norm="layernorm",
        position="learned",
        mlp="gelu",
        attention_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tie_embeddings=True,
    ),
    "llama": Config(rope_scaling=LLAMA3_SCALING),
    "qwen3": Config(qk_norm=True, tie_embeddings=True),
    "qwen2": Config(n_kv_head=1, attention_bias=True),
}


def packed(lengths, seed=0, vocab_size=11, K=None):
    r = np.random.Generator(np.random.Philox(key=[seed, 3]))
    N = sum(lengths)
    targets = r.integers(-1, vocab_size, size=N) if K is None else r.integers(0, vocab_size, size=(N, K))
    return SimpleNamespace(
        tokens=r.integers(0, vocab_size, size=N),
        targets=targets,
        positions=np.concatenate([np.arange(n) for n in lengths]),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]),
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("lengths, K", [((5,), None), ((3, 1, 0, 4, 1), None), ((2, 1, 3), 3)])
def test_gradients(name, lengths, K):
    """Along random directions for all parameters at once, and element by element for a few of each"""
    config = CONFIGS[name]
    batch = packed(lengths, K=K)
    parameters = decoder.random_parameters(config, seed=5)
    r = np.random.Generator(np.random.Philox(key=[1, 4]))
    N = len(batch.tokens)
    d = {"dlogprobs": r.normal(size=batch.targets.shape), "dentropy": r.normal(size=N), "dlse": r.normal(size=N)}

    def loss(at):
        out = decoder.Decoder(config, at).forward(batch, temperature=0.8)
        return (out.logprobs * d["dlogprobs"]).sum() + (out.entropy * d["dentropy"]).sum() + (out.lse * d["dlse"]).sum()

    model = decoder.Decoder(config, parameters)
    model.forward(batch, temperature=0.8)
    gradients = model.backward(**d)
    assert gradients.keys() == parameters.keys()
    step = 1e-6
    for _ in range(3):
        direction = {key: r.normal(size=value.shape) for key, value in parameters.items()}
        moved = [loss({key: value + sign * step * direction[key] for key, value in parameters.items()}) for sign in (1, -1)]
        want = (moved[0] - moved[1]) / (2 * step)
        got = sum((gradients[key] * direction[key]).sum() for key in parameters)
        assert got == pytest.approx(want, rel=1e-7, abs=1e-7)
    for key, value in parameters.items():
        index = tuple(r.integers(0, n) for n in value.shape)
        moved = []
        for sign in (1, -1):
            changed = value.copy()
            changed[index] += sign * step
            moved.append(loss(parameters | {key: changed}))
        assert gradients[key][index] == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-6, abs=1e-7), key


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_is_separate(name):
    config, lengths = CONFIGS[name], (3, 1, 4)
    batch = packed(lengths)
    parameters = decoder.random_parameters(config, seed=2)
    model = decoder.Decoder(config, parameters)
    together = model.forward(batch).logprobs
    dlogprobs = np.linspace(-1, 1, sum(lengths))
    gradients = model.backward(dlogprobs)
    separate = {key: np.zeros_like(value) for key, value in parameters.items()}
    for begin, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        rows = slice(begin, end)
        alone = SimpleNamespace(
            tokens=batch.tokens[rows],
            targets=batch.targets[rows],
            positions=batch.positions[rows],
            cu_seqlens=np.array([0, end - begin]),
        )
        np.testing.assert_allclose(model.forward(alone).logprobs, together[rows], rtol=1e-12)
        for key, value in model.backward(dlogprobs[rows]).items():
            separate[key] += value
    for key in parameters:
        np.testing.assert_allclose(gradients[key], separate[key], rtol=1e-9, atol=1e-12)


def test_llama3_rope_scaling_leaves_high_frequencies_and_divides_low_ones():
    plain, scaled = Config(head_dim=64, rope_theta=1e4), Config(head_dim=64, rope_theta=1e4)
    scaled.rope_scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    angle = lambda config: np.arctan2(*(table[1] for table in decoder.rope_tables(config)[::-1]))
    a, b = angle(plain), angle(scaled)
    np.testing.assert_allclose(b[0], a[0])
    np.testing.assert_allclose(b[-1], a[-1] / 8, rtol=1e-9)
    assert (np.diff(a / b) >= -1e-9).all()


def test_ten_steps_of_adamw_learn():
    config, batch = CONFIGS["qwen3"], packed((5, 3))
    parameters = decoder.random_parameters(config, seed=3)
    trained = (batch.targets >= 0).sum()
    optimizer, losses = AdamW(), []
    for _ in range(10):
        model = decoder.Decoder(config, parameters)
        losses.append(-model.forward(batch).logprobs.sum() / trained)
        optimizer.step(parameters, model.backward(np.full(8, -1 / trained)), lr=0.03)
    assert losses[-1] < 0.7 * losses[0]


def test_adamw_first_step_clip_and_skip():
    start = {"w.weight": np.array([[1.0, -2.0]])}
    gradients = {"w.weight": np.array([[3.0, -4.0]])}
    assert gradient_norm(gradients) == 5
    parameters, optimizer = dict(start), AdamW()
    assert optimizer.step(parameters, gradients, lr=0.1, weight_decay=0.5, max_norm=1.0) == 5
    # Bias correction makes the first step lr * sign(gradient), whatever the clip
    np.testing.assert_allclose(parameters["w.weight"], [[1 - 0.1 - 0.05, -2 + 0.1 + 0.1]], rtol=1e-6)
    np.testing.assert_allclose(optimizer.m["w.weight"], 0.1 * np.array([[0.6, -0.8]]))
    before = parameters["w.weight"]
    optimizer.step(parameters, {"w.weight": np.array([[np.nan, 0]])}, lr=0.1)
    assert parameters["w.weight"] is before and optimizer.t == 1
