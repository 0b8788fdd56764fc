"""llama2.c's checkpoints (karpathy/llama2.c, export.py, version 0): seven int32 and then float32 tensors of fixed order.

A negative vocabulary says that the head is not the embedding. Queries and keys are stored for rotation of neighbours.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

from freedive.model.config import DecoderConfig, checked
from freedive.model.weights import Weights, interleaved_to_halves, parameter_shapes
from freedive.runs import UserError

HEADER = 28  # bytes
_NAMES = (  # in the file's order, each for all layers at once
    "input_norm.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "mlp_norm.weight", "gate_proj.weight",
    "down_proj.weight", "up_proj.weight",
)  # fmt: skip


def open_llama2c(path: Path) -> Weights:
    """Check a checkpoint: its header must account for every byte of the file. Raises UserError."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = file.read(HEADER)
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}") from None
    hint = "llama2.c's version 0 is read: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len), then float32"
    if len(header) < HEADER:
        raise UserError(f"{path} is no llama2.c checkpoint: it has {size} bytes", hint=hint)
    if header[:4] == b"ak42"[::-1]:
        raise UserError(f"{path} is a llama2.c checkpoint of version 1 or later, which freedive does not read", hint=hint)
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", header)
    if heads < 1 or dim % heads:
        raise UserError(f"{path} is no llama2.c checkpoint: {dim} wide with {heads} heads", hint=hint)
    try:
        config = checked(DecoderConfig(abs(vocab), layers, heads, kv_heads, dim, dim // heads, hidden, length, norm_eps=1e-5, qk_norm=False,
                                       tie_embeddings=vocab > 0))  # fmt: skip
    except UserError as error:
        raise UserError(f"{path} is no llama2.c checkpoint: {error.message}", hint=hint) from None
    shapes = parameter_shapes(config)
    at, places = HEADER, {}

    def place(name: str) -> None:
        nonlocal at
        places[name] = at
        at += 4 * math.prod(shapes[name])

    place("embed_tokens.weight")
    for leaf in _NAMES:
        for layer in range(layers):
            place(f"layers.{layer}.{leaf}")
    place("final_norm.weight")
    at += 4 * length * (dim // heads)  # tables of cosines and sines, which nobody reads any more
    if not config.tie_embeddings:
        place("lm_head.weight")
    if at != size:
        raise UserError(f"{path}: the header asks for {at:,} bytes, the file has {size:,}", hint=hint)
    data = np.memmap(path, np.uint8, mode="r")

    def read(name: str) -> np.ndarray:
        tensor = data[places[name] : places[name] + 4 * math.prod(shapes[name])].view("<f4").reshape(shapes[name])
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            return interleaved_to_halves(tensor, heads if "q_proj" in name else kv_heads)
        return tensor

    return Weights(path, config, read)
