"""The oracle's half of test_transformers.py: runs where torch and transformers are installed, and imports nothing of freedive.

    python transformers_side.py score FOLDER < {"sequences": [[ids]], "prompts": [[ids]], "new_tokens": n}
    python transformers_side.py make FOLDER < {"model_type": ..., ...}      a random model of that configuration, saved by transformers

Prints one JSON object.
"""

from __future__ import annotations

import json
import sys

import torch
import transformers


def score(folder: str, request: dict) -> dict:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    logprobs, greedy = [], []
    with torch.no_grad():
        for ids in request["sequences"]:
            table = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
            logprobs.append([table[t, ids[t + 1]].item() for t in range(len(ids) - 1)])
        for prompt in request["prompts"]:
            ids = list(prompt)
            for _ in range(request["new_tokens"]):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            greedy.append(ids[len(prompt) :])
    return {"class": type(model).__name__, "logprobs": logprobs, "greedy": greedy,
            "versions": f"transformers {transformers.__version__}, torch {torch.__version__}"}  # fmt: skip


def make(folder: str, config: dict) -> dict:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # norms and biases away from 1 and 0, so that a swapped one shows
            p.copy_(torch.randn_like(p) * 0.15 + (1.0 if p.dim() == 1 and name.endswith("weight") else 0.0))
    model.save_pretrained(folder)
    return {"class": type(model).__name__}


if __name__ == "__main__":
    print(json.dumps({"score": score, "make": make}[sys.argv[1]](sys.argv[2], json.load(sys.stdin))))
