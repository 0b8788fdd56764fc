"""Tensors of 16 MB and more are written past the cache: the same bits as the same rows written in pieces, in place too."""

from __future__ import annotations

import numpy as np
import pytest

from freedive import ops
from freedive.bench.ops import C, aligned, memory_cases

WRITES = {"rmsnorm_forward": "out", "layernorm_forward": "out", "rope": "out", "gelu_forward": "out", "gelu_backward": "dx", "swiglu_forward": "out",
          "swiglu_backward": "dgate", "embedding_forward": "out"}  # fmt: skip
SHARED = {"wte", "cos", "sin", "weight", "bias"}


@pytest.mark.parametrize("op", WRITES)
@pytest.mark.parametrize("threads", [1, 2])
def test_large_tensors_have_the_bits_of_their_pieces(op: str, threads: int):
    case = next(c for c in memory_cases(18) if c.name == op)
    out = case.arguments[WRITES[op]]
    N = len(out)
    assert out.size >= 4 << 20 and out.ctypes.data % 64 == 0
    case.run(threads)
    whole = out.copy()
    out[...] = np.nan
    for begin in range(0, N, 1000):
        rows = {k: v[begin : begin + 1000] if isinstance(v, np.ndarray) and len(v) == N and k not in SHARED else v for k, v in case.arguments.items()}
        ops.call(op, threads=threads, **rows)
    assert whole.tobytes() == out.tobytes()


def test_in_place():
    x = aligned((6000, C))
    x[...] = np.random.default_rng(0).standard_normal(x.shape)
    dout = aligned(x.shape, lambda a: np.copyto(a, x[::-1]))
    want = np.concatenate([ops.gelu_backward(dout[i : i + 500], x[i : i + 500]) for i in range(0, len(x), 500)])
    ops.call("gelu_backward", dx=dout, dout=dout, x=x, threads=2)
    assert want.tobytes() == dout.tobytes()
