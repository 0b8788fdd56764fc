"""The loop of pretraining and SFT: one forward-backward per micro-batch, one step of AdamW or Muon, and everything a run needs around it
(checkpoints, metrics, progress). Reads top to bottom.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from freedive.model import Batch, Model, check_checkpoint_fits
from freedive.objectives import sft_weights
from freedive.ops import compute_code
from freedive.runs import Artefact, UserError, progress
from freedive.runs.peak import machine_peak, seen

from .loader import SequenceLoader
from .packing import PackedLoader
from .schedule import learning_rate


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know; stages fill it from their own configuration."""

    steps: int
    lr: float
    warmup: int
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    max_norm: float = 1.0
    final_lr_fraction: float = 0.0
    optimizer: str = "adamw"  # or "muon": the layers' matrices by Muon with muon_lr (same schedule), the rest by AdamW with lr
    muon_lr: float = 0.0
    embedding_lr: float | None = None  # of AdamW beside Muon, on the embeddings and on the head (None: lr)
    head_lr: float | None = None
    momentum: float = 0.95
    log_every: int = 10
    eval_every: int = 0  # 0 = only at the end
    save_every: int = 200
    keep_best: bool = False  # the weights with the lowest val_loss that `evaluate` returned are those in the end
    patience: int = 0  # so many evaluations in a row without a lower val_loss end the training; 0 = never


@dataclass
class Best:
    """The lowest held-out loss so far, and the trained weights that had it."""

    loss: float = float("inf")
    step: int = 0
    since: int = 0  # evaluations
    weights: np.ndarray | None = None

    def see(self, loss: float, step: int, model: Model) -> None:
        if loss < self.loss:
            self.loss, self.step, self.since, self.weights = loss, step, 0, model.trained().copy()
        else:
            self.since += 1

    def state(self) -> dict[str, Any]:
        return {"best": None if self.weights is None else {"loss": self.loss, "step": self.step, "since": self.since}}


def _save(run: Artefact, model: Model, state: dict[str, Any], best: Best, background: bool = False) -> None:
    """In the background: written while the next steps run."""
    more = {} if best.weights is None else {"best": best.weights}
    snapshot = model.snapshot()
    run.checkpoint(state | best.state(), lambda: snapshot() | more, background)


def restore(run: Artefact, model: Model) -> dict[str, Any] | None:
    """The state of the last checkpoint, its arrays loaded into the model; None at a fresh start. UserError where there is no memory for the next one."""
    check_checkpoint_fits(model.plan)
    if run.resume is None:
        return None
    model.load_state(run.arrays)
    return run.resume


class Meter:
    """Tokens a second and the share of the machine's peak at the model's dtype, for timings.jsonl and the progress bar.

    The peak is the one kept for this host (freedive.runs.peak), raised by what a few milliseconds at each reading find: on a shared
    machine one probe may find the cores taken.
    """

    def __init__(self, model: Model):
        self.config, self.threads, self.dtype, self.frozen = model.config, model.threads, model.dtype, model.lora is not None
        self.device, self.peak = model.device, 0.0
        self.tokens, self.flops, self.since, self.cpu = 0, 0.0, time.perf_counter(), time.process_time()

    def count(self, batch: Batch) -> None:
        """Add one trained micro-batch."""
        lengths = np.diff(batch.cu_seqlens).astype(np.float64)
        self.tokens += batch.n_tokens
        self.flops += self.config.train_flops(batch.n_tokens, int((batch.targets >= 0).sum()), float((lengths**2).sum() / max(1, batch.n_tokens)), self.frozen)

    def read(self) -> dict[str, float]:
        seconds = max(1e-9, time.perf_counter() - self.since)
        out = {"tokens_per_second": round(self.tokens / seconds, 1), "seconds": round(seconds, 4), "cpu_seconds": round(time.process_time() - self.cpu, 4)}
        if self.device == "cpu":
            out["peak_share"] = round(self.flops / seconds / self._peak(), 4)
        self.tokens, self.flops, self.since, self.cpu = 0, 0.0, time.perf_counter(), time.process_time()
        return out

    def _peak(self) -> float:
        from freedive import _core

        if not self.peak:
            self.peak = machine_peak(self.threads, self.dtype)
        now = _core.measure_peak(self.threads, 2, compute_code(self.dtype))
        if now > self.peak:
            self.peak = seen(self.threads, self.dtype, now)
        return self.peak


def supervised_loop(run: Artefact, model: Model, loader: SequenceLoader | PackedLoader, s: Settings, name: str,
                    evaluate: Callable[[int], dict[str, float]] | None = None) -> None:  # fmt: skip
    """Train for s.steps optimizer steps, resuming from the run's checkpoint. What `evaluate(step)` returns at the end goes to the run's summary.

    Raises UserError when the gradient stays non-finite.
    """
    step, bad, stopped = 0, 0, False
    best = Best()
    state = restore(run, model)
    if state:
        step, bad, stopped = state["step"], state["bad"], state.get("stopped", False)
        loader.load_state(state["loader"])
        if state.get("best"):
            best = Best(**state["best"], weights=run.arrays["best"].copy())
    meter = Meter(model)
    bar = progress.bar(s.steps, name)
    bar.advance(step)
    loss_sum = weight_sum = 0.0
    if state:
        loss_sum, weight_sum = state["loss_sum"], state["weight_sum"]
    while step < s.steps and not stopped:
        micro = loader.next_step()
        total = float(sum(m.weights.sum(dtype=np.float64) for m in micro))
        model.zero_grad()
        outs = []
        for m in micro:
            d = sft_weights(m.weights, total) if total > 0 else np.zeros_like(m.weights)  # all masked: no gradient, and no NaN
            outs.append(model.forward_backward(m.batch, d))
            meter.count(m.batch)
        weight_sum += total
        lr = learning_rate(step, s.steps, s.lr, s.warmup, s.final_lr_fraction)
        if s.optimizer == "muon":
            now_part = lr / s.lr if s.lr else 0.0
            norm = model.muon(s.muon_lr * now_part, adamw_lr=lr, embedding_lr=None if s.embedding_lr is None else s.embedding_lr * now_part,
                              head_lr=None if s.head_lr is None else s.head_lr * now_part, beta1=s.beta1, beta2=s.beta2, momentum=s.momentum,
                              weight_decay=s.weight_decay, max_norm=s.max_norm)  # fmt: skip
        else:
            norm = model.adamw(lr, s.beta1, s.beta2, weight_decay=s.weight_decay, max_norm=s.max_norm)
        for out, m in zip(outs, micro):  # after the step: until here nobody has waited for a device
            loss_sum -= float(np.dot(out.logprobs.astype(np.float64), m.weights))
        step += 1
        bad = 0 if np.isfinite(norm) else bad + 1
        if bad >= 10:
            raise UserError(f"the gradient was not finite in {bad} steps in a row; the last checkpoint is whole", hint="lower --lr")
        evaluated = {}
        if evaluate and (step == s.steps or (s.eval_every and step % s.eval_every == 0)):
            began, cpu = time.perf_counter(), time.process_time()
            evaluated = evaluate(step)
            if s.keep_best:
                best.see(evaluated["val_loss"], step, model)
                stopped = 0 < s.patience <= best.since
            meter.cpu += time.process_time() - cpu
            meter.since += time.perf_counter() - began  # not training: the tokens a second of a run's last line would be those of the evaluation
        if step % s.log_every == 0 or step == s.steps or evaluated:
            loss = loss_sum / weight_sum if weight_sum else 0.0
            run.log(step=step, loss=loss, lr=lr, grad_norm=norm if np.isfinite(norm) else None, epoch=loader.epoch, **evaluated)
            now = meter.read()
            run.time(step=step, **now)
            bar.advance(0, text=f"loss {loss:.3f}, {now['tokens_per_second']:,.0f} tokens/s" + (f", {100 * now['peak_share']:.0f} % of peak" if "peak_share" in now else ""))
            loss_sum = weight_sum = 0.0
        if step == s.steps or stopped:
            run.summary(**evaluated, **({"best_step": best.step, "best_val_loss": best.loss} if s.keep_best else {}))  # kept by the last checkpoint, so a kill after it loses no evaluation
        bar.advance(1)
        if step % s.save_every == 0 and step < s.steps and not stopped:
            _save(run, model, {"step": step, "bad": bad, "loader": loader.state(), "loss_sum": loss_sum, "weight_sum": weight_sum}, best, background=True)
    bar.close()
    if bad > 1 and best.weights is None:
        raise UserError(f"the gradient was not finite in the last {bad} steps: these weights are of no use", hint="lower --lr")
    if best.weights is not None and best.step != step:
        model.trained()[...] = best.weights
        model.touch()
        print(f"held-out loss was lowest at step {best.step:,} ({best.loss:.4f}): those weights are kept" + (f"; stopped at step {step:,}" if stopped else ""))
    # The last checkpoint: a kill while samples are drawn or files written must not cost the training.
    _save(run, model, {"step": step, "bad": bad, "stopped": stopped, "loader": loader.state(), "loss_sum": 0.0, "weight_sum": 0.0}, Best())
