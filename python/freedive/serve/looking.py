"""A trace of a text for whoever asks, the API and the model page alike: bounded pieces of work that the engine's thread does between its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from freedive.model.trace import Lens, Trace, lens, trace
from freedive.runs import UserError

from .service import Service

PIECE = 64  # rows of a layer read in one call: with the head of SmolLM2-135M about 0.1 s of one core


async def look(service: Service, ids: Sequence[int]) -> Trace:
    """One forward of `ids`, as it passed. Raises UserError as model.trace."""
    return await service.call(trace, service.lm.model, ids)


async def read_layers(service: Service, seen: Trace, layers: Sequence[int] | None = None, k: int = 5) -> Lens:
    """The logit lens in pieces, so that others' tokens come in between. Raises UserError as model.trace.lens."""
    L = seen.config.n_layer
    chosen = tuple(range(L + 1)) if layers is None else tuple(layers)
    if not chosen:
        raise UserError("no layers are named", hint=f"the model has 0 (its embedding) to {L}")
    pieces = [replace(seen, ids=seen.ids[at : at + PIECE], residual=seen.residual[:, at : at + PIECE]) for at in range(0, len(seen.ids), PIECE)]
    rows = [[await service.call(lens, service.lm.model, piece, [layer], k) for piece in pieces] for layer in chosen]
    whole = lambda name: np.concatenate([np.concatenate([getattr(p, name) for p in row], axis=1) for row in rows])
    return Lens(chosen, whole("ids"), whole("logprobs"), whole("entropy"))


async def read_attention(service: Service, seen: Trace, layers: Sequence[int], heads: Sequence[int]) -> np.ndarray:
    """Maps [layers, heads, tokens, tokens], float32, a layer a call; layers and heads from 0. IndexError for those that are not there."""
    n = len(seen.ids)
    one = lambda layer: np.array([seen.attention(layer, head) for head in heads], np.float32).reshape(len(heads), n, n)
    return np.array([await service.call(one, layer) for layer in layers], np.float32).reshape(len(layers), len(heads), n, n)
