"""`freedive sft`: a base model and conversations in, an assistant out (talk 2.3, 2.4).

The same loop as pretraining; what differs is the weight of each token: 1 for what the assistant says (its end-of-turn token included),
0 for everything else. Conversations lie end to end in the flat batch, each seeing only itself. With --lora-rank the model stays as it is, in the
types of its file, and a small adapter beside it learns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from freedive.data.sources import Source
from freedive.data.texts import iter_texts
from freedive.inference import load_model, load_tokenizer, save_model_folder
from freedive.inference.folder import base_and_adapter, chat_tokens_untrained, new_adapter
from freedive.inference.samples import draw_samples
from freedive.model import Model, init_adapter, is_adapter
from freedive.model.model import RECOMPUTE_HELP
from freedive.model.packed import check_weights
from freedive.runs import Artefact, UserError, check_at_least, json_line, option, stage, write_json_atomic
from freedive.runs.reporting import REPORT_HELP
from freedive.tokenizer import Tokenizer, encode_documents, render
from freedive.train import Blend, Documents, Mixture, PackedLoader, Rows, Settings, supervised_loop
from freedive.train.evaluate import rows_loss
from freedive.train.loader import Example

from .data import DataSource, Read, checked, parse_data, read_data, remote_sources

MAX_SEQS = 512


@dataclass(frozen=True)
class SFTConfig:
    """Teach a base model to answer, from conversations."""

    model: Path = option(help="the base model: a folder, a .gguf file; or an adapter's folder, to train it on")
    data: list[str] = option(help='files, folders or addresses (hf://...) of conversations, {"messages": [{"role": "user", "content": "..."}, ...]} or another usual form, '
                             "as JSON Lines or parquet; each may have a weight: a.jsonl:0.7 b.jsonl:0.3 are these parts of the tokens")  # fmt: skip
    out: Path = option(Path("runs/sft"), "folder to write")
    context: int = option(256, "conversations longer than this are left out, and counted")
    epochs: float = option(2.0, "passes over the conversations, when --steps is not given")
    steps: int | None = option(None, "optimizer steps")
    batch_tokens: int = option(4096, "tokens of an optimizer step")
    micro_tokens: int = option(4096, "tokens of one forward pass")
    lr: float | None = option(None, "peak learning rate (default: from the width)")
    warmup: int | None = option(None, "warm-up steps (default: 2 %)")
    beta2: float = option(0.95, "AdamW's beta2")
    weight_decay: float = option(0.0, "AdamW's weight decay, on matrices")
    lora_rank: int = option(0, "train a LoRA adapter of this rank instead of the weights, for example 16 (0: all weights)")
    lora_alpha: float | None = option(None, "what the adapter is multiplied with, divided by the rank (default: twice the rank)")
    lora_targets: str = option("all", "matrices with an adapter: all, attention, mlp, or names: q_proj,v_proj")
    weights: str = option("auto", "how the frozen weights of --lora-rank are held: auto (as the file has them), float32, bfloat16, float16, int8, int4")
    val_data: list[str] = option([], "conversations whose loss is measured and never learned")
    val_fraction: float = option(0.0, "part of the conversations to hold out for that instead, chosen by a hash of the first question")
    eval_every: int | None = option(None, "steps between sample conversations, in conversations.jsonl, and measurements of that loss (default: ten in a run)")
    patience: int = option(0, "stop when the held-out loss has not fallen for so many measurements (0: never); the best weights are kept in any case")
    replay: Path | None = option(None, "text, or a folder of `freedive data`, to go on learning beside the conversations, against forgetting")
    replay_fraction: float = option(0.25, "part of the tokens that is replayed text, when --replay is given")
    save_every: int = option(200, "steps between checkpoints", hash=False)
    report_to: str = option("", REPORT_HELP, hash=False)
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    samples: list[str] = option(["Hello!", "Who are you?"], "questions answered at every measurement and at the end")
    seed: int = option(0, "of the order and samples")
    device: str = option("cpu", "cpu, or cuda where the build and the machine have it")
    recompute: str = option("none", RECOMPUTE_HELP, hash=False)
    dtype: str = option("float32", "float32; bfloat16: operands of products rounded, twice as fast where the processor has it; auto")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "read and check the data, print what is in it and the plan, and stop")


@dataclass(frozen=True)
class _Identity(SFTConfig):
    """What identifies a run besides: weights of the data, and addresses by size and version."""

    parts: list[float | None] = field(default_factory=list)
    remote: tuple[Source, ...] = ()


def read_conversations(path: Path, tok: Tokenizer, context: int) -> tuple[list[Example], int]:
    """(rows, how many were longer than context + 1 tokens and left out). Raises UserError for a row that trains nothing."""
    (read,) = checked([read_data(DataSource(str(path)), tok, context)], context)
    return read.train, read.report.too_long


def initialise_chat_tokens(model: Model, tok: Tokenizer, seed: int) -> None:
    """Tokens the base model never saw start at the mean embedding plus 1 % of noise: untrained rows confuse the softmax otherwise."""
    import numpy as np

    rng = np.random.Generator(np.random.Philox(key=[seed, 21]))
    for name in ("embed_tokens.weight", "lm_head.weight"):
        rows = model.parameters.get(name)
        if rows is None:
            continue
        mean, spread = rows.mean(axis=0), rows.std()
        for i in tok.special_tokens.values():
            if i != tok.bos_id:
                rows[i] = mean + 0.01 * spread * rng.standard_normal(rows.shape[1], dtype=np.float32)
    model.touch()


def run(c: SFTConfig) -> Path:
    """Fine-tune; returns the folder written. Raises UserError for input that cannot be used."""
    check_at_least(c, 1, "steps", "context", "batch_tokens", "micro_tokens", "save_every", "log_every", "threads", "eval_every")
    check_at_least(c, 0, "epochs", "lr", "warmup", "weight_decay", "lora_rank", "patience")
    if not 0 <= c.replay_fraction < 1:
        raise UserError(f"replay_fraction is {c.replay_fraction}; it must be at least 0 and below 1")
    if not 0 <= c.val_fraction < 1:
        raise UserError(f"val_fraction is {c.val_fraction}; it must be at least 0 and below 1")
    if c.val_fraction and c.val_data:
        raise UserError("give --val-data or --val-fraction, not both")
    if c.patience and not (c.val_data or c.val_fraction):
        raise UserError("--patience needs a held-out loss", hint="add --val-fraction 0.05, or --val-data FILE")
    check_weights(c.weights)
    if c.dry_run:
        _train(c, None)
        return c.out
    data, val = parse_data(c.data), parse_data(c.val_data) if c.val_data else []
    local = lambda found: [Path(d.path) for d in found if not d.remote] or None
    base, adapter = base_and_adapter(c.model, None)
    inputs = {"model": base, "adapter": adapter, "data": local(data), "val_data": local(val), "replay": c.replay}
    identity = _Identity(**{**c.__dict__, "data": [d.path for d in data], "val_data": [d.path for d in val]}, parts=[d.weight for d in data], remote=remote_sources([*data, *val]))
    with stage("sft", identity, out=c.out, inputs=inputs, force=c.force) as artefact:
        if not artefact.done:
            _train(c, artefact)
    return artefact.out


def _train(c: SFTConfig, artefact: Artefact | None) -> None:
    tok = load_tokenizer(c.model)
    lora, going_on = new_adapter(c.model, c.lora_rank, c.lora_alpha, c.lora_targets), is_adapter(c.model)
    reads = checked([read_data(d, tok, c.context, c.val_fraction, c.seed) for d in parse_data(c.data)], c.context)
    vals = checked([read_data(d, tok, c.context) for d in parse_data(c.val_data)], c.context) if c.val_data else []
    held = [row for read in reads for row in read.held_out] + [row for read in vals for row in read.train]
    for read in [*reads, *vals]:
        print(read.report)
    if c.val_fraction and not held:
        raise UserError(f"of {sum(r.report.kept for r in reads)} conversations none is held out at --val-fraction {c.val_fraction}", hint="raise it, or give --val-data")
    source, replayed = _source(c, tok, reads)
    longest = max(len(r[0]) for read in [*reads, *vals] for r in [*read.train, *read.held_out])
    micro = max(min(c.micro_tokens, c.batch_tokens), longest, c.context if replayed else 1)
    loader = PackedLoader(source, c.batch_tokens, micro, MAX_SEQS, c.seed)
    steps = c.steps if c.steps is not None else max(1, round(c.epochs * loader.steps_per_epoch))
    print(f"{steps:,} steps of {loader.per_step * micro:,} tokens, {100 * loader.fill:.1f} % full" + (f"; {replayed:,} tokens of replayed text an epoch" if replayed else "")
          + (f"; {len(held):,} conversations held out" if held else ""))  # fmt: skip
    model = load_model(c.model, tok, max_tokens=max(micro, c.context), max_seqs=MAX_SEQS, threads=c.threads, device=c.device, dtype=c.dtype, recompute=c.recompute,
                       lora=lora, weights=c.weights if lora or going_on else "float32")  # fmt: skip
    if longest > model.config.max_positions:
        raise UserError(f"a conversation has {longest} tokens; the model was made for {model.config.max_positions}", hint="lower --context: longer ones are left out")
    if model.lora is not None:
        print(f"adapter of rank {model.lora.rank} beside {', '.join(model.lora.targets)}: {sum(a.size for a in model.adapter.values()):,} numbers learn; "
              f"the frozen weights are {', '.join(model.packed) or 'float32'}")  # fmt: skip
    if artefact is None:
        return
    write_json_atomic(artefact.work / "data.json", [read.report.told() for read in [*reads, *vals]])
    if artefact.resume is None and chat_tokens_untrained(c.model):  # an open model has learned its chat tokens
        initialise_chat_tokens(model, tok, c.seed)
    if lora is not None and artefact.resume is None:
        init_adapter(model, c.seed)
    lr = c.lr or (min(2e-3, 0.6 / model.config.d_model) if model.lora else min(2e-3, 1.5e-3 * 128 / model.config.d_model))
    every = c.eval_every or max(1, steps // 10)
    settings = Settings(steps, lr, c.warmup if c.warmup is not None else max(1, min(100, steps // 50 + 5)), beta2=c.beta2, weight_decay=c.weight_decay,
                        log_every=c.log_every, save_every=c.save_every, eval_every=every, keep_best=bool(held), patience=c.patience)  # fmt: skip
    prompts = [render(tok, [{"role": "user", "content": q}], add_generation_prompt=True)[0] for q in c.samples]

    def sample() -> list[dict[str, str]]:
        return draw_samples(model, tok, prompts, 64, c.seed, temperature=0.0) if prompts else []

    def evaluate(step: int) -> dict[str, float]:
        measured = {"val_loss": rows_loss(model, held)} if held else {}
        for said in sample():  # the log of a run shows how the assistant comes about
            artefact.append("conversations.jsonl", json_line({"step": step, **measured, **said}))
        return measured

    supervised_loop(artefact, model, loader, settings, "sft", evaluate if held or prompts else None)
    artefact.summary(conversations=sum(r.report.kept - r.report.held_out for r in reads), too_long=sum(r.report.too_long for r in reads), steps=steps, packing=loader.fill)
    write_json_atomic(artefact.work / "samples.json", sample())
    save_model_folder(model, tok, artefact.work, tok.im_end, trained_from=c.model)
    print(f"wrote {c.out}; to talk to it: freedive chat --model {c.out}")


def _source(c: SFTConfig, tok: Tokenizer, reads: list[Read]) -> tuple[Rows | Blend | Mixture, int]:
    """What is trained on, and how many tokens of an epoch are replayed text."""
    weights = [read.report.weight for read in reads]
    parts = [read.train for read in reads]
    rows: Rows | Blend = Rows([row for part in parts for row in part])
    if given := [w for w in weights if w is not None]:
        rows = Blend(parts, given, c.seed)
    if c.replay is None:
        return rows, 0
    mixture = Mixture(rows, Documents(encode_documents(tok, list(iter_texts(c.replay))), c.context, tok.bos_id, c.seed), c.replay_fraction, c.seed)
    return mixture, mixture.replayed
