"""The loop of reward models and DPO: lists of answers in random order, an optimizer step for every `batch` of them, and what a run needs around it
(checkpoints, held-out measurements, the best weights kept, early stopping, metrics, progress).

Which lists a step sees is a function of seed and step alone, so there is no cursor to save.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from freedive.runs import Artefact, UserError, progress
from freedive.train import learning_rate

ORDER_STREAM = 41
BAD_STEPS = 10  # non-finite gradients in a row that end a run


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know; stages fill it from their own configuration."""

    steps: int
    batch: int  # lists of an optimizer step
    lr: float
    warmup: int
    final_lr_fraction: float = 0.0
    log_every: int = 10
    eval_every: int = 0  # 0: only at the ends
    save_every: int = 100
    patience: int = 0  # so many measurements in a row without a lower eval_loss end the training; 0: never
    seed: int = 0


class Learner(Protocol):
    """What learns. Weights are what is kept of the best measurement: name -> array."""

    def update(self, chosen: Sequence[int], lr: float) -> dict[str, float]: ...  # one optimizer step on these lists; "grad_norm" among the metrics

    def state(self) -> dict[str, np.ndarray]: ...  # copies

    def load_state(self, arrays: dict[str, np.ndarray]) -> None: ...

    def weights(self) -> dict[str, np.ndarray]: ...  # copies

    def put(self, weights: dict[str, np.ndarray]) -> None: ...


def chosen_of(step: int, batch: int, n: int, seed: int) -> list[int]:
    """The lists of a step, of `n`: epochs in an order of their own each, one behind the other."""
    out: list[int] = []
    for number in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(number, n)
        if not out or place == 0:
            order = np.random.Generator(np.random.Philox(key=[seed, ORDER_STREAM], counter=[0, 0, 0, epoch])).permutation(n)
        out.append(int(order[place]))
    return out


def micro_batches(chosen: Sequence[int], tokens: Sequence[int], sequences: Sequence[int], max_tokens: int, max_seqs: int) -> list[list[int]]:
    """`chosen` in as few parts as fit; a list or pair is never split. tokens and sequences: of each list."""
    parts: list[list[int]] = []
    size = seqs = 0
    for i in chosen:
        if not parts or size + tokens[i] > max_tokens or seqs + sequences[i] > max_seqs:
            parts.append([])
            size = seqs = 0
        parts[-1].append(i)
        size, seqs = size + tokens[i], seqs + sequences[i]
    return parts


def preference_loop(run: Artefact, learner: Learner, n: int, s: Settings, name: str, evaluate: Callable[[], dict[str, float]] | None, shown: str) -> None:
    """Train for s.steps steps on `n` lists, resuming from the run's checkpoint. `evaluate` returns "eval_loss" and more, measured before, between
    and after; with it the weights of the lowest eval_loss are those in the end. shown: the metric beside the bar.

    Raises UserError when the gradient stays non-finite.
    """
    step, bad, stopped = 0, 0, False
    sums: dict[str, float] = {}
    counted = 0
    best: dict[str, Any] = {"loss": float("inf"), "step": 0, "since": 0}
    kept: dict[str, np.ndarray] = {}

    def see(found: dict[str, float]) -> None:
        nonlocal stopped, kept
        if found["eval_loss"] < best["loss"]:
            best.update(loss=found["eval_loss"], step=step, since=0)
            kept = learner.weights()
        else:
            best["since"] += 1
        stopped = 0 < s.patience <= best["since"]

    def save() -> None:
        """Written while the next steps run."""
        state = {"step": step, "bad": bad, "stopped": stopped, "sums": sums, "counted": counted, "best": best if kept else None}
        run.checkpoint(state, learner.state() | {f"best.{k}": v for k, v in kept.items()}, background=True)

    if run.resume is not None:
        state = run.resume
        step, bad, stopped, sums, counted = state["step"], state["bad"], state["stopped"], state["sums"], state["counted"]
        learner.load_state({k: v for k, v in run.arrays.items() if not k.startswith("best.")})
        if state["best"]:
            best, kept = state["best"], {k.removeprefix("best."): v.copy() for k, v in run.arrays.items() if k.startswith("best.")}
    elif evaluate:
        found = evaluate()
        see(found)
        run.log(step=0, **found)
        run.summary(**{f"before/{k}": v for k, v in found.items()})
        save()
    bar = progress.bar(s.steps, name)
    bar.advance(step)
    while step < s.steps and not stopped:
        rate = learning_rate(step, s.steps, s.lr, s.warmup, s.final_lr_fraction)
        told = learner.update(chosen_of(step, s.batch, n, s.seed), rate)
        step += 1
        norm = told["grad_norm"]
        bad = 0 if np.isfinite(norm) else bad + 1
        if bad >= BAD_STEPS:
            raise UserError(f"the gradient was not finite in {bad} steps in a row; the last checkpoint is whole", hint="lower --lr")
        if np.isfinite(norm):
            sums, counted = {k: sums.get(k, 0.0) + v for k, v in told.items()}, counted + 1
        found = {}
        if evaluate and (step == s.steps or (s.eval_every and step % s.eval_every == 0)):
            found = evaluate()
            see(found)
        if step % s.log_every == 0 or step == s.steps or found:
            mean = {k: v / max(counted, 1) for k, v in sums.items()}
            run.log(step=step, epoch=step * s.batch / n, lr=rate, **mean, **found)
            bar.advance(0, text=f"loss {mean.get('loss', 0):.3f}, {shown.rpartition('/')[2]} {mean.get(shown, 0):.2f}")
            sums, counted = {}, 0
        bar.advance(1)
        if step % s.save_every == 0 and step < s.steps and not stopped:
            save()
    bar.close()
    if kept:
        if best["step"] != step:
            learner.put(kept)
            print(f"held-out loss was lowest at step {best['step']:,} ({best['loss']:.4f}): those weights are kept" + (f"; stopped at step {step:,}" if stopped else ""))
        run.summary(best_step=best["step"], best_eval_loss=best["loss"])
    run.summary(steps=step)
    best, kept = {"loss": float("inf"), "step": 0, "since": 0}, {}  # the weights are the best ones now
    stopped = True
    save()  # the last checkpoint: a kill while files are written must not cost the training
