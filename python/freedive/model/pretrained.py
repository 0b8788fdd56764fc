"""Weights on disk, in the Hugging Face layout: config.json + model.safetensors, or shards with their index. Round trips are bit-equal.

Our names differ from Hugging Face's in prefixes only; GPT-2 stores its matrices transposed ([in, out]) with q, k, v fused. Every name,
shape and dtype is checked before anything is allocated; tensors are then read from the mapped file one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from freedive.model.config import DecoderConfig, family, from_hf, to_hf
from freedive.model.model import Model
from freedive.model.weights import Weights, parameter_shapes
from freedive.runs import UserError, write_json_atomic

_LLAMA = {"embed_tokens": "model.embed_tokens", "embed_bigrams": "model.embed_bigrams", "final_norm": "model.norm", "lm_head": "lm_head", "input_norm": "input_layernorm",
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


_FUSED, _TRANSPOSED = ("q_proj", "k_proj", "v_proj"), ("o_proj", "up_proj", "down_proj")
_DTYPES = ("F32", "F16", "BF16")
# What files hold besides parameters: tables that are computed, and a head that is the embedding.
_NOT_WEIGHTS = re.compile(r"(.*\.)?(attn\.(masked_)?bias|rotary_emb\.inv_freq)$")


def _key(kind: str, name: str) -> str:
    """Where the file has our parameter: GPT-2's q, k, v are one tensor."""
    leaf, suffix = name.split(".")[-2:]
    return f"transformer.h.{name.split('.')[1]}.attn.c_attn.{suffix}" if kind == "gpt2" and leaf in _FUSED else _hf_name(kind, name)


def _stored_shape(kind: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape it has there: GPT-2's matrices are transposed."""
    leaf = name.split(".")[-2]
    if kind == "gpt2" and leaf in _FUSED:
        return (3 * shape[0], *shape[1:])[::-1]
    return shape[::-1] if kind == "gpt2" and leaf in _TRANSPOSED else shape


def _ours(kind: str, name: str, stored: np.ndarray) -> np.ndarray:
    leaf = name.split(".")[-2]
    if kind == "gpt2" and leaf in _FUSED:
        return np.split(stored.T, 3, axis=0)[_FUSED.index(leaf)]
    return stored.T if kind == "gpt2" and leaf in _TRANSPOSED else stored


def save_pretrained(model: Model, folder: Path, *, vocab_size: int | None = None, special: dict[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors (float32). `vocab_size` strips vocabulary padding."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_hf_tensors(model.config, model.parameters, vocab_size), str(folder / "model.safetensors"), metadata={"format": "pt"})
    write_json_atomic(folder / "config.json", to_hf(model.config, vocab_size, special))


def read_config(folder: Path) -> DecoderConfig:
    """The configuration that a folder's config.json describes. Raises UserError."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json", hint="a model folder has config.json and model.safetensors")
    return from_hf(_json(folder / "config.json"))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def _files(folder: Path) -> list[Path]:
    """The folder's safetensors files: those of the index, else model.safetensors, else all."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        whole = folder / "model.safetensors"
        return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    content = _json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or any(not isinstance(v, str) for v in places.values()):
        raise UserError(f"{index} has no weight_map from tensors to files", hint="fetch it again")
    names = sorted(set(places.values()))
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise UserError(f"{index} names the file {name!r:.80}", hint="it must be a *.safetensors in the same folder")
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, which {index.name} names", hint=f"fetch all {len(names)} parts")
    return [folder / name for name in names]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of the safetensors library as a sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} cannot be read: {error}", hint="the file may be truncated; copy or train it again") from None


def open_pretrained(folder: Path) -> Weights:
    """The weights of a Hugging Face folder (gpt2, llama, qwen2, qwen3; float32, float16 or bfloat16), checked against config.json.

    Raises UserError if a file is missing or truncated, a tensor is missing or of another shape, or one is there that we do not compute.
    """
    import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16, which safetensors then returns)
    from safetensors import safe_open

    config = read_config(folder)
    kind, files = family(config), _files(folder)
    if not files:
        raise UserError(f"{folder} holds no *.safetensors", hint="a model folder has config.json and model.safetensors")
    found: dict[str, tuple[Any, str]] = {}  # full name -> open file, name in it
    for path in files:
        with _told(path):
            file = safe_open(str(path), framework="np")  # maps the file and checks its header: offsets, lengths, duplicates
            for key in file.keys():
                whole = key if kind != "gpt2" or key.startswith(("transformer.", "lm_head")) else f"transformer.{key}"  # GPT-2's own files
                if whole in found:
                    raise UserError(f"{path}: the tensor {key!r:.80} is in two files")
                found[whole] = (file, key)
    used = set()
    for name, shape in parameter_shapes(config).items():
        key, wanted = _key(kind, name), _stored_shape(kind, name, shape)
        if key not in found:
            raise UserError(f"{folder} lacks the tensor {key!r}", hint="is config.json the one of these weights?")
        used.add(key)
        file, own = found[key]
        with _told(folder):
            part = file.get_slice(own)
            stored, dtype = tuple(part.get_shape()), part.get_dtype()
        if stored != wanted:
            raise UserError(f"{folder}: tensor {key!r} has shape {list(stored)}, config.json wants {list(wanted)}")
        if dtype not in _DTYPES:
            raise UserError(f"{folder}: tensor {key!r} is of type {dtype}", hint=f"types that can be read: {', '.join(_DTYPES)}")
    unknown = [k for k in found if k not in used and not _NOT_WEIGHTS.match(k) and not (config.tie_embeddings and k == "lm_head.weight")]
    if unknown:
        raise UserError(f"{folder} has the tensor {unknown[0]!r:.80}, which a {kind} model of this config.json does not",
                        hint="freedive would compute another model than the file's")  # fmt: skip

    def read(name: str) -> np.ndarray:
        file, own = found[_key(kind, name)]
        with _told(folder):
            return _ours(kind, name, file.get_tensor(own)).astype(np.float32, copy=False)

    def types(name: str) -> str:
        file, own = found[_key(kind, name)]
        with _told(folder):
            return file.get_slice(own).get_dtype()

    def held(name: str) -> tuple[str, np.ndarray]:
        file, own = found[_key(kind, name)]
        with _told(folder):
            tensor = np.ascontiguousarray(_ours(kind, name, file.get_tensor(own)))
        return types(name), tensor.view(np.uint8).reshape(len(tensor), -1)

    return Weights(folder, config, read, held, types)


def load_pretrained(path: Path | str, *, vocab_multiple: int = 1, **model_arguments: Any) -> Model:
    """A Model with the weights of a Hugging Face folder, a GGUF file or a llama2.c checkpoint, computed in float32.

    vocab_multiple pads the vocabulary (masked rows). Raises UserError if a file is missing, truncated or does not fit its configuration.
    """
    from freedive.model.weights import open_weights

    return open_weights(Path(path)).to_model(vocab_multiple, **model_arguments)
