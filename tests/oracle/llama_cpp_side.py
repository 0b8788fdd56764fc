"""llama.cpp's half of test_llama_cpp.py: runs where llama-cpp-python is installed, and imports nothing of freedive.

Reads one JSON list of requests {"file", "sequences": [[ids]], "prompts": [[ids]], "new_tokens", "texts"}, prints one JSON list of
{"logprobs", "greedy", "tokens", "pre", "versions"}. Keys and values are kept in float32, so that only the weights' type rounds.
"""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np


def answer(file: str, sequences: list, prompts: list, new_tokens: int, texts: list) -> dict:
    model = llama_cpp.Llama(file, n_ctx=128, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)

    def logits(ids: list) -> np.ndarray:
        model.reset()
        model.eval(ids)
        return np.array(model.scores[: len(ids)], np.float64)

    logprobs, greedy = [], []
    for ids in sequences:
        z = logits(ids)
        z -= z.max(axis=1, keepdims=True)
        z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
        logprobs.append([z[t, ids[t + 1]] for t in range(len(ids) - 1)])
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(new_tokens):
            ids.append(int(logits(ids)[-1].argmax()))
        greedy.append(ids[len(prompt) :])
    tokens = [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]
    return {"logprobs": logprobs, "greedy": greedy, "tokens": tokens, "pre": model.metadata.get("tokenizer.ggml.pre"),
            "versions": f"llama-cpp-python {llama_cpp.__version__}"}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps([answer(**request) for request in json.load(sys.stdin)]))
