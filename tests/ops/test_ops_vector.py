"""Variants that move four numbers at a time: addresses off the 16-byte grid, more rows than chunks, the same bits twice and from each variant."""

import numpy as np
import pytest
from op_cases import hows, normal

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
