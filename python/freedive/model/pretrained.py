"""Weights on disk, in the Hugging Face layout: config.json + model.safetensors. Round trips are bit-equal.

Our names differ from Hugging Face's in prefixes only; GPT-2 stores its matrices transposed ([in, out]) with q, k, v fused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from freedive.model.config import DecoderConfig, family, from_hf, to_hf
from freedive.model.model import Model
from freedive.runs import UserError, write_json_atomic

_LLAMA = {"embed_tokens": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head", "input_norm": "input_layernorm",
          "mlp_norm": "post_attention_layernorm"}  # fmt: skip
_GPT2 = {"embed_tokens": "transformer.wte", "embed_positions": "transformer.wpe", "final_norm": "transformer.ln_f", "lm_head": "lm_head",
         "input_norm": "ln_1", "mlp_norm": "ln_2", "o_proj": "attn.c_proj", "up_proj": "mlp.c_fc", "down_proj": "mlp.c_proj"}  # fmt: skip


def _hf_name(kind: str, name: str) -> str:
    parts = name.split(".")
    leaf, suffix = parts[-2], parts[-1]
    if kind == "gpt2":
        return f"transformer.h.{parts[1]}.{_GPT2[leaf]}.{suffix}" if parts[0] == "layers" else f"{_GPT2[leaf]}.{suffix}"
    if parts[0] != "layers":
        return f"{_LLAMA[leaf]}.{suffix}"
    if leaf in _LLAMA:
        return f"model.layers.{parts[1]}.{_LLAMA[leaf]}.{suffix}"
    room = "self_attn" if leaf in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm") else "mlp"
    return f"model.layers.{parts[1]}.{room}.{leaf}.{suffix}"


def to_hf_tensors(config: DecoderConfig, parameters: dict[str, np.ndarray], vocab_size: int | None = None) -> dict[str, np.ndarray]:
    """Our parameters under Hugging Face's names; rows beyond `vocab_size` (padding of the vocabulary) are left out."""
    kind, out = family(config), {}
    for name, p in parameters.items():
        if name in ("embed_tokens.weight", "lm_head.weight") and vocab_size:
            p = p[:vocab_size]
        leaf = name.split(".")[-2]
        if kind == "gpt2" and leaf in ("q_proj", "k_proj", "v_proj"):
            if leaf == "q_proj":
                fused = np.concatenate([parameters[name.replace("q_proj", x)] for x in ("q_proj", "k_proj", "v_proj")], axis=0)
                layer, suffix = name.split(".")[1], name.split(".")[-1]
                out[f"transformer.h.{layer}.attn.c_attn.{suffix}"] = np.ascontiguousarray(fused.T)
            continue
        if kind == "gpt2" and leaf in ("o_proj", "up_proj", "down_proj"):
            p = p.T
        out[_hf_name(kind, name)] = np.ascontiguousarray(p)
    return out


def _fill(config: DecoderConfig, parameters: dict[str, np.ndarray], tensors: dict[str, np.ndarray], source: Path, vocab_size: int) -> None:
    """Copy tensors into parameters; `vocab_size` is that of the file, at most config's (the rows beyond stay 0)."""
    kind = family(config)
    if kind == "gpt2" and "transformer.wte.weight" not in tensors:  # the published GPT-2 files leave the prefix out
        tensors = {f"transformer.{k}" if not k.startswith("lm_head") else k: v for k, v in tensors.items()}
    for name, view in parameters.items():
        leaf, suffix = name.split(".")[-2:]
        fused = kind == "gpt2" and leaf in ("q_proj", "k_proj", "v_proj")
        key = f"transformer.h.{name.split('.')[1]}.attn.c_attn.{suffix}" if fused else _hf_name(kind, name)
        if key not in tensors:
            raise UserError(f"{source} lacks the tensor {key!r}", hint="is config.json the one of these weights?")
        t = tensors[key].astype(np.float32)
        if fused:
            t = np.split(t.T, 3, axis=0)[("q_proj", "k_proj", "v_proj").index(leaf)]
        elif kind == "gpt2" and leaf in ("o_proj", "up_proj", "down_proj"):
            t = t.T
        rows = vocab_size if name in ("embed_tokens.weight", "lm_head.weight") else len(view)
        want = (rows, *view.shape[1:])
        if t.shape != want:
            raise UserError(f"{source}: tensor {key!r} has shape {list(tensors[key].shape)}, config.json wants {_stored_shape(kind, leaf, want)}")
        view[:rows] = t


def _stored_shape(kind: str, leaf: str, shape: tuple[int, ...]) -> list[int]:
    """The shape a tensor has in the file, for a message: GPT-2 stores matrices transposed, and q, k, v as one."""
    if kind == "gpt2" and leaf in ("q_proj", "k_proj", "v_proj"):
        shape = (3 * shape[0], *shape[1:])
    transposed = kind == "gpt2" and leaf in ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    return list(shape[::-1] if transposed else shape)


def save_pretrained(model: Model, folder: Path, *, vocab_size: int | None = None, special: dict[str, int] | None = None) -> None:
    """Write config.json and model.safetensors (float32). `vocab_size` strips vocabulary padding."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_hf_tensors(model.config, model.parameters, vocab_size), str(folder / "model.safetensors"), metadata={"format": "pt"})
    write_json_atomic(folder / "config.json", to_hf(model.config, vocab_size, special))


def read_config(folder: Path) -> DecoderConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json", hint="a model folder has config.json and model.safetensors")
    try:
        return from_hf(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def _tensors(folder: Path) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16, which safetensors then returns)
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no *.safetensors", hint="a model folder has config.json and model.safetensors")
    for path in files:
        try:
            with safe_open(str(path), framework="np") as f:
                yield path, {k: f.get_tensor(k) for k in f.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}", hint="the file may be truncated; copy or train it again") from None


def load_pretrained(folder: Path | str, *, vocab_multiple: int = 1, **model_arguments: Any) -> Model:
    """A Model with the weights of a Hugging Face folder (gpt2, llama, qwen3; float32, float16 or bfloat16, computed in float32).

    vocab_multiple pads the vocabulary (masked rows). Raises UserError if a file is missing, truncated or does not fit its configuration.
    """
    folder = Path(folder)
    config = read_config(folder)
    real = config.vocab_size
    if real % vocab_multiple:
        config = config.replace(vocab_size=(real + vocab_multiple - 1) // vocab_multiple * vocab_multiple)
    tensors: dict[str, np.ndarray] = {}
    for _, part in _tensors(folder):
        tensors |= part
    model = Model(config, **model_arguments)
    _fill(config, model.parameters, tensors, folder, real)
    if config.vocab_size != real:
        model.set_vocab_mask((np.arange(config.vocab_size) < real).astype(np.uint8))
    return model
