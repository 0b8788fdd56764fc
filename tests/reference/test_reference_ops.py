"""The NumPy reference against finite differences: every backward is the derivative of its forward, in float64."""

import numpy as np
import pytest

from freedive.reference import ops

CU = np.array([0, 3, 3, 4, 9])  # sequences of 3, 0, 1 and 5 tokens


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=[seed, 7]))


def numeric_gradient(loss, x, step=1e-6):
    """Central differences of a scalar function by every element of x, which is changed in place and restored"""
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        old = x[index]
        x[index] = old + step
        up = loss()
        x[index] = old - step
        out[index] = (up - loss()) / (2 * step)
        x[index] = old
    return out


def assert_gradient(got, loss, x, tol=2e-8):
    want = numeric_gradient(loss, x)
    assert np.linalg.norm(got - want) <= tol * max(1, np.linalg.norm(want))


@pytest.mark.parametrize("learned", [False, True])
def test_embedding(learned):
    r = rng()
    wte, wpe, dout = r.normal(size=(5, 3)), r.normal(size=(4, 3)), r.normal(size=(6, 3))
    tokens, positions = np.array([1, 1, 4, 0, 1, 2]), np.array([0, 1, 2, 0, 1, 3])
    loss = lambda: (ops.embedding_forward(tokens, positions, wte, wpe if learned else None) * dout).sum()
    dwte, dwpe = ops.embedding_backward(dout, tokens, positions, 5, 4 if learned else None)
    assert_gradient(dwte, loss, wte)
    if learned:
        assert_gradient(dwpe, loss, wpe)
    else:
        assert dwpe is None


def test_rmsnorm():
    r = rng()
    x, weight, dout = r.normal(size=(3, 2, 5)), r.normal(size=5), r.normal(size=(3, 2, 5))
    loss = lambda: (ops.rmsnorm_forward(x, weight, 1e-3)[0] * dout).sum()
    dx, dweight = ops.rmsnorm_backward(dout, x, weight, ops.rmsnorm_forward(x, weight, 1e-3)[1])
    assert_gradient(dx, loss, x)
    assert_gradient(dweight, loss, weight)


def test_layernorm():
    r = rng()
    x, weight, bias, dout = r.normal(size=(4, 5)), r.normal(size=5), r.normal(size=5), r.normal(size=(4, 5))
    loss = lambda: (ops.layernorm_forward(x, weight, bias, 1e-3)[0] * dout).sum()
    _, mean, rstd = ops.layernorm_forward(x, weight, bias, 1e-3)
    dx, dweight, dbias = ops.layernorm_backward(dout, x, weight, mean, rstd)
    for got, variable in ((dx, x), (dweight, weight), (dbias, bias)):
        assert_gradient(got, loss, variable)


def test_rope_is_a_rotation_and_its_inverse_is_its_transpose():
    r = rng()
    x, dout, positions = r.normal(size=(4, 2, 6)), r.normal(size=(4, 2, 6)), np.array([0, 3, 1, 2])
    angle = r.normal(size=(5, 3))
    cos, sin = np.cos(angle), np.sin(angle)
    turned = ops.rope(x, cos, sin, positions)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1))
    np.testing.assert_allclose(ops.rope(turned, cos, sin, positions, inverse=True), x)
    assert_gradient(ops.rope(dout, cos, sin, positions, inverse=True), lambda: (ops.rope(x, cos, sin, positions) * dout).sum(), x)


def test_activations():
    r = rng()
    x, up, dout = 3 * r.normal(size=(3, 5)), r.normal(size=(3, 5)), r.normal(size=(3, 5))
    assert_gradient(ops.gelu_backward(dout, x), lambda: (ops.gelu_forward(x) * dout).sum(), x)
    loss = lambda: (ops.swiglu_forward(x, up) * dout).sum()
    dgate, dup = ops.swiglu_backward(dout, x, up)
    assert_gradient(dgate, loss, x)
    assert_gradient(dup, loss, up)
    assert np.isfinite(ops.swiglu_forward(np.array([-1e4, 1e4]), np.ones(2))).all()


def test_matmul():
    r = rng()
    x, weight, bias, residual, dout = (r.normal(size=s) for s in ((4, 3), (5, 3), (5,), (4, 5), (4, 5)))
    loss = lambda: (ops.matmul_forward(x, weight, bias, residual) * dout).sum()
    dweight, dbias = ops.matmul_backward_weight(dout, x)
    assert_gradient(ops.matmul_backward_input(dout, weight), loss, x)
    assert_gradient(dweight, loss, weight)
    assert_gradient(dbias, loss, bias)


def attention_inputs(seed=0, N=9, H=4, G=2, D=3):
    r = rng(seed)
    return (r.normal(size=(N, heads, D)) for heads in (H, G, G, H))


def test_attention_gradients():
    q, k, v, dout = attention_inputs()
    loss = lambda: (ops.attention_forward(q, k, v, CU, 0.6)[0] * dout).sum()
    out, lse = ops.attention_forward(q, k, v, CU, 0.6)
    for got, variable in zip(ops.attention_backward(dout, out, lse, q, k, v, CU, 0.6), (q, k, v), strict=True):
        assert_gradient(got, loss, variable)


def test_attention_sees_the_past_of_its_own_sequence_only():
    q, k, v, _ = attention_inputs()
    out, _ = ops.attention_forward(q, k, v, CU, 0.6)
    np.testing.assert_allclose(out[3], np.repeat(v[3], 2, axis=0))  # one token: the value itself
    k[6:], v[6:] = 100, 100
    again, _ = ops.attention_forward(q, k, v, CU, 0.6)
    np.testing.assert_array_equal(out[:6], again[:6])


def test_cached_attention_in_chunks_is_attention():
    q, k, v, _ = attention_inputs(N=70)
    want, _ = ops.attention_forward(q, k, v, np.array([0, 70]), 0.6)
    k_cache, v_cache = np.full((5, 2, 3, 32), np.nan), np.full((5, 2, 32, 3), np.nan)
    table = np.array([[4, 0, 2]])
    got = []
    for begin, end in ((0, 20), (20, 21), (21, 70)):
        past, cu, rows = np.array([begin]), np.array([0, end - begin]), slice(begin, end)
        k_cache, v_cache = ops.kv_cache_write(k_cache, v_cache, k[rows], v[rows], cu, past, table)
        got.append(ops.attention_cached(q[rows], k_cache, v_cache, cu, past, table, 0.6))
    np.testing.assert_allclose(np.concatenate(got), want, rtol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_head(masked):
    r = rng()
    x, weight = r.normal(size=(4, 3)), r.normal(size=(7, 3))
    mask = np.array([1, 1, 0, 1, 1, 0, 1], dtype=np.uint8) if masked else None
    targets = np.array([[1, 3], [-1, -1], [6, 6], [0, 4]])
    dlogprobs, dentropy, dlse = r.normal(size=(4, 2)), r.normal(size=4), r.normal(size=4)

    def loss():
        logprobs, entropy, lse = ops.head_forward(x, weight, targets, 0.7, mask)
        return (logprobs * dlogprobs).sum() + (entropy * dentropy).sum() + (lse * dlse).sum()

    dx, dweight = ops.head_backward(x, weight, targets, 0.7, mask, dlogprobs, dentropy, dlse)
    assert_gradient(dx, loss, x)
    assert_gradient(dweight, loss, weight)
    logprobs, entropy, lse = ops.head_forward(x, weight, targets, 0.7, mask)
    assert (dx[1] == 0).all() and (logprobs[1] == 0).all() and entropy[1] == 0 and lse[1] == 0
    if masked:
        assert (dweight[mask == 0] == 0).all()
    both = ops.head_forward_backward(x, weight, targets, dlogprobs, 0.7, mask)
    for got, want in zip(
        both, (logprobs, entropy, lse, *ops.head_backward(x, weight, targets, 0.7, mask, dlogprobs)), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_sampling_probabilities():
    logits = np.log(np.array([0.4, 0.1, 0.3, 0.2]))
    np.testing.assert_allclose(ops.sampling_probabilities(logits, 1.0), [0.4, 0.1, 0.3, 0.2])
    np.testing.assert_allclose(ops.sampling_probabilities(logits, 0.0), [1, 0, 0, 0])
    np.testing.assert_allclose(ops.sampling_probabilities(logits, 1.0, top_k=2), [4 / 7, 0, 3 / 7, 0])
    np.testing.assert_allclose(ops.sampling_probabilities(logits, 1.0, top_p=0.65), [4 / 7, 0, 3 / 7, 0])
    np.testing.assert_allclose(ops.sampling_probabilities(logits, 1.0, min_p=0.45), [4 / 9, 0, 3 / 9, 2 / 9])
    np.testing.assert_allclose(ops.sampling_probabilities(logits, 1.0, top_p=1e-9), [1, 0, 0, 0])
    squared = np.array([16, 1, 9, 4]) / 30
    np.testing.assert_allclose(ops.sampling_probabilities(logits, 0.5), squared)
    np.testing.assert_allclose(ops.sampling_probabilities(np.zeros(3), 0.0), [1, 0, 0])  # ties: the smallest id
    np.testing.assert_allclose(ops.sampling_probabilities(np.array([-np.inf, 0, 0]), 1.0, top_k=1), [0, 1, 0])
