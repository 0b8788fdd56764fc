"""A model on disk: what our stages write (config.json, model.safetensors and tokenizer/), and open models as they are published: a Hugging
Face folder, a GGUF file, a llama2.c checkpoint with its tokenizer beside it. Every verb that takes a model reads all of them through here.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from freedive.model import LoRA, Model, is_adapter, parse_targets, read_adapter, save_adapter, save_pretrained
from freedive.model.lora import base_of, check_lora, check_saveable
from freedive.model.weights import find_weights, open_weights
from freedive.runs import UserError, read_json
from freedive.tokenizer import Tokenizer


def load_tokenizer(path: Path, adapter: Path | None = None) -> Tokenizer:
    """The tokenizer of a model, or of its adapter if that has one. Raises UserError when the model is not there, unfinished, or has none."""
    if adapter is not None and (adapter / "tokenizer").is_dir():
        return Tokenizer.load(adapter)
    if not path.exists():
        hint = f"{path}.partial is an unfinished run: run its command again" if Path(f"{path}.partial").is_dir() else "train one: freedive dive"
        raise UserError(f"no such model folder: {path}", hint=hint)
    if is_adapter(path):
        return Tokenizer.load(path) if (path / "tokenizer").is_dir() else load_tokenizer(base_and_adapter(path, None)[0])
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


def model_name(path: Path) -> str:
    """A file's name without .gguf; a folder's name, with its parent's where that alone says little (sft, rl, pretrain)."""
    path = Path(os.path.abspath(path))  # a link has the name people know: Hugging Face's cache links to hashes
    if path.is_file():
        return path.name.removesuffix(".gguf").removesuffix(".bin")
    return f"{path.parent.name}/{path.name}" if path.name in ("pretrain", "sft", "rl") else path.name


def chat_tokens_untrained(path: Path) -> bool:
    """Whether a model is a base model of ours, trained from nothing on documents: it has never seen the tokens of a conversation."""
    return stage_of(path) == "pretrain" and not (read_json(path / "run.json").get("config") or {}).get("model")


def new_adapter(path: Path, rank: int, alpha: float | None, targets: str) -> LoRA | None:
    """The adapter that --lora-rank, --lora-alpha and --lora-targets ask for beside this model; None for rank 0. UserError for one that cannot be, or cannot be saved."""
    if not rank:
        return None
    if is_adapter(path):
        raise UserError(f"{path} is an adapter already", hint="leave --lora-rank out to train it on, or merge it first: freedive export")
    if chat_tokens_untrained(path):
        raise UserError("an adapter cannot teach a base model its first conversation: the embeddings of its chat tokens were never trained, and stay frozen",
                        hint="fine-tune all weights first (freedive sft, without --lora-rank); adapters go on from there")  # fmt: skip
    config = open_weights(path).config
    check_saveable(config)
    return check_lora(LoRA(rank, alpha or 2.0 * rank, parse_targets(targets)), config)


def base_and_adapter(path: Path, adapter: Path | None) -> tuple[Path, Path | None]:
    """The model and the adapter that a path stands for: an adapter's folder names its base. Raises UserError."""
    if not is_adapter(path):
        return path, adapter
    if adapter is not None:
        raise UserError(f"{path} is an adapter itself", hint="give its base model, or leave --adapter out")
    named = base_of(path)
    for place in (Path(named), path / named):  # as it was written, or relative to the adapter
        if named and place.exists() and not is_adapter(place):
            return place, path
    raise UserError(f"{path} is an adapter of {named or 'a model it does not name'}, which is not here", hint=f"give the base: --model BASE --adapter {path}")


def load_model(folder: Path, tok: Tokenizer, adapter: Path | None = None, *, lora: LoRA | None = None, **model_arguments: Any) -> Model:
    """The model of a folder, with the ids that `tok` does not use masked; arguments as for Model, and `weights` as of Weights.to_model.

    adapter: a folder of a LoRA adapter to put beside it; `folder` may be one itself, which names its base. lora: make a new one instead, to be
    initialised. Raises UserError as load_pretrained and read_adapter do.
    """
    base, adapter = base_and_adapter(folder, adapter)
    source = open_weights(base)
    if adapter is not None:
        if lora is not None:
            raise UserError(f"{adapter} is an adapter already, and another cannot stand beside it", hint="merge it first: freedive export BASE --adapter ... --to hf, or leave --lora-rank out to train it on")
        found = read_adapter(adapter, source.config)
        model = source.to_model(lora=found.lora, **model_arguments)
        found.into(model)
    else:
        model = source.to_model(lora=lora, **model_arguments)
    if model.config.vocab_size < tok.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {tok.vocab_size} ids, the model only {model.config.vocab_size}")
    mask = np.zeros(model.config.vocab_size, np.uint8)
    mask[: tok.vocab_size] = tok.vocab_mask
    if not mask.all():
        model.set_vocab_mask(mask)
    return model


def save_model_folder(model: Model, tok: Tokenizer, folder: Path, eos_id: int, trained_from: Path | None = None) -> None:
    """Weights, configuration and tokenizer into `folder`; eos_id is what ends a text of this model (transformers stops there too).

    Of a model with an adapter that alone, which names its base: the model, or the adapter's folder, that it was `trained_from`.
    """
    if model.lora is not None:
        if trained_from is None:
            raise ValueError("an adapter's folder names its base: trained_from")
        save_adapter(model, folder, str(base_and_adapter(trained_from, None)[0].resolve()))
        tok.save(folder / "tokenizer")
        return
    bos = {"bos_token_id": tok.bos_id} if tok.bos in tok.special_tokens else {}
    save_pretrained(model, folder, special={**bos, "eos_token_id": eos_id})
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    tok.save(folder / "tokenizer")
