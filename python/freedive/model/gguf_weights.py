"""A GGUF file as a model: its metadata as our configuration, its tensors as our parameters (llama, qwen2, qwen3, gpt2).

Two traps (llama.cpp's convert_hf_to_gguf.py): files of architecture `llama` have the rows of q and k permuted for rotation of
neighbours, the others have not; and Llama 3.1's stretched frequencies are a tensor of divisors, `rope_freqs.weight`, with no parameters
beside it, so the schedule is recognised by computing it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from freedive.model.config import DecoderConfig, checked
from freedive.model.gguf import GGUF, TensorInfo, map_gguf, read_gguf
from freedive.model.quants import dequantize
from freedive.model.weights import Weights, interleaved_to_halves, parameter_shapes
from freedive.runs import UserError

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2")
_TOP = {"embed_tokens": "token_embd", "embed_positions": "position_embd", "final_norm": "output_norm", "lm_head": "output"}
_LEAF = {"input_norm": "attn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "q_norm": "attn_q_norm",
         "k_norm": "attn_k_norm", "o_proj": "attn_output", "mlp_norm": "ffn_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
         "down_proj": "ffn_down"}  # fmt: skip
FUSED = ("q_proj", "k_proj", "v_proj")  # one tensor, attn_qkv, in gpt2
READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
FREQUENCIES = "rope_freqs.weight"


def gguf_name(architecture: str, name: str) -> str:
    """Our parameter's name in a GGUF file."""
    parts = name.split(".")
    if parts[0] != "layers":
        return f"{_TOP[parts[0]]}.{parts[1]}"
    leaf = "attn_qkv" if architecture == "gpt2" and parts[2] in FUSED else _LEAF[parts[2]]
    return f"blk.{parts[1]}.{leaf}.{parts[3]}"


def rope_divisors(config: DecoderConfig) -> np.ndarray:
    """What Llama 3.1's schedule divides each frequency by: float64 [head_dim / 2]."""
    plain, stretched = config.replace(rope_scaling=None).rope_frequencies(), config.rope_frequencies()
    return plain / stretched


def read_gguf_config(file: GGUF) -> DecoderConfig:
    """The configuration that a file's metadata describes. Raises UserError for an architecture or a setting that we do not compute."""
    architecture = file.get("general.architecture", str, "")
    if architecture not in ARCHITECTURES:
        raise UserError(f"{file.path} is a model of architecture {architecture!r:.40}", hint=f"freedive runs {', '.join(ARCHITECTURES)}")

    def get(key: str, kind: type, default: Any = None) -> Any:
        value = file.get(f"{architecture}.{key}", kind, default)
        if value is None:
            raise UserError(f"{file.path}: its metadata lack {architecture}.{key}")
        return value

    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{file.path} has no tensor 'token_embd.weight' of two dimensions: it holds no whole model")
    width, heads = get("embedding_length", int), get("attention.head_count", int)
    if heads < 1:
        raise UserError(f"{file.path}: attention.head_count is {heads}")
    head_dim = get("attention.key_length", int, width // heads)
    gpt2 = architecture == "gpt2"
    config = checked(DecoderConfig(
        vocab_size=embedding.shape[0], n_layer=get("block_count", int), n_head=heads,
        n_kv_head=get("attention.head_count_kv", int, heads), d_model=width, head_dim=head_dim,
        d_ff=get("feed_forward_length", int), max_positions=get("context_length", int),
        norm="layernorm" if gpt2 else "rmsnorm", norm_eps=_short(get("attention.layer_norm_epsilon" if gpt2 else "attention.layer_norm_rms_epsilon", float, 1e-5)),
        position="learned" if gpt2 else "rope", rope_theta=float(get("rope.freq_base", float, 10000.0)), mlp="gelu_tanh" if gpt2 else "swiglu",
        attention_bias="blk.0.attn_q.bias" in file.tensors or gpt2, attention_out_bias="blk.0.attn_output.bias" in file.tensors or gpt2,
        mlp_bias=gpt2, qk_norm=architecture == "qwen3", tie_embeddings="output.weight" not in file.tensors))  # fmt: skip
    for key, wanted in (("attention.value_length", head_dim), ("rope.dimension_count", head_dim)):
        if not gpt2 and get(key, int, wanted) != wanted:
            raise UserError(f"{file.path}: {architecture}.{key} is {get(key, int)}, freedive computes {wanted} only (the width of a head)")
    scaling = file.get(f"{architecture}.rope.scaling.type", str, "none")
    if scaling != "none" and FREQUENCIES not in file.tensors:
        raise UserError(f"{file.path}: rope scaling {scaling!r:.40} is not supported", hint="supported: none, Llama 3.1's")
    if FREQUENCIES in file.tensors:
        config = _stretched(file, config, get("rope.scaling.original_context_length", int, 8192))
    return config


def _short(value: float) -> float:
    """A float32 of the file as the decimal number somebody wrote: 9.99999974e-06 is 1e-05."""
    return float(f"{value:.7g}")


def _stretched(file: GGUF, config: DecoderConfig, original: int) -> DecoderConfig:
    info = file.tensors[FREQUENCIES]
    if info.shape != (config.head_dim // 2,) or info.type != "F32" or config.position != "rope":
        raise UserError(f"{file.path}: {FREQUENCIES} is {info.type} {list(info.shape)}, not F32 [{config.head_dim // 2}]")
    divisors = _raw(map_gguf(file), info).view("<f4").astype(np.float64)
    if not np.isfinite(divisors).all() or (divisors <= 0).any():
        raise UserError(f"{file.path}: {FREQUENCIES} has numbers that are not positive")
    if np.allclose(divisors, 1.0):
        return config
    scaling = {"factor": _short(float(divisors.max())), "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": original}
    config = checked(config.replace(rope_scaling=scaling))
    if not np.allclose(rope_divisors(config), divisors, rtol=1e-5):
        raise UserError(f"{file.path}: {FREQUENCIES} stretches frequencies in a way freedive does not know", hint="supported: Llama 3.1's")
    return config


def _raw(data: list[np.ndarray], info: TensorInfo) -> np.ndarray:
    return data[info.part][info.offset : info.offset + info.nbytes]


def open_gguf(path: Path) -> Weights:
    """The weights of a GGUF file, every tensor checked against its metadata. Raises UserError."""
    file = read_gguf(path)
    config = read_gguf_config(file)
    architecture = file.get("general.architecture", str)
    used, shapes = {FREQUENCIES}, parameter_shapes(config)
    for name, shape in shapes.items():
        key = gguf_name(architecture, name)
        info = file.tensors.get(key)
        if info is None:
            raise UserError(f"{path} lacks the tensor {key!r}", hint="it is damaged, or of another kind than its metadata say")
        if key.startswith("blk.") and ".attn_qkv." in key:
            shape = (3 * shape[0], *shape[1:])
        if info.shape != shape:
            raise UserError(f"{path}: tensor {key!r} has shape {list(info.shape)}, its metadata want {list(shape)}")
        if info.type not in READABLE:
            raise UserError(f"{path}: tensor {key!r} is of type {info.type}", hint=f"types that can be read: {', '.join(READABLE)}")
        used.add(key)
    unknown = [key for key in file.tensors if key not in used]
    if unknown:
        raise UserError(f"{path} has the tensor {unknown[0]!r:.80}, which a {architecture} model does not", hint="freedive would compute another model")
    data = map_gguf(file)
    read = _reader(file, architecture, config, lambda info: dequantize(info.type, _raw(data, info)).reshape(info.shape))
    rows = _reader(file, architecture, config, lambda info: _raw(data, info).reshape(info.shape[0], -1))  # a row is whole blocks
    types = lambda name: file.tensors[gguf_name(architecture, name)].type
    return Weights(path, config, read, lambda name: (types(name), rows(name)), types)


def _reader(file: GGUF, architecture: str, config: DecoderConfig, taken: Callable[[TensorInfo], np.ndarray]) -> Callable[[str], np.ndarray]:
    """Our parameter from the file's tensor, as `taken` gives that: only whole rows are moved."""
    heads = {"q_proj": config.n_head, "k_proj": config.n_kv_head}

    def read(name: str) -> np.ndarray:
        info = file.tensors[gguf_name(architecture, name)]
        tensor = taken(info)
        leaf = name.split(".")[-2]
        if architecture == "gpt2" and leaf in FUSED:
            return np.split(tensor, 3, axis=0)[FUSED.index(leaf)]
        if architecture == "llama" and leaf in heads:
            return interleaved_to_halves(tensor, heads[leaf])
        return tensor

    return read
