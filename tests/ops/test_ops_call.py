"""The Python front: schemas, and errors that name the argument, what was wrong and what is allowed."""

import ml_dtypes
import numpy as np
import pytest
from op_cases import CASES

from freedive import ops
from freedive.ops import Argument, parse

f32, i32 = np.float32, np.int32


def test_every_op_has_a_function_and_a_naive_variant():
    for name in ops.schemas():
        assert callable(getattr(ops, name)) and getattr(ops, name).__doc__
        assert "naive" in ops.variants(name)


def test_parse():
    assert parse("eps:f") == Argument("eps", "f")
    assert parse("dbias:f32[O]+?") == Argument("dbias", "f32", ("O",), written=True, read=True, optional=True)
    assert parse("out:f32[N,H,D]=") == Argument("out", "f32", ("N", "H", "D"), written=True, read=False)
    assert parse("bias:f32[C]?") == Argument("bias", "f32", ("C",), optional=True)


def test_tier():
    assert isinstance(ops.tier(), str) and ops.tier()


def test_rmsnorm_without_heads():
    x = np.arange(6, dtype=f32).reshape(2, 3)
    out, rstd = ops.rmsnorm_forward(x, np.ones(3, f32))
    assert out.shape == (2, 3) and rstd.shape == (2,)
    dx, dweight = ops.rmsnorm_backward(x, x, np.ones(3, f32), rstd)
    assert dx.shape == (2, 3) and dweight.shape == (3,) and np.isfinite(dx).all()


def readonly(x):
    x = x.copy()
    x.flags.writeable = False
    return x


Z = np.zeros
GOOD = {
    "matmul_forward": {"out": Z((2, 3), f32), "x": Z((2, 4), f32), "weight": Z((3, 4), f32), "accumulate": 0},
    "matmul_swiglu_forward": {"out": Z((2, 3), f32), "x": Z((2, 4), f32), "weight": Z((6, 4), f32)},
    "embedding_forward": {"out": Z((2, 4), f32), "tokens": Z(2, i32), "wte": Z((5, 4), f32)},
    "rope": {
        "out": Z((2, 1, 4), f32),
        "x": Z((2, 1, 4), f32),
        "cos": Z((3, 2), f32),
        "sin": Z((3, 2), f32),
        "positions": Z(2, i32),
        "inverse": 0,
    },
    "attention_forward": {
        "out": Z((2, 4, 8), f32),
        "lse": Z((2, 4), f32),
        "q": Z((2, 4, 8), f32),
        "k": Z((2, 2, 8), f32),
        "v": Z((2, 2, 8), f32),
        "cu_seqlens": np.array([0, 2], i32),
        "scale": 1.0,
    },
    "head_forward": {
        "logprobs": Z((2, 1), f32),
        "entropy": Z(2, f32),
        "lse": Z(2, f32),
        "x": Z((2, 4), f32),
        "weight": Z((5, 4), f32),
        "targets": Z((2, 1), i32),
        "temperature": np.ones(1, f32),
    },
    "kv_cache_write": {
        "k_cache": Z((2, 1, 4, 32), f32),
        "v_cache": Z((2, 1, 32, 4), f32),
        "k": Z((2, 1, 4), f32),
        "v": Z((2, 1, 4), f32),
        "cu_seqlens": np.array([0, 2], i32),
        "past_lens": Z(1, i32),
        "block_table": Z((1, 2), i32),
    },
    "global_norm": {"out": Z(1, f32), "x": Z(4, f32)},
    "rmsnorm_forward": {
        "out": Z((2, 1, 4), f32),
        "rstd": Z((2, 1), f32),
        "x": Z((2, 1, 4), f32),
        "weight": Z(4, f32),
        "eps": 1e-6,
    },
}

INT8 = {
    "k_cache": Z((2, 1, 1, 128), np.int8),
    "v_cache": Z((2, 1, 8, 16), np.int8),
    "k_scale": Z((2, 1, 32), f32),
    "v_scale": Z((2, 1, 32), f32),
}

BAD = [
    ("matmul_forward", {"x": Z((2, 4))}, "x.*float64"),
    ("matmul_forward", {"x": Z((2, 5), f32)}, "C = "),
    ("matmul_forward", {"x": Z(4, f32)}, r"x.*\[4\]"),
    ("matmul_forward", {"x": Z((4, 2), f32).T}, "contiguous"),
    ("matmul_forward", {"x": Z((4, 4), f32)[::-2]}, "negative"),
    ("matmul_forward", {"x": None}, "x.*missing"),
    ("matmul_forward", {"x": [[1.0, 2.0]]}, "NumPy array"),
    ("matmul_forward", {"out": readonly(Z((2, 3), f32))}, "read-only"),
    ("matmul_forward", {"packed": Z(7, f32)}, "packed"),
    ("matmul_forward", {"extra": 1}, "extra"),
    ("matmul_forward", {"accumulate": None}, "accumulate.*missing"),
    ("matmul_forward", {"accumulate": "yes"}, "accumulate"),
    ("matmul_forward", {"variant": "quick"}, "quick"),
    ("matmul_forward", {"threads": 0}, "threads"),
    ("matmul_swiglu_forward", {"out": Z((2, 6), f32)}, "O must be 2 F"),
    ("matmul_swiglu_forward", {"out": None, "aux": Z((2, 5), f32), "weight": Z((5, 4), f32)}, "O must be 2 F"),
    ("matmul_swiglu_forward", {"aux": Z((2, 3), f32)}, "O = "),
    ("embedding_forward", {"tokens": np.array([0, 5], i32)}, "tokens holds 5"),
    ("embedding_forward", {"tokens": np.array([0, -1], i32)}, "tokens holds -1"),
    ("embedding_forward", {"tokens": np.array([0, 1])}, "tokens.*int64"),
    ("embedding_forward", {"wpe": Z((3, 4), f32)}, "positions"),
    ("rope", {"positions": np.array([0, 3], i32)}, "positions holds 3"),
    ("rope", {"cos": Z((3, 1), f32), "sin": Z((3, 1), f32)}, "D must be 2 R"),
    ("rmsnorm_forward", {"eps": "small"}, "eps"),
    ("attention_forward", {"k": Z((2, 3, 8), f32), "v": Z((2, 3, 8), f32)}, "multiple of G"),
    ("attention_forward", {"cu_seqlens": np.array([0, 3], i32)}, "cu_seqlens"),
    ("attention_forward", {"cu_seqlens": np.array([1, 2], i32)}, "cu_seqlens"),
    ("attention_forward", {"cu_seqlens": np.array([0, 2, 1], i32)}, "cu_seqlens"),
    ("attention_forward", {"cu_seqlens": Z(0, i32)}, "cu_seqlens"),
    ("attention_forward", {"scale": "big"}, "scale"),
    ("head_forward", {"targets": np.array([[0], [5]], i32)}, "targets holds 5"),
    ("head_forward", {"targets": np.array([[0], [-2]], i32)}, "targets holds -2"),
    ("head_forward", {"targets": np.array([[0, 9], [5, 9]], i32)[:, :1]}, "targets holds 5"),
    ("head_forward", {"temperature": Z(0, f32)}, "temperature"),
    ("head_forward", {"vocab_mask": Z(4, np.uint8)}, "vocab_mask"),
    ("kv_cache_write", {"block_table": np.array([[0, 2]], i32)}, "block_table holds 2"),
    ("kv_cache_write", {"past_lens": np.array([63], i32)}, "does not fit"),
    ("kv_cache_write", {"past_lens": np.array([-1], i32)}, "fit|past_lens"),
    ("kv_cache_write", {"past_lens": Z(2, i32), "block_table": Z((2, 2), i32)}, "cu_seqlens"),
    ("kv_cache_write", {"k_cache": Z((2, 1, 4, 16), f32), "v_cache": Z((2, 1, 16, 4), f32)}, "32"),
    ("kv_cache_write", {"k_cache": Z((2, 1, 2, 64), ml_dtypes.bfloat16)}, "one dtype"),
    ("kv_cache_write", {"k_cache": Z((2, 1, 4, 32), np.float16)}, "float32 or bfloat16 or int8"),
    ("kv_cache_write", {"k_cache": Z((2, 1, 4, 32), np.int16)}, "float32 or bfloat16 or int8"),
    ("kv_cache_write", {"k_cache": Z((2, 1, 1, 128), np.int8), "v_cache": Z((2, 1, 8, 16), np.int8)}, "needs k_scale"),
    ("kv_cache_write", {"k_cache": Z((2, 1, 2, 128), np.int8), "v_cache": Z((2, 1, 8, 16), np.int8)}, r"B,G,1,128"),
    ("kv_cache_write", {"k_scale": Z((2, 1, 32), f32), "v_scale": Z((2, 1, 32), f32)}, "no other has"),
    ("kv_cache_write", INT8 | {"k_scale": Z((2, 1, 31), f32), "v_scale": Z((2, 1, 31), f32)}, "B,G,32"),
    ("kv_cache_write", INT8 | {"v_scale": None}, "needs k_scale and v_scale"),
    ("kv_cache_write", {"k_cache": Z((2, 131), ml_dtypes.bfloat16)[:, :128].reshape(2, 1, 2, 64), "v_cache": Z((2, 1, 16, 8), ml_dtypes.bfloat16)}, "whole words"),
    ("global_norm", {"out": Z(0, f32)}, "out"),
]


@pytest.mark.parametrize("op", GOOD)
def test_good_arguments(op):
    ops.call(op, **GOOD[op])


@pytest.mark.parametrize("op, change, message", BAD)
def test_bad_arguments(op, change, message):
    with pytest.raises(ValueError, match=message) as error:
        ops.call(op, **(GOOD[op] | change))
    assert op in str(error.value) or "threads" in str(error.value)


def test_strided_targets_are_read_where_they_are():
    """A column of a wider array, whose neighbours would be bad ids"""
    targets = np.array([[0, 9], [4, 9]], i32)[:, :1]
    ops.call("head_forward", **(GOOD["head_forward"] | {"targets": targets}))


def test_unknown_op():
    with pytest.raises(ValueError, match="unknown op 'softmax'"):
        ops.call("softmax")
    with pytest.raises(ValueError, match="unknown op 'softmax'"):
        ops.variants("softmax")


WRAPPED = (
    "embedding_forward layernorm_forward layernorm_backward rope gelu_forward gelu_backward swiglu_forward swiglu_backward "
    "rmsnorm_forward rmsnorm_backward matmul_forward matmul_gelu_forward matmul_swiglu_forward matmul_backward_input "
    "attention_forward attention_backward attention_cached global_norm"
)


@pytest.mark.parametrize("op", WRAPPED.split())
def test_functions_return_what_the_kernel_writes(op):
    """The functions that allocate their outputs, against `call` on the same inputs"""
    case = next(case for case in CASES[op] if not case.inputs.get("accumulate"))
    arguments = case.arguments()
    ops.call(op, **arguments)
    inputs = {key: value for key, value in case.inputs.items() if key != "accumulate"}
    inputs |= {key: inputs[key].copy() for key in ("dweight", "dbias") if key in inputs}
    got = getattr(ops, op)(**inputs)
    got = dict(zip([a.name for a in ops.schemas()[op] if a.written], got if isinstance(got, tuple) else (got,)))
    for key in case.expected:
        np.testing.assert_array_equal(got[key], arguments[key])


def test_functions_that_add_in_place():
    for op in ("embedding_backward", "matmul_backward_weight", "adamw", "kv_cache_write"):
        for case in CASES[op][:2]:
            arguments, again = case.arguments(), case.arguments()
            ops.call(op, **arguments)
            assert getattr(ops, op)(**again) is None
            for key in case.expected:
                assert again[key].tobytes() == arguments[key].tobytes(), key


def test_a_step_of_decoding():
    case = CASES["decode_advance"][2]
    arguments, again = case.arguments(), {key: value.copy() for key, value in case.inputs.items()}
    ops.call("decode_advance", **arguments)
    again |= dict(zip(("out_tokens", "out_logprobs"), ops.decode_advance(**again)))
    assert all(again[key].tobytes() == arguments[key].tobytes() for key in case.expected)
    with pytest.raises(ValueError, match="one row or none"):
        ops.call("decode_advance", **case.arguments() | {"cu_seqlens": np.arange(len(arguments["cu_seqlens"]), dtype=i32) // 9 * 9})
