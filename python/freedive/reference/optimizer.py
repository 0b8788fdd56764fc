"""AdamW with global-norm clipping over named parameters: Loshchilov and Hutter, arXiv:1711.05101, as written in csrc/ops.h."""

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
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        max_norm: float = 1.0,
        decays: Callable[[str, np.ndarray], bool] = is_matrix,
    ) -> float:
        """Replaces the entries of `parameters`. Returns the gradient norm before clipping; a non-finite one skips the update."""
        norm = gradient_norm(gradients)
        if not np.isfinite(norm):
            return norm
        self.t += 1
        for name, parameter in parameters.items():
            m = self.m.get(name, np.zeros_like(parameter, dtype=np.float64))
            v = self.v.get(name, np.zeros_like(parameter, dtype=np.float64))
            decay = weight_decay if decays(name, parameter) else 0.0
            hyper = (lr, beta1, beta2, eps, decay, max_norm, 1 - beta1**self.t, 1 - beta2**self.t)
            parameters[name], self.m[name], self.v[name] = ops.adamw(parameter, gradients[name], m, v, norm, hyper)
        return norm
