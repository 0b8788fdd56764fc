"""POST /v1/trace: what passed through the model with a text. Not OpenAI's; for seeing (talk 1.4), and what the model page draws.

    {"prompt": "The capital of France is", "want": ["lens", "attention"], "layers": [0, 15, 30], "top_k": 3}
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from freedive.model.trace import MAX_TRACE_TOKENS

from ..asking import service_of, token_text
from ..errors import JSON, APIError, finite
from ..looking import look, read_attention, read_layers
from ..schemas import TraceRequest
from ..service import Service
from ..sse import while_there

MAX_ATTENTION = 4_000_000  # numbers of one answer, 8 MB of float16
MAX_LENS = 8192  # places (layers x tokens) read through the head: of SmolLM2-135M about 8 s of one core
router = APIRouter()


@router.post("/v1/trace")
async def trace(request: Request, ask: TraceRequest) -> Response:
    """The likeliest next tokens at every position (topk) and after every layer (lens), attention maps, norms of the residual stream."""
    service = service_of(request, ask.model)
    ids = service.lm.tokenizer.document_ids(ask.prompt) if isinstance(ask.prompt, str) else ask.prompt
    most = min(MAX_TRACE_TOKENS, service.lm.model.max_tokens, service.lm.model.config.max_positions)
    if len(ids) > most:
        raise APIError(400, f"the prompt has {len(ids)} tokens; a trace takes at most {most}", code="context_length_exceeded", param="prompt")
    blocks, heads = _chosen(service, ask, len(ids))
    return JSON(await while_there(request, _traced(service, ask, ids, blocks, heads)))


async def _traced(service: Service, ask: TraceRequest, ids: list[int], blocks: list[int], heads: list[int]) -> dict[str, Any]:
    tok, want, k = service.lm.tokenizer, ask.want or ["topk"], ask.top_k or 5
    seen = await look(service, ids)
    c = seen.config
    out: dict[str, Any] = {"object": "trace", "model": service.name, "tokens": list(map(int, ids)), "token_strs": [token_text(tok, i) for i in ids],
                           "n_layer": c.n_layer, "n_head": c.n_head, "d_model": c.d_model}  # fmt: skip
    if "topk" in want:
        last = await read_layers(service, seen, [c.n_layer], k)
        out["topk"] = [[{"id": int(i), "token": token_text(tok, int(i)), "logprob": finite(float(lp))} for i, lp in zip(*row)] for row in zip(last.ids[0], last.logprobs[0])]
    if "lens" in want:
        found = await read_layers(service, seen, ask.layers, k)
        out["lens"] = {"layers": list(found.layers), "ids": found.ids.tolist(), "logprobs": np.maximum(found.logprobs, -9999).tolist(), "entropy": found.entropy.tolist()}
    if "norms" in want:
        out["norms"] = seen.norms().tolist()
    if "attention" in want:
        maps = await read_attention(service, seen, [layer - 1 for layer in blocks], heads)
        coded = base64.b64encode(maps.astype("<f2").tobytes()).decode()
        out["attention"] = {"layers": blocks, "heads": heads, "shape": list(maps.shape), "dtype": "float16", "data": coded}
    return out


def _chosen(service: Service, ask: TraceRequest, n: int) -> tuple[list[int], list[int]]:
    """Blocks (from 1) and heads (from 0) of the attention maps asked for. APIError for what the model does not have, or too much at once."""
    c = service.lm.model.config
    if any(layer > c.n_layer for layer in ask.layers or []):
        raise APIError(400, f"layers are {ask.layers!r:.80}; the model has 0 (its embedding) to {c.n_layer}", param="layers")
    blocks = [layer for layer in ask.layers if layer > 0] if ask.layers is not None else list(range(1, c.n_layer + 1))
    heads = ask.heads if ask.heads is not None else list(range(c.n_head))
    if any(head >= c.n_head for head in heads):
        raise APIError(400, f"heads are {heads!r:.80}; the model has 0 to {c.n_head - 1}", param="heads")
    rows = n * len(ask.layers if ask.layers is not None else range(c.n_layer + 1))
    if "lens" in (ask.want or []) and rows > MAX_LENS:
        raise APIError(400, f"{rows:,} places are more than the {MAX_LENS:,} that are read at once; name fewer layers, or shorten the prompt", param="layers")
    numbers = len(blocks) * len(heads) * n * n
    if "attention" in (ask.want or []) and numbers > MAX_ATTENTION:
        told = f"{len(blocks)} layers of {len(heads)} heads and {n} tokens are {numbers:,} numbers; at most {MAX_ATTENTION:,} are sent: name fewer layers or heads"
        raise APIError(400, told, param="layers")
    return blocks, heads
