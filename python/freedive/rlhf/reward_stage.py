"""`freedive reward`: preferences in, a reward model out: the stand-in for the people who ranked (talk 4.4).

A list of K ranked answers is one unit: K forward passes, all of its K(K-1)/2 pairs in the loss. After training the scores are shifted so that
their mean over the training answers is 0 (the loss does not see a shift; the reward of PPO does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from freedive.eval.statistics import bootstrap, interval
from freedive.inference import load_model, load_tokenizer
from freedive.inference.folder import base_and_adapter, chat_tokens_untrained, new_adapter
from freedive.model import Batch, Model, init_adapter, is_adapter
from freedive.model.model import RECOMPUTE_HELP
from freedive.model.packed import check_weights
from freedive.objectives import merge_metrics, ranking_loss
from freedive.objectives.preference import RANKING_LOSSES
from freedive.rl.values import Head, ValueModel
from freedive.runs import Artefact, UserError, check_at_least, json_line, option, progress, stage, write_json_atomic
from freedive.runs.reporting import REPORT_HELP
from freedive.sft.data import parse_data, remote_sources
from freedive.sft.stage import initialise_chat_tokens

from .loop import Settings, micro_batches, preference_loop
from .preferences import Ranked, longer_is_better, packed, read_preferences
from .reward_model import MAX_SEQS, save_reward_model

EXAMPLES = 8  # held-out lists told with their scores


@dataclass(frozen=True)
class RewardConfig:
    """Train a reward model on preferences: chosen and rejected answers, or ranked lists."""

    model: Path = option(help="what to start from: a folder, a .gguf file, an adapter's folder; best the assistant whose answers were ranked", positional=True)
    data: list[str] = option(help='preferences, as JSON Lines or parquet: {"prompt", "chosen", "rejected"}, {"prompt", "completions", "ranks"}, or OASST trees')
    out: Path = option(Path("runs/reward"), "folder to write")
    context: int = option(512, "answers that are longer than this, with their prompts, are left out, and counted (tokens)")
    epochs: float = option(2.0, "passes over the lists, when --steps is not given")
    steps: int | None = option(None, "optimizer steps")
    batch: int = option(16, "lists of an optimizer step")
    lr: float | None = option(None, "peak learning rate (default: from the width; 3e-3 with --freeze)")
    warmup: int | None = option(None, "warm-up steps (default: 5 %)")
    weight_decay: float = option(0.01, "AdamW's weight decay, on matrices and the row")
    loss: Literal["bradley_terry", "plackett_luce"] = option("bradley_terry", f"of a list: {', '.join(RANKING_LOSSES)} (docs/rlhf.md)")
    center_rewards_coefficient: float = option(0.0, "weight of a term that holds the rewards' mean at 0 while training, for example 0.01 (TRL's)")
    center: Literal["none", "mean", "std"] = option("mean", "after training: shift rewards to mean 0 over the training answers; std: to standard deviation 1 too")
    freeze: bool = option(False, "learn the row alone, on the model's final hidden states as they are: each answer is read once, whatever the epochs")
    lora_rank: int = option(0, "train a LoRA adapter of this rank with the row, instead of all weights, for example 16")
    lora_alpha: float | None = option(None, "what the adapter is multiplied with, divided by the rank (default: twice the rank)")
    lora_targets: str = option("all", "matrices with an adapter: all, attention, mlp, or names: q_proj,v_proj")
    weights: str = option("auto", "how frozen weights are held: auto (as the file has them), float32, bfloat16, float16, int8, int4")
    val_data: list[str] = option([], "preferences that are measured and never learned")
    val_fraction: float = option(0.0, "part of the prompts to hold out for that instead, by a hash of the first message")
    eval_every: int | None = option(None, "steps between measurements on what is held out (default: ten in a run)")
    patience: int = option(0, "stop when the held-out loss has not fallen for so many measurements (0: never); the best weights are kept in any case")
    save_every: int = option(100, "steps between checkpoints", hash=False)
    report_to: str = option("", REPORT_HELP, hash=False)
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    micro_tokens: int = option(4096, "tokens of one forward pass")
    seed: int = option(0, "of the order and the adapter")
    device: str = option("cpu", "cpu, or cuda where the build and the machine have it")
    recompute: str = option("none", RECOMPUTE_HELP, hash=False)
    dtype: str = option("float32", "float32; bfloat16: operands of products rounded, twice as fast where the processor has it; auto")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "read and check the data, print what is in it and the plan, and stop")

    @property
    def kind(self) -> str:
        return "head" if self.freeze else "adapter" if self.lora_rank or is_adapter(self.model) else "model"


class LearnedScores:
    """Scores of a model that learns with its row."""

    def __init__(self, c: RewardConfig, value: ValueModel, lists: Sequence[Ranked]):
        self.c, self.value, self.lists = c, value, lists

    def step(self, chosen: Sequence[int], lr: float, total: int) -> dict[str, float]:
        told = []
        self.value.zero_grad()
        for part in self._parts(chosen):
            batch, lists = self._batch(part)
            at = batch.cu_seqlens[1:] - 1
            d, metrics = _loss(self.c, self.value.values(batch, keep=True)[at], lists, total)
            dvalues = np.zeros(batch.n_tokens)
            dvalues[at] = d
            self.value.backward(dvalues)
            told.append(metrics)
        return merge_metrics(told) | {"grad_norm": self.value.step(lr, weight_decay=self.c.weight_decay)}

    def scores(self, chosen: Sequence[int]) -> list[np.ndarray]:
        out = []
        for part in self._parts(chosen):
            batch, lists = self._batch(part)
            out += _split(self.value.values(batch)[batch.cu_seqlens[1:] - 1], lists)
        return out

    def _parts(self, chosen: Sequence[int]) -> list[list[int]]:
        model = self.value.model
        return micro_batches(chosen, [r.tokens for r in self.lists], [len(r.answers) for r in self.lists], model.max_tokens, model.max_seqs)

    def _batch(self, part: Sequence[int]) -> tuple[Batch, list[Ranked]]:
        lists = [self.lists[i] for i in part]
        return packed(lists), lists

    def state(self) -> dict[str, np.ndarray]:
        return self.value.state()

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        self.value.load_state(arrays)

    def weights(self) -> dict[str, np.ndarray]:
        return {"row": self.value.head.row.copy(), "trained": self.value.model.trained().copy()}

    def put(self, weights: dict[str, np.ndarray]) -> None:
        self.value.head.row[:] = weights["row"]
        self.value.model.trained()[...] = weights["trained"]
        self.value.model.touch()

    def row(self) -> np.ndarray:
        return self.value.head.row.copy()


class FrozenScores:
    """Scores of a row alone: hidden states are computed once, and standardised over the training answers for even steps."""

    def __init__(self, c: RewardConfig, model: Model, lists: Sequence[Ranked], n_train: int):
        self.c, self.lists, self.head = c, lists, Head(model.config.d_model)
        found = []
        parts = micro_batches(range(len(lists)), [r.tokens for r in lists], [len(r.answers) for r in lists], model.max_tokens, model.max_seqs)
        with progress.bar(len(lists), "reading") as bar:
            for part in parts:
                batch = packed([lists[i] for i in part])
                found.append(model.hidden(batch)[batch.cu_seqlens[1:] - 1])
                bar.advance(len(part))
        hidden = np.concatenate(found)
        self.cu = np.cumsum([0, *(len(r.answers) for r in lists)])
        known = hidden[: self.cu[n_train]].astype(np.float64)
        self.mean, self.std = known.mean(0), np.maximum(known.std(0), 1e-3 * max(float(known.std()), 1e-6))
        self.features = (hidden - self.mean) / self.std

    def _of(self, chosen: Sequence[int]) -> np.ndarray:
        return self.features[np.concatenate([np.arange(self.cu[i], self.cu[i + 1]) for i in chosen])]

    def step(self, chosen: Sequence[int], lr: float, total: int) -> dict[str, float]:
        features = self._of(chosen)
        self.head.gradient[:] = 0
        d, metrics = _loss(self.c, self.head(features), [self.lists[i] for i in chosen], total)
        self.head.backward(d.astype(np.float64), features)
        norm = self.head.norm()
        if np.isfinite(norm):
            self.head.adamw(lr, max_norm=np.inf, weight_decay=self.c.weight_decay)
        return metrics | {"grad_norm": norm}

    def scores(self, chosen: Sequence[int]) -> list[np.ndarray]:
        return _split(self.head(self._of(chosen)), [self.lists[i] for i in chosen])

    def state(self) -> dict[str, np.ndarray]:
        return self.head.state()

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        self.head.load_state(arrays)

    def weights(self) -> dict[str, np.ndarray]:
        return {"row": self.head.row.copy()}

    def put(self, weights: dict[str, np.ndarray]) -> None:
        self.head.row[:] = weights["row"]

    def row(self) -> np.ndarray:
        """Of the hidden states themselves."""
        w = self.head.row[:-1] / self.std
        return np.append(w, self.head.row[-1] - w @ self.mean)


class RewardLearner:
    """What preference_loop moves, and its measurements. Lists 0 .. n_train - 1 are learned."""

    def __init__(self, scores: LearnedScores | FrozenScores, lists: Sequence[Ranked], n_train: int):
        self.inner, self.lists, self.n_train = scores, lists, n_train
        self.state, self.load_state, self.weights, self.put = scores.state, scores.load_state, scores.weights, scores.put

    def update(self, chosen: Sequence[int], lr: float) -> dict[str, float]:
        return self.inner.step(chosen, lr, len(chosen))

    def evaluate(self) -> dict[str, float]:
        return {k: v for k, v in self.measure().items() if isinstance(v, float)}

    def measure(self) -> dict[str, Any]:
        """On what is held out: loss, and accuracy and margin over pairs with their intervals, drawn anew by prompts."""
        held = range(self.n_train, len(self.lists))
        scored = self.inner.scores(held)
        lists = [self.lists[i] for i in held]
        _, told = _loss(self.inner.c, np.concatenate(scored), lists, len(lists), center=False)
        right, margins, keys = pair_results(lists, scored)
        return {
            "eval_loss": told["loss"], "eval_accuracy": float(right.mean()), "eval_accuracy_interval_95": interval(right.tolist(), keys),
            "eval_margin": float(margins.mean()), "eval_margin_interval_95": bootstrap(margins.tolist(), keys), "eval_pairs": float(len(right)),
            "eval_longer_is_better": float(longer_is_better(lists).mean()),
        }  # fmt: skip


def pair_results(lists: Sequence[Ranked], scores: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Over all pairs of unlike rank: 1 where the better answer scores higher (½ where both score the same), by how much, and the prompt it is of."""
    margins = np.array([float(x[i]) - float(x[j]) for r, x in zip(lists, scores, strict=True) for i, j in r.pairs()])
    return (margins > 0) + 0.5 * (margins == 0), margins, [r.key for r in lists for _ in r.pairs()]


def _loss(c: RewardConfig, scores: np.ndarray, lists: Sequence[Ranked], total: int, center: bool = True) -> tuple[np.ndarray, dict[str, float]]:
    cu = np.cumsum([0, *(len(r.answers) for r in lists)])
    return ranking_loss(scores, np.concatenate([r.ranks for r in lists]), cu, total, loss=c.loss, center=c.center_rewards_coefficient if center else 0.0,
                        margins=[r.margin for r in lists])  # fmt: skip


def _split(scores: np.ndarray, lists: Sequence[Ranked]) -> list[np.ndarray]:
    return np.split(scores, np.cumsum([len(r.answers) for r in lists])[:-1])


def run(c: RewardConfig) -> Path:
    """Train; returns the folder written. Raises UserError for input that cannot be used."""
    check_at_least(c, 1, "steps", "context", "batch", "micro_tokens", "save_every", "log_every", "threads", "eval_every")
    check_at_least(c, 0, "epochs", "lr", "warmup", "weight_decay", "lora_rank", "patience", "center_rewards_coefficient")
    if not 0 <= c.val_fraction < 1:
        raise UserError(f"val_fraction is {c.val_fraction}; it must be at least 0 and below 1")
    if c.val_fraction and c.val_data:
        raise UserError("give --val-data or --val-fraction, not both")
    if c.patience and not (c.val_data or c.val_fraction):
        raise UserError("--patience needs preferences that are held out", hint="add --val-fraction 0.1, or --val-data FILE")
    if c.freeze and c.lora_rank:
        raise UserError("--freeze learns the row alone; --lora-rank asks for an adapter too", hint="give one of them")
    check_weights(c.weights)
    if c.dry_run:
        _train(c, None)
        return c.out
    data, val = parse_data(c.data), parse_data(c.val_data) if c.val_data else []
    local = lambda found: [Path(d.path) for d in found if not d.remote] or None
    base, adapter = base_and_adapter(c.model, None)
    inputs: dict[str, Any] = {"model": base, "adapter": adapter, "data": local(data), "val_data": local(val)}
    remote_sources([*data, *val])
    with stage("reward", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if not artefact.done:
            _train(c, artefact)
    return artefact.out


def _train(c: RewardConfig, artefact: Artefact | None) -> None:
    tok = load_tokenizer(c.model)
    train, held, reports = read_preferences(c.data, tok, c.context, c.val_fraction, c.seed)
    if c.val_data:
        held, _, more = read_preferences(c.val_data, tok, c.context)
        reports += more
    for report in reports:
        print(report)
    if not train:
        raise UserError("all preferences are held out", hint="lower --val-fraction")
    if c.val_fraction and not held:
        raise UserError(f"of {len(train):,} lists none is held out at --val-fraction {c.val_fraction}", hint="raise it, or give --val-data")
    lists = [*train, *held]
    steps = c.steps if c.steps is not None else max(1, round(c.epochs * len(train) / c.batch))
    answers, pairs = sum(len(r.answers) for r in train), sum(len(r.pairs()) for r in train)
    print(f"{steps:,} steps of {c.batch} lists; an epoch is {len(train):,} lists: {answers:,} answers read for {pairs:,} pairs; {len(held):,} lists held out")
    model = _model(c, tok, max(c.micro_tokens, max(r.tokens for r in lists)), max(r.longest for r in reports))
    if artefact is None:
        return
    if artefact.resume is None and not c.freeze and not c.lora_rank and chat_tokens_untrained(c.model):
        initialise_chat_tokens(model, tok, c.seed)
    if c.lora_rank and artefact.resume is None:
        init_adapter(model, c.seed)
    write_json_atomic(artefact.work / "data.json", [r.told() for r in reports])
    scores = FrozenScores(c, model, lists, len(train)) if c.freeze else LearnedScores(c, ValueModel(model), lists)
    learner = RewardLearner(scores, lists, len(train))
    settings = Settings(steps, c.batch, _lr(c, model), c.warmup if c.warmup is not None else max(1, steps // 20), log_every=c.log_every, save_every=c.save_every,
                        eval_every=c.eval_every or max(1, steps // 10), patience=c.patience, seed=c.seed)  # fmt: skip
    preference_loop(artefact, learner, len(train), settings, "reward", learner.evaluate if held else None, "accuracy")
    known = np.concatenate(scores.scores(range(len(train)))).astype(np.float64)
    mean, std = float(known.mean()), float(known.std())
    shift, scale = mean if c.center != "none" else 0.0, std if c.center == "std" and std > 0 else 1.0
    row = scores.row()
    row[-1] -= shift
    told: dict[str, Any] = {"reward_mean": mean, "reward_std": std}
    if held:
        told |= learner.measure()
        for r, x in list(zip(held, scores.scores(range(len(train), len(lists)))))[:EXAMPLES]:
            artefact.append("samples.jsonl", json_line({**r.row, "rewards": [round((float(v) - shift) / scale, 4) for v in x]}))
        print(f"held-out pairs ordered right: {100 * told['eval_accuracy']:.1f} % ({100 * told['eval_accuracy_interval_95'][0]:.1f} to "
              f"{100 * told['eval_accuracy_interval_95'][1]:.1f}) of {told['eval_pairs']:,.0f}; by length alone {100 * told['eval_longer_is_better']:.1f} %")  # fmt: skip
    artefact.summary(lists=len(train), pairs=pairs, held_out=len(held), **told)
    save_reward_model(artefact.work, model, tok, row / scale, c.kind, c.model, center=c.center, mean=mean, std=std)
    print(f"wrote {c.out}; to practise for it: freedive rl {c.model} --data prompts.jsonl --reward {c.out}")


def _lr(c: RewardConfig, model: Model) -> float:
    if c.lr is not None:
        return c.lr
    if c.freeze:
        return 3e-3
    return min(1e-3, 0.1 / model.config.d_model) if model.lora else min(5e-4, 3e-4 * 128 / model.config.d_model)


def _model(c: RewardConfig, tok: Any, max_tokens: int, longest: int) -> Model:
    lora = new_adapter(c.model, c.lora_rank, c.lora_alpha, c.lora_targets)
    frozen = c.kind != "model"
    model = load_model(c.model, tok, max_tokens=max_tokens, max_seqs=MAX_SEQS, threads=c.threads, device=c.device, dtype=c.dtype, trainable=not c.freeze,
                       recompute=c.recompute, lora=lora, weights=c.weights if frozen else "float32")  # fmt: skip
    if longest > model.config.max_positions:
        raise UserError(f"an answer with its prompt has {longest} tokens; the model was made for {model.config.max_positions}", hint="lower --context: longer ones are left out")
    return model
