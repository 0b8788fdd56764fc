"""What every op is tested on: inputs, and what the NumPy float64 reference says should come out.

`CASES[op]` is a list of `Case` (op_case.py); those of packed weights are in quantized_cases.py. Tests run each on every registered
variant of the op, so a new variant is tested by existing, and test_ops_reference.py fails when an op of ops.h has no case. Sizes are
chosen around vector widths (4, 8, 16), the attention block (32) and the matmul blocks (12, 120, 240, 256, 512, 768), and away from all of them.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import quantized_cases  # noqa: F401 - enters its own
from op_case import CASES as CASES
from op_case import COMPUTE, TOLERANCE, Case, cases, ids, lengths_to_cu, normal, rounded

from freedive import ops
from freedive.reference import ops as reference

# ---- embedding, norms, rope, activations ---------------------------------------------------------------------------


@cases("embedding_forward")
def embedding_forward(r):
    for N, C, V, T in ((7, 5, 11, 9), (1, 1, 1, 1), (33, 64, 20, 40), (0, 8, 4, 4), (3, 1030, 9, 7)):
        for learned in (False, True):
            x = {"tokens": ids(r, V, N), "wte": normal(r, V, C)}
            if learned:
                x |= {"positions": ids(r, T, N), "wpe": normal(r, T, C)}
            out = reference.embedding_forward(x["tokens"], x.get("positions"), x["wte"], x.get("wpe"))
            yield Case(f"{N}x{C}{'+positions' * learned}", x, {"out": out})


@cases("embedding_backward")
def embedding_backward(r):
    # more than one tile of 1,024 ids; vocabularies of one, two and three digits of 8 bits
    for N, C, V, T in ((7, 5, 3, 9), (1, 1, 1, 1), (100, 64, 20, 40), (0, 8, 4, 4), (1100, 7, 700, 90), (33, 1, 70_000, 257), (9, 1030, 5, 7)):
        for learned in (False, True):
            x = {"tokens": ids(r, V, N), "dout": normal(r, N, C), "dwte": normal(r, V, C)}
            if learned:
                x |= {"positions": ids(r, T, N), "dwpe": normal(r, T, C)}
            dwte, dwpe = reference.embedding_backward(x["dout"], x["tokens"], x.get("positions"), V, T if learned else None)
            expected = {"dwte": x["dwte"] + dwte} | ({"dwpe": x["dwpe"] + dwpe} if learned else {})
            yield Case(f"{N}x{C}{'+positions' * learned}", x, expected)


# and around 64, 128, 512, 1024, 2048, 4096 and 8192: how many lanes of a GPU share a row
NORM_SHAPES = ((1, 1, 2), (5, 1, 7), (3, 4, 16), (17, 2, 33), (40, 1, 256), (70, 3, 20), (0, 1, 8), (37, 1, 70), (35, 1, 515), (19, 1, 1030), (2, 1, 2051),
               (18, 1, 4100), (1, 1, 8194))  # fmt: skip


@cases("rmsnorm_forward")
def rmsnorm_forward(r):
    for N, H, D in NORM_SHAPES:
        x = {"x": normal(r, N, H, D), "weight": normal(r, D), "eps": 1e-6}
        out, rstd = reference.rmsnorm_forward(x["x"], x["weight"], 1e-6)
        yield Case(f"{N}x{H}x{D}", x, {"out": out, "rstd": rstd})
    x = {"x": np.zeros((2, 1, 9), np.float32), "weight": normal(r, 9), "eps": 1e-6}
    yield Case("zeros", x, {"out": np.zeros((2, 1, 9)), "rstd": np.full((2, 1), 1e3)})


@cases("rmsnorm_backward")
def rmsnorm_backward(r):
    for N, H, D in NORM_SHAPES:
        for accumulate in (0, 1):
            x = {"dout": normal(r, N, H, D), "x": normal(r, N, H, D), "weight": normal(r, D), "accumulate": accumulate}
            x["rstd"] = reference.rmsnorm_forward(x["x"], x["weight"], 1e-2)[1].astype(np.float32)
            x["dweight"] = normal(r, D)
            dx, dweight = reference.rmsnorm_backward(x["dout"], x["x"], x["weight"], x["rstd"])
            if accumulate:
                x["dx"] = normal(r, N, H, D)
                dx = dx + x["dx"]
            yield Case(f"{N}x{H}x{D}{'+=' * accumulate}", x, {"dx": dx, "dweight": x["dweight"] + dweight})


@cases("layernorm_forward")
def layernorm_forward(r):
    for N, H, D in NORM_SHAPES:
        C = H * D
        for bias in (None, normal(r, C)):
            x = {"x": normal(r, N, C) + 2, "weight": normal(r, C), "bias": bias, "eps": 1e-5}
            out, mean, rstd = reference.layernorm_forward(x["x"], x["weight"], bias, 1e-5)
            yield Case(f"{N}x{C}{'+bias' * (bias is not None)}", x, {"out": out, "mean": mean, "rstd": rstd})


@cases("layernorm_backward")
def layernorm_backward(r):
    for N, H, D in NORM_SHAPES:
        C = H * D
        for accumulate in (0, 1):
            x = {"dout": normal(r, N, C), "x": normal(r, N, C) + 2, "weight": normal(r, C), "accumulate": accumulate}
            _, mean, rstd = reference.layernorm_forward(x["x"], x["weight"], None, 0.1)
            x |= {"mean": mean.astype(np.float32), "rstd": rstd.astype(np.float32), "dweight": normal(r, C)}
            dx, dweight, dbias = reference.layernorm_backward(x["dout"], x["x"], x["weight"], x["mean"], x["rstd"])
            expected = {"dx": dx, "dweight": x["dweight"] + dweight}
            if accumulate:
                x |= {"dx": normal(r, N, C), "dbias": normal(r, C)}
                expected |= {"dx": x["dx"] + dx, "dbias": x["dbias"] + dbias}
            yield Case(f"{N}x{C}{'+=' * accumulate}", x, expected)


@cases("rope")
def rope(r):
    for N, H, D in ((1, 1, 2), (5, 3, 8), (9, 2, 34), (33, 4, 64), (0, 2, 4), (3, 20, 120)):
        for inverse in (0, 1):
            angle = normal(r, 50, D // 2)
            x = {
                "x": normal(r, N, H, D),
                "cos": np.cos(angle),
                "sin": np.sin(angle),
                "positions": ids(r, 50, N),
                "inverse": inverse,
            }
            out = reference.rope(x["x"], x["cos"], x["sin"], x["positions"], bool(inverse))
            yield Case(f"{N}x{H}x{D}{'-inverse' * inverse}", x, {"out": out})


ACTIVATION_SHAPES = ((1, 1), (3, 5), (4, 64), (7, 129), (0, 6), (2, 1037))
EXTREME = np.array([[0, -0.0, 1e-6, -1e-6, 5, -5, 20, -20, 90, -90, 1e4, -1e4]], dtype=np.float32)


def activation_inputs(r):
    for N, F in ACTIVATION_SHAPES:
        yield f"{N}x{F}", 2 * normal(r, N, F)
    yield "extreme", EXTREME


@cases("gelu_forward")
def gelu_forward(r):
    for name, x in activation_inputs(r):
        yield Case(name, {"x": x}, {"out": reference.gelu_forward(x)})


@cases("gelu_backward")
def gelu_backward(r):
    for name, x in activation_inputs(r):
        dout = normal(r, *x.shape)
        yield Case(name, {"x": x, "dout": dout}, {"dx": reference.gelu_backward(dout, x)})


@cases("swiglu_forward")
def swiglu_forward(r):
    for name, gate in activation_inputs(r):
        up = normal(r, *gate.shape)
        yield Case(name, {"gate": gate, "up": up}, {"out": reference.swiglu_forward(gate, up)})


@cases("swiglu_backward")
def swiglu_backward(r):
    for name, gate in activation_inputs(r):
        up, dout = normal(r, *gate.shape), normal(r, *gate.shape)
        dgate, dup = reference.swiglu_backward(dout, gate, up)
        yield Case(name, {"gate": gate, "up": up, "dout": dout}, {"dgate": dgate, "dup": dup})


@cases("cast")
def cast(r):
    for name, x in activation_inputs(r):
        yield Case(name, {"x": x}, {"out": reference.cast(x)})


# ---- matmul --------------------------------------------------------------------------------------------------------

MATMUL_SHAPES = (
    (1, 1, 1),
    (1, 64, 48),
    (2, 3, 5),
    (7, 13, 17),
    (16, 32, 16),
    (33, 65, 31),
    (6, 300, 270),
    (250, 20, 30),
    (245, 260, 261),
    (250, 300, 530),
    (1000, 9, 110),
    (0, 4, 4),
)


# A long sum over k: on tensor cores it is cut into parts (N x C x O: forward cuts C, backward O and N)
LONG = {"matmul_forward": ((5, 3100, 40), (70, 4700, 33)), "matmul_gelu_forward": ((5, 3100, 40), (70, 4700, 33)), "matmul_swiglu_forward": ((5, 3100, 20), (70, 4700, 33)),
        "matmul_backward_input": ((5, 40, 3100), (70, 33, 4700)), "matmul_backward_weight": ((1100, 20, 31),)}


def matmul_inputs(op):
    return (*product(MATMUL_SHAPES, COMPUTE), *product(LONG[op], ("bfloat16",)))


# In bfloat16 a product of two operands is exact in float32, so what comes out is the product of the rounded operands to 1e-5.


@cases("matmul_forward")
def matmul_forward(r):
    for (N, C, O), compute in matmul_inputs("matmul_forward"):
        every = ("", "packed", "bias", "packed+bias+residual", "accumulate", "packed+accumulate+bias")
        for extras in every[3:5] if C > 3000 else every:
            x = {"x": normal(r, N, C), "weight": normal(r, O, C), "accumulate": int("accumulate" in extras)}
            x["compute"] = compute
            x["packed"] = ops.matmul_pack(x["weight"], compute=compute) if "packed" in extras else None
            x["bias"] = normal(r, O) if "bias" in extras else None
            x["residual"] = normal(r, N, O) if "residual" in extras else None
            operands = rounded(x["x"], compute), rounded(x["weight"], compute)
            out = reference.matmul_forward(*operands, x["bias"], x["residual"])
            if x["accumulate"]:
                x["out"] = normal(r, N, O)
                out = out + x["out"]
            yield Case(f"{N}x{C}x{O} {extras} {compute}", x, {"out": out})


def activated_inputs(r, op, per_output):
    """O is the width of out: a weight has per_output rows for each. aux alone, as where it is computed again; out alone, as in inference"""
    for (N, C, O), compute in matmul_inputs(op):
        every = ("out", "aux+packed", "out+aux+packed+bias")
        for extras in every[2:] if C > 3000 else every:
            x = {"x": normal(r, N, C), "weight": normal(r, per_output * O, C) / np.float32(C**0.5), "compute": compute}
            x["packed"] = ops.matmul_pack(x["weight"], compute=compute) if "packed" in extras else None
            x["bias"] = normal(r, per_output * O) if "bias" in extras else None
            operands = rounded(x["x"], compute), rounded(x["weight"], compute), x["bias"]
            yield f"{N}x{C}x{O} {extras} {compute}", x, operands, extras.split("+")


@cases("matmul_gelu_forward")
def matmul_gelu_forward(r):
    for name, x, operands, wanted in activated_inputs(r, "matmul_gelu_forward", 1):
        expected = dict(zip(("out", "aux"), reference.matmul_gelu_forward(*operands)))
        yield Case(name, x, {key: expected[key] for key in wanted if key in expected})


@cases("matmul_swiglu_forward")
def matmul_swiglu_forward(r):
    for name, x, operands, wanted in activated_inputs(r, "matmul_swiglu_forward", 2):
        expected = dict(zip(("out", "aux"), reference.matmul_swiglu_forward(*operands)))
        yield Case(name, x, {key: expected[key] for key in wanted if key in expected})


@cases("matmul_backward_input")
def matmul_backward_input(r):
    for (N, C, O), compute in matmul_inputs("matmul_backward_input"):
        for accumulate in (0, 1):
            x = {"dout": normal(r, N, O), "weight": normal(r, O, C), "accumulate": accumulate, "compute": compute}
            dx = reference.matmul_backward_input(rounded(x["dout"], compute), rounded(x["weight"], compute))
            if accumulate:
                x["dx"] = normal(r, N, C)
                dx = dx + x["dx"]
            yield Case(f"{N}x{C}x{O}{'+=' * accumulate} {compute}", x, {"dx": dx})


@cases("matmul_backward_weight")
def matmul_backward_weight(r):
    for (N, C, O), compute in matmul_inputs("matmul_backward_weight"):
        for bias in (False, True):
            x = {"dout": normal(r, N, O), "x": normal(r, N, C), "dweight": normal(r, O, C), "compute": compute}
            dweight, _ = reference.matmul_backward_weight(rounded(x["dout"], compute), rounded(x["x"], compute))
            _, dbias = reference.matmul_backward_weight(x["dout"], x["x"])  # no product
            expected = {"dweight": x["dweight"] + dweight}
            if bias:
                x["dbias"] = normal(r, O)
                expected["dbias"] = x["dbias"] + dbias
            yield Case(f"{N}x{C}x{O}{'+bias' * bias} {compute}", x, expected)


@cases("matmul_pack")
def matmul_pack(r):
    """The layout is the device's own: here only its size; that it is right is matmul_forward's `packed` cases"""
    return iter(())


# ---- attention -----------------------------------------------------------------------------------------------------

HEADS = ((1, 1, 4), (4, 2, 16), (3, 1, 20), (2, 2, 64))
LENGTHS = ((5,), (1, 1, 1), (0, 3, 0, 1, 70, 33, 0), (32, 64, 31, 65), ())


def attention_inputs(r):
    """The last rows belong to no sequence: an unused tail, which must come out as 0"""
    for H, G, D in HEADS:
        for lengths in LENGTHS:
            for tail in (0, 3):
                N = sum(lengths) + tail
                x = {"q": normal(r, N, H, D), "k": normal(r, N, G, D), "v": normal(r, N, G, D)}
                yield f"{H}/{G}x{D} {lengths}+{tail}", x | {"cu_seqlens": lengths_to_cu(lengths), "scale": D**-0.5}


@cases("attention_forward")
def attention_forward(r):
    for name, x in attention_inputs(r):
        out, lse = reference.attention_forward(**x)
        yield Case(name, x, {"out": out, "lse": lse})


@cases("attention_backward")
def attention_backward(r):
    """In bfloat16 the output that is given is what a forward pass makes of rounded operands, as the backward pass expects"""
    for (name, x), compute in product(attention_inputs(r), COMPUTE):
        dout = normal(r, *x["q"].shape)
        exact = dict(zip(("out", "lse"), reference.attention_forward(**x)))
        expected = dict(zip(("dq", "dk", "dv"), reference.attention_backward(dout=dout, **exact, **x)))
        operands = x | {key: rounded(x[key], compute) for key in ("q", "k", "v")}
        out, lse = (y.astype(np.float32) for y in reference.attention_forward(**operands))
        given = x | {"dout": dout, "out": out, "lse": lse, "compute": compute}
        yield Case(f"{name} {compute}", given, expected, TOLERANCE[compute])


CACHE_DTYPES = ("float32", "bfloat16", "int8")
CACHE = ("k_cache", "v_cache", "k_scale", "v_scale")  # the last two of int8


def cache_inputs(r):
    """Three sequences with a past, in shuffled blocks; everything not written is NaN"""
    for (H, G, D), dtype in product(HEADS, CACHE_DTYPES):
        past, new, M = np.array([0, 40, 95], np.int32), (33, 1, 2), 4
        cu, N, B = lengths_to_cu(new), sum(new), 14
        where = {"cu_seqlens": cu, "past_lens": past, "block_table": r.permutation(B)[: 3 * M].reshape(3, M).astype(np.int32)}
        before = {"cu_seqlens": lengths_to_cu(tuple(past)), "past_lens": np.zeros(3, np.int32), "block_table": where["block_table"]}
        empty = dict(zip(CACHE, ops.new_cache(B, G, D, dtype)))
        filled = reference.kv_cache_write(**empty, k=normal(r, sum(past), G, D), v=normal(r, sum(past), G, D), **before)
        x = dict(zip(CACHE, filled)) | {"k": normal(r, N, G, D), "v": normal(r, N, G, D)} | where
        yield f"{H}/{G}x{D} {dtype}", normal(r, N, H, D), x


@cases("kv_cache_write")
def kv_cache_write(r):
    for name, _, x in cache_inputs(r):
        yield Case(name, x, dict(zip(CACHE, reference.kv_cache_write(**x))))


@cases("attention_cached")
def attention_cached(r):
    """Against what the cache stands for: how the products round is all that may differ"""
    for name, q, x in cache_inputs(r):
        cache = dict(zip(CACHE, reference.kv_cache_write(**x)))
        where = {key: x[key] for key in ("cu_seqlens", "past_lens", "block_table")}
        y = {"q": q, "scale": q.shape[2] ** -0.5} | cache | where
        yield Case(name, y, {"out": reference.attention_cached(**y)})


# ---- head ----------------------------------------------------------------------------------------------------------


def head_inputs(r):
    for N, C, V, K in ((1, 4, 7, 1), (5, 16, 33, 1), (9, 65, 300, 3), (150, 32, 1000, 1), (70, 12, 520, 2), (0, 4, 9, 1)):
        for extras in ("", "packed", "mask", "packed+mask+skip", "skip", "all skipped"):
            # logits around 1: far-apart ones make the entropy's gradient a difference of nearly equal float32 numbers
            x = {"x": normal(r, N, C), "weight": normal(r, V, C) / np.float32(C**0.5), "packed": None, "vocab_mask": None}
            x["temperature"] = np.array([0.7 if "mask" in extras else 1.0], np.float32)
            if "packed" in extras:
                x["packed"] = ops.matmul_pack(x["weight"])
            allowed = np.arange(V)
            if "mask" in extras:
                x["vocab_mask"] = (r.random(V) < 0.6).astype(np.uint8)
                x["vocab_mask"][V // 2] = 1
                allowed = np.flatnonzero(x["vocab_mask"])
            x["targets"] = r.choice(allowed, size=(N, K)).astype(np.int32)
            if "skip" in extras:
                x["targets"][(r.random(N) < 0.5) | ("all" in extras)] = -1
            yield f"{N}x{C}x{V}x{K} {extras}", x


def for_reference(x, compute="float32"):
    """The reference's arguments; in bfloat16 on the rounded operands, so that what is left is the rounding of derivatives of logits"""
    keep = {key: value for key, value in x.items() if key not in ("packed", "lse", "entropy", "dweight", "compute")}
    keep |= {"x": rounded(x["x"], compute), "weight": rounded(x["weight"], compute)}
    return keep | {"temperature": float(x["temperature"][0])}


def repacked(x, compute):
    return x | {"compute": compute, "packed": None if x["packed"] is None else ops.matmul_pack(x["weight"], compute=compute)}


@cases("head_forward")
def head_forward(r):
    for (name, x), compute in product(head_inputs(r), COMPUTE):
        expected = dict(zip(("logprobs", "entropy", "lse"), reference.head_forward(**for_reference(x, compute))))
        yield Case(f"{name} {compute}", repacked(x, compute), expected)


@cases("head_backward")
def head_backward(r):
    for (name, x), compute in product(head_inputs(r), COMPUTE):
        _, entropy, lse = reference.head_forward(**for_reference(x, compute))
        x = repacked(x, compute)
        x |= {"entropy": entropy.astype(np.float32), "lse": lse.astype(np.float32), "dweight": normal(r, *x["weight"].shape)}
        N, K = x["targets"].shape
        every = {"dlogprobs": normal(r, N, K), "dentropy": normal(r, N), "dlse": normal(r, N)}
        for given in ("dlogprobs", "dentropy", "dlse", "dlogprobs dentropy dlse"):
            y = x | {key: every[key] for key in given.split()}
            dx, dweight = reference.head_backward(**for_reference(y, compute))
            yield Case(f"{name} {given} {compute}", y, {"dx": dx, "dweight": y["dweight"] + dweight}, TOLERANCE[compute])


@cases("head_forward_backward")
def head_forward_backward(r):
    for (name, x), compute in product(head_inputs(r), COMPUTE):
        x = repacked(x, compute) | {"dlogprobs": normal(r, *x["targets"].shape), "dweight": normal(r, *x["weight"].shape)}
        *forward, dx, dweight = reference.head_forward_backward(**for_reference(x, compute))
        expected = dict(zip(("logprobs", "entropy", "lse"), forward))
        yield Case(f"{name} {compute}", x, expected | {"dx": dx, "dweight": x["dweight"] + dweight}, TOLERANCE[compute])


@cases("head_sample")
def head_sample(r):
    """Greedy here: its answer is known. What random draws follow is in test_ops_sampling.py"""
    for (S, C, V), compute in product(((1, 4, 7), (5, 16, 33), (40, 32, 1000), (0, 4, 9)), COMPUTE):
        for masked in (False, True):
            x = {"x": normal(r, S, C), "weight": normal(r, V, C), "vocab_mask": None}
            if masked:
                x["vocab_mask"] = (np.arange(V) % 3 != 0).astype(np.uint8)
            for key, dtype, value in (("temperature", "f4", 0), ("top_k", "i4", 3), ("top_p", "f4", 0.5), ("min_p", "f4", 0.1)):
                x[key] = np.full(S, value, dtype)
            x |= {key: r.integers(0, 2**63, size=S).astype(np.uint64) for key in ("seeds", "counters")}
            x["compute"] = compute
            logp, _ = reference.head_log_softmax(rounded(x["x"], compute), rounded(x["weight"], compute), 1.0, x["vocab_mask"])
            yield Case(f"{S}x{C}x{V}{'+mask' * masked} {compute}", x, {"tokens": logp.argmax(1), "logprobs": logp.max(1)})


@cases("bigram_ids")
def bigram_ids(r):
    """Without and with shared beginnings, with a cache; empty sequences, an unused tail, more tokens than threads of a block"""
    for lengths, rows, tail in (((1,), 2, 0), ((3, 0, 5), 1000, 2), ((300, 1, 280), 2**31 - 1, 0), ((0,), 7, 3)):
        cu = lengths_to_cu(lengths)
        x = {"tokens": ids(r, 50_000, sum(lengths) + tail), "cu_seqlens": cu, "rows": rows}
        yield Case(f"{lengths} of {rows}", x, {"pairs": reference.bigram_ids(**x)[0]})
    x = {"tokens": ids(r, 9, 14), "cu_seqlens": lengths_to_cu((6, 3, 4)), "rows": 50, "prefixes": np.array([[0, 0], [0, 6], [0, 2]], np.int32)}
    yield Case("prefixes", x, {"pairs": reference.bigram_ids(**x)[0]})
    for past, new in (((0, 31, 32, 40), (33, 1, 2, 1)), ((0, 5), (1, 0))):
        table = r.permutation(len(past) * 3 + 1)[: len(past) * 3].reshape(len(past), 3).astype(np.int32)
        x = {"tokens": ids(r, 9, sum(new) + 1), "cu_seqlens": lengths_to_cu(new), "rows": 50, "seen": ids(r, 9, len(past) * 3 + 1, 32)}
        x |= {"past_lens": np.array(past, np.int32), "block_table": table}
        yield Case(f"cache {past}", x, dict(zip(("pairs", "seen"), reference.bigram_ids(**x))))
    for first, (new, past, table) in enumerate((((33, 1), (0, 32), ((0, 1), (0, 2))), ((1, 300), (32, 0), ((0, 2), (0, *range(3, 12)))))):
        blocks = np.zeros((2, 12), np.int32)  # one goes on in a block that the other fills in this call
        for s, mine in enumerate(table):
            blocks[s, : len(mine)] = mine
        x = {"tokens": ids(r, 9, sum(new)), "cu_seqlens": lengths_to_cu(new), "rows": 50, "seen": ids(r, 9, 12, 32), "past_lens": np.array(past, np.int32)}
        x["block_table"] = blocks
        yield Case(f"a shared block, {'first' if first == 0 else 'second'} fills it", x, dict(zip(("pairs", "seen"), reference.bigram_ids(**x))))


@cases("decode_advance")
def decode_advance(r):
    """Sequences that have stopped before, stop now by an id or by their limit, and go on; more of them than threads of a block; an unused tail"""
    for S, N, J in ((1, 1, 1), (5, 5, 0), (9, 12, 3), (37, 40, 2), (600, 600, 4), (300, 7, 1)):
        has_row = r.permutation(np.arange(S) < min(S, N) * 3 // 4 + 1)
        x = {"cu_seqlens": lengths_to_cu(tuple(has_row.astype(int))), "past_lens": ids(r, 50, S), "remaining": ids(r, 4, S, low=1) * has_row.astype(np.int32)}
        x |= {"sampled": ids(r, 6, N), "logprobs": normal(r, N), "tokens": ids(r, 9, N), "positions": ids(r, 9, N), "stop_ids": ids(r, 5, S, J, low=-1) if J else None}
        x |= {"temperature": normal(r, N), "top_k": ids(r, 9, N), "top_p": normal(r, N), "min_p": normal(r, N)}
        x |= {key: r.integers(0, 2**63, size=N).astype(np.uint64) for key in ("seeds", "counters")}
        yield Case(f"{S} of {N}, {J} stop ids", x, reference.decode_advance(**x))


# ---- optimizer -----------------------------------------------------------------------------------------------------


@cases("global_norm")
def global_norm(r):
    for P in (0, 1, 17, 1000, 100_003):
        x = normal(r, P)
        yield Case(str(P), {"x": x}, {"out": np.array([reference.global_norm(x)])})


@cases("adamw")
def adamw(r):
    for P in (0, 1, 17, 1000):
        for name, norm, max_norm in (
            ("no clip", 5.0, 0.0),
            ("clip", 5.0, 1.0),
            ("small", 0.5, 1.0),
            ("nan", np.nan, 1.0),
            ("inf", np.inf, 0.0),
        ):
            x = {"param": normal(r, P), "grad": normal(r, P), "m": normal(r, P), "v": normal(r, P) ** 2}
            x["hyper"] = np.array([1e-2, 0.9, 0.95, 1e-8, 0.1, max_norm, 1 - 0.9**3, 1 - 0.95**3], np.float32)
            x["norm"] = np.array([norm], np.float32)
            yield Case(f"{P} {name}", x, dict(zip(("param", "m", "v"), reference.adamw(**(x | {"norm": norm})))))


@cases("muon_momentum")
def muon_momentum(r):
    for P in (0, 1, 17, 1000, 40_001):
        for name, norm, nesterov, max_norm in (("no clip", 5.0, 1, 0.0), ("clip", 5.0, 0, 1.0), ("small", 0.5, 1, 1.0), ("nan", np.nan, 1, 1.0)):
            x = {"m": normal(r, P), "grad": normal(r, P), "hyper": np.array([0.02, 0.95, nesterov, 0.1, max_norm], np.float32)}
            out, m = reference.muon_momentum(**x, norm=norm)
            yield Case(f"{P} {name}", x | {"norm": np.array([norm], np.float32)}, {"out": out, "m": m})


@cases("muon_update")
def muon_update(r):
    for P in (0, 1, 17, 40_001):
        for norm in (1.0, np.inf):
            x = {"param": normal(r, P), "x": normal(r, P), "hyper": np.array([0.02, 0.95, 1, 0.1, 1], np.float32), "scale": 1.7}
            yield Case(f"{P} {norm}", x | {"norm": np.array([norm], np.float32)}, {"param": reference.muon_update(**x, norm=norm)})


@cases("normalize")
def normalize(r):
    for P in (0, 1, 17, 40_001):
        for norm in (3.0, 0.0):
            x = {"x": normal(r, P) * (norm > 0), "eps": 1e-7}
            yield Case(f"{P} {norm}", x | {"norm": np.array([norm], np.float32)}, {"out": reference.normalize(x["x"], norm, 1e-7)})


@cases("linear_combination")
def linear_combination(r):
    for P in (0, 1, 17, 40_001):
        for y in (None, normal(r, P)):
            x = {"x": normal(r, P), "y": y, "alpha": 3.4445, "beta": -4.775}
            yield Case(f"{P}{'+y' * (y is not None)}", x, {"out": reference.linear_combination(**x)})
