"""freedive and PEFT read each other's adapters and compute the same with them.

As test_transformers.py, with peft beside transformers in the oracle's environment:

    python3 -m venv .venv-oracle && .venv-oracle/bin/pip install torch==2.13.0 transformers peft
    FREEDIVE_PEFT_PYTHON=.venv-oracle/bin/python pytest tests/oracle/test_peft.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freedive.model import Batch, DecoderConfig, LoRA, load_pretrained, open_weights, preset, read_adapter, save_adapter, save_pretrained
from freedive.model.lora import ATTENTION, MLP
from freedive.model.model import Model

pytestmark = pytest.mark.skipif("FREEDIVE_PEFT_PYTHON" not in os.environ, reason="FREEDIVE_PEFT_PYTHON names no Python with peft")

SMALL: dict[str, Any] = dict(vocab_size=211, n_layer=3, max_positions=128)
CASES: dict[str, DecoderConfig] = {
    "llama3": preset("llama3", **SMALL, n_head=4, n_kv_head=2, d_model=32, head_dim=8, d_ff=56),
    "qwen3": preset("qwen3", **SMALL, n_head=4, n_kv_head=2, d_model=24, head_dim=16, d_ff=40),
    "qwen2.5": preset("qwen2.5", **SMALL, n_head=4, n_kv_head=2, d_model=32, head_dim=8, d_ff=40),
    "smollm2": preset("smollm2", **SMALL, n_head=3, n_kv_head=1, d_model=48, head_dim=16, d_ff=64),
}  # fmt: skip
KINDS = {"all": LoRA(4, 8.0), "attention": LoRA(3, 3.0, ATTENTION, rslora=True), "mlp": LoRA(2, 6.0, MLP)}
IDS = np.random.Generator(np.random.Philox(key=[4, 9])).integers(0, 211, 40).tolist()


def ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    side = [os.environ["FREEDIVE_PEFT_PYTHON"], str(Path(__file__).with_name("peft_side.py"))]
    done = subprocess.run(side, input=json.dumps(requests), text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def made(folder: Path, config: DecoderConfig) -> Path:
    """A random model on disk."""
    model, rng = Model(config, max_tokens=64, max_seqs=2), np.random.default_rng(3)
    for name, view in model.parameters.items():
        view[...] = 0.15 * rng.standard_normal(view.shape) + (1.0 if name.endswith("norm.weight") else 0.0)
    save_pretrained(model, folder)
    return folder


def logprobs(model: Model) -> np.ndarray:
    return model.score(Batch.pack([(IDS[:-1], IDS[1:])])).logprobs


def test_adapters_go_both_ways(tmp_path: Path):
    requests, ours = [], []
    for name, config in CASES.items():
        where = made(tmp_path / name, config)
        for kind, lora in KINDS.items():
            model = load_pretrained(where, lora=lora, max_tokens=64, max_seqs=2)
            rng = np.random.default_rng(5)
            for view in model.adapter.values():
                view[...] = 0.2 * rng.standard_normal(view.shape)
            model.touch()
            save_adapter(model, tmp_path / f"{name}-{kind}", str(where))
            with model.without_adapter():
                off = logprobs(model)
            merged = read_adapter(tmp_path / f"{name}-{kind}", config).merged(open_weights(where)).to_model(max_tokens=64, max_seqs=2)
            ours.append((logprobs(model), off, logprobs(merged)))
            requests.append({"do": "score", "base": str(where), "adapter": str(tmp_path / f"{name}-{kind}"), "ids": IDS})
        for rslora in (False, True):
            out = tmp_path / f"{name}-peft-{rslora}"
            requests.append({"do": "train", "base": str(where), "out": str(out), "ids": IDS, "rslora": rslora, "targets": ["q_proj", "v_proj", "down_proj"]})
    answers = ask(requests)
    print(next(a["versions"] for a in answers if "versions" in a))
    scored = [a for a in answers if "off" in a]
    for (on, off, merged), theirs in zip(ours, scored, strict=True):
        assert np.abs(on - theirs["logprobs"]).max() < 1e-4 and np.abs(off - theirs["off"]).max() < 1e-4 and np.abs(merged - theirs["merged"]).max() < 1e-4
        assert np.abs(on - off).max() > 1e-2
    for request, answer in zip(requests, answers, strict=True):
        if request["do"] == "train":
            weights = open_weights(Path(request["base"]))
            found = read_adapter(Path(request["out"]), weights.config)
            model = weights.to_model(lora=found.lora, max_tokens=64, max_seqs=2)
            found.into(model)
            assert found.base == request["base"] and np.abs(logprobs(model) - answer["logprobs"]).max() < 1e-4
