"""MMLU, asked without examples: does the model choose as transformers does with the same weights? One JSON line; `same_choice` is the figure.

    freedive export MODEL.gguf --to hf --out exported
    FREEDIVE_ORACLE_PYTHON=.venv-hf/bin/python python benchmarks/mmlu.py --model exported --file mmlu_val.jsonl.gz --limit 200

Both read the same ids (freedive's tokenizer); transformers runs in an environment of its own, in float32. Where they differ, the margin between
the two likeliest letters is told: a near-tie is decided by rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from freedive.eval.suites.base import KINDS, Asking, read_items
from freedive.eval.suites.scoring import next_token_logprobs
from freedive.inference import load
from freedive.runs import progress

SIDE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
request = json.load(sys.stdin)
torch.set_num_threads(request["threads"])
model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32).eval()
out = []
with torch.no_grad():
    for ids, letters in request["items"]:
        out.append(torch.log_softmax(model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].double(), -1)[letters].tolist())
print(json.dumps(out))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder that `freedive export --to hf` wrote")
    parser.add_argument("--file", type=Path, required=True, help="MMLU's validation or test items, JSON Lines")
    parser.add_argument("--limit", type=int, default=0, help="items, spread over the file (0: all)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    c = parser.parse_args()
    oracle = os.environ.get("FREEDIVE_ORACLE_PYTHON")
    if not oracle:
        sys.exit("FREEDIVE_ORACLE_PYTHON must name a Python with torch and transformers")
    lm = load(c.model, threads=c.threads)
    items = read_items(KINDS["mmlu"], c.file)
    items = items if not c.limit else [items[i * len(items) // c.limit] for i in range(c.limit)]
    suite = KINDS["mmlu"](lm, Asking())
    asked = [suite.ask(item) for item in items]
    letters = [[ids[0] for ids in a[1]] for a in asked]
    if any(len(ids) != 1 for a in asked for ids in a[1]):
        sys.exit("a letter is more than one token here")
    ours = [np.concatenate(next_token_logprobs(lm, [asked[i][0]], [letters[i]])) for i in progress(range(len(items)), name="freedive")]
    request = {"model": str(c.model), "threads": c.threads, "items": [[a[0], ids] for a, ids in zip(asked, letters)]}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([oracle, "-c", SIDE], input=json.dumps(request), text=True, stdout=subprocess.PIPE, env=environment, check=True)
    theirs = [np.array(row) for row in json.loads(done.stdout.strip().splitlines()[-1])]
    same = [int(a.argmax()) == int(b.argmax()) for a, b in zip(ours, theirs)]
    right = [int(a.argmax()) == item.value.answer for a, item in zip(ours, items)]
    margins = [float(np.diff(np.sort(b)[-2:])[0]) for b, s in zip(theirs, same) if not s]
    print(json.dumps({"benchmark": "mmlu", "model": c.model.name, "items": len(items), "same_choice": sum(same) / len(same), "accuracy": sum(right) / len(right),
                      "largest_logprob_difference": max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs)), "margins_where_they_differ": margins}))  # fmt: skip


if __name__ == "__main__":
    main()
