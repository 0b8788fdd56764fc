"""A model on disk: what our stages write (config.json, model.safetensors and tokenizer/), and open models as they are published: a Hugging
Face folder, a GGUF file, a llama2.c checkpoint with its tokenizer beside it. Every verb that takes a model reads all of them through here.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from freedive.model import Model, load_pretrained, save_pretrained
from freedive.model.weights import find_weights, open_weights
from freedive.runs import UserError, read_json
from freedive.tokenizer import Tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model. Raises UserError when the model is not there, unfinished, or has none."""
    if not path.exists():
        hint = f"{path}.partial is an unfinished run: run its command again" if Path(f"{path}.partial").is_dir() else "train one: freedive dive"
        raise UserError(f"no such model folder: {path}", hint=hint)
    path = find_weights(path)
    named = path.suffix.lower() in (".gguf", ".bin") if path.is_file() else (path / "config.json").is_file()
    if not named or (path.suffix == ".bin" and not list(path.parent.glob("tok*.bin"))):
        open_weights(path)  # says what is no model at all, rather than that it has no tokenizer
    if path.is_file():
        return Tokenizer.load(_beside(path) if path.suffix == ".bin" else path)
    if not (path / "tokenizer").is_dir() and not (path / "tokenizer.json").is_file():
        raise UserError(f"{path} holds no tokenizer/ folder and no tokenizer.json", hint="give the folder that freedive pretrain, sft or rl wrote, or a whole Hugging Face folder")
    return Tokenizer.load(path)


def _beside(path: Path) -> Path:
    """llama2.c keeps the tokenizer in a file of its own: the one tok*.bin beside the checkpoint."""
    found = sorted(p for p in path.parent.glob("tok*.bin") if p != path)
    if len(found) != 1:
        what = "no tok*.bin lies" if not found else f"{len(found)} files tok*.bin lie"
        raise UserError(f"{what} beside {path}", hint="put the model's tokenizer.bin there, and no other")
    return found[0]


def stage_of(path: Path) -> str:
    """Name of our stage that wrote a model folder; "" for any other model."""
    return str(read_json(path / "run.json").get("stage", "")) if (path / "run.json").is_file() else ""


def chat_tokens_untrained(path: Path) -> bool:
    """Whether a model is a base model of ours, trained from nothing on documents: it has never seen the tokens of a conversation."""
    return stage_of(path) == "pretrain" and not (read_json(path / "run.json").get("config") or {}).get("model")


def load_model(folder: Path, tok: Tokenizer, **model_arguments: Any) -> Model:
    """The model of a folder, with the ids that `tok` does not use masked; arguments as for Model. Raises UserError as load_pretrained does."""
    model = load_pretrained(folder, **model_arguments)
    if model.config.vocab_size < tok.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tok.vocab_size} ids, the model only {model.config.vocab_size}")
    mask = np.zeros(model.config.vocab_size, np.uint8)
    mask[: tok.vocab_size] = tok.vocab_mask
    if not mask.all():
        model.set_vocab_mask(mask)
    return model


def save_model_folder(model: Model, tok: Tokenizer, folder: Path, eos_id: int) -> None:
    """Weights, configuration and tokenizer into `folder`; eos_id is what ends a text of this model (transformers stops there too)."""
    bos = {"bos_token_id": tok.bos_id} if tok.bos in tok.special_tokens else {}
    save_pretrained(model, folder, special={**bos, "eos_token_id": eos_id})
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    tok.save(folder / "tokenizer")
