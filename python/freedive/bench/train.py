"""`freedive bench train`: whole optimizer steps at three sizes, tokens a second beside the most this machine's multiply-adds allow.

One JSON line per case: `limit` is the measured peak divided by the FLOPs that the products of a token need, `ratio` the share of it reached.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from dataclasses import dataclass

import numpy as np

from freedive import _core
from freedive.model import Batch, DecoderConfig, Model, preset
from freedive.model.model import check_dtype
from freedive.runs import UserError, check_at_least, default_threads, option
from freedive.runs.peak import machine_peak

# configuration, sequences, tokens of each
CASES: dict[str, tuple[DecoderConfig, int, int]] = {
    "4x128": (DecoderConfig(512, 4, 4, 4, 128, 32, 352, 128), 32, 128),
    "6x384": (DecoderConfig(4096, 6, 6, 6, 384, 64, 1024, 256), 16, 256),
    "gpt2": (preset("gpt2"), 4, 256),
}


@dataclass(frozen=True)
class BenchTrainConfig:
    """Measure training steps."""

    only: list[str] = option([], f"cases to run, of {', '.join(CASES)} (default: all)")
    threads: list[int] = option([], "CPU threads, several to compare (default: all)")
    dtype: str = option("auto", "float32, bfloat16, or auto for the faster here")
    optimizer: str = option("adamw", "adamw or muon")
    steps: int = option(5, "steps of each case, after one that does not count")


def seconds_of_steps(model: Model, batch: Batch, steps: int, optimizer: str) -> list[float]:
    """Forward, backward, gradient norm, clipping and the optimizer, timed; one step first that is not."""
    derivative, seconds = np.full(batch.n_tokens, -1.0 / batch.n_tokens, np.float32), []
    for _ in range(steps + 1):
        began = time.perf_counter()
        model.zero_grad()
        model.forward_backward(batch, derivative)
        model.muon(1e-4, adamw_lr=1e-4) if optimizer == "muon" else model.adamw(1e-4)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def run(c: BenchTrainConfig) -> None:
    check_at_least(c, 1, "steps")
    if unknown := [name for name in c.only if name not in CASES]:
        raise UserError(f"no case {unknown[0]!r}", hint=f"cases: {', '.join(CASES)}")
    if c.optimizer not in ("adamw", "muon"):
        raise UserError(f"optimizer is {c.optimizer!r}", hint="adamw or muon")
    if any(t < 1 for t in c.threads):
        raise UserError(f"threads holds {min(c.threads)}, it must be at least 1")
    dtype = check_dtype(c.dtype)
    for threads in c.threads or [default_threads()]:
        peak = machine_peak(threads, dtype)
        for name in c.only or CASES:
            config, B, T = CASES[name]
            model = Model(config, max_tokens=B * T, max_seqs=B, threads=threads, dtype=dtype).init(0)
            rng = np.random.default_rng(0)
            batch = Batch.pack((rng.integers(0, config.vocab_size, T), rng.integers(0, config.vocab_size, T)) for _ in range(B))
            rates = [B * T / s for s in seconds_of_steps(model, batch, c.steps, c.optimizer)]
            limit = peak / (config.train_flops(B * T, B * T, T) / (B * T))
            value = statistics.median(rates)
            print(json.dumps({"bench": "train", "case": name, "tier": _core.cpu_tier(), "threads": threads, "dtype": dtype, "optimizer": c.optimizer,
                              "tokens": B * T, "value": round(value, 1), "min": round(min(rates), 1), "max": round(max(rates), 1), "unit": "tokens/s",
                              "limit": round(limit, 1), "ratio": round(value / limit, 3), "peak_gflops": round(peak / 1e9, 1),
                              "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}), flush=True)  # fmt: skip
            del model
