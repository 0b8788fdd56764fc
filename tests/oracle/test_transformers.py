"""freedive and transformers compute the same model: log-probs within 1e-4, equal greedy ids, in both directions.

torch and transformers live in an environment of their own, which these tests start as a program (freedive needs neither, and CI has
neither, so there they are skipped). Once, from the root of the checkout; torch's CPU build is enough, PyPI's for Linux brings CUDA (some GB):

    python3 -m venv .venv-oracle && .venv-oracle/bin/pip install torch transformers

Then, where freedive is installed, in about a minute:

    FREEDIVE_ORACLE_PYTHON=.venv-oracle/bin/python pytest tests/oracle
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freedive.model import Batch, DecoderConfig, Model, from_depth, load_pretrained, preset, save_pretrained
from freedive.model.config import to_hf

pytestmark = pytest.mark.skipif("FREEDIVE_ORACLE_PYTHON" not in os.environ, reason="FREEDIVE_ORACLE_PYTHON names no Python with transformers")

SCRIPT = Path(__file__).with_name("transformers_side.py")
STRETCHED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
SMALL: dict[str, Any] = dict(vocab_size=211, n_layer=3, max_positions=128)
CASES: dict[str, tuple[str, DecoderConfig]] = {
    "gpt2": ("GPT2LMHeadModel", preset("gpt2", **SMALL, n_head=3, n_kv_head=3, d_model=24, head_dim=8, d_ff=96)),
    "llama3": ("LlamaForCausalLM", preset("llama3", **SMALL, n_head=4, n_kv_head=2, d_model=32, head_dim=8, d_ff=56)),
    "llama3.1": ("LlamaForCausalLM", preset("llama3.1", **SMALL, n_head=4, n_kv_head=1, d_model=48, head_dim=12, d_ff=56, rope_scaling=STRETCHED)),
    "llama_biases": ("LlamaForCausalLM", preset("llama3", **SMALL, n_head=4, n_kv_head=2, d_model=32, head_dim=8, d_ff=56,
                                                attention_bias=True, attention_out_bias=True)),
    "qwen3": ("Qwen3ForCausalLM", preset("qwen3", **SMALL, n_head=4, n_kv_head=2, d_model=24, head_dim=16, d_ff=40)),
    "qwen2.5": ("Qwen2ForCausalLM", preset("qwen2.5", **SMALL, n_head=4, n_kv_head=2, d_model=32, head_dim=8, d_ff=40)),
    "qwen2.5_untied": ("Qwen2ForCausalLM", preset("qwen2.5", **SMALL, n_head=4, n_kv_head=1, d_model=32, head_dim=8, d_ff=40, tie_embeddings=False)),
    "smollm2": ("LlamaForCausalLM", preset("smollm2", **SMALL, n_head=3, n_kv_head=1, d_model=48, head_dim=16, d_ff=64)),
    "ours": ("Qwen3ForCausalLM", from_depth(4, 512, 256)),
    "ours_untied": ("Qwen3ForCausalLM", from_depth(3, 300, 256).replace(tie_embeddings=False)),
}  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)


def ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [os.environ["FREEDIVE_ORACLE_PYTHON"], str(SCRIPT)], input=json.dumps(requests), text=True, capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def questions(config: DecoderConfig) -> dict[str, Any]:
    rng = np.random.Generator(np.random.Philox(key=[4, 4]))
    draw = lambda n: rng.integers(0, config.vocab_size, n).tolist()
    return {"sequences": [draw(n) for n in (2, 31, 32, 33, 100)], "prompts": [draw(1), draw(7), draw(40)], "new_tokens": 40}


def greedy(model: Model, prompt: list[int], n: int) -> list[int]:
    """n ids, each the likeliest, through the key-value cache"""
    one = lambda value, dtype=np.int32: np.array([value], dtype)
    blocks = (len(prompt) + n + 31) // 32
    cache, table, out, past, new = model.new_cache(blocks), np.arange(blocks, dtype=np.int32)[None], [], 0, list(prompt)
    for _ in range(n):
        i32 = np.asarray(new, np.int32)
        batch = Batch(i32, i32, np.arange(past, past + len(new), dtype=np.int32), np.array([0, len(new)], np.int32))
        past, (tokens, _) = past + len(new), model.decode(
            cache, batch, one(past), table, temperature=one(0, np.float32), top_k=one(0), top_p=one(1, np.float32), min_p=one(0, np.float32),
            seeds=one(0, np.uint64), counters=one(0, np.uint64))  # fmt: skip
        new = [int(tokens[0])]
        out += new
    return out


def random_model(config: DecoderConfig) -> Model:
    model = Model(config, max_tokens=256, max_seqs=8, trainable=False)
    rng = np.random.Generator(np.random.Philox(key=[5, 5]))
    for key, p in model.parameters.items():
        p[...] = 0.15 * rng.standard_normal(p.shape) + (1.0 if key.endswith("norm.weight") else 0.0)
    return model


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A folder with every case twice, `ours-NAME` as exported and `theirs-NAME` as saved by transformers, and what transformers says of each."""
    room = tmp_path_factory.mktemp("oracle")
    requests: list[dict[str, Any]] = []
    for name, (_, config) in CASES.items():
        save_pretrained(random_model(config), room / f"ours-{name}")
        hf = {key: value for key, value in to_hf(config).items() if key not in ("architectures", "torch_dtype")}
        requests.append({"do": "make", "folder": str(room / f"theirs-{name}"), "config": hf})
    folders = [f"{who}-{name}" for name in CASES for who in ("ours", "theirs")]
    requests += [{"do": "score", "folder": str(room / f), **questions(CASES[f.split("-")[1]][1])} for f in folders]
    return room, dict(zip(folders, ask(requests)[len(CASES) :]))


def agree(model: Model, answer: dict[str, Any], wanted_class: str, record: Any) -> None:
    request, difference = questions(model.config), 0.0
    assert answer["class"] == wanted_class
    for ids, theirs in zip(request["sequences"], answer["logprobs"]):
        ours = model.score(Batch.next_token([ids])).logprobs[:-1]
        difference = max(difference, float(np.abs(ours - np.array(theirs)).max()))
    record("max_logprob_difference", difference)
    print(f"{wanted_class}: largest difference of a log-prob {difference:.2g} ({answer['versions']})")
    assert difference < 1e-4
    assert [greedy(model, p, request["new_tokens"]) for p in request["prompts"]] == answer["greedy"]


@every_case
def test_transformers_loads_our_export(name: str, answers: Any, record_property: Any):
    agree(random_model(CASES[name][1]), answers[1][f"ours-{name}"], CASES[name][0], record_property)


@every_case
def test_we_load_what_transformers_saved(name: str, answers: Any, record_property: Any):
    room, said = answers
    model = load_pretrained(room / f"theirs-{name}", max_tokens=256, max_seqs=8, trainable=False)
    same = ("n_layer", "n_head", "n_kv_head", "d_model", "head_dim", "d_ff", "rope_theta", "rope_scaling", "tie_embeddings", "norm_eps")
    assert {k: getattr(model.config, k) for k in same} == {k: getattr(CASES[name][1], k) for k in same}
    agree(model, said[f"theirs-{name}"], CASES[name][0], record_property)
