"""Attention beyond the cases every op has: sequences longer than a span or a tile, maxima that grow, bfloat16 beside NumPy."""

import ml_dtypes
import numpy as np
import pytest
from op_case import COMPUTE, TOLERANCE, hows, lengths_to_cu, normal

from freedive import ops
from freedive.reference import ops as reference

# H, G, D, lengths: around 128 keys (a span), 192 rows (a tile), 64 keys (a unit); D odd, and of whole and broken vectors
SHAPES = [
    (1, 1, 64, (300,)),
    (4, 2, 32, (193, 0, 129, 5)),
    (3, 1, 7, (450,)),
    (2, 2, 80, (64, 127, 128)),
    (6, 1, 21, (1, 2, 260)),
]
IDS = [f"{H}/{G}x{D} {lengths}" for H, G, D, lengths in SHAPES]


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=[seed, 8]))


def inputs(r, H, G, D, lengths):
    N = sum(lengths)
    return normal(r, N, H, D), normal(r, N, G, D), normal(r, N, G, D), lengths_to_cu(lengths), D**-0.5


def bf16(x):
    return np.asarray(x).astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def rounded_forward(q, k, v, cu, scale):
    """The reference with every operand of a product rounded to bfloat16: q, k; probabilities relative to the row's maximum, v"""
    out, lse = reference.attention_forward(bf16(q), bf16(k), bf16(v), cu, scale)
    for begin, end in zip(cu[:-1], cu[1:]):
        for h in range(q.shape[1] if begin < end else 0):
            g, rows = h // (q.shape[1] // k.shape[1]), slice(begin, end)
            scores = reference.causal_scores(bf16(q[rows, h]), bf16(k[rows, g]), scale)
            p = np.exp(scores - scores.max(1, keepdims=True))
            out[rows, h] = bf16(p) @ bf16(v[rows, g]) / p.sum(1, keepdims=True)
    return out, lse


def rounded_backward(dout, out, lse, q, k, v, cu, scale):
    """reference.attention_backward with the operands of its five products rounded; P and dS, too, are such operands"""
    H, G = q.shape[1], k.shape[1]
    dq, dk, dv = (np.zeros(x.shape) for x in (q, k, v))
    for begin, end in zip(cu[:-1], cu[1:]):
        for h in range(H if begin < end else 0):
            g, rows = h // (H // G), slice(begin, end)
            q_, k_, v_, dout_ = bf16(q[rows, h]), bf16(k[rows, g]), bf16(v[rows, g]), bf16(dout[rows, h])
            p = np.exp(reference.causal_scores(q_, k_, scale) - lse[rows, h, None])
            ds = p * (dout_ @ v_.T - (dout_ * out[rows, h]).sum(-1, keepdims=True))
            dq[rows, h] = scale * bf16(ds) @ k_
            dk[rows, g] += scale * bf16(ds).T @ q_
            dv[rows, g] += bf16(p).T @ dout_
    return dq, dk, dv


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("how", hows("attention_forward"))
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_long_sequences_forward(shape, how, compute):
    x = inputs(rng(), *shape)
    exact = reference.attention_forward(*x)
    got = ops.attention_forward(*x, **how, compute=compute)
    for name, result, want, rounded in zip(("out", "lse"), got, exact, rounded_forward(*x)):
        assert error(result, want) < TOLERANCE[compute], name
        if compute == "bfloat16":
            assert error(result, want) < 1.5 * error(rounded, want), name


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("how", hows("attention_backward"))
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_long_sequences_backward(shape, how, compute):
    r = rng(1)
    x = inputs(r, *shape)
    dout = normal(r, *x[0].shape)
    exact = reference.attention_backward(dout, *reference.attention_forward(*x), *x)
    out, lse = ops.attention_forward(*x, compute=compute)
    got = ops.attention_backward(dout, out, lse, *x, **how, compute=compute, threads=2)
    rounded_out = rounded_forward(*x)
    for name, result, want, rounded in zip(("dq", "dk", "dv"), got, exact, rounded_backward(dout, *rounded_out, *x)):
        assert error(result, want) < TOLERANCE[compute], name
        if compute == "bfloat16":
            assert error(result, want) < 1.5 * error(rounded, want), name


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("how", hows("attention_forward"))
@pytest.mark.parametrize("scale", [0.25, -0.25])
@pytest.mark.parametrize("falling", [False, True])
def test_maximum_moves_through_the_sequence(how, compute, scale, falling):
    """Scores that grow (or fall) by 100 from the first key to the last: sums and outputs are scaled down at every step of the way"""
    r = rng(2)
    q, k, v, cu, _ = inputs(r, 2, 1, 16, (400,))
    q = np.abs(q) * np.sign(scale).astype(np.float32)
    k *= np.float32(0.01)
    k += (np.linspace(0, 30, 400, dtype=np.float32)[:: -1 if falling else 1])[:, None, None]
    out, lse = ops.attention_forward(q, k, v, cu, scale, **how, compute=compute)
    if compute == "bfloat16":
        q, k = bf16(q), bf16(k)
    want, want_lse = reference.attention_forward(q, k, v, cu, scale)
    assert error(out, want) < (5e-3 if compute == "bfloat16" else 1e-4)
    assert error(lse, want_lse) < 1e-5


@pytest.mark.parametrize("compute", COMPUTE)
def test_rows_do_not_see_what_comes_after(compute):
    """Rows before a changed token keep their bits, forward and backward (their dout alone being non-zero)"""
    r = rng(3)
    q, k, v, cu, scale = inputs(r, 4, 2, 20, (250,))
    dout = normal(r, *q.shape)
    dout[100:] = 0
    results = []
    for _ in range(2):
        out, lse = ops.attention_forward(q, k, v, cu, scale, compute=compute)
        dq, dk, dv = ops.attention_backward(dout, out, lse, q, k, v, cu, scale, compute=compute)
        results.append([x[:100].copy() for x in (out, lse, dq, dk, dv)])
        q[100:], k[100:], v[100:] = (normal(r, *x[100:].shape) for x in (q, k, v))
    for before, after in zip(*results):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("D", [16, 21, 64])
def test_decode_of_many_sequences_is_decode_of_each(compute, D):
    """One token for each of 20 sequences of different lengths, in a cache full of NaN: the bits of training's last row"""
    r = rng(4)
    H, G, lengths = 6, 3, tuple(int(n) for n in r.integers(1, 400, size=20))
    q, k, v, cu, scale = inputs(r, H, G, D, lengths)
    want = ops.attention_forward(q, k, v, cu, scale, compute=compute)[0][cu[1:] - 1]
    M = -(-max(lengths) // ops.KV_BLOCK)
    table = r.permutation(20 * M).reshape(20, M).astype(np.int32)
    past, one = np.array(lengths, np.int32) - 1, np.arange(21, dtype=np.int32)
    int8 = []
    for dtype, threads in (("float32", 1), ("float32", 3), ("bfloat16", 2), ("int8", 1), ("int8", 3)):
        k_cache, v_cache, *scales = ops.new_cache(20 * M, G, D, dtype)
        ops.kv_cache_write(k_cache, v_cache, k, v, cu, np.zeros(20, np.int32), table, *scales)
        out = ops.attention_cached(q[cu[1:] - 1], k_cache, v_cache, one, past, table, scale, *scales, compute=compute, threads=threads)
        if dtype == "float32" or compute == dtype:
            np.testing.assert_array_equal(out, want)
        else:
            assert error(out, want) < (0.02 if dtype == "int8" else 0.01)
        if dtype == "int8":
            int8.append(out.tobytes())
    assert int8[0] == int8[1]
