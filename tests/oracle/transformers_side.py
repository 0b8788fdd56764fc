"""The oracle's half of test_transformers.py: runs where torch and transformers are installed, and imports nothing of freedive.

Reads one JSON list of requests, prints one JSON list of answers (one process for all: importing torch takes longer than the rest):

    {"do": "score", "folder": F, "sequences": [[ids]], "prompts": [[ids]], "new_tokens": n} -> {"class", "logprobs", "greedy", "versions"}
    {"do": "make", "folder": F, "config": {"model_type": ..., ...}} -> {"class"}        a random model, saved by transformers
"""

from __future__ import annotations

import json
import sys

import torch
import transformers


def score(folder: str, sequences: list, prompts: list, new_tokens: int) -> dict:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    logprobs, greedy = [], []
    with torch.no_grad():
        for ids in sequences:
            table = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
            logprobs.append([table[t, ids[t + 1]].item() for t in range(len(ids) - 1)])
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(new_tokens):
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
    torch.set_num_threads(1)  # tiny models: a second thread only waits
    answers = [{"score": score, "make": make}[request.pop("do")](**request) for request in json.load(sys.stdin)]
    print(json.dumps(answers))
