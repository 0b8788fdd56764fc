"""Tensors that are bfloat16 in memory, where ops.h has "f32|bf16": an input gives the bits of its float32 copy, an output is the float32 one rounded.

So what test_ops_reference.py says of float32 tensors is true of these: the reference, rounded to bfloat16.
"""

import numpy as np
import op_cases
import pytest
from op_case import BF16, tells_something
from test_ops_reference import in_a_wider_buffer

from freedive import ops

EITHER = {op: [a for a in arguments if a.dtype == "f32|bf16"] for op, arguments in ops.schemas().items()}
EITHER = {op: arguments for op, arguments in EITHER.items() if arguments}
TINY = np.finfo(np.float32).tiny  # what is smaller may become 0


def same_numbers(got, want):
    got, want = (np.asarray(x, np.float32) for x in (got, want))
    return np.array_equal(np.where(np.abs(got) < TINY, 0, got), np.where(np.abs(want) < TINY, 0, want), equal_nan=True)


def copies(arguments):
    return {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in arguments.items()}


def test_products_and_what_feeds_them():
    assert {"rmsnorm_forward", "layernorm_forward", "gelu_forward", "swiglu_forward", "cast", "matmul_forward", "matmul_backward_weight"} <= set(EITHER)


@pytest.mark.parametrize("device", ops.devices())
@pytest.mark.parametrize("op", EITHER)
@pytest.mark.parametrize("which", ["inputs", "outputs", "both"])
def test_bfloat16_in_memory(op, device, which):
    chosen = [a for a in EITHER[op] if which == "both" or a.written == (which == "outputs")]
    if not chosen or (which == "both" and len({a.written for a in EITHER[op]}) < 2):
        pytest.skip(f"{op} has no such {which}")
    for variant in ops.variants(op, device):
        for case in op_cases.CASES[op][:: 1 if device == "cpu" else 5]:  # emulated products take their time
            if not tells_something(variant, case):
                continue
            plain = case.arguments(device)
            for a in chosen:
                if not a.written:
                    plain[a.name] = plain[a.name].astype(BF16).astype(np.float32)
            half = copies(plain)
            half |= {a.name: half[a.name].astype(BF16) for a in chosen if a.name in half}
            wide = {key: in_a_wider_buffer(value) for key, value in copies(half).items()}
            ops.call(op, **plain, variant=variant, device=device)
            ops.call(op, **half, variant=variant, device=device)
            ops.call(op, **wide, variant=variant, device=device, threads=2 if device == "cpu" else 1)
            for key in case.expected:
                want = plain[key].astype(half[key].dtype)
                assert same_numbers(half[key], want), f"{variant} {case.name}: {key}"
                assert np.array_equal(half[key], wide[key], equal_nan=True), f"{variant} {case.name}: {key} by strides, two threads"


@pytest.mark.parametrize("device", ops.devices())
def test_rounding(device):
    """To nearest, ties to even; infinities and NaN stay what they are; back to float32 exactly"""
    r = np.random.Generator(np.random.Philox(key=[3, 6]))
    bits = r.integers(0, 2**32, size=(3, 1000), dtype=np.uint32)
    bits[0, :6] = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0xFF800000]  # two ties, above one, rounds to infinity, infinities
    x = bits.view(np.float32)
    for variant in ops.variants("cast", device):
        half = ops.cast(x, device=device, variant=variant)
        with np.errstate(invalid="ignore"):
            assert same_numbers(half, x.astype(BF16))
        assert np.array_equal(ops.cast(half, np.float32, device=device, variant=variant), half.astype(np.float32), equal_nan=True)


def test_gate_and_up_are_of_one_dtype():
    x = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="gate and up must be of one dtype"):
        ops.call("swiglu_forward", out=x.copy(), gate=x, up=x.astype(BF16))
