"""Our side of side_by_side.py: the same requests as torch_worker.py takes, done by freedive."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from answering import answer_lines
from process_memory import high_water, needs

from freedive import _core
from freedive.bench.ops import product_cases
from freedive.model import Batch, DecoderConfig, Model
from freedive.model.model import check_kv_cache_dtype

THREADS = int(os.environ["FREEDIVE_THREADS"])
now = time.process_time if THREADS == 1 else time.perf_counter  # as in torch_worker.py
Work = Callable[[], float]


def config_of(m: dict[str, int]) -> DecoderConfig:
    """GPT-2's architecture at the worker's sizes."""
    width, heads = m["width"], m["heads"]
    return DecoderConfig(m["vocabulary"], m["layers"], heads, heads, width, width // heads, 4 * width, m["positions"], norm="layernorm", norm_eps=1e-5,
                         position="learned", mlp="gelu_tanh", attention_bias=True, attention_out_bias=True, mlp_bias=True, qk_norm=False)  # fmt: skip


def new_model(r: dict[str, Any], **capacities: Any) -> Model:
    dtype = {} if r["mode"] == "float32" else {"dtype": r["mode"]}
    return Model(config_of(r["model"]), threads=THREADS, device=r.get("device", "cpu"), recompute=r.get("recompute", "none"), **capacities, **dtype).init(0)


def train_step(model: Model, batch: Batch) -> float:
    """A whole optimizer step: gradients, their norm, clipping, AdamW."""
    began = now()
    model.zero_grad()
    derivative = np.where(batch.targets >= 0, -1.0 / max(1, int((batch.targets >= 0).sum())), 0).astype(np.float32)
    model.forward_backward(batch, derivative)
    model.adamw(1e-4, weight_decay=0.1)
    return now() - began


def make_train(r: dict[str, Any]) -> Work:
    B, T = r["batch"], r["length"]
    model = new_model(r, max_tokens=B * T, max_seqs=B)
    rng = np.random.default_rng(0)
    batch = Batch.pack((rng.integers(0, r["vocabulary"], T), rng.integers(0, r["vocabulary"], T)) for _ in range(B))
    return lambda: train_step(model, batch)


def make_unequal(r: dict[str, Any]) -> Work:
    batches = [Batch.pack((s[:-1], s[1:]) for s in sequences) for sequences in r["batches"]]
    model = new_model(r, max_tokens=max(b.n_tokens for b in batches), max_seqs=max(b.n_seqs for b in batches))
    return lambda: sum(train_step(model, b) for b in batches)


def make_decode(r: dict[str, Any]) -> Work:
    B, P, N = r["batch"], r["prompt"], r["new"]
    model = new_model(r, max_tokens=B * P, max_seqs=B, trainable=False)
    blocks = -(-(P + N) // 32)
    cache, table = model.new_cache(B * blocks, check_kv_cache_dtype("auto", model.dtype)), np.arange(B * blocks, dtype=np.int32).reshape(B, blocks)
    rng = np.random.default_rng(0)
    prompts = Batch.pack((rng.integers(0, r["vocabulary"], P),) * 2 for _ in range(B))
    greedy = {"temperature": np.zeros(B, np.float32), "top_k": np.zeros(B, np.int32), "top_p": np.ones(B, np.float32),
              "min_p": np.zeros(B, np.float32), "seeds": np.zeros(B, np.uint64), "counters": np.zeros(B, np.uint64)}  # fmt: skip
    one = np.arange(B + 1, dtype=np.int32)

    def run() -> float:
        tokens, _ = model.decode(cache, prompts, np.zeros(B, np.int32), table, **greedy)
        began = now()
        if steps := r.get("steps"):  # so many tokens between two looks of Python
            for i in range(0, N, steps):
                found, _ = model.decode_steps(cache, min(steps, N - i), tokens, np.full(B, P + i, np.int32), table, stop_ids=np.full((B, 1), -1, np.int32), **greedy).wait()
                tokens = found[-1]
            return now() - began
        for i in range(N):
            past = np.full(B, P + i, np.int32)
            tokens, _ = model.decode(cache, Batch(tokens, tokens, past, one), past, table, **greedy)
        return now() - began

    return run


def make_head(r: dict[str, Any]) -> Work:
    """The head with cross-entropy, forward and backward, at GPT-2's size; its outputs are there before the first call."""
    *_, case = product_cases(r["dtype"])
    for array in case.arguments.values():
        if isinstance(array, np.ndarray) and array.flags.writeable:
            array += 0

    def run() -> float:
        began = now()
        case.run(THREADS)
        return now() - began

    return run


MAKERS = {"train": make_train, "unequal": make_unequal, "decode": make_decode, "head": make_head}


class Answers:
    """{"do": "make", "kind": of MAKERS, ..}, {"do": "peak", ..} or {"do": "work", "n": calls of what was made}."""

    def __init__(self) -> None:
        self.work: Work | None = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "make":
            began = time.perf_counter()
            self.work = MAKERS[request["kind"]](request)
            first = needs(self.work)
            return {"first": time.perf_counter() - began, "needs": first, "tier": _core.cpu_tier()}
        if request["do"] == "peak":
            return {"flops": _core.measure_peak(THREADS, 4, *([1] if request["dtype"] == "bfloat16" else []))}
        assert self.work is not None
        return {"seconds": [self.work() for _ in range(request["n"])], "high_water": high_water()}


if __name__ == "__main__":
    answer_lines(Answers())
