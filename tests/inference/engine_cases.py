"""A tiny model with random weights, sharp enough that sampling has favourites, and prompts of lengths around the cache's block of 32."""

from __future__ import annotations

from typing import Any

import numpy as np

from freedive.inference import Completion, Engine
from freedive.model import Batch, DecoderConfig, Model
from freedive.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
CONFIG = DecoderConfig(TOKENIZER.vocab_size, 2, 4, 2, 32, 8, 48, 160)
GPT2 = DecoderConfig(TOKENIZER.vocab_size, 2, 3, 3, 24, 8, 40, 160, norm="layernorm", norm_eps=1e-5, position="learned", mlp="gelu_tanh",
                     attention_bias=True, attention_out_bias=True, mlp_bias=True, qk_norm=False)  # fmt: skip

BIGRAMS = DecoderConfig(TOKENIZER.vocab_size, 2, 4, 2, 32, 8, 48, 160, bigram_rows=701)


def make_model(config: DecoderConfig = CONFIG, **arguments: Any) -> Model:
    model = Model(config, **({"max_tokens": 512, "max_seqs": 16, "threads": 2, "trainable": False} | arguments))
    rng = np.random.Generator(np.random.Philox(key=[5, 77]))
    for name, view in model.parameters.items():
        view[...] = 0.3 * rng.standard_normal(view.shape) + (1.0 if name.endswith("norm.weight") else 0.0)
    return model


def make_engine(config: DecoderConfig = CONFIG, **arguments: Any) -> Engine:
    return Engine(make_model(config, **arguments), TOKENIZER)


def make_prompts(lengths: tuple[int, ...] = (1, 31, 32, 33, 64, 65, 100, 7, 7, 2, 50, 97), seed: int = 3) -> list[list[int]]:
    rng = np.random.Generator(np.random.Philox(key=[seed, 78]))
    return [rng.integers(0, 256, n).tolist() for n in lengths]


def same(a: list[Completion], b: list[Completion]) -> bool:
    """Bit-equal."""
    return len(a) == len(b) and all(
        x.ids == y.ids and x.stopped == y.stopped and x.text == y.text and np.array_equal(x.logprobs, y.logprobs) for x, y in zip(a, b)
    )


def rescored(model: Model, prompts: list[list[int]], outs: list[Completion], temperature: float) -> list[np.ndarray]:
    """The training forward's log-probs of the sampled ids, one sequence at a time."""
    found = []
    for prompt, out in zip(prompts, outs):
        ids = [*prompt, *out.ids]
        targets = [-1] * (len(prompt) - 1) + out.ids
        found.append(model.score(Batch.pack([(ids[:-1], targets)]), temperature).logprobs[len(prompt) - 1 :])
    return found
