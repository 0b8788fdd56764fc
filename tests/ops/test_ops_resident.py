"""Ops whose arguments stay on the device (`ops.resident`): what they compute is what `ops.call` computes, and their time is the device's."""

from __future__ import annotations

import numpy as np
import pytest
from op_case import hows

from freedive import _core, ops

DEVICES = ops.devices()


def layernorm_inputs(r: np.random.Generator, N: int = 37, C: int = 70) -> dict:
    wide = r.standard_normal((N, C + 5), dtype=np.float32)
    return {"x": wide[:, :C], "weight": r.standard_normal(C, dtype=np.float32), "bias": None, "eps": 1e-5}


@pytest.mark.parametrize("how", hows("layernorm_forward"))
@pytest.mark.parametrize("sets", [1, 3])
def test_the_result_is_that_of_a_call(how: dict, sets: int):
    inputs = layernorm_inputs(np.random.default_rng(1))
    outputs = lambda: {"out": np.full((37, 70), np.nan, np.float32), "mean": np.full(37, np.nan, np.float32), "rstd": np.full(37, np.nan, np.float32)}
    expected, got = outputs(), outputs()
    ops.call("layernorm_forward", **expected, **inputs, **how)
    op = ops.resident("layernorm_forward", sets=sets, **got, **inputs, **how)
    assert op.variant == how["variant"] and op.workspace_bytes >= 0
    assert op.seconds(2 * sets) > 0
    op.read()
    assert all(expected[name].tobytes() == got[name].tobytes() for name in expected)


@pytest.mark.parametrize("device", [d for d in DEVICES if d != "cpu"])
def test_calls_take_the_sets_in_turns_and_leave_the_arrays_alone(device: str):
    """An op that adds to its output: of 5 calls on 2 sets the first set sees 3"""
    x, dweight = np.ones((4, 3), np.float32), np.zeros((2, 3), np.float32)
    op = ops.resident("matmul_backward_weight", dweight=dweight, dout=np.ones((4, 2), np.float32), x=x, device=device, sets=2)
    op.seconds(5)
    assert not dweight.any()
    op.read()
    assert (dweight == 3 * 4).all()


@pytest.mark.parametrize("device", DEVICES)
def test_one_array_in_two_places_is_one_place_there(device: str):
    x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)
    expected = ops.gelu_forward(x)
    op = ops.resident("gelu_forward", out=x, x=x, device=device)
    op.seconds(1)
    op.read()
    assert np.allclose(x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_copies_are_timed(device: str):
    assert 0 < _core.copy_seconds(device, 1 << 16, 3) < 10
    with pytest.raises(ValueError, match="bytes"):
        _core.copy_seconds(device, 0, 1)


def test_bad_input():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="sets"):
        ops.resident("gelu_forward", out=x.copy(), x=x, sets=0)
    with pytest.raises(ValueError, match="calls"):
        ops.resident("gelu_forward", out=x.copy(), x=x).seconds(0)
    with pytest.raises(ValueError, match="from another argument"):
        ops.resident("gelu_forward", out=np.ones((3, 3), np.float32), x=x)
    with pytest.raises(RuntimeError, match="no such device"):
        ops.resident("gelu_forward", out=x.copy(), x=x, device="abacus")


@pytest.mark.parametrize("device", DEVICES)
def test_the_ladder_begins_with_naive_and_ends_with_what_is_taken(device: str):
    x = np.ones((2, 3), np.float32)
    rungs = ops.ladder("gelu_forward", device)
    assert rungs[0] == "naive" and sorted(rungs) == sorted(ops.variants("gelu_forward", device))
    assert ops.resident("gelu_forward", out=x.copy(), x=x, device=device).variant == rungs[-1]
