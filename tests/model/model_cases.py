"""Tiny configurations and batches for the tests of the compiled decoder. Every size that a kernel tiles by is missed by some case."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from freedive.model import Batch, DecoderConfig, Model

LLAMA31_TINY = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}

DEVICE = os.environ.get("FREEDIVE_TEST_DEVICE", "cpu")  # the tests of this folder on another device: FREEDIVE_TEST_DEVICE=cuda-emu pytest tests/model

CONFIGS: dict[str, DecoderConfig] = {
    "gpt2": DecoderConfig(67, 2, 3, 3, 24, 8, 40, 48, norm="layernorm", norm_eps=1e-5, position="learned", mlp="gelu_tanh", attention_bias=True,
                          attention_out_bias=True, mlp_bias=True, qk_norm=False),
    "llama_gqa": DecoderConfig(97, 2, 4, 2, 32, 8, 48, 64, norm_eps=1e-5, rope_theta=500000.0, rope_scaling=LLAMA31_TINY, qk_norm=False,
                               tie_embeddings=False),
    "qwen3_tied": DecoderConfig(64, 3, 4, 2, 32, 8, 64, 64),
    "wide_heads": DecoderConfig(50, 2, 2, 1, 24, 32, 40, 40, tie_embeddings=False),  # head_dim > d_model / n_head
    "odd": DecoderConfig(37, 2, 5, 1, 21, 6, 29, 77),
    "swiglu_biases": DecoderConfig(33, 1, 3, 3, 18, 10, 19, 40, attention_bias=True, attention_out_bias=True, mlp_bias=True, tie_embeddings=False),
    "learned_qk_norm": DecoderConfig(41, 2, 4, 4, 20, 5, 23, 40, position="learned", mlp="gelu_tanh"),  # odd head_dim, nothing rotates
    "bigrams": DecoderConfig(43, 2, 4, 2, 32, 8, 48, 64, bigram_rows=211),
}  # fmt: skip


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 77]))


def make_model(config: DecoderConfig, seed: int = 1, scale: float = 0.3, **arguments: Any) -> Model:
    """A model with parameters large enough for every term of the maths to matter: normal of std `scale`, norm weights around 1."""
    arguments = {"max_tokens": 256, "max_seqs": 16, "threads": 1, "device": DEVICE} | arguments
    model, rng = Model(config, **arguments), generator(seed)
    for name, view in model.parameters.items():
        view[...] = scale * rng.standard_normal(view.shape) + (1.0 if name.endswith("norm.weight") else 0.0)
    return model


def make_batch(config: DecoderConfig, seed: int = 2, lengths: tuple[int, ...] = (17, 1, 33, 6), k: int = 1, skip: float = 0.2) -> Batch:
    """Random ids; a part of the rows has no target. k > 1: targets [N, k]."""
    rng, sequences = generator(seed), []
    for length in (min(n, config.max_positions) for n in lengths):
        targets = rng.integers(0, config.vocab_size, (length, k))
        targets[rng.random(length) < skip] = -1
        sequences.append((rng.integers(0, config.vocab_size, length), targets if k > 1 else targets[:, 0]))
    return Batch.pack(sequences)


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """|got - want| / |want|; the plain norm where want is 0."""
    size = float(np.linalg.norm(want))
    return float(np.linalg.norm(np.asarray(got, np.float64) - want)) / (size or 1.0)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def gradients(model: Model) -> dict[str, np.ndarray]:
    return {name: g.copy() for name, g in model.gradients.items()}
