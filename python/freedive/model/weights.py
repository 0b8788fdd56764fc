"""Weights of any file we read, behind one face: a checked configuration, and a function that gives each of our parameters as float32.

`open_weights` finds out what a path is and checks every name, shape and length in it; only then is memory for a model taken, and
filled from the mapped file one tensor at a time. Where a file is quantised, that dequantises to the exact float32 the blocks stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.model.config import DecoderConfig
from freedive.model.model import Model
from freedive.runs import UserError

VOCABULARY_ROWS = ("embed_tokens.weight", "lm_head.weight")  # matrices of a row for each id


@dataclass(frozen=True)
class Weights:
    """Checked, not read yet."""

    path: Path
    config: DecoderConfig  # as the file has it: the vocabulary without padding
    read: Callable[[str], np.ndarray]  # name of our parameter -> float32, of its shape
    # the same as the file has it, for a matrix of which it holds whole rows: the type's name in gguf.TYPES, and uint8 [rows, bytes of one]
    stored: Callable[[str], tuple[str, np.ndarray]] | None = None
    types: Callable[[str], str] | None = None  # its type alone

    def to_model(self, vocab_multiple: int = 1, weights: str = "float32", **model_arguments: Any) -> Model:
        """A Model holding these weights; arguments as for Model. vocab_multiple pads the vocabulary (masked rows).

        weights: "float32"; or, for inference, "auto" (matrices in the file's own types where kernels read them, exactly), "bfloat16", "float16",
        "int8" or "int4" (rounded to these; model/packed.py). Raises UserError if it does not fit in memory, or the file cannot be read after all.
        """
        if weights != "float32":
            from freedive.model.packed import packed_model

            if (model := packed_model(self, weights, vocab_multiple, model_arguments)) is not None:
                return model
        config, real = self.config, self.config.vocab_size
        if real % vocab_multiple:
            config = config.replace(vocab_size=-(-real // vocab_multiple) * vocab_multiple)
        model = Model(config, **model_arguments)

        def fill(item: tuple[str, np.ndarray]) -> None:
            name, view = item
            view[: real if name in VOCABULARY_ROWS else len(view)] = self.read(name)

        with ThreadPoolExecutor(model.threads) as pool:  # NumPy lets go of the interpreter while it converts
            list(pool.map(fill, model.parameters.items()))
        if config.vocab_size != real:
            model.set_vocab_mask((np.arange(config.vocab_size) < real).astype(np.uint8))
        return model


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter; allocates nothing."""
    from freedive import _core

    return {name: tuple(shape) for name, shape, _, _ in _core.parameter_table(config.core_dict())}


def interleaved_to_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k for rotation of neighbours (0, 1), (2, 3), ... in the order for rotation of halves (0, R), (1, R + 1), ...

    rows: [heads * head_dim, ...]. llama2.c and GGUF files of architecture `llama` have the former, Hugging Face and we the latter.
    """
    return rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def halves_to_interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleaved_to_halves`."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def find_weights(path: Path) -> Path:
    """`path`, or the one GGUF file of a folder without config.json (of one in parts, the first). Raises UserError for what is not there."""
    from freedive.model.gguf import part_path

    if not path.exists():
        raise UserError(f"no such model: {path}", hint="give a model folder, a .gguf file or a llama2.c .bin file")
    if path.is_dir() and not (path / "config.json").is_file():
        inside = sorted(path.glob("*.gguf"))
        if len(inside) > 1 and {part_path(p, 1) for p in inside} == {inside[0]}:
            return inside[0]
        if len(inside) == 1:
            return inside[0]
        if len(inside) > 1:
            raise UserError(f"{path} holds {len(inside)} GGUF files", hint=f"name one of them: {inside[0]}")
    return path


def open_weights(path: Path) -> Weights:
    """Recognise and check a Hugging Face folder, a GGUF file or a llama2.c checkpoint. Raises UserError saying what is wrong."""
    from freedive.model.gguf import is_gguf

    path = find_weights(path)
    if path.is_dir() and (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise UserError(f"{path} is an adapter, not a whole model", hint=f"merge it first: freedive export {path} --to hf --out merged")
    if path.is_dir():
        from freedive.model.pretrained import open_pretrained

        return open_pretrained(path)
    if is_gguf(path):
        from freedive.model.gguf_weights import open_gguf

        return open_gguf(path)
    if path.suffix == ".bin":
        from freedive.model.llama2c import open_llama2c

        return open_llama2c(path)
    hint = "give the folder that holds it, with config.json" if path.suffix == ".safetensors" else "freedive reads Hugging Face folders, .gguf and llama2.c .bin files"
    if path.suffix in (".pt", ".pth", ".ckpt", ".pkl"):
        hint = "pickled checkpoints can run code and are never read; save them as safetensors with the program that made them"
    raise UserError(f"{path} is no model file that freedive reads", hint=hint)
