"""Every op, every device and variant, every case against the NumPy float64 reference; and what must not change a single bit."""

import numpy as np
import op_cases
import pytest
from op_case import BF16, tells_something

from freedive import ops

DEVICES = ops.devices()
ALL = [
    pytest.param(op, {"device": device, "variant": variant}, case, id=f"{device}-{op}-{variant}-{case.name}")
    for device in DEVICES
    for op, cases in op_cases.CASES.items()
    for variant in ops.variants(op, device)
    for case in cases
    if tells_something(variant, case)
]


def outputs_of(op, case, arguments=None, **how):
    arguments = case.arguments(how.get("device", "cpu")) if arguments is None else arguments
    ops.call(op, **arguments, **how)
    return {key: arguments[key] for key in case.expected}


def assert_same_bits(a, b, what=""):
    for key in a:
        assert np.array_equal(a[key], b[key], equal_nan=True), f"{what} changed {key}"


def test_every_op_has_cases():
    assert set(op_cases.CASES) == set(ops.schemas())


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_has_every_op(device):
    assert [op for op in ops.schemas() if "naive" not in ops.variants(op, device)] == []


@pytest.mark.parametrize("op, how, case", ALL)
def test_against_reference(op, how, case):
    for key, got in outputs_of(op, case, **how).items():
        want = case.expected[key]
        if want.dtype.kind in "iu" and want.dtype != np.int8:
            np.testing.assert_array_equal(got, want)
            continue
        if got.dtype == np.int8 or got.dtype == BF16:  # a cache: what it holds is a matter of bits
            assert got.tobytes() == want.tobytes(), key
            continue
        known = np.isfinite(want)  # what nobody wrote in a cache is NaN, and stays so
        assert np.isfinite(got[known]).all(), f"{key} was not written in full"
        assert np.isnan(got[~known]).all(), f"{key} was written where nothing should be"
        error, size = np.linalg.norm((got - want)[known]), np.linalg.norm(want[known])
        if size < 1e-9:  # mathematically zero: dq of a one-token sequence, a skipped row
            assert error <= 0.1 * case.tolerance * max(1, known.sum()) ** 0.5, f"{key}: {error:.3g} where all is 0"
        else:
            assert error <= case.tolerance * size, f"{key}: {error:.3g} of {size:.3g}"


def biggest(op):
    return max(op_cases.CASES[op], key=lambda case: sum(np.size(value) for value in case.inputs.values()), default=None)


@pytest.mark.parametrize("op, how, case", [p for p in ALL if p.values[1]["device"] == "cpu"])
def test_threads_change_no_bit(op, how, case):
    one = outputs_of(op, case, **how, threads=1)
    for threads in (2, 3) if case is biggest(op) else (2,):
        assert_same_bits(one, outputs_of(op, case, **how, threads=threads), f"{threads} threads")


def in_a_wider_buffer(x):
    """The same array as a slice: rows are further apart than they are long, and NaN lies between them"""
    if not isinstance(x, np.ndarray) or x.ndim < 2:
        return x
    wide = np.zeros((x.shape[0], x.shape[1] + 3, *x.shape[2:]), x.dtype)
    if x.dtype == np.float32:
        wide[:] = np.nan
    wide[:, 1 : 1 + x.shape[1]] = x
    return wide[:, 1 : 1 + x.shape[1]]


@pytest.mark.parametrize("op, how, case", ALL)
def test_strides_change_no_bit(op, how, case):
    wide = {key: in_a_wider_buffer(value) for key, value in case.arguments(how["device"]).items()}
    got = outputs_of(op, case, wide, **how)
    assert_same_bits(outputs_of(op, case, **how), got, "strides")
    for key in case.expected:
        buffer = wide[key].base
        if buffer is not None and buffer.dtype == np.float32 and buffer.ndim > 1 and buffer.shape != wide[key].shape:
            assert np.isnan(buffer[:, 0]).all() and np.isnan(buffer[:, -2:]).all(), f"{key}: wrote outside its rows"


ALIASES = [
    ("rmsnorm_forward", {"out": "x"}),
    ("rmsnorm_backward", {"dx": "dout"}),
    ("rope", {"out": "x"}),
    ("gelu_backward", {"dx": "dout"}),
    ("swiglu_backward", {"dgate": "gate", "dup": "up"}),
    ("matmul_forward", {"out": "residual"}),
    ("quantized_matmul", {"out": "residual"}),
    ("normalize", {"out": "x"}),
    ("linear_combination", {"out": "x"}),
    ("linear_combination", {"out": "y"}),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op, alias", ALIASES)
def test_outputs_may_be_the_inputs_ops_h_names(op, alias, device):
    for variant in ops.variants(op, device):
        for case in op_cases.CASES[op]:
            if not tells_something(variant, case) or case.inputs.get("accumulate") or any(case.inputs.get(source) is None for source in alias.values()):
                continue
            arguments = case.arguments(device)
            for out, source in alias.items():
                arguments[out] = arguments[source]
            for threads in (1, 2) if device == "cpu" else (1,):
                again = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in arguments.items()}
                again |= {out: again[source] for out, source in alias.items()}
                got = outputs_of(op, case, again, variant=variant, threads=threads, device=device)
                assert_same_bits(outputs_of(op, case, variant=variant, device=device), got, f"{variant} {case.name}: alias")


# Row n of these depends on row n of the inputs (and on shared ones) only. op -> (per-row arguments, per-row outputs)
ROW_WISE = {
    "embedding_forward": ("tokens positions", "out"),
    "rmsnorm_forward": ("x", "out rstd"),
    "rmsnorm_backward": ("x dout rstd dx", "dx"),
    "layernorm_forward": ("x", "out mean rstd"),
    "layernorm_backward": ("x dout mean rstd dx", "dx"),
    "rope": ("x positions", "out"),
    "gelu_forward": ("x", "out"),
    "gelu_backward": ("x dout", "dx"),
    "swiglu_forward": ("gate up", "out"),
    "swiglu_backward": ("gate up dout", "dgate dup"),
    "matmul_forward": ("x residual out", "out"),
    "matmul_gelu_forward": ("x", "out aux"),
    "matmul_swiglu_forward": ("x", "out aux"),
    "matmul_backward_input": ("dout dx", "dx"),
    "head_forward": ("x targets", "logprobs entropy lse"),
    "head_backward": ("x targets lse entropy dlogprobs dentropy dlse", "dx"),
    "head_forward_backward": ("x targets dlogprobs", "logprobs entropy lse dx"),
    "quantized_matmul": ("x residual", "out"),
    "quantized_embedding": ("tokens positions", "out"),
    "quantized_head_forward": ("x targets", "logprobs entropy lse"),
    "quantized_head_sample": ("x temperature top_k top_p min_p seeds counters", "tokens logprobs"),
    "head_sample": ("x temperature top_k top_p min_p seeds counters", "tokens logprobs"),
}


def one_of_several(case):
    """Has one thing alone that other cases have together with more: where a call takes seconds those will do"""
    given = lambda *names: [name for name in names if case.inputs.get(name) is not None]
    return given("dlogprobs", "dentropy", "dlse") in (["dentropy"], ["dlse"]) or len(given("packed", "bias", "residual")) == 1 and not case.inputs.get("accumulate", 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", ROW_WISE)
def test_other_rows_change_no_bit(op, device):
    """One row alone, a few, or the whole batch: the same bits. What makes sampler and trainer agree"""
    rows_in, rows_out = (names.split() for names in ROW_WISE[op])
    for variant in ops.variants(op, device):
        for case in op_cases.CASES[op]:
            if not tells_something(variant, case) or device == "cuda-emu" and one_of_several(case):
                continue
            whole = case.arguments(device)
            N = len(whole[rows_in[0]])
            if N < 2:
                continue
            ops.call(op, **whole, variant=variant, device=device)
            for begin, end in {(0, 1), (N - 1, N), (N // 3, N // 3 + min(7, N // 2)), (1, N)}:
                some = case.arguments(device)
                for key in {*rows_in, *rows_out}:
                    if some.get(key) is not None:
                        some[key] = some[key][begin:end].copy()
                ops.call(op, **some, variant=variant, device=device)
                for key in case.expected.keys() & set(rows_out):
                    assert np.array_equal(whole[key][begin:end], some[key]), f"{variant} {case.name}: {key} rows {begin}:{end}"
