"""What a step does not keep it computes again: no bit of a gradient changes, and the memory is what the plan says it saves."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from model_cases import CONFIGS, DEVICE, generator, make_batch, make_model, same_bits

from freedive.model import LoRA, Model, init_adapter, plan
from freedive.runs import UserError

LEVELS = ("ffn", "block")


def trained(level: str, name: str, **arguments: Any) -> dict[str, np.ndarray]:
    """Gradients of a forward and backward with every derivative, of a fast one, and the weights after two steps"""
    config = CONFIGS[name]
    model = make_model(config, recompute=level, **arguments)
    if model.lora is not None:
        init_adapter(model, 5)
        for view in model.adapter.values():
            view[...] += 0.1 * generator(6).standard_normal(view.shape).astype(np.float32)
    batch, results = make_batch(config), {}
    n = batch.n_tokens
    for step in range(2):
        model.zero_grad()
        out = model.forward(batch)
        r = generator(9 + step)
        model.backward(*(r.standard_normal(np.shape(x)).astype(np.float32) for x in (out.logprobs, out.entropy, out.lse)))
        results |= {f"{step} {key}": value.copy() for key, value in model.gradients.items()}
        model.forward_backward(batch, np.full(n, -1 / n, np.float32))
        results |= {f"{step} + {key}": value.copy() for key, value in model.gradients.items()}
        model.adamw(1e-2)
    return results | {key: value.copy() for key, value in (model.adapter or model.parameters).items()}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_have_the_same_bits(name: str, level: str):
    want, got = trained("none", name), trained(level, name)
    assert want.keys() == got.keys() and all(same_bits(want[key], got[key]) for key in want)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("more", [{"lora": LoRA(3, 6.0)}, {"dtype": "bfloat16"}], ids=["adapter", "bfloat16"])
def test_the_same_with(more: dict[str, Any], level: str):
    want, got = (trained(how, "qwen3_tied", **more) for how in ("none", level))
    assert all(same_bits(want[key], got[key]) for key in want)


@pytest.mark.parametrize("level", LEVELS)
def test_sequences_that_share_rows(level: str):
    """Attention is computed again from copies of shared rows, as the first time"""
    from test_shared_prefix import both

    config, results = CONFIGS["qwen3_tied"], []
    shared, _, _ = both(config)
    for how in ("none", level):
        model = make_model(config, recompute=how)
        model.forward_backward(shared, np.full(shared.n_tokens, -0.1, np.float32))
        results.append({key: value.copy() for key, value in model.gradients.items()})
    assert all(same_bits(results[0][key], results[1][key]) for key in results[0])


def test_a_score_between_does_not_serve_as_a_forward():
    model, batch = make_model(CONFIGS["llama_gqa"], recompute="block"), make_batch(CONFIGS["llama_gqa"])
    model.forward(batch)
    model.score(batch)
    with pytest.raises(RuntimeError, match="needs a forward"):
        model.backward()


def test_the_plan_tells():
    sizes = {level: dict(plan(CONFIGS["qwen3_tied"], 4096, 16, recompute=level).rows)["activations"] for level in ("none", *LEVELS)}
    assert sizes["none"] > sizes["ffn"] > sizes["block"]
    with pytest.raises(UserError, match="recompute is 'all'"):
        Model(CONFIGS["qwen3_tied"], recompute="all")


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from freedive.model import Batch, DecoderConfig, Model
config = DecoderConfig(64, 10, 4, 4, 256, 64, 1024, 512)
model = Model(config, max_tokens=1024, max_seqs=2, threads=1, recompute=sys.argv[1]).init(0)
batch = Batch.pack([(np.arange(512) % 64, np.arange(512) % 64)] * 2)
model.forward_backward(batch, np.full(1024, -1e-3, np.float32))
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())  # not ru_maxrss, which begins with what the parent had
print(int(peak[1]) * 1024, model.gradients["layers.0.q_proj.weight"].tobytes().hex()[:64])
"""


@pytest.mark.skipif(DEVICE != "cpu", reason="measures memory of the process")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_of_the_process_falls_as_planned():
    from freedive.model import DecoderConfig

    config = DecoderConfig(64, 10, 4, 4, 256, 64, 1024, 512)
    planned = {level: plan(config, 1024, 2, threads=1, recompute=level).total for level in ("none", *LEVELS)}
    peaks, firsts = {}, set()
    for level in planned:
        done = subprocess.run([sys.executable, "-c", PEAK, level], capture_output=True, text=True, check=True)
        peak, first = done.stdout.split()
        peaks[level] = int(peak)
        firsts.add(first)
    assert len(firsts) == 1
    for level in LEVELS:
        saved, should = peaks["none"] - peaks[level], planned["none"] - planned[level]
        assert 0.9 * should < saved < 1.1 * should, f"{level}: {saved:,} bytes saved, {should:,} planned"
