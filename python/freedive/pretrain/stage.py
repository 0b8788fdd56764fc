"""`freedive pretrain`: text or a data folder in, a base model out (talk 1.3). Reads like the talk: tokens, a random network, a loss
that goes down, and now and then a sample to see what it dreams.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.inference import load_model, load_tokenizer, save_model_folder
from freedive.inference.samples import draw_samples
from freedive.model import PRESETS, DecoderConfig, Model, check_checkpoint_fits, check_fits, check_training, from_depth, open_weights, plan, preset
from freedive.model.model import RECOMPUTE_HELP
from freedive.runs import Artefact, UserError, check_at_least, option, stage, write_json_atomic
from freedive.runs.reporting import REPORT_HELP
from freedive.train import SequenceLoader, Settings, supervised_loop
from freedive.train.evaluate import held_out_loss

from .corpus import load_corpus


@dataclass(frozen=True)
class PretrainConfig:
    """Train a base model on text."""

    data: Path | None = option(None, "folder made by `freedive data`, or token shards by `freedive data shards`")
    text: Path | None = option(None, "instead of --data: a text or JSONL file, or a folder of them")
    model: Path | None = option(None, "go on training this model, with its tokenizer, instead of a new one")
    tokenizer: str = option("bpe", "tokenizer folder, or: bpe (trained on the text), bytes, chars, gpt2, cl100k_base, o200k_base")
    vocab_size: int = option(2048, "of the tokenizer trained when --tokenizer bpe")
    out: Path = option(Path("runs/pretrain"), "folder to write")
    depth: int | None = option(None, "layers; width, heads and learning rate follow from it (default 4; with --preset: the preset's)")
    preset: str | None = option(None, f"instead of --depth: {', '.join(PRESETS)}")
    d_model: int | None = option(None, "override the width")
    n_head: int | None = option(None, "override the number of heads")
    n_kv_head: int | None = option(None, "override the number of key-value heads")
    head_dim: int | None = option(None, "override the width of a head")
    d_ff: int | None = option(None, "override the width of the MLP")
    tie_embeddings: bool | None = option(None, "share the embedding with the output head (default: the preset's)")
    bigram_rows: int | None = option(None, "add a table of so many rows for pairs of tokens to the embedding: needs fewer steps on text that is seen once, learns repeated text by heart; no other program runs the model")
    context: int = option(256, "tokens of a training sequence")
    max_positions: int | None = option(None, "longest sequence the model can be used with (default: 4 x context)")
    steps: int | None = option(None, "optimizer steps (default: --epochs)")
    epochs: float = option(1.0, "passes over the text, when --steps is not given; after many, muon overfits where adamw does not yet")
    max_steps: int | None = option(None, "at most this many steps, however long --epochs is")
    batch_tokens: int = option(4096, "tokens of an optimizer step")
    micro_tokens: int = option(4096, "tokens of one forward pass; less needs less memory and changes nothing but rounding")
    lr: float | None = option(None, "peak learning rate (default: from the width; with --model a tenth of that)")
    optimizer: str | None = option(None, "muon: Muon on the layers' matrices, AdamW on embeddings, head and vectors; or adamw for all (default: muon, with --model adamw)")
    muon_lr: float | None = option(None, "peak learning rate of Muon's matrices (default: 0.4 of --lr; steps are as long as AdamW's)")
    embedding_lr: float | None = option(None, "with muon: peak learning rate of the embeddings (default: twice --lr)")
    head_lr: float | None = option(None, "with muon: peak learning rate of a head of its own (default: --lr)")
    zero_outputs: bool = option(False, "begin with blocks that add nothing and a head that gives all tokens alike")
    warmup: int | None = option(None, "warm-up steps (default: 2 %)")
    beta2: float = option(0.95, "AdamW's beta2")
    weight_decay: float = option(0.1, "AdamW's weight decay, on matrices")
    document_edges: bool = option(True, "mark where documents begin and end with <|endoftext|>; off for one plain stream")
    val_fraction: float = option(0.1, "held-out part, when --text is given")
    eval_every: int = option(0, "steps between evaluations on held-out text (0: at the end)")
    save_every: int = option(200, "steps between checkpoints", hash=False)
    report_to: str = option("", REPORT_HELP, hash=False)
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    samples: int = option(4, "samples drawn at the end, from an empty document")
    prompts: list[str] = option([], "texts for the model to continue at the end")
    seed: int = option(0, "of weights, order and samples")
    device: str = option("cpu", "cpu, or cuda where the build and the machine have it")
    recompute: str = option("none", RECOMPUTE_HELP, hash=False)
    dtype: str = option("float32", "float32; bfloat16: operands of products rounded, twice as fast where the processor has it; auto")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "print the plan and stop")


def _optimizer(c: PretrainConfig) -> str:
    """A model that has learned is gone on with as gently as it was made elsewhere."""
    return c.optimizer or ("adamw" if c.model else "muon")


def model_config(c: PretrainConfig, vocab_size: int) -> DecoderConfig:
    """The architecture: a preset or the depth dial, then what was overridden."""
    longest = c.max_positions or 4 * c.context
    base = preset(c.preset, vocab_size=vocab_size) if c.preset else from_depth(4 if c.depth is None else c.depth, vocab_size)
    changes = {k: getattr(c, k) for k in ("d_model", "n_head", "n_kv_head", "head_dim", "d_ff", "tie_embeddings", "bigram_rows") if getattr(c, k) is not None}
    if c.preset is None or c.max_positions:
        changes["max_positions"] = longest
    if c.preset and c.depth is not None:
        changes["n_layer"] = c.depth
    return base.replace(**changes)


def peak_lr(config: DecoderConfig, optimizer: str = "adamw") -> float:
    """adamw: 3e-3 at width 128, falling as 1/width (the muP rule for matrices), at most 4e-3. muon: 1e-2 up to width 256, then falling likewise; 0.4 of it is for
    Muon's matrices and twice for embeddings, what did best at 4 layers of 128 to 256 (dev/LOG.md); wider ones were not tried."""
    return min(1e-2, 1e-2 * 256 / config.d_model) if optimizer == "muon" else min(4e-3, 3e-3 * 128 / config.d_model)


def run(c: PretrainConfig) -> Path:
    """Train; returns the folder written. Raises UserError for input that cannot be used."""
    if (c.data is None) == (c.text is None):
        raise UserError("give either --data or --text", hint="freedive pretrain --text book.txt --out my-model")
    check_at_least(c, 1, "steps", "max_steps", "batch_tokens", "micro_tokens", "save_every", "log_every", "vocab_size", "threads", "max_positions", "depth")
    check_at_least(c, 0, "epochs", "lr", "muon_lr", "embedding_lr", "head_lr", "warmup", "weight_decay", "eval_every", "samples")
    if c.optimizer not in (None, "adamw", "muon"):
        raise UserError(f"optimizer is {c.optimizer!r}", hint="adamw or muon")
    if _optimizer(c) != "muon" and (given := [n for n in ("muon_lr", "embedding_lr", "head_lr") if getattr(c, n) is not None]):
        raise UserError(f"--{given[0].replace('_', '-')} is a rate of --optimizer muon", hint="adamw has one rate, --lr")
    if not 0 <= c.val_fraction < 1:
        raise UserError(f"val_fraction is {c.val_fraction}; it must be at least 0 and below 1")
    source = c.data or c.text
    assert source is not None
    if c.model is not None:
        chosen = [n for n in ("depth", "preset", "d_model", "n_head", "n_kv_head", "head_dim", "d_ff", "tie_embeddings", "bigram_rows", "max_positions") if getattr(c, n) is not None]
        if c.tokenizer != "bpe" or chosen:
            name = (chosen or ["tokenizer"])[0].replace("_", "-")
            raise UserError(f"--{name} is the model's own when --model is given", hint=f"leave --{name} out")
    check_at_least(c, 2, "context")
    for name in ("batch_tokens", "micro_tokens"):
        if getattr(c, name) < c.context:
            raise UserError(f"{name} is {getattr(c, name)}, less than one context of {c.context}", hint=f"lower --context, or raise --{name.replace('_', '-')}")
    check_training(c.device, c.dtype, c.recompute)
    inputs: dict[str, Path | None] = {"data": c.data, "text": c.text, "model": c.model}
    if Path(c.tokenizer).is_dir():
        inputs["tokenizer"] = Path(c.tokenizer)
    if c.dry_run:
        _start(c, source, None)
        return c.out
    with stage("pretrain", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if not artefact.done:
            _start(c, source, artefact)
    return artefact.out


def _start(c: PretrainConfig, source: Path, artefact: Artefact | None) -> None:
    """The whole stage; without an artefact (a dry run) it ends when the plan is printed and known to fit."""
    corpus, tok = load_corpus(source, load_tokenizer(c.model) if c.model else c.tokenizer, c.vocab_size, c.val_fraction, c.context)
    config = open_weights(c.model).config if c.model else model_config(c, tok.vocab_size)
    bos = tok.bos_id if c.document_edges else None
    documents = corpus.documents(c.context, bos, c.seed)
    if documents.n_targets < c.batch_tokens:
        raise UserError(f"{source} gives {documents.n_targets:,} training tokens, less than one batch of {c.batch_tokens:,}",
                        hint=f"give more text, or lower --batch-tokens (at least --context = {c.context})")  # fmt: skip
    if c.context > config.max_positions:
        raise UserError(f"context is {c.context}, the model has {config.max_positions} positions", hint="lower --context or raise --max-positions")
    steps = c.steps if c.steps is not None else max(1, round(c.epochs * documents.n_targets / c.batch_tokens))
    steps = min(steps, c.max_steps or steps)
    micro, max_seqs = min(c.micro_tokens, c.batch_tokens), 512
    lr = c.lr or peak_lr(config, _optimizer(c)) * (0.1 if c.model else 1)
    warmup = c.warmup if c.warmup is not None else max(1, min(200, steps // 50 + 5))
    print(f"{documents.n_targets:,} training tokens, vocabulary {tok.vocab_size:,}; model: {config.n_params():,} parameters "
          f"({config.n_layer} layers of {config.d_model}, {config.n_head} heads, {config.n_kv_head} for keys and values)")  # fmt: skip
    print(f"{steps:,} steps of {c.batch_tokens:,} tokens, context {c.context}, learning rate {lr:.2g}; memory: {plan(config, micro, max_seqs, threads=c.threads, recompute=c.recompute, device=c.device, dtype=c.dtype)}")
    if artefact is None:
        check_checkpoint_fits(check_fits(config, micro, max_seqs, threads=c.threads, recompute=c.recompute, device=c.device, dtype=c.dtype))
        return

    how: dict[str, Any] = dict(max_tokens=micro, max_seqs=max_seqs, threads=c.threads, device=c.device, dtype=c.dtype, recompute=c.recompute)
    if c.model is not None:
        model = load_model(c.model, tok, **how)
    else:
        model = Model(config, **how)
        if artefact.resume is None:
            model.init(c.seed, c.zero_outputs)
        if not np.all(tok.vocab_mask):
            model.set_vocab_mask(tok.vocab_mask)
    loader = SequenceLoader(documents, c.batch_tokens, micro, max_seqs, c.seed)
    muon_lr = 0.4 * lr if c.muon_lr is None else c.muon_lr
    embedding_lr = 2 * lr if c.embedding_lr is None else c.embedding_lr
    settings = Settings(steps, lr, warmup, beta2=c.beta2, weight_decay=c.weight_decay, optimizer=_optimizer(c), muon_lr=muon_lr, embedding_lr=embedding_lr, head_lr=c.head_lr,
                        log_every=c.log_every, eval_every=c.eval_every, save_every=c.save_every)  # fmt: skip
    evaluate = (lambda step: held_out_loss(model, corpus.val, c.context, bos, corpus.val_bytes)) if corpus.val else None
    supervised_loop(artefact, model, loader, settings, "pretrain", evaluate)

    artefact.summary(parameters=config.n_params(), optimizer=settings.optimizer, steps=steps, train_tokens=documents.n_targets)
    prompts = [[tok.bos_id]] * c.samples + [tok.document_ids(p) for p in c.prompts]
    write_json_atomic(artefact.work / "samples.json", draw_samples(model, tok, prompts, min(96, config.max_positions // 2), c.seed))
    save_model_folder(model, tok, artefact.work, tok.bos_id)
    print(f"wrote {c.out}; to see it continue a text: freedive chat --model {c.out}")
