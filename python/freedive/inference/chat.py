"""`freedive chat`: talk to a model in the terminal. A base model, which knows no turns, continues what is typed instead."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from freedive.runs import UserError, check_at_least, option
from freedive.tokenizer import render

from .load import LM, load

DIVE = Path("freedive-dive")
HELP = "/clear forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer"


@dataclass(frozen=True)
class ChatConfig:
    """Talk to a model."""

    model: Path | None = option(None, "folder of the model (default: the newest of freedive-dive/rl, sft, pretrain)")
    prompt: str | None = option(None, "ask this, print the answer, and leave")
    system: str | None = option(None, "a system message")
    base: bool = option(False, "continue texts instead of answering, as a base model does")
    temperature: float | None = option(None, "0 takes the likeliest token; 1 samples as trained (default: 0, and 0.8 for a base model)")
    top_k: int = option(0, "sample among the k likeliest (0: off)")
    top_p: float = option(1.0, "sample among the likeliest that make up p (1: off)")
    max_new_tokens: int = option(200, "longest answer, in tokens")
    seed: int = option(0, "of sampling")
    dtype: str = option("float32", "float32; bfloat16: operands of products rounded, twice as fast where the processor has it; auto")
    threads: int | None = option(None, "CPU threads (default: all)")


def find_model(folder: Path | None) -> Path:
    """The folder named, or the model trained last in the dive that is named or lies here. Raises UserError if there is none."""
    if folder is not None and (folder / "config.json").is_file():
        return folder
    for name in ("rl", "sft", "pretrain"):
        if ((folder or DIVE) / name / "model.safetensors").is_file():
            return (folder or DIVE) / name
    if folder is not None:
        return folder  # load says what is wrong with it
    raise UserError("no model was named, and there is none in ./freedive-dive", hint="run freedive dive first, or give --model FOLDER")


def run(c: ChatConfig) -> int:
    """The chat; returns the exit code."""
    check_at_least(c, 1, "max_new_tokens", "threads")
    check_at_least(c, 0, "temperature", "seed")
    folder = find_model(c.model)
    lm = load(folder, threads=c.threads, dtype=c.dtype)
    base = c.base or "pretrain" in _stage(folder)
    if c.prompt is not None:
        _answer(c, lm, base, [{"role": "user", "content": c.prompt}], c.seed)
        return 0
    print(f"{folder}: {lm.model.config.n_params():,} parameters. {HELP}.")
    if base:
        print("This is a base model: it continues what you type, like a document of its training data.")
    history: list[dict[str, str]] = []
    turn = 0
    while True:
        try:
            text = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if text in ("/quit", "/exit"):
            return 0
        if text == "/clear":
            history = []
        elif text.startswith("/"):
            print(HELP)
        elif text:
            history = [] if base else history
            history.append({"role": "user", "content": text})
            try:
                reply = _answer(c, lm, base, history, c.seed + turn)
            except UserError as error:  # a message too long, or characters the tokenizer does not know: the chat goes on
                print(error)
                reply = ""
            if reply:
                history.append({"role": "assistant", "content": reply})
            else:  # a turn without content can't be rendered: as if it had not been asked
                history.pop()
            turn += 1


def _stage(folder: Path) -> str:
    from freedive.runs import read_json

    return str(read_json(folder / "run.json").get("stage", "")) if (folder / "run.json").is_file() else ""


def _answer(c: ChatConfig, lm: LM, base: bool, history: list[dict[str, str]], seed: int) -> str:
    """Print the answer as it comes; returns it. Ctrl-C ends it early."""
    tok, room = lm.tokenizer, lm.model.config.max_positions
    system = [{"role": "system", "content": c.system}] if c.system else []
    turns = history
    ids = [tok.bos_id, *tok.encode(history[-1]["content"])] if base else render(tok, [*system, *turns], add_generation_prompt=True)[0]
    while len(ids) + 16 > room and len(turns) > 1:
        turns = turns[2:]  # the oldest exchange
        ids = render(tok, [*system, *turns], add_generation_prompt=True)[0]
        if len(ids) + 16 <= room:
            print("(the conversation is longer than the model's context: its beginning is forgotten)", file=sys.stderr)
    temperature = c.temperature if c.temperature is not None else 0.8 if base else 0.0
    parts: list[str] = []
    stops = (tok.bos_id, tok.im_end)
    try:
        for piece in lm.engine.stream(ids, c.max_new_tokens, temperature, c.top_k, c.top_p, stop_ids=stops, seed=seed):
            parts.append(piece)
            print(printable(piece), end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    print()
    return "".join(parts)


def printable(text: str) -> str:
    """Without control characters: a model's words must not move the cursor or recolour the terminal."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable() or ord(c) > 159)
