"""What the CUDA device computes it computes again: every op on every case, and a training run, to the bit."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("ops", "model")]
import op_cases  # noqa: E402

from freedive import _core, ops  # noqa: E402
from freedive.model import Batch, DecoderConfig, Model  # noqa: E402

DEVICE = os.environ.get("FREEDIVE_GPU_DEVICE", "cuda")  # tests of a module with this name are marked gpu
WHY = _core.device_error(DEVICE)
pytestmark = pytest.mark.skipif(WHY is not None, reason=f"no device {DEVICE}: {WHY}")


@pytest.mark.parametrize("op", [op for op, cases in op_cases.CASES.items() if cases])
def test_every_op_gives_the_same_bits_again(op: str):
    for variant in ops.variants(op, DEVICE):
        for case in op_cases.CASES[op]:
            first, second = case.arguments(DEVICE), case.arguments(DEVICE)
            for arguments in (first, second):
                ops.call(op, **arguments, variant=variant, device=DEVICE)
            for key in case.expected:
                assert first[key].tobytes() == second[key].tobytes(), f"{variant} {case.name}: {key}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_twice_is_training_once(dtype: str):
    config = DecoderConfig(64, 2, 4, 2, 32, 8, 64, 64)
    r = np.random.Generator(np.random.Philox(key=[4, 14]))
    batches = [Batch.pack([(r.integers(0, 64, n), r.integers(0, 64, n)) for n in (17, 1, 33)]) for _ in range(3)]
    results = []
    for _ in range(2):
        model = Model(config, max_tokens=64, max_seqs=4, device=DEVICE, dtype=dtype).init(seed=3)
        for batch in batches:
            model.zero_grad()
            model.forward_backward(batch, np.full(len(batch.tokens), -1.0 / len(batch.tokens), np.float32))
            model.adamw(lr=1e-2)
        results.append(b"".join(view.tobytes() for view in model.parameters.values()))
    assert results[0] == results[1]
