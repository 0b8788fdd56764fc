"""Attention forward by TMA and wgmma: tiles of 128 pairs for two warpgroups, a ring of 4 stages of 64 keys, chunks of 512, keys in an order of their own.
Under emulation its bits are sm80's, and so decoding's; what a GPU adds within a wgmma is its own, so there it is recorded and not asserted."""

import numpy as np
import pytest
from op_case import TOLERANCE, lengths_to_cu, normal
from test_ops_attention import error, rounded_forward

from freedive import ops
from freedive.reference import ops as reference

HOWS = [pytest.param({"device": d, "variant": v, "compute": "bfloat16"}, id=f"{d}-{v}")
        for d in ops.devices() for v in ops.variants("attention_forward", d) if v.startswith("sm90")]  # fmt: skip
pytestmark = [pytest.mark.skipif(not HOWS, reason="no device here has attention by wgmma"), pytest.mark.parametrize("how", HOWS)]


def inputs(seed, H, G, D, lengths, tail=0):
    r = np.random.Generator(np.random.Philox(key=[seed, 90]))
    N = sum(lengths) + tail
    return normal(r, N, H, D), normal(r, N, G, D), normal(r, N, G, D), lengths_to_cu(lengths), D**-0.5


# H, G, D, lengths: one key; more tiles than the ring has; one key into a tile, a chunk and a third chunk; one warpgroup or row of a tile without pairs; heads of
# a group that do not divide a tile, and more of them than a tile has
SHAPES = [(2, 1, 64, (577, 1)), (3, 1, 64, (1, 200, 0, 64, 65)), (1, 1, 128, (513,)), (1, 1, 128, (1025, 129)), (10, 2, 128, (40, 1, 90)), (130, 1, 64, (3, 2))]


@pytest.mark.parametrize(("H", "G", "D", "lengths"), SHAPES)
def test_beside_numpy_and_sm80(how, H, G, D, lengths, record_property):
    x = inputs(0, H, G, D, lengths, tail=2)
    exact, nearest = reference.attention_forward(*x), rounded_forward(*x)
    got, sm80 = ops.attention_forward(*x, **how), ops.attention_forward(*x, **how | {"variant": "sm80"})
    for name, result, want, rounded, other in zip(("out", "lse"), got, exact, nearest, sm80):
        assert error(result, want) < TOLERANCE["bfloat16"], name
        assert error(result, want) < 1.5 * error(rounded, want), name
        assert (result[sum(lengths) :] == 0).all(), name
        record_property(f"{name}_words_that_differ_from_sm80", int((result.view(np.uint32) != other.view(np.uint32)).sum()))
        if how["device"] == "cuda-emu":
            np.testing.assert_array_equal(result, other)


@pytest.mark.parametrize("D", [64, 128])
def test_decoding_has_its_bits(how, D):
    """The last row of each sequence, from a cache of shuffled blocks"""
    if how["device"] != "cuda-emu":
        pytest.skip("a GPU's wgmma may add in another order than the mma.sync of decoding: why nothing takes sm90 by default")
    lengths = (1, 70, 530)
    q, k, v, cu, scale = inputs(1, 4, 2, D, lengths)
    want = ops.attention_forward(q, k, v, cu, scale, **how)[0][cu[1:] - 1]
    S, M = len(lengths), -(-max(lengths) // ops.KV_BLOCK)
    table = np.random.default_rng(0).permutation(S * M).reshape(S, M).astype(np.int32)
    k_cache, v_cache, *scales = ops.new_cache(S * M, 2, D, "bfloat16")
    ops.kv_cache_write(k_cache, v_cache, k, v, cu, np.zeros(S, np.int32), table, *scales, device=how["device"])
    past, rows = np.array(lengths, np.int32) - 1, np.arange(S + 1, dtype=np.int32)
    out = ops.attention_cached(q[cu[1:] - 1], k_cache, v_cache, rows, past, table, scale, *scales, device=how["device"], compute="bfloat16")
    np.testing.assert_array_equal(out, want)


def test_neighbours_change_no_bit(how):
    """Sequences between others of NaN, whose rows no box of theirs may hold, and alone"""
    lengths = (70, 33, 1, 129, 64, 31)
    q, k, v, cu, scale = inputs(2, 4, 2, 128, lengths)
    for x in (q, k, v):
        for s in (0, 2, 4):
            x[cu[s] : cu[s + 1]] = np.nan
    whole = ops.attention_forward(q, k, v, cu, scale, **how)
    for s in (1, 3, 5):
        rows = slice(cu[s], cu[s + 1])
        alone = ops.attention_forward(q[rows], k[rows], v[rows], np.array([0, lengths[s]], np.int32), scale, **how)
        for a, b in zip(whole, alone):
            assert np.isfinite(b).all()
            np.testing.assert_array_equal(a[rows], b)


def test_it_is_not_taken_by_default(how):
    """Until a GPU has told that a wgmma adds as an mma.sync does, or decoding has a variant of its order"""
    assert ops.ladder("attention_forward", how["device"])[-1] == "sm80"
