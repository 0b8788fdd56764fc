"""POST /v1/trace: what passed through the model with a text. Not OpenAI's; for seeing (talk 1.4), and for the model page.

    {"prompt": "The capital of France is", "want": ["lens", "attention"], "layers": [0, 15, 30], "top_k": 3}
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Response
from pydantic import Field

from freedive.model.trace import MAX_TRACE_TOKENS, Trace
from freedive.runs import UserError

from ..errors import JSON
from ..looking import look, read_layers
from ..schemas import Ids, Strict
from ..service import Service

MAX_ATTENTION = 4_000_000  # numbers of one answer, 8 MB of float16
_Number = Annotated[int, Field(ge=0, lt=4096)]


class TraceRequest(Strict):
    """POST /v1/trace."""

    model: Annotated[str, Field(max_length=500)] | None = None
    prompt: Annotated[str, Field(min_length=1, max_length=100_000)] | Ids  # text is encoded as /v1/completions does; at most 256 tokens
    want: Annotated[list[Literal["topk", "lens", "attention", "norms"]], Field(min_length=1, max_length=4)] = ["topk"]
    layers: Annotated[list[_Number], Field(min_length=1, max_length=512)] | None = None  # of lens (0 is the embedding) and attention (1 is the first block); None: all
    heads: Annotated[list[_Number], Field(min_length=1, max_length=1024)] | None = None  # of attention, from 0; None: all
    top_k: Annotated[int, Field(ge=1, le=20)] = 5


def router(service: Service) -> APIRouter:
    """The route, for a service."""
    routes = APIRouter()

    @routes.post("/v1/trace")
    async def trace(request: TraceRequest) -> Response:
        """The likeliest next tokens at every position (topk) and after every layer (lens), the attention maps, the norms of the residual stream."""
        tok = service.lm.tokenizer
        ids = tok.document_ids(request.prompt) if isinstance(request.prompt, str) else request.prompt
        if len(ids) > MAX_TRACE_TOKENS:
            raise UserError(f"the prompt has {len(ids)} tokens; a trace takes at most {MAX_TRACE_TOKENS}")
        blocks, heads = _chosen(service, request, len(ids))
        seen = await look(service, ids)
        c = seen.config
        out: dict[str, Any] = {"object": "trace", "model": service.name, "tokens": list(map(int, ids)), "pieces": [tok.decode([i]) for i in ids],
                               "n_layer": c.n_layer, "n_head": c.n_head, "d_model": c.d_model}  # fmt: skip
        if "topk" in request.want:
            last = await read_layers(service, seen, [c.n_layer], request.top_k)
            out["topk"] = [[{"id": int(i), "text": tok.decode([int(i)]), "logprob": float(lp)} for i, lp in zip(*row)] for row in zip(last.ids[0], last.logprobs[0])]
        if "lens" in request.want:
            found = await read_layers(service, seen, request.layers, request.top_k)
            out["lens"] = {"layers": list(found.layers), "ids": found.ids.tolist(), "logprobs": found.logprobs.tolist(), "entropy": found.entropy.tolist()}
        if "norms" in request.want:
            out["norms"] = seen.norms().tolist()
        if "attention" in request.want:
            out["attention"] = _attention(seen, blocks, heads)
        return JSON(out)

    return routes


def _chosen(service: Service, request: TraceRequest, n: int) -> tuple[list[int], list[int]]:
    """Blocks (from 1) and heads (from 0) of the attention maps asked for. UserError for what the model does not have, or too much at once."""
    c = service.lm.model.config
    if any(layer > c.n_layer for layer in request.layers or []):
        raise UserError(f"layers are {request.layers!r:.80}; the model has 0 (its embedding) to {c.n_layer}")
    blocks = [layer for layer in request.layers if layer > 0] if request.layers is not None else list(range(1, c.n_layer + 1))
    heads = request.heads if request.heads is not None else list(range(c.n_head))
    if any(head >= c.n_head for head in heads):
        raise UserError(f"heads are {heads!r:.80}; the model has 0 to {c.n_head - 1}")
    numbers = len(blocks) * len(heads) * n * n
    if "attention" in request.want and numbers > MAX_ATTENTION:
        raise UserError(f"{len(blocks)} layers of {len(heads)} heads and {n} tokens are {numbers:,} numbers; at most {MAX_ATTENTION:,} are sent", hint="name fewer layers or heads")
    return blocks, heads


def _attention(seen: Trace, blocks: list[int], heads: list[int]) -> dict[str, Any]:
    maps = np.array([[seen.attention(layer - 1, head) for head in heads] for layer in blocks], np.float16)
    shape = [len(blocks), len(heads), len(seen.ids), len(seen.ids)]
    return {"layers": blocks, "heads": heads, "shape": shape, "dtype": "float16", "data": base64.b64encode(maps.astype("<f2").tobytes()).decode()}
