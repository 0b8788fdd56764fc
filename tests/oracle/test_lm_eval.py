"""lm-evaluation-harness through the server gives what scoring with the model itself gives: the same sums of log-probs, choices and texts.

lm_eval lives in an environment of its own (python3 -m venv .venv-lmeval && .venv-lmeval/bin/pip install "lm_eval[api]"), about a gigabyte:

    FREEDIVE_LM_EVAL=.venv-lmeval/bin/lm_eval pytest tests/oracle/test_lm_eval.py -s
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import freedive
from freedive.model import Batch

pytestmark = [pytest.mark.slow, pytest.mark.skipif("FREEDIVE_LM_EVAL" not in os.environ, reason="FREEDIVE_LM_EVAL names no lm_eval program")]
ITEMS = int(os.environ.get("FREEDIVE_LM_EVAL_ITEMS", "16"))
TASKS = {
    "fd_mc": """task: fd_mc
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{q}}\\nAnswer:"
doc_to_choice: "{{options}}"
doc_to_target: "{{['A', 'B', 'C', 'D'].index(answer)}}"
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "fd_gen": """task: fd_gen
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{q}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match}]
""",
}  # fmt: skip


def pair(tok, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """lm_eval's way of cutting: white space at the end of the context belongs to the continuation."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole, begin = tok.encode(context + continuation), tok.encode(context)
    return begin, whole[len(begin) :]


def test_per_item_choices_and_texts_are_our_own(smollm2: Path, shared_data: Path, tmp_path: Path) -> None:
    with gzip.open(shared_data / "eval" / "mmlu_val.jsonl.gz", "rt", encoding="utf-8") as lines:
        every = [json.loads(line) for line in lines]
    rows = every[:: len(every) // ITEMS][:ITEMS]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("DATA", str(tmp_path / "items.jsonl")))
    server = subprocess.Popen([sys.executable, "-m", "freedive", "serve", str(smollm2), "--port", "0", "--name", "m", "--no-pages"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(line.split("API: ")[1].strip() for line in server.stdout if "API: " in line)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [os.environ["FREEDIVE_LM_EVAL"], "run", "--model", "local-completions", "--model_args",
             f"base_url={address}/completions,model=m,tokenizer_backend=remote,max_length=8192,num_concurrent=8", "--tasks", ",".join(TASKS), "--include_path", str(tmp_path),
             "--log_samples", "--output_path", str(tmp_path / "out")], env=environment, capture_output=True, text=True, timeout=1200)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        server.terminate()
        server.wait(30)
    lm = freedive.load(smollm2)
    samples = {name: [json.loads(line) for f in (tmp_path / "out").rglob(f"samples_{name}_*.jsonl") for line in f.open()] for name in TASKS}
    assert [len(s) for s in samples.values()] == [ITEMS, ITEMS]
    choices = right = 0
    for sample in samples["fd_mc"]:
        theirs = [(float(r[0][0]), r[0][1] in (True, "True")) for r in sample["resps"]]
        ours = [scored(lm, *pair(lm.tokenizer, *arguments(a))) for a in sample["arguments"].values()]
        assert [t[0] for t in theirs] == [o[0] for o in ours] and [t[1] for t in theirs] == [o[1] for o in ours]  # every bit
        assert int(np.argmax([t[0] for t in theirs])) == int(np.argmax([o[0] for o in ours]))
        choices += len(ours)
        right += sample["acc"]
    for sample in samples["fd_gen"]:
        prompt = lm.tokenizer.encode(arguments(next(iter(sample["arguments"].values())))[0])
        out = lm.engine.generate([prompt], 12, 0.0, stop_ids=lm.tokenizer.stop_ids, stop=("\n",))[0]
        assert sample["resps"][0][0] == out.text
    print(f"\n{ITEMS} items, {choices} choices: sums of log-probs bit-equal; accuracy {right / ITEMS:.3f}; {ITEMS} texts equal")


def arguments(one: Any) -> tuple[str, str]:
    return (one["arg_0"], one["arg_1"]) if isinstance(one, dict) else tuple(one)


def scored(lm: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Sum of the continuation's log-probs, and whether each of its ids is the likeliest there."""
    ids = [*context, *continuation]
    logprobs = lm.model.score(Batch.pack([(ids[:-1], ids[1:])])).logprobs[len(context) - 1 :]
    top = lm.engine.generate([ids], 1, 0.0, prompt_logprobs=1)[0].prompt_top_logprobs
    greedy = all(i in best for i, best in zip(continuation, top[len(context) :], strict=True))
    return sum(map(float, logprobs)), greedy
