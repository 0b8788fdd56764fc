"""The engine's promise on devices that are not the CPU: in bfloat16, with attention on tensor cores and a cache that is read by several blocks,
the sampler's log-prob is the trainer's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from engine_cases import TOKENIZER, make_engine, make_model, make_prompts, rescored

from freedive import ops
from freedive.model import DecoderConfig

OTHERS = [device for device in ops.devices() if device != "cpu"]


@pytest.mark.skipif(not OTHERS, reason="no device but the CPU: cuda-emu is built with -DFREEDIVE_CUDA_EMULATION=ON (csrc/emulation/README.md)")
@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_sampled_logprobs_are_the_training_forwards_bit_for_bit(device: str, head_dim: int):
    """Past the border of a chunk (512), beside a short one that came in with it"""
    config = DecoderConfig(TOKENIZER.vocab_size, 1, 2, 1, 16, head_dim, 16, 600)
    how = {"device": device, "dtype": "bfloat16", "max_tokens": 560, "max_seqs": 4, "threads": 1}
    prompts = make_prompts((508, 3))
    outs = make_engine(config, **how).generate(prompts, max_new_tokens=8, temperature=1.0)
    for out, again in zip(outs, rescored(make_model(config, **how), prompts, outs, 1.0)):
        assert len(out.ids) == 8 and np.isfinite(again).all()
        assert np.array_equal(out.logprobs, again)
