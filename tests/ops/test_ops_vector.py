"""Variants that move four numbers at a time: addresses off the 16-byte grid, more rows than chunks, the same bits twice and from each variant."""

import numpy as np
import op_cases
import pytest
from op_case import COMPUTE, hows, lengths_to_cu, normal
from op_cases import CACHE_DTYPES

from freedive import ops
from freedive.reference import ops as reference


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=[seed, 17]))


def close(got, want, tolerance=1e-5):
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


@pytest.mark.parametrize("how", hows("rmsnorm_backward"))
def test_more_rows_than_chunks_of_a_norm(how):
    """8,209 rows: chunks of 17 rows, and the last ones are empty. Twice the same bits"""
    r = rng()
    x, dout, weight = normal(r, 8209, 1, 5), normal(r, 8209, 1, 5), normal(r, 5)
    _, rstd = reference.rmsnorm_forward(x, weight, 1e-2)
    results = []
    for _ in range(2):
        y = {"dx": np.full_like(x, np.nan), "dweight": np.zeros(5, np.float32), "rstd": rstd.astype(np.float32)}
        ops.call("rmsnorm_backward", x=x, dout=dout, weight=weight, **y, accumulate=0, **how)
        results.append((y["dx"].tobytes(), y["dweight"].tobytes()))
    assert results[0] == results[1]
    for got, want in zip((y["dx"], y["dweight"]), reference.rmsnorm_backward(dout, x, weight, y["rstd"])):
        close(got, want)


HYPER = {"adamw": [1e-2, 0.9, 0.95, 1e-8, 0.1, 1, 0.3, 0.2], "muon_momentum": [0.02, 0.95, 1, 0.1, 1], "muon_update": [0.02, 0.95, 1, 0.1, 1]}
FLAT = {"adamw": ("param", "grad m v"), "muon_momentum": ("m", "grad out"), "muon_update": ("param", "x"), "normalize": ("out", "x")}


@pytest.mark.parametrize("P", [1, 2, 3, 6, 1001])
@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("op", FLAT)
@pytest.mark.parametrize("device", ops.devices())
def test_flat_ranges_off_the_grid_of_16_bytes(device, op, offset, P):
    """What is written begins 1, 2 or 3 numbers behind an address that is a multiple of 16: the same bits. The norm, of which ops read the first number only, overlaps
    it by one, so that the device keeps the two in one piece of memory"""
    shifted, others = FLAT[op]
    for variant in ops.variants(op, device):
        r = rng(P)
        x = {key: np.abs(normal(r, P)) for key in (shifted, *others.split())}
        scalars = {"normalize": {"eps": 1e-7}, "muon_update": {"scale": 1.7}}.get(op, {}) | ({"hyper": np.array(HYPER[op], np.float32)} if op in HYPER else {})
        plain, moved = ({key: value.copy() for key, value in x.items()} for _ in range(2))
        ops.call(op, **plain, **scalars, norm=np.array([2.5], np.float32), variant=variant, device=device)
        buffer = np.concatenate([[2.5], np.zeros(offset - 1), x[shifted], [7]]).astype(np.float32)
        moved[shifted] = buffer[offset : offset + P]
        ops.call(op, **moved, **scalars, norm=buffer[: offset + 1], variant=variant, device=device)
        for key in x:
            np.testing.assert_array_equal(moved[key], plain[key])
        assert buffer[0] == 2.5 and buffer[-1] == 7 and (buffer[1:offset] == 0).all()


@pytest.mark.parametrize("device", ops.devices())
def test_embedding_gradients_of_all_variants_are_one_chain(device):
    """dwte[tokens[n]] += dout[n] in the order of n: a common id, ids that occur once, more than one tile; whoever adds, the bits are the same"""
    r = rng(2)
    for N, C, V in ((2100, 6, 300), (70, 1030, 5), (1024, 3, 70_000)):
        tokens = np.where(r.random(N) < 0.4, V // 2, r.integers(0, V, N)).astype(np.int32)
        dout, start = normal(r, N, C), normal(r, V, C)
        results = []
        for variant in (*ops.variants("embedding_backward", device), *ops.variants("embedding_backward", device)):
            dwte = start.copy()
            ops.call("embedding_backward", dwte=dwte, dout=dout, tokens=tokens, variant=variant, device=device)
            results.append(dwte.tobytes())
        assert len(set(results)) == 1


ELEMENTWISE = ["embedding_forward", "rope", "gelu_forward", "gelu_backward", "swiglu_forward", "swiglu_backward", "adamw", "muon_momentum", "muon_update",
               "normalize", "linear_combination"]  # fmt: skip


@pytest.mark.parametrize("op", ELEMENTWISE)
@pytest.mark.parametrize("device", [device for device in ops.devices() if device != "cpu"])
def test_elementwise_variants_have_the_same_bits(op, device):
    for case in op_cases.CASES[op]:
        results = []
        for variant in ops.variants(op, device):
            arguments = case.arguments(device)
            ops.call(op, **arguments, variant=variant, device=device)
            results.append([arguments[key].tobytes() for key in case.expected])
        assert all(other == results[0] for other in results), case.name


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize(("H", "G", "D"), [(10, 1, 8), (3, 1, 100), (6, 2, 21), (1, 1, 130)])
@pytest.mark.parametrize("device", [device for device in ops.devices() if device != "cpu"])
def test_attention_variants_have_the_same_bits(device, H, G, D, compute):
    """More heads in a group than a block takes queries, heads of either tile and longer than both; sequences that begin and end within a block's rows; then a step of decoding"""
    r = rng(3)
    lengths = (3, 0, 134, 2, 66)
    cu, N = lengths_to_cu(lengths), sum(lengths)
    q, k, v = normal(r, N + 3, H, D), normal(r, N + 3, G, D), normal(r, N + 3, G, D)
    results = [ops.attention_forward(q, k, v, cu, variant=variant, device=device, compute=compute) for variant in ops.variants("attention_forward", device)]
    for other in results[1:]:
        for got, want in zip(other, results[0]):
            np.testing.assert_array_equal(got, want)
    M = -(-max(lengths) // ops.KV_BLOCK)
    table = r.permutation(len(lengths) * M).reshape(-1, M).astype(np.int32)
    for dtype in CACHE_DTYPES:
        k_cache, v_cache, *scales = ops.new_cache(table.size, G, D, dtype)
        ops.kv_cache_write(k_cache, v_cache, k[:N], v[:N], cu, np.zeros(len(lengths), np.int32), table, *scales, device=device)
        ends = np.array([n for n in range(len(lengths)) if lengths[n]], np.int32)
        one, past = np.arange(len(ends) + 1, dtype=np.int32), np.array(lengths, np.int32)[ends] - 1
        for rows, where in ((q[:N], (cu, np.zeros(len(lengths), np.int32), table)), (q[cu[1:][ends] - 1], (one, past, table[ends]))):
            results = [ops.attention_cached(rows, k_cache, v_cache, *where, None, *scales, variant=variant, device=device, compute=compute)
                       for variant in ops.variants("attention_cached", device)]  # fmt: skip
            for other in results[1:]:
                np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.05}, {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "temperature": 1.3}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("device", ops.devices())
def test_samplers_draw_the_same_tokens(device, settings):
    """Thresholds are exact and sums are in double: only a draw within 1e-15 of a boundary could differ. A vocabulary with ties, of a ragged number of strips of 128 ids"""
    r = rng(4)
    S, V = 24, 1301
    x, weight = normal(r, S, 8), normal(r, V, 8)
    weight[::7] = weight[3]
    draws = [ops.head_sample(x, weight, **({"temperature": 1.0} | settings), seeds=np.arange(S), variant=variant, device=device) for variant in ops.variants("head_sample", device)]
    for other in draws[1:]:
        for got, want in zip(other, draws[0]):
            np.testing.assert_array_equal(got, want)
