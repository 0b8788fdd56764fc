"""Paths that must agree to the last bit: matmul variants, packed weights and sequences, the cache, the passes of the head."""

import numpy as np
import op_cases
import pytest
from op_case import BF16, COMPUTE, hows, lengths_to_cu, normal, tells_something
from op_cases import CACHE_DTYPES

from freedive import ops
from freedive.reference import ops as reference

ATTENTION = hows("attention_forward")


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=[seed, 6]))


@pytest.mark.parametrize("device", ops.devices())
@pytest.mark.parametrize("op", ["matmul_forward", "matmul_backward_input", "matmul_backward_weight"])
def test_matmul_variants_agree(op, device):
    """Every element is one chain of fused multiply-adds, whoever computes it (an instruction for pairs of bfloat16 rounds its own way)"""
    for case in op_cases.CASES[op]:
        if case.inputs["compute"] == "bfloat16":
            continue
        results = []
        for variant in ops.variants(op, device):
            arguments = case.arguments(device)
            ops.call(op, **arguments, variant=variant, device=device)
            results.append({key: arguments[key] for key in case.expected})
        for other in results[1:]:
            for key in other:
                np.testing.assert_array_equal(results[0][key], other[key], err_msg=case.name)


ACTIVATED = {
    "matmul_gelu_forward": ops.gelu_forward,
    "matmul_swiglu_forward": lambda sums, **how: ops.swiglu_forward(*(half.copy() for half in np.split(sums, 2, axis=1)), **how),
}


def product_and_activation(op, x, variant, device):
    """By matmul_forward and the activation, of the same rung"""
    inputs = {key: x.get(key) for key in ("x", "weight", "bias", "packed", "compute")}
    sums = ops.matmul_forward(**inputs, variant=variant, device=device)
    return {"aux": sums, "out": ACTIVATED[op](sums, variant="naive" if variant == "naive" else None, device=device)}


@pytest.mark.parametrize("device", ops.devices())
@pytest.mark.parametrize("op", ACTIVATED)
def test_a_product_and_its_activation_are_those_two_ops(op, device):
    """Each of out and aux in either dtype, too: what one rounds changes nothing of the other"""
    for variant in ops.variants(op, device):
        for case in op_cases.CASES[op]:
            if not tells_something(variant, case):
                continue
            plain = case.arguments(device)
            want = product_and_activation(op, plain, variant, device)
            ops.call(op, **plain, variant=variant, device=device)
            for key in case.expected:
                np.testing.assert_array_equal(plain[key], want[key], err_msg=f"{variant} {case.name}: {key}")
            for half in ("out", "aux") if len(case.expected) == 2 else ():
                mixed = case.arguments(device)
                mixed[half] = mixed[half].astype(BF16)
                ops.call(op, **mixed, variant=variant, device=device)
                for key in case.expected:
                    np.testing.assert_array_equal(np.asarray(mixed[key], np.float32), want[key].astype(mixed[key].dtype).astype(np.float32), err_msg=f"{variant} {case.name}: {key}")


TENSOR_CORES = [device for device in ops.devices() if "sm80" in ops.variants("matmul_forward", device)]


@pytest.mark.skipif(not TENSOR_CORES, reason="no device here has products on tensor cores")
@pytest.mark.parametrize("device", TENSOR_CORES)
@pytest.mark.parametrize("op", ["matmul_forward", "matmul_gelu_forward", "matmul_swiglu_forward", "matmul_backward_input", "matmul_backward_weight"])
def test_the_tile_changes_no_bit(op, device):
    """Sixteen rows or a thousand take another tile; the chain over k is the same, and so is the sampler's log-prob the trainer's"""
    tiles = [variant for variant in ops.variants(op, device) if variant.startswith("sm80")]
    assert len(tiles) > 1
    for case in op_cases.CASES[op]:
        if case.inputs["compute"] == "float32":
            continue
        results = []
        for variant in tiles:
            arguments = case.arguments(device)
            ops.call(op, **arguments, variant=variant, device=device)
            results.append({key: arguments[key] for key in case.expected})
        for key in results[0]:
            np.testing.assert_array_equal(results[0][key], results[1][key], err_msg=case.name)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_long_product_in_parts_is_one_chain(compute):
    """More than the 4 M words of A that are packed at a time: cut along k, and the chains go on. The same bits as a few of its rows alone"""
    r = rng(3)
    dout, weight = normal(r, 2050, 5000), normal(r, 5000, 17)
    whole = ops.matmul_backward_input(dout, weight, compute=compute, threads=2)
    for rows in (slice(0, 3), slice(2040, 2050), slice(500, 800)):
        np.testing.assert_array_equal(whole[rows], ops.matmul_backward_input(dout[rows], weight, compute=compute))


@pytest.mark.parametrize("how", hows("matmul_forward"))
def test_matmul_in_halves_is_the_matmul(how):
    """The chain starts from out when accumulating: k = 0..a, then a..K, is the same chain"""
    r = rng()
    x, weight = normal(r, 19, 300), normal(r, 23, 300)
    want = ops.matmul_forward(x, weight, device=how["device"])
    for cut in (1, 128, 256, 299):
        first = ops.matmul_forward(x[:, :cut], weight[:, :cut], **how)
        np.testing.assert_array_equal(ops.matmul_forward(x[:, cut:], weight[:, cut:], out=first, **how), want)


@pytest.mark.parametrize("how", hows("matmul_forward"))
def test_packed_weight_is_the_weight(how):
    r = rng()
    for N, C, O in op_cases.MATMUL_SHAPES:
        x, weight, bias = normal(r, N, C), normal(r, O, C), normal(r, O)
        want = ops.matmul_forward(x, weight, bias, **how)
        np.testing.assert_array_equal(ops.matmul_forward(x, weight, bias, packed=ops.matmul_pack(weight, device=how["device"]), **how), want)


# ---- attention -----------------------------------------------------------------------------------------------------


def qkv(r, N, H=4, G=2, D=16):
    return normal(r, N, H, D), normal(r, N, G, D), normal(r, N, G, D)


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("how", ATTENTION)
def test_packed_sequences_are_separate_sequences(how, compute):
    r = rng()
    lengths = (5, 1, 0, 70, 33, 32, 1)
    cu = lengths_to_cu(lengths)
    q, k, v = qkv(r, sum(lengths))
    dout = normal(r, *q.shape)
    out, lse = ops.attention_forward(q, k, v, cu, **how, compute=compute)
    gradients = ops.attention_backward(dout, out, lse, q, k, v, cu, compute=compute)
    for begin, end in zip(cu[:-1], cu[1:]):
        rows, alone = slice(begin, end), np.array([0, end - begin], np.int32)
        out1, lse1 = ops.attention_forward(q[rows], k[rows], v[rows], alone, **how, compute=compute)
        np.testing.assert_array_equal(out[rows], out1)
        np.testing.assert_array_equal(lse[rows], lse1)
        parts = (dout[rows], out1, lse1, q[rows], k[rows], v[rows], alone)
        for whole, part in zip(gradients, ops.attention_backward(*parts, compute=compute)):
            np.testing.assert_array_equal(whole[rows], part)


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("how", hows("attention_backward"))
def test_backward_packed_is_separate(how, compute):
    r = rng(1)
    cu = lengths_to_cu((40, 1, 65))
    q, k, v = qkv(r, 106)
    out, lse = ops.attention_forward(q, k, v, cu)
    dout = normal(r, *q.shape)
    whole = ops.attention_backward(dout, out, lse, q, k, v, cu, **how, threads=2, compute=compute)
    for begin, end in zip(cu[:-1], cu[1:]):
        parts = [x[begin:end] for x in (dout, out, lse, q, k, v)] + [np.array([0, end - begin], np.int32)]
        for got, want in zip(ops.attention_backward(*parts, **how, compute=compute), whole):
            np.testing.assert_array_equal(got, want[begin:end])


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("how", hows("attention_backward"))
@pytest.mark.parametrize(("H", "G"), [(1, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("lengths", [(700,), (5, 400, 33, 0, 1), (31, 32, 33)])
def test_backward_with_more_threads(how, H, G, lengths, compute):
    """Threads follow each other through one sequence: dq sums over the key blocks in their order whoever adds them"""
    r = rng(7)
    cu = lengths_to_cu(lengths)
    q, k, v = qkv(r, sum(lengths), H, G, 20)
    out, lse = ops.attention_forward(q, k, v, cu)
    dout = normal(r, *q.shape)
    how = how | {"compute": compute}
    want = ops.attention_backward(dout, out, lse, q, k, v, cu, **how, threads=1)
    for threads in (2, 3, 7):
        for got, expected in zip(ops.attention_backward(dout, out, lse, q, k, v, cu, **how, threads=threads), want):
            np.testing.assert_array_equal(got, expected)


def cached_whole(x, dtype, **how):
    """Attention of one sequence alone, all of it written to a cache first"""
    q, k, v = x
    L, G, D = k.shape
    where = np.array([0, L], np.int32), np.zeros(1, np.int32), np.arange(-(-L // ops.KV_BLOCK), dtype=np.int32)[None]
    k_cache, v_cache, *scales = ops.new_cache(where[2].size, G, D, dtype)
    ops.kv_cache_write(k_cache, v_cache, k, v, *where, *scales, device=how["device"])
    return ops.attention_cached(q, k_cache, v_cache, *where, None, *scales, **how)


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("how", hows("attention_cached"))
@pytest.mark.parametrize("D", [16, 21])
def test_a_cache_that_rounds_no_more_than_products_do_is_training(how, compute, D):
    x = qkv(rng(9), 150, 4, 2, D)
    want = ops.attention_forward(*x, np.array([0, 150], np.int32), **how, compute=compute)[0]
    np.testing.assert_array_equal(cached_whole(x, "float32", **how, compute=compute), want)
    assert np.array_equal(cached_whole(x, "bfloat16", **how, compute=compute), want) == (compute == "bfloat16")


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("how", hows("attention_cached"))
@pytest.mark.parametrize("chunks", [(129,), (40, 89), (1, 31, 32, 1, 64), (100,) + 29 * (1,)])
@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_cut_and_neighbours_change_no_bit(how, chunks, compute, dtype):
    """Prefill whole or in chunks, decode token by token, in shuffled blocks full of NaN: the bits of the sequence alone, read at once"""
    r = rng(2)
    H, G, D, L = 4, 2, 16 if dtype != "int8" else 18, 129
    sequences = [qkv(r, L, H, G, D) for _ in range(2)]
    want = [cached_whole(x, dtype, **how, compute=compute) for x in sequences]
    blocks_each = -(-L // ops.KV_BLOCK)
    table = r.permutation(2 * blocks_each + 3)[: 2 * blocks_each].reshape(2, blocks_each).astype(np.int32)
    k_cache, v_cache, *scales = ops.new_cache(2 * blocks_each + 3, G, D, dtype)
    # The second sequence is one chunk behind: its neighbours differ from the first's at every step
    at = [0, 0]
    for step in range(len(chunks) + 1):
        sizes = [chunks[step - late] if 0 <= step - late < len(chunks) else 0 for late in (0, 1)]
        q, k, v = (np.concatenate([sequences[s][i][at[s] : at[s] + sizes[s]] for s in (0, 1)]) for i in range(3))
        where = (lengths_to_cu(tuple(sizes)), np.array(at, np.int32), table)
        ops.kv_cache_write(k_cache, v_cache, k, v, *where, *scales, device=how["device"])
        out = ops.attention_cached(q, k_cache, v_cache, *where, None, *scales, **how, compute=compute, threads=1 + step % 2)
        np.testing.assert_array_equal(out[: sizes[0]], want[0][at[0] : at[0] + sizes[0]])
        np.testing.assert_array_equal(out[sizes[0] :], want[1][at[1] : at[1] + sizes[1]])
        at = [a + n for a, n in zip(at, sizes)]
    assert at == [L, L]


@pytest.mark.parametrize("how", hows("kv_cache_write"))
def test_int8_keeps_each_number_within_half_a_step(how):
    """Half of max |mixed row| / 127; nothing and next to nothing are 0, a row that is not finite is NaN to whoever sees it"""
    r = rng(11)
    k, v = normal(r, 6, 2, 40), normal(r, 6, 2, 40)
    k[5, :, 3] = 50  # a channel that is large
    k[1, 0], k[2, 1] = 0, 1e-33 * k[2, 1]
    k[3, 1, 5], v[4, 0, 36] = np.nan, -np.inf
    where = np.array([0, 6], np.int32), np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
    k_cache, v_cache, *scales = ops.new_cache(1, 2, 40, "int8")
    ops.kv_cache_write(k_cache, v_cache, k, v, *where, *scales, **how)
    for x, got in zip((k, v), reference.cached_numbers(k_cache, v_cache, *scales)):
        good = np.isfinite(x).all(-1)
        assert np.isnan(got[0, :6][~good]).all() and (~good).sum() == 1
        largest = np.abs(reference.mixed(x)[good]).max(-1, keepdims=True)
        assert (np.abs(got[0, :6][good] - x[good]) <= np.maximum(largest / 254 * 1.0001, 1e-30)).all()
        rest = np.abs(got[0, 5] - x[5])[:, 8:]  # of 8 neighbours one is 50: a scale for the whole row without mixing would err by 0.2
        assert np.sqrt((rest**2).mean()) < 0.1
    out = ops.attention_cached(normal(r, 6, 2, 40), k_cache, v_cache, *where, None, *scales)
    assert np.isnan(out[3:, 1]).all() and np.isnan(out[4:, 0]).all()


@pytest.mark.parametrize("how", ATTENTION)
def test_attention_with_scores_far_apart(how):
    """Softmax must not overflow, nor lose a row when the largest score comes last or first"""
    q, k, v = qkv(rng(3), 80)
    q *= 60
    cu = np.array([0, 80], np.int32)
    want, _ = reference.attention_forward(q, k, v, cu, 0.25)
    out, _ = ops.attention_forward(q, k, v, cu, 0.25, **how)
    assert np.linalg.norm(out - want) < 1e-4 * np.linalg.norm(want)


# ---- head ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", hows("head_forward_backward"))
@pytest.mark.parametrize("case", op_cases.CASES["head_forward_backward"], ids=lambda case: case.name)
def test_one_pass_is_two_passes(case, how):
    inputs = {key: value for key, value in case.arguments(how["device"]).items() if key in case.inputs}
    temperature, dlogprobs, dweight = float(inputs.pop("temperature")[0]), inputs.pop("dlogprobs"), inputs.pop("dweight")
    both = ops.head_forward_backward(
        **inputs, temperature=temperature, dlogprobs=dlogprobs, dweight=dweight.copy(), **how
    )
    logprobs, entropy, lse = ops.head_forward(**inputs, temperature=temperature, **how)
    gradients = ops.head_backward(
        **inputs,
        temperature=temperature,
        lse=lse,
        entropy=entropy,
        dlogprobs=dlogprobs,
        dweight=dweight.copy(),
        **how,
    )
    for got, want in zip(both, (logprobs, entropy, lse, *gradients)):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("how", hows("head_forward"))
def test_head_with_packed_weight_and_skipped_neighbours(how):
    r = rng(4)
    x, weight = normal(r, 90, 33), normal(r, 500, 33)
    targets = r.integers(0, 500, size=90).astype(np.int32)
    want = ops.head_forward(x, weight, targets, **how)
    for got, expected in zip(ops.head_forward(x, weight, targets, packed=ops.matmul_pack(weight, device=how["device"]), **how), want):
        np.testing.assert_array_equal(got, expected)
    skipped = np.where(r.random(90) < 0.7, -1, targets).astype(np.int32)
    for got, expected in zip(ops.head_forward(x, weight, skipped, **how), want):
        np.testing.assert_array_equal(got[skipped >= 0], expected[skipped >= 0])
        assert (got[skipped < 0] == 0).all()


def test_candidates_are_columns():
    """K > 1 gives what K calls with one target give"""
    r = rng(5)
    x, weight = normal(r, 20, 16), normal(r, 64, 16)
    targets = r.integers(0, 64, size=(20, 4)).astype(np.int32)
    together = ops.head_forward(x, weight, targets)[0]
    for k in range(4):
        np.testing.assert_array_equal(together[:, k], ops.head_forward(x, weight, targets[:, k].copy())[0])


@pytest.mark.parametrize("how", hows("head_sample"))
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("masked", [False, True])
def test_sampler_reports_the_trainers_log_probs(how, temperature, masked):
    """Whichever variant draws, the log-prob is that of the head_forward the device uses"""
    r = rng(6)
    S, C, V = 60, 40, 300
    x, weight = normal(r, S, C), normal(r, V, C)
    mask = (r.random(V) < 0.5).astype(np.uint8) if masked else None
    tokens, logprobs = ops.head_sample(
        x, weight, temperature, top_k=20, top_p=0.9, seeds=np.arange(S), vocab_mask=mask, **how
    )
    np.testing.assert_array_equal(logprobs, ops.head_forward(x, weight, tokens, temperature, vocab_mask=mask, device=how["device"])[0])
    greedy, logprobs = ops.head_sample(x, weight, 0.0, vocab_mask=mask, **how)
    np.testing.assert_array_equal(logprobs, ops.head_forward(x, weight, greedy, 1.0, vocab_mask=mask, device=how["device"])[0])


@pytest.mark.parametrize("device", ops.devices())
@pytest.mark.parametrize("rows", [1, 5, 17, 130])
def test_sampler_reports_the_trainers_log_probs_in_bfloat16(device, rows):
    """What a device decodes with and what it trains with: one row or many, the weight packed or not"""
    r = rng(12)
    N, C, V = 130, 40, 300
    x, weight = normal(r, N, C), normal(r, V, C)
    how = {"device": device, "compute": "bfloat16"}
    packed = ops.matmul_pack(weight, **how)
    tokens, logprobs = ops.head_sample(x[:rows], weight, 0.8, top_k=20, seeds=np.arange(rows), packed=packed, **how)
    targets = np.concatenate([tokens, np.zeros(N - rows, np.int32)])
    for inputs in ({}, {"packed": packed}):
        np.testing.assert_array_equal(logprobs, ops.head_forward(x, weight, targets, 0.8, **inputs, **how)[0][:rows])


@pytest.mark.parametrize("device", TENSOR_CORES)
def test_chunks_of_the_head_change_no_bit(device):
    """More rows than a chunk has (1,024): the outputs of rows, and a gradient that goes on from chunk to chunk"""
    r = rng(13)
    N, C, V, cut = 1100, 24, 33, 16 * 43
    x, weight, dweight = normal(r, N, C), normal(r, V, C), normal(r, V, C)
    targets, dlogprobs = r.integers(0, V, size=N).astype(np.int32), normal(r, N)
    how = {"device": device, "compute": "bfloat16"}
    whole = ops.head_forward_backward(x, weight, targets, dlogprobs=dlogprobs, dweight=dweight.copy(), **how)
    summed, parts = dweight.copy(), []
    for rows in (slice(0, cut), slice(cut, N)):
        parts.append(ops.head_forward_backward(x[rows], weight, targets[rows], dlogprobs=dlogprobs[rows], dweight=summed, **how))
        summed = parts[-1][-1]
    for got, *halves in zip(whole[:-1], *(part[:-1] for part in parts)):
        np.testing.assert_array_equal(got, np.concatenate(halves))
    np.testing.assert_array_equal(whole[-1], summed)


@pytest.mark.parametrize("device", ops.devices())
def test_sums_of_integers_are_the_same_in_every_variant(device):
    """In int8: whoever multiplies, and however many rows there are, the sums of a block are exact and blocks are added in order"""
    for case in op_cases.CASES["quantized_matmul"]:
        if case.inputs["compute"] != "int8":
            continue
        results = []
        for variant in ops.variants("quantized_matmul", device):
            arguments = case.arguments(device)
            ops.call("quantized_matmul", **arguments, variant=variant, device=device)
            results.append(arguments["out"])
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other, err_msg=case.name)


@pytest.mark.parametrize("device", [d for d in ops.devices() if d != "cpu"])
def test_rows_of_many_heads_without_a_derivative_add_nothing(device):
    """1,360 tokens of 12 heads are 16,320 rows, with 16 more tokens over 16,384, where the rows of a chunk double"""
    r = np.random.Generator(np.random.Philox(key=[5, 31]))
    N, H, D = 1376, 12, 4
    x, dout, rstd, weight = (r.standard_normal(shape, dtype=np.float32) for shape in ((N, H, D), (N, H, D), (N, H), (D,)))
    dout[1360:] = 0
    for variant in ops.variants("rmsnorm_backward", device):
        sums = []
        for n in (1360, N):
            sums.append(np.zeros(D, np.float32))
            ops.call("rmsnorm_backward", dweight=sums[-1], dx=np.zeros((n, H, D), np.float32), dout=dout[:n], x=x[:n], weight=weight, rstd=rstd[:n], accumulate=0, variant=variant, device=device)
        assert sums[0].tobytes() == sums[1].tobytes(), variant


@pytest.mark.parametrize("op", ["rmsnorm_backward", "layernorm_backward", "embedding_backward", "matmul_backward_weight"])
@pytest.mark.parametrize("device", [d for d in ops.devices() if d != "cpu"])
def test_rows_without_a_derivative_add_nothing(device, op):
    """Behind the others, as in a padded batch: no sum over rows is cut elsewhere, so no bit of it changes (but a 0's sign)"""
    r = np.random.Generator(np.random.Philox(key=[4, 31]))
    for N, more in ((5, 11), (31, 1), (40, 24), (1000, 24)) + ((16_384 + 7, 25),) * (op == "rmsnorm_backward"):
        D = 2 if N > 9000 else 9
        x, dout, weight = (r.standard_normal((n, D), dtype=np.float32) for n in (N + more, N + more, 1))
        dout[N:] = 0
        stat, tokens = r.random(N + more, dtype=np.float32), r.integers(0, 7, N + more).astype(np.int32)

        def sums(n, variant):
            if op == "embedding_backward":
                added = {"dwte": np.zeros((7, D), np.float32)}
                ops.call(op, **added, dout=dout[:n], tokens=tokens[:n], variant=variant, device=device)
            elif op == "matmul_backward_weight":
                added = {"dweight": np.zeros((D, D), np.float32), "dbias": np.zeros(D, np.float32)}
                ops.call(op, **added, dout=dout[:n], x=x[:n], variant=variant, device=device)
            else:
                added = {name: np.zeros(D, np.float32) for name in ("dweight", "dbias")[: 1 + (op == "layernorm_backward")]}
                shape, rows = ((n, D), {"mean": stat[:n] / 9}) if len(added) == 2 else ((n, 1, D), {})
                rows |= {"rstd": stat[:n].reshape(shape[:-1])}
                ops.call(op, **added, **rows, dx=np.zeros(shape, np.float32), dout=dout[:n].reshape(shape), x=x[:n].reshape(shape), weight=weight[0], accumulate=0, variant=variant, device=device)
            return [value + np.float32(0) for value in added.values()]

        for variant in ops.variants(op, device):
            assert [v.tobytes() for v in sums(N, variant)] == [v.tobytes() for v in sums(N + more, variant)], (variant, N)
