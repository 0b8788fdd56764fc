"""`freedive dpo`: preferences straight into the assistant, without a reward model (Rafailov et al. 2023, arXiv:2305.18290; IPO, arXiv:2310.12036).

The reference is the model as it was before the first step, so its log-probs are computed once, by the model itself, and kept in the checkpoint:
no second copy of the weights, whatever learns. Names of settings and metrics are TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from freedive.eval.statistics import interval
from freedive.inference import load_model, load_tokenizer, save_model_folder
from freedive.inference.folder import base_and_adapter, chat_tokens_untrained, new_adapter
from freedive.model import Batch, Model, init_adapter, is_adapter
from freedive.model.model import RECOMPUTE_HELP
from freedive.model.packed import check_weights
from freedive.objectives import dpo_loss, merge_metrics, sequence_logps
from freedive.runs import Artefact, UserError, check_at_least, option, progress, stage, write_json_atomic
from freedive.runs.reporting import REPORT_HELP
from freedive.sft.data import parse_data, remote_sources

from .loop import Settings, micro_batches, preference_loop
from .preferences import Ranked, read_preferences

MAX_SEQS = 256
Pair = tuple[list[int], list[int], list[int], str]  # prompt, chosen and rejected ids, key of the prompt


@dataclass(frozen=True)
class DPOConfig:
    """Make the chosen answers likelier and the rejected ones less so, measured from where the model stands."""

    model: Path = option(help="the assistant to start from, which is the reference too: a folder, a .gguf file, an adapter's folder", positional=True)
    data: list[str] = option(help='preferences, as JSON Lines or parquet: {"prompt", "chosen", "rejected"}, {"prompt", "completions", "ranks"} (all pairs), or OASST trees')
    out: Path = option(Path("runs/dpo"), "folder to write")
    context: int = option(512, "answers that are longer than this, with their prompts, are left out, and counted (tokens)")
    beta: float = option(0.1, "how dear it is to leave the reference: higher stays nearer (for ipo 1/(2 beta) is the margin aimed at)")
    loss_type: Literal["sigmoid", "ipo"] = option("sigmoid", "sigmoid: DPO's, of summed log-probs; ipo: squared, of log-probs averaged over tokens")
    label_smoothing: float = option(0.0, "sigmoid: how probably a preference is the wrong way round (cDPO), below 0.5")
    rpo_alpha: float = option(0.0, "weight of the chosen answer's own loss beside: keeps its log-prob from falling")
    epochs: float = option(1.0, "passes over the pairs, when --steps is not given")
    steps: int | None = option(None, "optimizer steps")
    batch: int = option(16, "pairs of an optimizer step")
    lr: float | None = option(None, "peak learning rate (default: from the width)")
    warmup: int | None = option(None, "warm-up steps (default: 10 %)")
    weight_decay: float = option(0.0, "AdamW's weight decay, on matrices")
    max_grad_norm: float = option(1.0, "longest gradient")
    lora_rank: int = option(0, "train a LoRA adapter of this rank instead of the weights, for example 16")
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


def pairs_of(lists: Sequence[Ranked]) -> list[Pair]:
    """Every two answers of unlike rank."""
    return [(r.prompt, r.answers[i], r.answers[j], r.key) for r in lists for i, j in r.pairs()]


def lay_out(pairs: Sequence[Pair]) -> tuple[Batch, np.ndarray]:
    """(batch, mask float32 [N]): chosen, rejected, chosen, ...; targets are the answers' tokens alone."""
    sequences: list[tuple[Any, Any]] = []
    prefixes: list[tuple[int, int]] = []
    mask = []
    for prompt, chosen, rejected, _ in pairs:
        shared = len(prompt) - 1  # the prompt is there once, its last id before each answer
        for begin, answer in ((0, chosen), (shared, rejected)):
            ids = np.array([*prompt[begin:], *answer], np.int32)
            mine = np.arange(1, len(ids)) >= len(prompt) - begin
            prefixes.append((len(sequences) - 1, shared) if begin else (0, 0))
            sequences.append((ids[:-1], np.where(mine, ids[1:], -1)))
            mask.append(mine.astype(np.float32))
    return Batch.pack(sequences, prefixes), np.concatenate(mask)


class DPOLearner:
    """The policy, and the reference's log-probs of every pair. Pairs 0 .. n_train - 1 are learned."""

    def __init__(self, c: DPOConfig, model: Model, pairs: Sequence[Pair], n_train: int):
        self.c, self.model, self.pairs, self.n_train = c, model, pairs, n_train
        self.tokens = [len(p) - 1 + len(a) + len(b) for p, a, b, _ in pairs]
        self.reference = np.zeros((0, 2))  # float64 [pairs, 2]: log-probs of chosen and rejected, as the loss takes them

    def refer(self) -> None:
        """Takes the model as it is now for the reference."""
        with progress.bar(len(self.pairs), "reference") as bar:
            found = []
            for part in self._parts(range(len(self.pairs))):
                batch, mask = lay_out([self.pairs[i] for i in part])
                found.append(sequence_logps(self.model.score(batch).logprobs, mask, batch.cu_seqlens, self.c.loss_type == "ipo").reshape(-1, 2))
                bar.advance(len(part))
        self.reference = np.concatenate(found)

    def update(self, chosen: Sequence[int], lr: float) -> dict[str, float]:
        self.model.zero_grad()
        told = []
        for part in self._parts(chosen):
            batch, mask = lay_out([self.pairs[i] for i in part])
            out = self.model.forward(batch)
            d, metrics = self._loss(out.logprobs, mask, batch, part, len(chosen))
            self.model.backward(d)
            told.append(metrics)
        return merge_metrics(told) | {"grad_norm": self.model.adamw(lr, weight_decay=self.c.weight_decay, max_norm=self.c.max_grad_norm)}

    def _loss(self, logprobs: np.ndarray, mask: np.ndarray, batch: Batch, part: Sequence[int], total: int) -> tuple[np.ndarray, dict[str, float]]:
        c = self.c
        return dpo_loss(logprobs, mask, batch.cu_seqlens, self.reference[list(part)].reshape(-1), total, beta=c.beta, loss_type=c.loss_type,
                        label_smoothing=c.label_smoothing, rpo_alpha=c.rpo_alpha)  # fmt: skip

    def _parts(self, chosen: Sequence[int]) -> list[list[int]]:
        return micro_batches(chosen, self.tokens, [2] * len(self.pairs), self.model.max_tokens, self.model.max_seqs)

    def evaluate(self) -> dict[str, float]:
        return {k: v for k, v in self.measure().items() if isinstance(v, float)}

    def measure(self) -> dict[str, Any]:
        """On the pairs that are held out: TRL's eval_*, and an interval of the accuracy, drawn anew by prompts."""
        held = list(range(self.n_train, len(self.pairs)))
        told, right = [], []
        for part in self._parts(held):
            batch, mask = lay_out([self.pairs[i] for i in part])
            logprobs = self.model.score(batch).logprobs
            told.append(self._loss(logprobs, mask, batch, part, len(held))[1])
            ratio = sequence_logps(logprobs, mask, batch.cu_seqlens, self.c.loss_type == "ipo").reshape(-1, 2) - self.reference[part]
            right += [float(h > 0) + 0.5 * float(h == 0) for h in ratio[:, 0] - ratio[:, 1]]
        return {f"eval_{k}": v for k, v in merge_metrics(told).items()} | {"eval_rewards/accuracies_interval_95": interval(right, [self.pairs[i][3] for i in held])}

    def state(self) -> dict[str, np.ndarray]:
        return self.model.state() | {"reference": self.reference.copy()}

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        self.reference = arrays["reference"].copy()
        self.model.load_state({k: v for k, v in arrays.items() if k != "reference"})

    def weights(self) -> dict[str, np.ndarray]:
        return {"trained": self.model.trained().copy()}

    def put(self, weights: dict[str, np.ndarray]) -> None:
        self.model.trained()[...] = weights["trained"]
        self.model.touch()


def run(c: DPOConfig) -> Path:
    """Train; returns the folder written. Raises UserError for input that cannot be used."""
    check_at_least(c, 1, "steps", "context", "batch", "micro_tokens", "save_every", "log_every", "threads", "eval_every")
    check_at_least(c, 0, "epochs", "lr", "warmup", "weight_decay", "lora_rank", "patience", "rpo_alpha", "label_smoothing")
    if not 0 < c.beta < float("inf"):
        raise UserError(f"beta is {c.beta}; it must be above 0", hint="--beta 0.1")
    if c.label_smoothing >= 0.5 or (c.label_smoothing and c.loss_type != "sigmoid"):
        raise UserError(f"label_smoothing is {c.label_smoothing} with loss_type {c.loss_type}; it must be below 0.5, and goes with sigmoid")
    if c.max_grad_norm <= 0:
        raise UserError(f"max_grad_norm is {c.max_grad_norm}, it must be above 0")
    if not 0 <= c.val_fraction < 1:
        raise UserError(f"val_fraction is {c.val_fraction}; it must be at least 0 and below 1")
    if c.val_fraction and c.val_data:
        raise UserError("give --val-data or --val-fraction, not both")
    if c.patience and not (c.val_data or c.val_fraction):
        raise UserError("--patience needs preferences that are held out", hint="add --val-fraction 0.1, or --val-data FILE")
    check_weights(c.weights)
    if c.dry_run:
        _train(c, None)
        return c.out
    data, val = parse_data(c.data), parse_data(c.val_data) if c.val_data else []
    local = lambda found: [Path(d.path) for d in found if not d.remote] or None
    base, adapter = base_and_adapter(c.model, None)
    inputs: dict[str, Any] = {"model": base, "adapter": adapter, "data": local(data), "val_data": local(val)}
    remote_sources([*data, *val])
    with stage("dpo", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if not artefact.done:
            _train(c, artefact)
    return artefact.out


def _train(c: DPOConfig, artefact: Artefact | None) -> None:
    tok = load_tokenizer(c.model)
    if chat_tokens_untrained(c.model):
        raise UserError(f"{c.model} is a base model: it has never seen a conversation", hint="freedive sft first; DPO begins with an assistant")
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
    pairs, held_pairs = pairs_of(train), pairs_of(held)
    steps = c.steps if c.steps is not None else max(1, round(c.epochs * len(pairs) / c.batch))
    print(f"{steps:,} steps of {c.batch} pairs; an epoch is {len(pairs):,} pairs; {len(held_pairs):,} pairs held out")
    largest = max(len(p) + len(a) for p, *answers, _ in [*pairs, *held_pairs] for a in answers)
    lora = new_adapter(c.model, c.lora_rank, c.lora_alpha, c.lora_targets)
    model = load_model(c.model, tok, max_tokens=max(c.micro_tokens, 2 * largest), max_seqs=MAX_SEQS, threads=c.threads, device=c.device, dtype=c.dtype, lora=lora,
                       recompute=c.recompute, weights=c.weights if lora or is_adapter(c.model) else "float32")  # fmt: skip
    if largest > model.config.max_positions:
        raise UserError(f"an answer with its prompt has {largest} tokens; the model was made for {model.config.max_positions}", hint="lower --context: longer ones are left out")
    if artefact is None:
        return
    write_json_atomic(artefact.work / "data.json", [r.told() for r in reports])
    learner = DPOLearner(c, model, [*pairs, *held_pairs], len(pairs))
    if artefact.resume is None:
        if lora is not None:
            init_adapter(model, c.seed)
        learner.refer()
    lr = c.lr if c.lr is not None else min(2e-4, 0.02 / model.config.d_model) if model.lora else min(1e-4, 5e-5 * 128 / model.config.d_model)
    settings = Settings(steps, c.batch, lr, c.warmup if c.warmup is not None else max(1, steps // 10), log_every=c.log_every, save_every=c.save_every,
                        eval_every=c.eval_every or max(1, steps // 10), patience=c.patience, seed=c.seed)  # fmt: skip
    preference_loop(artefact, learner, len(pairs), settings, "dpo", learner.evaluate if held_pairs else None, "rewards/accuracies")
    if held_pairs:
        told = learner.measure()
        artefact.summary(**told)
        low, high = told["eval_rewards/accuracies_interval_95"]
        print(f"held-out pairs ordered right: {100 * told['eval_rewards/accuracies']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) of {len(held_pairs):,}")
    artefact.summary(pairs=len(pairs), held_out_pairs=len(held_pairs))
    save_model_folder(model, tok, artefact.work, tok.im_end, trained_from=c.model)
    print(f"wrote {c.out}; to talk to it: freedive chat --model {c.out}")
