"""A tiny model to serve, and what must hold when nobody is served any more."""

from __future__ import annotations

import asyncio

import numpy as np

from freedive.inference import LM
from freedive.model import DecoderConfig, Model
from freedive.serve import Service
from freedive.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
CONFIG = DecoderConfig(n_layer=2, d_model=32, n_head=4, n_kv_head=2, head_dim=8, d_ff=64, vocab_size=TOKENIZER.vocab_size, max_positions=128, qk_norm=True)


def make_lm(config=CONFIG, tokenizer=TOKENIZER, seed=3, scale=6.0, **capacity):
    """Random weights, large enough that what is likeliest differs from token to token."""
    model = Model(config, **(dict(max_tokens=512, max_seqs=64, threads=2, trainable=False) | capacity)).init(seed)
    for name, view in model.parameters.items():
        if not name.endswith("norm.weight"):
            view *= np.float32(scale)
    return LM(model, tokenizer)


def run_with(lm, body, **settings):
    """What `await body(service)` gives, with a service that runs meanwhile."""

    async def go():
        service = Service(lm, name="tiny", **settings)
        service.start()
        try:
            return await asyncio.wait_for(body(service), 60)
        finally:
            await service.close()

    return asyncio.run(go())


def leaks(service):
    """Fails unless every row and block is free."""
    engine = service.engine
    with engine.model.lock:
        assert not engine.scheduler.admitted and not engine.scheduler.waiting
        assert engine.manager.free == engine.manager.n
        assert all(count == 0 for count in engine.manager._references)
        assert len(engine.scheduler._free_rows) == min(engine.model.max_seqs, engine.model.max_tokens)
