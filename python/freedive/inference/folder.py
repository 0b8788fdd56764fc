"""A model folder: Hugging Face's config.json and model.safetensors, and our tokenizer/ beside them. What every stage after pretraining
reads, and every training stage writes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from freedive.model import Model, load_pretrained, save_pretrained
from freedive.runs import UserError
from freedive.tokenizer import Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises UserError when the folder is not there, unfinished, or has none."""
    if not folder.is_dir():
        hint = f"{folder}.partial is an unfinished run: run its command again" if Path(f"{folder}.partial").is_dir() else "train one: freedive dive"
        raise UserError(f"no such model folder: {folder}", hint=hint)
    if not (folder / "tokenizer").is_dir():
        raise UserError(f"{folder} holds no tokenizer/ folder", hint="give the folder that freedive pretrain, sft or rl wrote")
    return Tokenizer.load(folder / "tokenizer")


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
    save_pretrained(model, folder, special={"bos_token_id": tok.bos_id, "eos_token_id": eos_id})
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    tok.save(folder / "tokenizer")
