"""POST /v1/embeddings: a text as a vector, made of the last hidden states (after the final norm), of length 1."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from freedive.inference import LM
from freedive.model import Batch

from ..asking import beside, service_of, usage
from ..errors import JSON, APIError
from ..schemas import EmbeddingRequest
from ..sse import while_there

router = APIRouter()


def embed(lm: LM, ids: list[int], pooling: str) -> np.ndarray:
    """float32 [d_model] of Euclidean length 1: the mean of the hidden states of all positions, or the last position's."""
    hidden = lm.model.hidden(Batch.pack([(ids, [-1] * len(ids))]))  # [N, d_model]
    vector = hidden.astype(np.float64).mean(axis=0) if pooling == "mean" else hidden[-1].astype(np.float64)
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


@router.post("/v1/embeddings")
async def embeddings(request: Request, ask: EmbeddingRequest) -> Response:
    """Vectors of texts or of lists of ids. Which pooling made them is told as x_pooling."""
    service = service_of(request, ask.model)
    lm, pooling = service.lm, ask.pooling or "mean"
    width = lm.model.config.d_model
    if ask.dimensions not in (None, width):
        raise APIError(400, f"dimensions is {ask.dimensions}; this model's vectors have {width}", param="dimensions")
    given: Any = ask.input
    many = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    encode = lambda: [lm.tokenizer.document_ids(one) if isinstance(one, str) else one for one in many]
    prompts = await beside(sum(len(one) for one in many if isinstance(one, str)), encode)
    most = min(service.lm.model.config.max_positions, lm.model.max_tokens)
    for at, ids in enumerate(prompts):
        if len(ids) > most:
            hint = "" if most == service.context else "; freedive serve --max-batch-tokens takes more"
            raise APIError(400, f"input {at} has {len(ids):,} tokens; a vector is made of at most {most:,} here{hint}", code="context_length_exceeded", param="input")
        if max(ids) >= lm.model.config.vocab_size:
            raise APIError(400, f"input {at} has the token id {max(ids)}; the vocabulary has {lm.model.config.vocab_size}", param="input")

    async def work() -> list[np.ndarray]:  # one at a time: those who generate take a step between two
        return [await service.call(embed, lm, ids, pooling) for ids in prompts]

    vectors = await while_there(request, work())
    told = [base64.b64encode(v.astype("<f4").tobytes()).decode() if ask.encoding_format == "base64" else v.tolist() for v in vectors]
    counts = usage(sum(map(len, prompts)), 0, 0)
    return JSON({"object": "list", "model": service.name, "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(told)],
                 "usage": {name: counts[name] for name in ("prompt_tokens", "total_tokens")}, "x_pooling": pooling})  # fmt: skip
