"""A trace of a text for whoever asks, the API and the model page alike: bounded pieces of work that the engine's thread does between its steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from freedive.model.trace import Lens, Trace, lens, trace
from freedive.runs import UserError

from .service import Service


async def look(service: Service, ids: Sequence[int]) -> Trace:
    """One forward of `ids`, as it passed. Raises UserError as model.trace."""
    return await service.call(trace, service.lm.model, ids)


async def read_layers(service: Service, seen: Trace, layers: Sequence[int] | None = None, k: int = 5) -> Lens:
    """The logit lens, a layer a call, so that others' tokens come in between. Raises UserError as model.trace.lens."""
    L = seen.config.n_layer
    chosen = tuple(range(L + 1)) if layers is None else tuple(layers)
    if not chosen:
        raise UserError("no layers are named", hint=f"the model has 0 (its embedding) to {L}")
    parts = [await service.call(lens, service.lm.model, seen, [layer], k) for layer in chosen]
    return Lens(chosen, *(np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "logprobs", "entropy")))
