"""`freedive export`: a model as other programs read it: a Hugging Face folder (transformers, vLLM) or one GGUF file (llama.cpp, Ollama)."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from freedive.model import Weights, open_weights, read_adapter
from freedive.model.config import check_exportable, family, to_hf
from freedive.model.gguf_write import FILE_TYPES, gguf_metadata, gguf_tensors, write_gguf
from freedive.model.pretrained import to_hf_tensors
from freedive.model.weights import parameter_shapes
from freedive.runs import UserError, human_bytes, option, write_json_atomic
from freedive.tokenizer import Tokenizer, gguf_tokenizer, save_hf

from .folder import base_and_adapter, load_tokenizer
from .load import ADAPTER_HELP

_NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class ExportConfig:
    """Write a model in another format."""

    model: Path = option(help="model to export: a folder, a .gguf or a llama2.c .bin file", positional=True)
    out: Path = option(help="file (gguf) or folder (hf) to write")
    adapter: Path | None = option(None, ADAPTER_HELP + "; it is merged into the weights")
    to: str = option("gguf", "gguf, or hf: safetensors, tokenizer.json and the chat template")
    type: str = option("f32", "of the matrices: f32, f16, bf16; for gguf also q8_0 and q4_0, with vectors in f32")
    name: str | None = option(None, "the model's name in a GGUF file (default: of the model's folder or file)")
    force: bool = option(False, "replace an existing --out")


def run(c: ExportConfig) -> Path:
    """Export; returns what was written. Raises UserError for what the format cannot hold, before anything is written."""
    if c.to not in ("gguf", "hf"):
        raise UserError(f"cannot export to {c.to!r}", hint="--to gguf or --to hf")
    kinds = FILE_TYPES if c.to == "gguf" else _NUMPY
    if c.type not in kinds:
        raise UserError(f"{c.to} files of type {c.type!r} are not written", hint=f"types: {', '.join(kinds)}")
    if c.out.exists() and not c.force:
        raise UserError(f"{c.out} is there already", hint="--force replaces it")
    if c.out.exists() and c.model.exists() and c.out.resolve() == c.model.resolve():
        raise UserError("--out is the model itself", hint="give another path")
    if c.out.is_dir() and c.to == "hf":
        _check_replaceable(c.out, c.model)
    if c.out.exists() and c.out.is_dir() != (c.to == "hf"):
        raise UserError(f"{c.out} is a {'folder' if c.out.is_dir() else 'file'}; {c.to} is the other", hint="give another --out")
    base, adapter = base_and_adapter(c.model, c.adapter)
    tok, weights = load_tokenizer(base, adapter), open_weights(base)
    if adapter is not None:
        weights = read_adapter(adapter, weights.config).merged(weights)
    check_exportable(weights.config)
    family(weights.config)  # refuses what nobody else computes
    if c.to == "gguf":
        rows = tok.vocab_size
        metadata = gguf_metadata(weights.config, c.name or c.model.resolve().stem, c.type, rows) | gguf_tokenizer(tok, rows)
        c.out.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(c.out, metadata, gguf_tensors(weights.config, weights.read, c.type, rows))
        size = c.out.stat().st_size
    else:
        size = _to_hf(c, tok, weights)
    print(f"wrote {c.out}: {weights.config.n_params():,} parameters as {c.type}, {human_bytes(size)}")
    return c.out


def _check_replaceable(out: Path, model: Path) -> None:
    """UserError if --force would delete more than an earlier export."""
    if out.resolve() in model.resolve().parents:
        raise UserError(f"the model lies in {out}, which would be replaced", hint="give another --out")
    foreign = [p.name for p in out.iterdir() if p.is_dir() or p.suffix not in (".json", ".safetensors", ".jinja", ".txt", ".md")]
    if foreign or any(out.iterdir()) and not (out / "config.json").is_file():
        told = f"it holds {', '.join(sorted(foreign)[:3])}" if foreign else "it has no config.json"
        raise UserError(f"{out} is no exported model: {told}", hint="freedive never deletes your files: give another --out")


def _to_hf(c: ExportConfig, tok: Tokenizer, weights: Weights) -> int:
    """Into a folder beside --out, which then takes its name; returns bytes written."""
    from safetensors.numpy import save_file

    rows = tok.vocab_size
    parameters = {name: weights.read(name) for name in parameter_shapes(weights.config)}
    tensors = {k: v.astype(_NUMPY[c.type]) for k, v in to_hf_tensors(weights.config, parameters, rows).items()}
    ends = [tok.im_end] if tok.chat else []
    ends += [i for i in tok.stop_ids if i not in ends]
    special = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
    if tok.bos in tok.special_tokens:
        special["bos_token_id"] = tok.bos_id
    out = c.out.resolve()
    work = out.with_name(out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    save_hf(tok, work)
    save_file(tensors, str(work / "model.safetensors"), metadata={"format": "pt"})
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    write_json_atomic(work / "config.json", to_hf(weights.config, rows, special) | {"torch_dtype": names[c.type]})
    write_json_atomic(work / "generation_config.json", special)
    if out.exists():
        shutil.rmtree(out)
    os.replace(work, out)
    return sum(f.stat().st_size for f in out.iterdir())
