"""Models whose matrices stay in 16, 8 or 4 bits: what kernels read when a token is generated is what the file holds, rearranged.

A generated token reads every weight once, so bytes are time: SmolLM2-135M reads 538 MB a token in float32 and 98 MB as its Q4_1 file. Nothing
is converted to float32 on the way in; with "auto" the values are the file's exactly, and so are the results those of the float32 model, bit for bit.
The other choices round: int8 to Q8_0 and int4 to Q4_0, ggml's blocks of 32 with a float16 scale each (int4 keeps the embedding and the head, where errors
show most, in Q8_0). Vectors (norms, biases) and learned positions are float32 always. csrc/cpu/quantized.h says how it lies in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from freedive import _core
from freedive.model.gguf import TYPES
from freedive.model.model import Model
from freedive.model.quants import quantize
from freedive.model.weights import VOCABULARY_ROWS, Weights, parameter_shapes
from freedive.runs import UserError

if TYPE_CHECKING:
    from freedive.model.config import DecoderConfig

CHOICES = ("auto", "float32", "bfloat16", "float16", "int8", "int4")
_NUMBER = {name: number for number, (name, _, _) in TYPES.items()}
_LAYER = {"bfloat16": "BF16", "float16": "F16", "int8": "Q8_0", "int4": "Q4_0"}


def check_weights(weights: str) -> str:
    """`weights` if it names a way to hold them; UserError otherwise."""
    if weights not in CHOICES:
        raise UserError(f"weights is {weights!r}", hint="auto (as the file holds them), float32, bfloat16, float16, int8 or int4")
    return weights


def groups(config: DecoderConfig) -> Iterator[tuple[str, ...]]:
    """Names of the matrices; those that one product computes together, side by side."""
    yield ("embed_tokens.weight",)
    for i in range(config.n_layer):
        layer = lambda *names: tuple(f"layers.{i}.{n}.weight" for n in names)  # noqa: B023
        yield layer("q_proj", "k_proj", "v_proj")
        yield layer("o_proj")
        yield layer("up_proj") if config.mlp == "gelu_tanh" else layer("gate_proj", "up_proj")
        yield layer("down_proj")
    if not config.tie_embeddings:
        yield ("lm_head.weight",)


def packed_model(source: Weights, weights: str, vocab_multiple: int, arguments: dict[str, Any]) -> Model | None:
    """A model for inference with `source`'s matrices packed as `weights` says; None if that is float32 after all. Raises UserError as to_model."""
    check_weights(weights)
    if arguments.get("trainable", True) and arguments.get("lora") is None:
        raise UserError("packed weights cannot be trained", hint='use weights="float32", or train an adapter beside them (lora)')
    config, real = source.config, source.config.vocab_size
    int8 = arguments.get("dtype") == "int8"
    if weights not in ("auto", "int8", "int4") and int8:
        raise UserError(f"dtype int8 needs weights of 8 or 4 bits, not {weights}", hint="weights auto (--weights auto), int8 or int4")
    if weights == "auto" and not int8 and (source.types is None or all(source.types(name) == "F32" for group in groups(config) for name in group)):
        return None
    if real % vocab_multiple:
        raise UserError(f"the vocabulary of {real} cannot be padded in packed weights")
    shapes = parameter_shapes(config)
    kinds = {name: _type_for(source, name, shapes[name][1], weights, int8) for group in groups(config) for name in group}
    sizes = [_core.quantized_size(shapes[name][0], shapes[name][1], _NUMBER[kind]) for name, kind in kinds.items()]
    matrix_bytes = sum(-(-size // 64) * 64 for size in sizes)  # each begins a line of the cache
    vectors = sum(4 * int(np.prod(shape)) for name, shape in shapes.items() if name not in kinds)
    model = Model(config, packed_bytes=matrix_bytes + vectors, **arguments)
    for name, view in model._parameters.items():
        if name not in kinds:
            view[...] = source.read(name)
    model._core.reserve_packed(matrix_bytes)
    for group in groups(config):
        parts = [(kinds[name], _rows(source, name, kinds[name])) for name in group]
        if len({kind for kind, _ in parts}) == 1:  # one product
            parts = [(parts[0][0], np.concatenate([rows for _, rows in parts]) if len(parts) > 1 else parts[0][1])]
        for kind, rows in parts:
            model._core.add_packed(group[0], np.ascontiguousarray(rows), _NUMBER[kind])
    model.packed = tuple(sorted(set(kinds.values())))
    model.touch()
    return model


def _type_for(source: Weights, name: str, columns: int, weights: str, int8: bool) -> str:
    """The type a matrix is held in. What no kernel reads, and what rows of this width cannot be cut into, is float32."""
    if weights == "auto":
        kind = source.types(name) if source.types is not None else "F32"
        if int8 and (kind in ("F32", "F16", "BF16") or not _core.quantized_size(1, columns, _NUMBER[kind])):
            kind = "Q8_0"  # Q6_K too, which no kernel reads
    else:
        kind = "Q8_0" if weights == "int4" and name in VOCABULARY_ROWS else _LAYER[weights]
    return kind if _core.quantized_size(1, columns, _NUMBER[kind]) else "F32"


def _rows(source: Weights, name: str, kind: str) -> np.ndarray:
    """uint8 [rows, bytes of one] of a matrix in the type `kind`."""
    if source.stored is not None and source.types is not None and source.types(name) == kind:
        return source.stored(name)[1]
    values = source.read(name)
    return quantize(kind, values).reshape(len(values), -1)


