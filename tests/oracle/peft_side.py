"""The oracle's half of test_peft.py: runs where torch, transformers and peft are installed, and imports nothing of freedive.

Reads one JSON list of requests, prints one JSON list of answers:

    {"do": "score", "base": F, "adapter": A, "ids": [..]} -> {"logprobs", "off", "merged", "versions"}      float32
    {"do": "train", "base": F, "out": A, "ids": [..], "rslora": bool, "targets": [..]} -> {"logprobs"}      a few steps of AdamW, saved by peft
"""

from __future__ import annotations

import json
import sys

import peft
import torch
import transformers


def base(folder: str) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def logprobs(model: torch.nn.Module, ids: list[int]) -> list[float]:
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    return [table[t, ids[t + 1]].item() for t in range(len(ids) - 1)]


def score(r: dict) -> dict:
    model = peft.PeftModel.from_pretrained(base(r["base"]), r["adapter"]).eval()
    on = logprobs(model, r["ids"])
    with model.disable_adapter():
        off = logprobs(model, r["ids"])
    merged = logprobs(model.merge_and_unload(), r["ids"])
    return {"logprobs": on, "off": off, "merged": merged, "versions": f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"}


def train(r: dict) -> dict:
    torch.manual_seed(0)
    how = peft.LoraConfig(r=4, lora_alpha=12, target_modules=r["targets"], use_rslora=r["rslora"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base(r["base"]), how)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.tensor([r["ids"]])
    for _ in range(5):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(r["out"])
    return {"logprobs": logprobs(model.eval(), r["ids"])}


if __name__ == "__main__":
    print(json.dumps([{"score": score, "train": train}[r["do"]](r) for r in json.load(sys.stdin)]))
