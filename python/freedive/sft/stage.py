"""`freedive sft`: a base model and conversations in, an assistant out (talk 2.3, 2.4).

The same loop as pretraining; what differs is the weight of each token: 1 for what the assistant says (its end-of-turn token included),
0 for everything else. Conversations lie end to end in the flat batch, each seeing only itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from freedive.data.texts import iter_rows, iter_texts
from freedive.inference import load_model, load_tokenizer, save_model_folder
from freedive.inference.folder import chat_tokens_untrained
from freedive.inference.samples import draw_samples
from freedive.model import Model
from freedive.runs import Artefact, UserError, check_at_least, option, stage, write_json_atomic
from freedive.tokenizer import Tokenizer, check_mask, encode_documents, render
from freedive.train import Documents, Mixture, Rows, SequenceLoader, Settings, supervised_loop
from freedive.train.loader import Example

from .rows import FORMS, conversations


@dataclass(frozen=True)
class SFTConfig:
    """Teach a base model to answer, from conversations."""

    model: Path = option(help="folder of the base model")
    data: Path = option(help='JSONL of conversations: {"messages": [{"role": "user", "content": "..."}, ...]}; other usual forms are known too')
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
    replay: Path | None = option(None, "text, or a folder of `freedive data`, to go on learning beside the conversations, against forgetting")
    replay_fraction: float = option(0.25, "part of the tokens that is replayed text, when --replay is given")
    save_every: int = option(200, "steps between checkpoints", hash=False)
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    samples: list[str] = option(["Hello!", "Who are you?"], "questions answered at the end")
    seed: int = option(0, "of the order and samples")
    device: str = option("cpu", "cpu")
    dtype: str = option("float32", "float32; bfloat16: operands of products rounded, twice as fast where the processor has it; auto")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "print the plan and stop")


def read_conversations(path: Path, tok: Tokenizer, context: int) -> tuple[list[Example], int]:
    """(rows, how many were longer than context + 1 tokens and left out). Raises UserError for a row that trains nothing."""
    rows: list[Example] = []
    too_long = 0
    for line, row in iter_rows(path):
        try:
            found = conversations(row)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}", hint=f"known forms: {FORMS}") from None
        for messages in found:
            ids, mask = render(tok, messages, row=line)
            if len(ids) > context + 1:
                too_long += 1
                continue
            try:
                check_mask(tok, ids, mask)
            except UserError as error:
                raise UserError(f"{path}, line {line}: {error}") from None
            rows.append(Rows.from_masked(ids, mask))
    if not rows:
        raise UserError(f"{path} gives no conversation to train on" + (f": all {too_long} are longer than {context} tokens" if too_long else ""),
                        hint="raise --context, or give other data")  # fmt: skip
    return rows, too_long


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
    check_at_least(c, 1, "steps", "context", "batch_tokens", "micro_tokens", "save_every", "log_every", "threads")
    check_at_least(c, 0, "epochs", "lr", "warmup", "weight_decay")
    if not 0 <= c.replay_fraction < 1:
        raise UserError(f"replay_fraction is {c.replay_fraction}; it must be at least 0 and below 1")
    if c.dry_run:
        _train(c, None)
        return c.out
    with stage("sft", c, out=c.out, inputs={"model": c.model, "data": c.data, "replay": c.replay}, force=c.force) as artefact:
        if not artefact.done:
            _train(c, artefact)
    return artefact.out


def _train(c: SFTConfig, artefact: Artefact | None) -> None:
    tok = load_tokenizer(c.model)
    rows, too_long = read_conversations(c.data, tok, c.context)
    tokens = sum(len(r[0]) for r in rows)
    source: Rows | Mixture = Rows(rows)
    if c.replay is not None:
        texts = list(iter_texts(c.replay))
        source = Mixture(rows, Documents(encode_documents(tok, texts), c.context, tok.bos_id, c.seed), c.replay_fraction, c.seed)
        tokens = source.n_tokens
    steps = c.steps if c.steps is not None else max(1, round(c.epochs * tokens / c.batch_tokens))
    trained = sum(int((r[2] > 0).sum()) for r in rows)
    print(f"{len(rows):,} conversations, {sum(len(r[0]) for r in rows):,} tokens, {trained:,} of them learned" + (f"; {source.replayed:,} more of replayed text" if isinstance(source, Mixture) else "") + (f"; {too_long:,} longer than {c.context} left out" if too_long else ""))
    micro, max_seqs = min(c.micro_tokens, c.batch_tokens), 512
    print(f"{steps:,} steps of {c.batch_tokens:,} tokens")
    model = load_model(c.model, tok, max_tokens=max(micro, c.context), max_seqs=max_seqs, threads=c.threads, device=c.device, dtype=c.dtype)
    longest = max(len(r[0]) for r in rows)
    if longest > model.config.max_positions:
        raise UserError(f"a conversation has {longest} tokens; the model was made for {model.config.max_positions}", hint="lower --context: longer ones are left out")
    if artefact is None:
        return
    lr = c.lr or min(2e-3, 1.5e-3 * 128 / model.config.d_model)
    if artefact.resume is None and chat_tokens_untrained(c.model):  # an open model has learned its chat tokens
        initialise_chat_tokens(model, tok, c.seed)
    loader = SequenceLoader(source, c.batch_tokens, max(micro, c.context), max_seqs, c.seed)
    settings = Settings(steps, lr, c.warmup if c.warmup is not None else max(1, min(100, steps // 50 + 5)), beta2=c.beta2, weight_decay=c.weight_decay,
                        log_every=c.log_every, save_every=c.save_every)  # fmt: skip
    supervised_loop(artefact, model, loader, settings, "sft")

    artefact.summary(conversations=len(rows), too_long=too_long, steps=steps)
    prompts = [render(tok, [{"role": "user", "content": q}], add_generation_prompt=True)[0] for q in c.samples]
    write_json_atomic(artefact.work / "samples.json", draw_samples(model, tok, prompts, 64, c.seed, temperature=0.0) if prompts else [])
    save_model_folder(model, tok, artefact.work, tok.im_end)
    print(f"wrote {c.out}; to talk to it: freedive chat --model {c.out}")
