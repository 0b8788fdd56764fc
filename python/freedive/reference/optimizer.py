"""Optimizers over named parameters, with global-norm clipping: AdamW (Loshchilov and Hutter, arXiv:1711.05101), as written in csrc/ops.h, and
Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), its iteration by Polar Express."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from . import ops

Named = dict[str, np.ndarray]


def gradient_norm(gradients: Named) -> float:
    """Euclidean norm of all gradients seen as one vector"""
    return float(np.sqrt(sum(ops.global_norm(g) ** 2 for g in gradients.values())))


def is_matrix(name: str, parameter: np.ndarray) -> bool:
    """Usual choice of what decays: matrices and embeddings; norms and biases don't"""
    return parameter.ndim >= 2


@dataclass
class AdamW:
    """State of the optimizer: step count t and the two moments of every parameter"""

    t: int = 0
    m: Named = field(default_factory=dict)
    v: Named = field(default_factory=dict)

    def step(
        self,
        parameters: Named,
        gradients: Named,
        lr: float | dict[str, float],
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        max_norm: float = 1.0,
        decays: Callable[[str, np.ndarray], bool] = is_matrix,
    ) -> float:
        """Replaces the entries of `parameters`. Returns the gradient norm before clipping; a non-finite one skips the update. lr may be one for each name."""
        norm = gradient_norm(gradients)
        if not np.isfinite(norm):
            return norm
        self.t += 1
        for name, parameter in parameters.items():
            m = self.m.get(name, np.zeros_like(parameter, dtype=np.float64))
            v = self.v.get(name, np.zeros_like(parameter, dtype=np.float64))
            decay = weight_decay if decays(name, parameter) else 0.0
            hyper = (lr[name] if isinstance(lr, dict) else lr, beta1, beta2, eps, decay, max_norm, 1 - beta1**self.t, 1 - beta2**self.t)
            parameters[name], self.m[name], self.v[name] = ops.adamw(parameter, gradients[name], m, v, norm, hyper)
        return norm


# Of a x + b x^3 + c x^5, one step after the other: the polynomial nearest to 1 on what the one before left of [0.003, 1], all but the last of x / 1.01
# (Polar Express, Amsel et al. 2025, arXiv:2505.16932; dev/newton_schulz.py computes them).
NEWTON_SCHULZ = ((8.3007, -24.0375, 17.4661), (4.0034, -2.9228, 0.5419), (3.4709, -2.5494, 0.5002), (2.4901, -1.8343, 0.4368))


def newton_schulz(x: np.ndarray) -> np.ndarray:
    """x with its singular values made about 1 (0.78 to 1.20 where they were more than 0.003 of its norm): what U V^T of x = U S V^T is,
    roughly. 0 stays 0."""
    x = x / max(float(np.linalg.norm(x)), 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def muon_scale(rule: str, rows: int, columns: int) -> float:
    """How long a step is, by the shape of its matrix: "original" (Jordan), "spectral" (sqrt of out by in) or "match_rms_adamw" (arXiv:2502.16982)"""
    if rule == "original":
        return max(1.0, rows / columns) ** 0.5
    return (rows / columns) ** 0.5 if rule == "spectral" else 0.2 * max(rows, columns) ** 0.5


def takes_muon(name: str, parameter: np.ndarray) -> bool:
    """Matrices of the layers; not the embeddings, the head and vectors"""
    return name.startswith("layers.") and parameter.ndim == 2


@dataclass
class Muon:
    """Muon on the layers' matrices, each whole (q, k, v, gate and up apart), AdamW on the rest. State: one momentum a matrix, and AdamW's"""

    adamw: AdamW = field(default_factory=AdamW)
    m: Named = field(default_factory=dict)

    def step(
        self,
        parameters: Named,
        gradients: Named,
        lr: float,
        adamw_lr: float,
        embedding_lr: float | None = None,
        head_lr: float | None = None,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        max_norm: float = 1.0,
        scale: str = "match_rms_adamw",
    ) -> float:
        """Replaces the entries of `parameters`. Returns the gradient norm before clipping; a non-finite one skips the update.

        AdamW's rates: adamw_lr, unless embeddings and a head of its own have another."""
        norm = gradient_norm(gradients)
        if not np.isfinite(norm):
            return norm
        hyper = (lr, momentum, float(nesterov), weight_decay, max_norm)
        muon = {name for name, p in parameters.items() if takes_muon(name, p)}
        for name in muon:
            p = parameters[name]
            out, self.m[name] = ops.muon_momentum(self.m.get(name, np.zeros_like(p, dtype=np.float64)), gradients[name], norm, hyper)
            parameters[name] = ops.muon_update(p, newton_schulz(out), norm, hyper, muon_scale(scale, *p.shape))
        others = {name: p for name, p in parameters.items() if name not in muon}
        clipped = min(1.0, max_norm / norm) if max_norm > 0 and norm > 0 else 1.0  # by the norm of all gradients, not of these
        rates = {n: embedding_lr if n.startswith("embed") else head_lr if n == "lm_head.weight" else None for n in others}
        self.adamw.step(others, {n: gradients[n] * clipped for n in others}, {n: adamw_lr if r is None else r for n, r in rates.items()},
                        weight_decay=weight_decay, max_norm=0.0)  # fmt: skip
        parameters.update(others)
        return norm
