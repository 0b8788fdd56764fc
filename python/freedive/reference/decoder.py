"""A whole decoder, forward and backward, out of the ops of this folder. The same lines as csrc/model/decoder.cpp, in float64.

Parameters are a dict of Hugging Face-like names. The one idea: `forward` keeps what each layer's backward needs in a
dict of named arrays, and `backward` walks the same lines from the last to the first.

Batches are flat: tokens [N], targets [N] or [N, K] (-1 = none), positions [N], cu_seqlens [S+1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import ops

Array = np.ndarray
Named = dict[str, Array]


def repeated(batch: Any) -> tuple[Array, Array, Array]:
    """rows, cu, own: the batch's rows laid out so that each sequence has its prefix before it, where those begin, and where each row's own copy is."""
    cu = np.asarray(batch.cu_seqlens)
    prefixes = getattr(batch, "prefixes", None)
    pieces: list[Array] = []
    lengths, own = [0], []
    for s, (a, b) in enumerate(zip(cu[:-1], cu[1:])):
        parent, before = (0, 0) if prefixes is None else prefixes[s]
        own.append(lengths[-1] + before + np.arange(b - a))
        pieces += [np.arange(cu[parent], cu[parent] + before), np.arange(a, b)]
        lengths.append(lengths[-1] + before + b - a)
    return np.concatenate(pieces), np.array(lengths), np.concatenate(own)


@dataclass
class Outputs:
    logprobs: Array  # [N] or [N, K], nats
    entropy: Array  # [N]
    lse: Array  # [N]


def parameter_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in order"""
    C, V, F = config.d_model, config.vocab_size, config.d_ff
    Q, KV = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (V, C)}

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (C,)
        if config.norm == "layernorm":
            shapes[f"{name}.bias"] = (C,)

    def linear(name: str, out: int, into: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    if config.position == "learned":
        shapes["embed_positions.weight"] = (config.max_positions, C)
    if getattr(config, "bigram_rows", 0):
        shapes["embed_bigrams.weight"] = (config.bigram_rows, C)
    for i in range(config.n_layer):
        layer = f"layers.{i}."
        norm(layer + "input_norm")
        linear(layer + "q_proj", Q, C, config.attention_bias)
        linear(layer + "k_proj", KV, C, config.attention_bias)
        linear(layer + "v_proj", KV, C, config.attention_bias)
        linear(layer + "o_proj", C, Q, getattr(config, "attention_out_bias", False))
        if config.qk_norm:
            shapes[layer + "q_norm.weight"] = shapes[layer + "k_norm.weight"] = (config.head_dim,)
        norm(layer + "mlp_norm")
        if config.mlp == "swiglu":
            linear(layer + "gate_proj", F, C, config.mlp_bias)
        linear(layer + "up_proj", F, C, config.mlp_bias)
        linear(layer + "down_proj", C, F, config.mlp_bias)
    norm("final_norm")
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (V, C)
    return shapes


def random_parameters(config: Any, seed: int, scale: float = 0.3) -> Named:
    """Parameters for tests: normal around 0, norm weights around 1"""
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    parameters = {name: scale * rng.standard_normal(shape) for name, shape in parameter_shapes(config).items()}
    return {name: value + 1 if name.endswith("norm.weight") else value for name, value in parameters.items()}


def rope_tables(config: Any) -> tuple[Array, Array]:
    """cos, sin [max_positions, D/2] of position * theta^(-2i/D), with Llama 3's stretching of the low frequencies if asked for"""
    R = config.head_dim // 2
    frequency = float(config.rope_theta) ** (-np.arange(R) / R)
    scaling = getattr(config, "rope_scaling", None)
    if scaling:
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * np.pi)  # within the original context
        keep = np.clip((turns - low) / (high - low), 0, 1)  # 1: as it was, 0: slowed down by the whole factor
        frequency = frequency * (keep + (1 - keep) / scaling["factor"])
    angle = np.arange(config.max_positions)[:, None] * frequency
    return np.cos(angle), np.sin(angle)


class Decoder:
    """forward, then backward of the same batch. Parameters are read as float64; gradients come back under the same names.

    adapter: LoRA pairs by name, lora_scale what their product is multiplied with; then gradients come back for these too.
    """

    def __init__(self, config: Any, parameters: Mapping[str, Array], adapter: Mapping[str, Array] | None = None, lora_scale: float = 1.0):
        self.config = config
        self.p = {name: np.asarray(value, dtype=np.float64) for name, value in {**parameters, **(adapter or {})}.items()}
        self.lora_scale = lora_scale
        self.head = self.p["embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"]
        self.scale = 1 / np.sqrt(config.head_dim)
        if config.position == "rope":
            self.cos, self.sin = rope_tables(config)

    # -- pieces used in both directions: x is the input of the norm or linear layer --

    def norm(self, name: str, x: Array) -> tuple[Array, tuple]:
        weight, bias, eps = self.p[name + ".weight"], self.p.get(name + ".bias"), self.config.norm_eps
        if self.config.norm == "layernorm":
            out, *statistics = ops.layernorm_forward(x, weight, bias, eps)
        else:
            out, *statistics = ops.rmsnorm_forward(x, weight, eps)
        return out, (x, *statistics)

    def norm_backward(self, name: str, dout: Array, saved: tuple, gradients: Named) -> Array:
        x, *statistics = saved
        if self.config.norm == "layernorm":
            dx, dweight, dbias = ops.layernorm_backward(dout, x, self.p[name + ".weight"], *statistics)
            gradients[name + ".bias"] += dbias
        else:
            dx, dweight = ops.rmsnorm_backward(dout, x, self.p[name + ".weight"], *statistics)
        gradients[name + ".weight"] += dweight
        return dx

    def linear(self, name: str, x: Array, residual: Array | None = None) -> Array:
        out = ops.matmul_forward(x, self.p[name + ".weight"], self.p.get(name + ".bias"), residual)
        if name + ".lora_A" in self.p:  # x W^T + s (x A^T) B^T
            out = out + self.lora_scale * (x @ self.p[name + ".lora_A"].T) @ self.p[name + ".lora_B"].T
        return out

    def linear_backward(self, name: str, dout: Array, x: Array, gradients: Named) -> Array:
        dweight, dbias = ops.matmul_backward_weight(dout, x)
        gradients[name + ".weight"] += dweight
        if name + ".bias" in gradients:
            gradients[name + ".bias"] += dbias
        dx = ops.matmul_backward_input(dout, self.p[name + ".weight"])
        if name + ".lora_A" in self.p:
            a, b = self.p[name + ".lora_A"], self.p[name + ".lora_B"]
            dlow = self.lora_scale * dout @ b  # [N, rank]
            gradients[name + ".lora_B"] += self.lora_scale * dout.T @ (x @ a.T)
            gradients[name + ".lora_A"] += dlow.T @ x
            dx = dx + dlow @ a
        return dx

    # -- the model --

    def second_table(self, batch: Any) -> tuple[str | None, Array]:
        """What is added to the embedding, and by which ids: learned positions or pairs of tokens, if any"""
        rows = getattr(self.config, "bigram_rows", 0)
        if rows:
            return "embed_bigrams.weight", ops.bigram_ids(batch.tokens, batch.cu_seqlens, rows, getattr(batch, "prefixes", None))[0]
        return "embed_positions.weight" if self.config.position == "learned" else None, batch.positions

    def hidden(self, batch: Any) -> tuple[Array, list[dict[str, Any]]]:
        """The residual stream after the last layer [N, C], and what each layer keeps"""
        c, p = self.config, self.p
        N, H, G, D = len(batch.tokens), c.n_head, c.n_kv_head, c.head_dim
        name, ids = self.second_table(batch)
        x = ops.embedding_forward(batch.tokens, ids, p["embed_tokens.weight"], p[name] if name else None)
        kept: list[dict[str, Any]] = []
        for i in range(c.n_layer):
            layer = f"layers.{i}."
            keep: dict[str, Any] = {}
            normed, keep["input_norm"] = self.norm(layer + "input_norm", x)
            q = self.linear(layer + "q_proj", normed).reshape(N, H, D)
            k = self.linear(layer + "k_proj", normed).reshape(N, G, D)
            v = self.linear(layer + "v_proj", normed).reshape(N, G, D)
            if c.qk_norm:
                keep["q_raw"], keep["k_raw"] = q, k
                q, keep["q_rstd"] = ops.rmsnorm_forward(q, p[layer + "q_norm.weight"], c.norm_eps)
                k, keep["k_rstd"] = ops.rmsnorm_forward(k, p[layer + "k_norm.weight"], c.norm_eps)
            if c.position == "rope":
                q = ops.rope(q, self.cos, self.sin, batch.positions)
                k = ops.rope(k, self.cos, self.sin, batch.positions)
            rows, cu, own = repeated(batch)
            attended, lse = (a[own] for a in ops.attention_forward(q[rows], k[rows], v[rows], cu, self.scale))
            keep.update(normed=normed, q=q, k=k, v=v, attended=attended, lse=lse)
            x = self.linear(layer + "o_proj", attended.reshape(N, H * D), residual=x)

            normed, keep["mlp_norm"] = self.norm(layer + "mlp_norm", x)
            up = self.linear(layer + "up_proj", normed)
            if c.mlp == "swiglu":
                keep["gate"] = self.linear(layer + "gate_proj", normed)
                activated = ops.swiglu_forward(keep["gate"], up)
            else:
                activated = ops.gelu_forward(up)
            keep.update(mlp_normed=normed, up=up, activated=activated)
            x = self.linear(layer + "down_proj", activated, residual=x)
            kept.append(keep)
        return x, kept

    def forward(self, batch: Any, temperature: float = 1.0, vocab_mask: Array | None = None) -> Outputs:
        x, kept = self.hidden(batch)
        normed, saved = self.norm("final_norm", x)
        targets = np.asarray(batch.targets).reshape(len(batch.tokens), -1)  # [N, K]
        logprobs, entropy, lse = ops.head_forward(normed, self.head, targets, temperature, vocab_mask)
        self.saved = (batch, kept, normed, saved, targets, temperature, vocab_mask)
        return Outputs(logprobs.reshape(np.shape(batch.targets)), entropy, lse)

    def backward(self, dlogprobs: Array | None = None, dentropy: Array | None = None, dlse: Array | None = None) -> Named:
        """Gradients of the loss whose derivatives by the outputs of the last forward are given"""
        c, p = self.config, self.p
        batch, kept, normed, saved, targets, temperature, vocab_mask = self.saved
        N, H, D = len(batch.tokens), c.n_head, c.head_dim
        g = {name: np.zeros_like(value) for name, value in p.items()}

        dlogprobs = None if dlogprobs is None else np.reshape(dlogprobs, targets.shape)
        dnormed, dhead = ops.head_backward(normed, self.head, targets, temperature, vocab_mask, dlogprobs, dentropy, dlse)
        g["embed_tokens.weight" if c.tie_embeddings else "lm_head.weight"] += dhead
        dx = self.norm_backward("final_norm", dnormed, saved, g)
        for i in reversed(range(c.n_layer)):
            layer, keep = f"layers.{i}.", kept[i]
            dactivated = self.linear_backward(layer + "down_proj", dx, keep["activated"], g)
            if c.mlp == "swiglu":
                dgate, dup = ops.swiglu_backward(dactivated, keep["gate"], keep["up"])
                dnormed = self.linear_backward(layer + "gate_proj", dgate, keep["mlp_normed"], g)
                dnormed = dnormed + self.linear_backward(layer + "up_proj", dup, keep["mlp_normed"], g)
            else:
                dup = ops.gelu_backward(dactivated, keep["up"])
                dnormed = self.linear_backward(layer + "up_proj", dup, keep["mlp_normed"], g)
            dx = dx + self.norm_backward(layer + "mlp_norm", dnormed, keep["mlp_norm"], g)

            dattended = self.linear_backward(layer + "o_proj", dx, keep["attended"].reshape(N, H * D), g).reshape(N, H, D)
            rows, cu, own = repeated(batch)
            dout = np.zeros_like(dattended[rows])
            dout[own] = dattended
            attended, lse, q, k, v = (keep[name][rows] for name in ("attended", "lse", "q", "k", "v"))
            dq, dk, dv = (np.zeros_like(keep[name]) for name in "qkv")
            for total, parts in zip((dq, dk, dv), ops.attention_backward(dout, attended, lse, q, k, v, cu, self.scale)):
                np.add.at(total, rows, parts)
            if c.position == "rope":
                dq = ops.rope(dq, self.cos, self.sin, batch.positions, inverse=True)
                dk = ops.rope(dk, self.cos, self.sin, batch.positions, inverse=True)
            if c.qk_norm:
                dq, dweight = ops.rmsnorm_backward(dq, keep["q_raw"], p[layer + "q_norm.weight"], keep["q_rstd"])
                g[layer + "q_norm.weight"] += dweight
                dk, dweight = ops.rmsnorm_backward(dk, keep["k_raw"], p[layer + "k_norm.weight"], keep["k_rstd"])
                g[layer + "k_norm.weight"] += dweight
            dnormed = self.linear_backward(layer + "q_proj", dq.reshape(N, -1), keep["normed"], g)
            dnormed = dnormed + self.linear_backward(layer + "k_proj", dk.reshape(N, -1), keep["normed"], g)
            dnormed = dnormed + self.linear_backward(layer + "v_proj", dv.reshape(N, -1), keep["normed"], g)
            dx = dx + self.norm_backward(layer + "input_norm", dnormed, keep["input_norm"], g)

        name, ids = self.second_table(batch)
        dwte, dwpe = ops.embedding_backward(dx, batch.tokens, ids, len(p["embed_tokens.weight"]), len(p[name]) if name else None)
        g["embed_tokens.weight"] += dwte
        if name is not None and dwpe is not None:
            g[name] += dwpe
        return g
