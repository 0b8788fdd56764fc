"""What is here: /v1/models, /health, /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from .. import metrics
from ..asking import service_of
from ..errors import JSON
from ..service import Service

router = APIRouter()


def card(service: Service) -> dict[str, Any]:
    """The model as the API lists it."""
    model, tok = service.lm.model, service.lm.tokenizer
    c = model.config
    meta = {
        "n_params": c.n_params(), "context_length": service.context, "vocab_size": c.vocab_size, "n_layer": c.n_layer, "d_model": c.d_model, "n_head": c.n_head,
        "n_kv_head": c.n_kv_head, "dtype": model.dtype, "weights": list(model.packed) or ["float32"], "kv_cache_dtype": service.engine.kv_cache_dtype,
        "chat": tok.chat is not None,
    }  # fmt: skip
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "freedive", "max_model_len": service.context, "meta": meta}


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The one model there is."""
    return JSON({"object": "list", "data": [card(service_of(request))]})


@router.get("/v1/models/{model:path}")
async def model(request: Request, model: str) -> Response:
    """The model, if it has this name."""
    return JSON(card(service_of(request, model)))


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while requests are taken, 503 otherwise. Needs no key."""
    running = service_of(request).running
    return JSON({"status": "ok" if running else "shutting down"}, 200 if running else 503)


@router.get("/metrics")
async def prometheus(request: Request) -> Response:
    """Counters and gauges in Prometheus' text format."""
    return Response(request.app.state.metrics.text(), media_type=metrics.CONTENT_TYPE)
