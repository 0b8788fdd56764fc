"""PPO's value model: a decoder of its own, beginning as the policy, with one row of numbers on its final hidden states: V = h w + b.

The one idea: the row lives in NumPy, and its derivative goes into the decoder through `backward(dhidden=...)`. It begins at zero, so the first
advantages are the returns themselves.
"""

from __future__ import annotations

import numpy as np

from freedive.model import Batch, Model


class ValueModel:
    """`values(batch)` float32 [N], about the state in which each target is said; `backward` adds gradients; `step` is AdamW on both parts."""

    def __init__(self, model: Model):
        self.model = model
        self.head = np.zeros(model.config.d_model + 1)  # w, then b
        self.gradient, self.m, self.v = np.zeros_like(self.head), np.zeros_like(self.head), np.zeros_like(self.head)
        self.steps = 0
        self._hidden: np.ndarray | None = None

    def values(self, batch: Batch, keep: bool = False) -> np.ndarray:
        """keep: for one `backward`. Targets are not read, so the vocabulary's head is not computed."""
        blank = Batch(batch.tokens, np.full(len(batch.tokens), -1, np.int32), batch.positions, batch.cu_seqlens)
        (self.model.forward if keep else self.model.score)(blank)
        hidden = self.model.last_hidden()
        self._hidden = hidden if keep else None
        return (hidden @ self.head[:-1] + self.head[-1]).astype(np.float32)

    def backward(self, dvalues: np.ndarray) -> None:
        """Given the loss's derivative by each value of the last `values(keep=True)`."""
        if self._hidden is None:
            raise RuntimeError("backward needs values(batch, keep=True) before it")
        d = np.asarray(dvalues, np.float64)
        self.gradient += np.append(d @ self._hidden, d.sum())
        self.model.backward(dhidden=d[:, None] * self.head[None, :-1])
        self._hidden = None

    def zero_grad(self) -> None:
        self.model.zero_grad()
        self.gradient[:] = 0

    def step(self, lr: float, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8, max_norm: float = 1.0) -> float:
        """AdamW on decoder and row, each clipped to max_norm; returns the larger norm. A non-finite one changes nothing."""
        norm = float(np.sqrt((self.gradient**2).sum()))
        if not np.isfinite(norm):
            return norm
        other = self.model.adamw(lr, beta1, beta2, eps, weight_decay=0.0, max_norm=max_norm)
        if not np.isfinite(other):
            return other
        g = self.gradient * min(1.0, max_norm / max(norm, 1e-12))
        self.steps += 1
        self.m += (1 - beta1) * (g - self.m)
        self.v += (1 - beta2) * (g * g - self.v)
        self.head -= lr * (self.m / (1 - beta1**self.steps)) / (np.sqrt(self.v / (1 - beta2**self.steps)) + eps)
        return max(norm, other)

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs, by names that are not the policy's."""
        own = {"value.head": self.head, "value.head_m": self.m, "value.head_v": self.v, "value.steps": np.array([self.steps], np.int64)}
        return {k: v.copy() for k, v in own.items()} | {f"value.{k}": v for k, v in self.model.state().items()}

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        mine = {k.removeprefix("value."): v for k, v in arrays.items() if k.startswith("value.")}
        self.head[:], self.m[:], self.v[:], self.steps = mine["head"], mine["head_m"], mine["head_v"], int(mine["steps"][0])
        self.model.load_state({k: v for k, v in mine.items() if k not in ("head", "head_m", "head_v", "steps")})
