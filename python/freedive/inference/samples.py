"""A few samples after a stage, for people to read: what the base model dreams, what the assistant says."""

from __future__ import annotations

from typing import Any

from freedive.model import Model
from freedive.tokenizer import Tokenizer


def draw_samples(model: Model, tok: Tokenizer, prompts: list[list[int]], max_new_tokens: int, seed: int, temperature: float = 0.8,
                 stop_ids: tuple[int, ...] | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """[{"prompt", "text", "stopped"}] for each prompt (ids)."""
    from .engine import Engine

    stops = tok.stop_ids if stop_ids is None else stop_ids
    outs = Engine(model, tok).generate(prompts, max_new_tokens=max_new_tokens, temperature=temperature, stop_ids=stops,
                                       seeds=[seed + i for i in range(len(prompts))])  # fmt: skip
    return [{"prompt": tok.decode(p[1:] if p and p[0] == tok.special_tokens.get(tok.bos) else p), "text": o.text, "stopped": o.stopped} for p, o in zip(prompts, outs)]
