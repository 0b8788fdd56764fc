"""Writing GGUF version 3: metadata, then every tensor in turn, so that the largest one is what a write needs in memory.

What llama.cpp wants of a model is in `gguf_tensors` and `gguf_metadata`; the tokenizer's part comes from freedive.tokenizer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.model.config import DecoderConfig, family
from freedive.model.gguf import MAGIC, TYPES
from freedive.model.gguf_weights import FREQUENCIES, FUSED, gguf_name, rope_divisors
from freedive.model.quants import quantize
from freedive.model.weights import halves_to_interleaved, parameter_shapes
from freedive.runs import UserError, write_atomic

ALIGNMENT = 32
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}  # general.file_type, llama.h's LLAMA_FTYPE
_IDS = {name: number for number, (name, _, _) in TYPES.items()}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class OutTensor:
    """One tensor to write; `values` is called when its turn comes."""

    name: str
    shape: tuple[int, ...]  # NumPy's order
    type: str  # "F32", "Q8_0", ...
    values: Callable[[], np.ndarray]  # float32, of that shape

    @property
    def nbytes(self) -> int:
        _, block, block_bytes = TYPES[_IDS[self.type]]
        return int(np.prod(self.shape)) // block * block_bytes


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: list[OutTensor]) -> None:
    """Write a file, atomically: a stopped write leaves nothing. Metadata values: str, bool, int, float, list[str], list[int], list[float]."""
    write_atomic(path, _parts(metadata, tensors))


def _parts(metadata: Mapping[str, Any], tensors: list[OutTensor]) -> Iterator[bytes]:
    header = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        header += [_text(key), *_value(value)]
    offset = 0
    for t in tensors:
        header += [_text(t.name), struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *t.shape[::-1]), struct.pack("<IQ", _IDS[t.type], offset)]
        offset += -(-t.nbytes // ALIGNMENT) * ALIGNMENT
    whole = b"".join(header)
    yield whole + bytes(-len(whole) % ALIGNMENT)
    for t in tensors:
        raw = quantize(t.type, t.values())
        if len(raw) != t.nbytes:
            raise RuntimeError(f"{t.name}: {len(raw)} bytes instead of {t.nbytes}")
        yield raw.tobytes()
        yield bytes(-len(raw) % ALIGNMENT)


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> Iterable[bytes]:
    """A value with its type; numbers as llama.cpp reads them: uint32 (int32 below 0), float32."""
    if isinstance(value, bool):
        return [struct.pack("<I?", 7, value)]
    if isinstance(value, int):
        return [struct.pack("<II", 4, value) if value >= 0 else struct.pack("<Ii", 5, value)]
    if isinstance(value, float):
        return [struct.pack("<If", 6, value)]
    if isinstance(value, str):
        return [struct.pack("<I", _STRING), _text(value)]
    head = struct.pack("<I", _ARRAY)
    if all(isinstance(v, str) for v in value):
        return [head, struct.pack("<IQ", _STRING, len(value)), *map(_text, value)]
    if all(isinstance(v, int) for v in value):
        return [head, struct.pack("<IQ", 5, len(value)), np.asarray(value, "<i4").tobytes()]
    return [head, struct.pack("<IQ", 6, len(value)), np.asarray(value, "<f4").tobytes()]


def architecture_of(config: DecoderConfig) -> str:
    """llama.cpp's name for what `config` computes. Raises UserError if it computes no such thing."""
    return family(config)


def gguf_metadata(config: DecoderConfig, name: str, kind: str, vocab_size: int) -> dict[str, Any]:
    """What a file says of the model itself; `kind` is one of FILE_TYPES."""
    a = architecture_of(config)
    out: dict[str, Any] = {
        "general.architecture": a, "general.type": "model", "general.name": name, "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2, f"{a}.block_count": config.n_layer, f"{a}.context_length": config.max_positions,
        f"{a}.embedding_length": config.d_model, f"{a}.feed_forward_length": config.d_ff, f"{a}.attention.head_count": config.n_head,
        f"{a}.vocab_size": vocab_size,
    }  # fmt: skip
    if a == "gpt2":
        return out | {f"{a}.attention.layer_norm_epsilon": float(config.norm_eps)}
    out |= {f"{a}.attention.head_count_kv": config.n_kv_head, f"{a}.attention.layer_norm_rms_epsilon": float(config.norm_eps),
            f"{a}.rope.freq_base": float(config.rope_theta), f"{a}.rope.dimension_count": config.head_dim,
            f"{a}.attention.key_length": config.head_dim, f"{a}.attention.value_length": config.head_dim}  # fmt: skip
    if config.rope_scaling:
        out[f"{a}.rope.scaling.original_context_length"] = int(config.rope_scaling["original_max_position_embeddings"])
    return out


def gguf_tensors(config: DecoderConfig, read: Callable[[str], np.ndarray], kind: str, vocab_size: int) -> list[OutTensor]:
    """Our parameters as a file's tensors, vocabulary padding stripped; `read` gives one of ours by name, when its turn comes. Vectors and learned positions stay float32; in q4_0 files the
    embedding and the head are Q8_0, and matrices whose rows are no multiple of 32 are F16, as llama.cpp does it.
    """
    a = architecture_of(config)
    if config.rope_scaling and a != "llama":
        raise UserError(f"GGUF files of architecture {a} have no stretched frequencies", hint="export to hf instead")
    heads = {"q_proj": config.n_head, "k_proj": config.n_kv_head}
    shapes = parameter_shapes(config)
    out: list[OutTensor] = []

    def add(name: str, parts: list[str], turn: int = 0) -> None:
        rows = sum(shapes[p][0] for p in parts)
        if parts[0] in ("embed_tokens.weight", "lm_head.weight"):
            rows = min(rows, vocab_size)
        shape = (rows, *shapes[parts[0]][1:])

        def values() -> np.ndarray:
            joined = read(parts[0])[:rows] if len(parts) == 1 else np.concatenate([read(p) for p in parts])
            return halves_to_interleaved(joined, turn) if turn else joined

        out.append(OutTensor(name, shape, _type(name, shape, kind), values))

    for name in shapes:
        leaf = name.split(".")[-2]
        if a == "gpt2" and leaf in FUSED:
            if leaf == "q_proj":
                add(gguf_name(a, name), [name.replace("q_proj", part) for part in FUSED])
        else:
            add(gguf_name(a, name), [name], heads[leaf] if a == "llama" and leaf in heads else 0)
    if config.rope_scaling:
        divisors = rope_divisors(config).astype(np.float32)
        out.append(OutTensor(FREQUENCIES, divisors.shape, "F32", lambda: divisors))
    return out


def _type(name: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1 or name.startswith("position_embd"):
        return "F32"
    if kind in ("q8_0", "q4_0") and shape[-1] % 32:
        return "F16"
    if kind == "q4_0" and name in ("token_embd.weight", "output.weight"):
        return "Q8_0"
    return kind.upper()
