"""Products of many tiles, and attention on tensor cores: tiles of 64 keys, a ring of 2 or 3 of them, chunks of 512 that a decode step gives to blocks of their own.
One order of sums for training, prefill and decode, whatever the batch and the cache: their bits are equal."""

import numpy as np
import pytest
from op_case import BF16, TOLERANCE, lengths_to_cu, normal
from test_ops_attention import bf16, error, rounded_backward, rounded_forward

from freedive import ops
from freedive.reference import ops as reference

DEVICES = [device for device in ops.devices() if "sm80" in ops.variants("attention_forward", device)]
pytestmark = [pytest.mark.skipif(not DEVICES, reason="no device here has attention on tensor cores"), pytest.mark.parametrize("device", DEVICES)]


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=[seed, 21]))


def how(device):
    return {"device": device, "variant": "sm80", "compute": "bfloat16"}


def inputs(r, H, G, D, lengths, tail=0):
    N = sum(lengths) + tail
    return normal(r, N, H, D), normal(r, N, G, D), normal(r, N, G, D), lengths_to_cu(lengths)


# H, G, D, lengths: one key, tiles more than stages, one key into a tile and a chunk, all of a chunk; heads of a group that do not divide a tile
SHAPES = [(2, 1, 64, (577, 1)), (3, 1, 64, (1, 200, 0, 64, 65)), (1, 1, 128, (513,)), (10, 2, 128, (40, 1, 90)), (130, 2, 64, (3, 2))]


@pytest.mark.parametrize(("H", "G", "D", "lengths"), SHAPES)
def test_forward_and_backward_beside_numpy(device, H, G, D, lengths):
    r = rng()
    *x, cu = inputs(r, H, G, D, lengths, tail=2)
    x = (*x, cu, D**-0.5)
    dout = normal(r, *x[0].shape)
    exact = reference.attention_forward(*x)
    backward = reference.attention_backward(dout, *exact, *x)
    rounded_out = rounded_forward(*x)
    rounded = (*rounded_out, *rounded_backward(dout, *rounded_out, *x))
    got = ops.attention_forward(*x, **how(device))
    got = (*got, *ops.attention_backward(dout, *got, *x, **how(device)))
    for name, result, want, nearest in zip(("out", "lse", "dq", "dk", "dv"), got, (*exact, *backward), rounded):
        assert error(result, want) < TOLERANCE["bfloat16"], name
        assert error(result, want) < 1.5 * error(nearest, want), name
        assert (result[sum(lengths) :] == 0).all(), name


@pytest.mark.parametrize("scale", [0.25, -0.25])
def test_scores_that_grow_or_fall_by_hundreds(device, scale):
    r = rng(1)
    q, k, v, cu = inputs(r, 1, 1, 64, (600,))
    q = np.abs(q)
    k = (np.float32(0.01) * k + np.linspace(0, 20, 600, dtype=np.float32)[:, None, None]).astype(np.float32)
    out, lse = ops.attention_forward(q, k, v, cu, scale, **how(device))
    want, want_lse = reference.attention_forward(bf16(q), bf16(k), v, cu, scale)
    assert error(out, want) < 5e-3
    assert error(lse, want_lse) < 1e-5


@pytest.mark.parametrize("D", [64, 128])
def test_a_sequence_has_its_bits_in_any_batch(device, D):
    r = rng(2)
    lengths = (70, 1, 0, 129, 33)
    q, k, v, cu = inputs(r, 4, 2, D, lengths)
    dout = normal(r, *q.shape)
    out, lse = ops.attention_forward(q, k, v, cu, **how(device))
    whole = (out, lse, *ops.attention_backward(dout, out, lse, q, k, v, cu, **how(device)))
    for begin, end in zip(cu[:-1], cu[1:]):
        rows, alone = slice(begin, end), np.array([0, end - begin], np.int32)
        out1, lse1 = ops.attention_forward(q[rows], k[rows], v[rows], alone, **how(device))
        part = (out1, lse1, *ops.attention_backward(dout[rows], out1, lse1, q[rows], k[rows], v[rows], alone, **how(device)))
        for a, b in zip(whole, part):
            np.testing.assert_array_equal(a[rows], b)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("H", "G", "D", "lengths"), [(2, 1, 64, (1, 511, 512, 513, 1030, 64, 33)), (3, 3, 128, (520, 31)), (70, 1, 64, (66, 2))])
def test_decode_in_chunks_has_the_bits_of_training(device, H, G, D, lengths, dtype):
    """In a cache of NaN and shuffled blocks: all rows at once, their last ones alone (chunks side by side), with a narrow table and a wide one, beside sequences that bring nothing"""
    r = rng(3)
    q, k, v, cu = inputs(r, H, G, D, lengths)
    want = ops.attention_forward(q, k, v, cu, **how(device))[0]
    S, N, M = len(lengths), sum(lengths), -(-max(lengths) // ops.KV_BLOCK)
    table = r.permutation(S * M + 5)[: S * M].reshape(S, M).astype(np.int32)
    wide = np.concatenate([table, np.zeros((S, 40), np.int32)], 1)
    k_cache, v_cache, *scales = ops.new_cache(S * M + 5, G, D, dtype)
    nothing = np.zeros(S, np.int32)
    ops.kv_cache_write(k_cache, v_cache, k, v, cu, nothing, table, *scales, device=device)
    out = ops.attention_cached(q, k_cache, v_cache, cu, nothing, table, None, *scales, **how(device))
    np.testing.assert_array_equal(out, want)
    past, last = np.array(lengths, np.int32) - 1, cu[1:] - 1
    for blocks in (table, wide):
        out = ops.attention_cached(q[last], k_cache, v_cache, np.arange(S + 1, dtype=np.int32), past, blocks, None, *scales, **how(device))
        np.testing.assert_array_equal(out, want[last])
    # two rows of the longest and none of the others; then rows that go on from the middle, more of them than sequences
    longest = int(np.argmax(lengths))
    few = np.zeros(S, np.int32)
    few[longest] = 2
    past[longest] -= 1
    rows = slice(cu[longest + 1] - 2, cu[longest + 1])
    out = ops.attention_cached(q[rows], k_cache, v_cache, lengths_to_cu(tuple(few)), past, table, None, *scales, **how(device))
    np.testing.assert_array_equal(out, want[rows])
    new = np.minimum(lengths, 20).astype(np.int32)
    rows = np.concatenate([np.arange(end - n, end) for end, n in zip(cu[1:], new)])
    assert len(rows) > S and N > len(rows)
    out = ops.attention_cached(q[rows], k_cache, v_cache, lengths_to_cu(tuple(new)), (lengths - new).astype(np.int32), table, None, *scales, **how(device))
    np.testing.assert_array_equal(out, want[rows])


def test_blocks_take_several_chunks_each(device):
    """600 sequences, of which one has a row: blocks are many enough that two share the three chunks of its cache"""
    r = rng(6)
    q, k, v, cu = inputs(r, 2, 1, 64, (1100,))
    want = ops.attention_forward(q, k, v, cu, **how(device))[0][-1:]
    S, M, who = 600, 35, 417
    table = np.zeros((S, M), np.int32)
    table[who] = r.permutation(M)
    past, cu_seqlens = np.zeros(S, np.int32), (np.arange(S + 1) > who).astype(np.int32)
    past[who] = 1099
    k_cache, v_cache, *scales = ops.new_cache(M, 1, 64, "bfloat16")
    ops.kv_cache_write(k_cache, v_cache, k, v, cu, np.zeros(1, np.int32), table[who : who + 1], *scales, device=device)
    np.testing.assert_array_equal(ops.attention_cached(q[-1:], k_cache, v_cache, cu_seqlens, past, table, None, *scales, **how(device)), want)


def test_what_comes_after_changes_no_bit(device):
    """Rows before a changed token, forward and backward (their dout alone being non-zero), in the same tile and in others"""
    r = rng(4)
    q, k, v, cu = inputs(r, 2, 1, 64, (150,))
    dout = normal(r, *q.shape)
    dout[100:] = 0
    results = []
    for _ in range(2):
        out, lse = ops.attention_forward(q, k, v, cu, **how(device))
        gradients = ops.attention_backward(dout, out, lse, q, k, v, cu, **how(device))
        results.append([x[:100].copy() for x in (out, lse, *gradients)])
        q[100:], k[100:], v[100:] = (normal(r, *x[100:].shape) for x in (q, k, v))
    for before, after in zip(*results):
        np.testing.assert_array_equal(before, after)


def test_other_heads_and_types_are_the_rung_below(device):
    r = rng(5)
    for D, compute in ((80, "bfloat16"), (64, "float32")):
        q, k, v, cu = inputs(r, 2, 1, D, (70, 3))
        out, lse = ops.attention_forward(q, k, v, cu, device=device, variant="tiled", compute=compute)
        dout = normal(r, *q.shape)
        x = (q, k, v, cu)
        for op, below, arguments in ((ops.attention_forward, "tiled", x), (ops.attention_backward, "naive", (dout, out, lse, *x))):
            for a, b in zip(*(op(*arguments, device=device, variant=variant, compute=compute) for variant in (below, "sm80"))):
                np.testing.assert_array_equal(a, b)


# op, N, C, O: what other tests are too small for. 128 x 128, a tile of a wave of blocks: five stages of k, k in parts; 16 x 32 of the weight's gradient with k in parts; stores by TMA from 256 columns
LARGE = [("matmul_forward", 1030, 150, 1540), ("matmul_forward", 3500, 3100, 140), ("matmul_backward_input", 1030, 1540, 150), ("matmul_backward_input", 3500, 140, 3100),
         ("matmul_backward_weight", 150, 1540, 1030), ("matmul_backward_weight", 1600, 770, 770), ("matmul_backward_weight", 1100, 20, 9), ("matmul_forward", 150, 300, 200)]  # fmt: skip


@pytest.mark.parametrize(("op", "N", "C", "O"), LARGE)
def test_products_of_many_tiles(device, op, N, C, O):
    r = rng(8)
    x, weight, dout = normal(r, N, C), normal(r, O, C), normal(r, N, O)
    out, inputs, want = {
        "matmul_forward": ((N, O), {"x": x, "weight": weight}, lambda: bf16(x) @ bf16(weight).T),
        "matmul_backward_input": ((N, C), {"dout": dout, "weight": weight}, lambda: bf16(dout) @ bf16(weight)),
        "matmul_backward_weight": ((O, C), {"x": x, "dout": dout}, lambda: bf16(dout).T @ bf16(x)),
    }[op]
    key, got = {"matmul_forward": "out", "matmul_backward_input": "dx", "matmul_backward_weight": "dweight"}[op], []
    scalars = {"compute": "bfloat16"} | ({} if key == "dweight" else {"accumulate": 0})
    for variant in ("sm80", "sm80_128x256", *(["sm90"] if (N, C, O) == (150, 300, 200) else [])):
        got.append(np.zeros(out, np.float32))
        ops.call(op, **inputs, **scalars, **{key: got[-1]}, variant=variant, device=device)
        np.testing.assert_array_equal(got[-1], got[0])
    assert error(got[0], want()) < 1e-5


@pytest.mark.parametrize("op", ["matmul_gelu_forward", "matmul_swiglu_forward"])
@pytest.mark.parametrize(("N", "C", "O"), [(N, C, O) for name, N, C, O in LARGE if name == "matmul_forward"])
def test_activations_of_many_tiles(device, op, N, C, O):
    """Out and aux in bfloat16, as training has them, of the bits of the product alone"""
    r = rng(9)
    x, weight, bias, F = normal(r, N, C), normal(r, O, C) / np.float32(C**0.5), normal(r, O), O // 2 if "swiglu" in op else O
    for variant in ("sm80", "sm80_128x256", *(["sm90_plain", "sm90"] if (N, C, O) == (150, 300, 200) else [])):
        sums = ops.matmul_forward(x, weight, bias, device=device, variant=variant, compute="bfloat16")
        want = ops.gelu_forward(sums, device=device) if F == O else ops.swiglu_forward(sums[:, :F].copy(), sums[:, F:].copy(), device=device)
        out, aux = np.full((N, F), np.nan, BF16), np.full((N, O), np.nan, BF16)
        ops.call(op, out=out, aux=aux, x=x, weight=weight, bias=bias, compute="bfloat16", device=device, variant=variant)
        np.testing.assert_array_equal(bf16(sums), aux.astype(np.float32))
        np.testing.assert_array_equal(bf16(want), out.astype(np.float32))
