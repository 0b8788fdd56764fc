"""llama.cpp opens our GGUF files and computes the same: log-probs within 1e-2 and equal greedy ids on float files, the same tokens.

llama-cpp-python lives in an environment of its own, which this test starts as a program; pip compiles it, in about ten minutes:

    python3 -m venv .venv-llama && .venv-llama/bin/pip install llama-cpp-python
    FREEDIVE_LLAMACPP_PYTHON=.venv-llama/bin/python pytest tests/oracle/test_llama_cpp.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_transformers import CASES, greedy, random_model

from freedive.inference.export import ExportConfig
from freedive.inference.export import run as export
from freedive.model import Batch, load_pretrained, save_pretrained
from freedive.tokenizer import byte_tokenizer

pytestmark = pytest.mark.skipif("FREEDIVE_LLAMACPP_PYTHON" not in os.environ, reason="FREEDIVE_LLAMACPP_PYTHON names no Python with llama-cpp-python")
SCRIPT = Path(__file__).with_name("llama_cpp_side.py")
NAMES = [n for n in CASES if not n.startswith("ours")]
TEXTS = ["Hello 123", "naïve 你好", "  two  spaces\n"]
VOCAB = byte_tokenizer().vocab_size


def ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([os.environ["FREEDIVE_LLAMACPP_PYTHON"], str(SCRIPT)], input=json.dumps(requests), text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def questions() -> dict[str, Any]:
    rng = np.random.Generator(np.random.Philox(key=[4, 5]))
    draw = lambda n: rng.integers(0, VOCAB, n).tolist()
    return {"sequences": [draw(n) for n in (2, 33, 90)], "prompts": [draw(1), draw(40)], "new_tokens": 24}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, dict[str, Any]]]:
    room = tmp_path_factory.mktemp("llama")
    requests, keys = [], []
    for name in NAMES:
        config = CASES[name][1].replace(vocab_size=VOCAB)
        # rows of whole blocks, and the only width of a head that llama.cpp knows for these two
        config = config.replace(d_model=64, d_ff=96)
        if name.startswith(("gpt2", "qwen2.5")):
            config = config.replace(n_head=4, n_kv_head=4 if name == "gpt2" else config.n_kv_head, head_dim=16)
        save_pretrained(random_model(config), room / name)
        byte_tokenizer().save(room / name / "tokenizer")
        for kind in ("f32", "f16", "bf16", "q8_0", "q4_0"):
            file = room / f"{name}-{kind}.gguf"
            export(ExportConfig(room / name, file, type=kind))
            keys.append((name, kind))
            requests.append({"file": str(file), "texts": TEXTS, **questions()})
    return {key: (Path(r["file"]), a) for key, r, a in zip(keys, requests, ask(requests))}


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_computes_the_same_from_our_file(name: str, kind: str, answers: Any, record_property: Any):
    file, said = answers[name, kind]
    model = load_pretrained(file, max_tokens=256, max_seqs=8, trainable=False)
    assert [byte_tokenizer().encode(t) for t in TEXTS] == said["tokens"]
    difference = 0.0
    for ids, theirs in zip(questions()["sequences"], said["logprobs"]):
        difference = max(difference, float(np.abs(model.score(Batch.next_token([ids])).logprobs[:-1] - np.array(theirs)).max()))
    record_property("max_logprob_difference", difference)
    print(f"{name} {kind}: largest difference of a log-prob {difference:.2g} ({said['versions']})")
    if kind == "f32":
        assert difference < 1e-2
        assert [greedy(model, p, 24) for p in questions()["prompts"]] == said["greedy"]
    else:  # llama.cpp rounds activations to the type of the weights, or to 8 bits
        assert difference < {"f16": 2e-2, "bf16": 2e-1, "q8_0": 3e-1, "q4_0": 3e-1}[kind]


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_smollm2_exported_by_us_says_in_llama_cpp_what_it_says_here(smollm2: Path, shared_data: Path, tmp_path: Path, kind: str):
    truth = json.loads((shared_data / "models" / "smollm2_truth.json").read_text(encoding="utf-8"))
    export(ExportConfig(smollm2, tmp_path / "s.gguf", type=kind))
    prompts = [run["prompt_ids"] for run in truth["runs"]]
    texts = [text for text in truth["tokenizer"]]
    said = ask([{"file": str(tmp_path / "s.gguf"), "sequences": [[*p, *r["gen_ids"]] for p, r in zip(prompts, truth["runs"])], "prompts": prompts,
                 "new_tokens": 12, "texts": texts}])[0]  # fmt: skip
    assert said["tokens"] == list(truth["tokenizer"].values()) and said["pre"] == "smollm"
    assert said["greedy"] == [run["gen_ids"][:12] for run in truth["runs"]]
    model = load_pretrained(tmp_path / "s.gguf", max_tokens=256, max_seqs=8, trainable=False)
    for prompt, run, theirs in zip(prompts, truth["runs"], said["logprobs"]):
        ours = model.score(Batch.next_token([[*prompt, *run["gen_ids"]]])).logprobs[:-1]
        difference = float(np.abs(ours - np.array(theirs)).max())
        print(f"SmolLM2 {kind}, {run['name']}: largest difference of a log-prob {difference:.2g} ({said['versions']})")
        assert difference < {"f32": 1e-2, "q8_0": 0.3}[kind]
