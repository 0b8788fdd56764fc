"""A number for each position: PPO's value model, a decoder of its own beginning as the policy, with one row of numbers on its final hidden
states, V = h w + b. A reward model (freedive.rlhf) is the same thing, read at one place.

The one idea: the row lives in NumPy, and its derivative goes into the decoder through `backward(dhidden=...)`. It begins at zero, so the first
advantages are the returns themselves.
"""

from __future__ import annotations

import numpy as np

from freedive.model import Batch, Model


class Head:
    """The row w and b, float64 [d + 1], with its gradient and AdamW's moments."""

    def __init__(self, d: int):
        self.row = np.zeros(d + 1)  # w, then b
        self.gradient, self.m, self.v = np.zeros_like(self.row), np.zeros_like(self.row), np.zeros_like(self.row)
        self.steps = 0

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        """hidden [N, d] -> float32 [N]"""
        return (hidden @ self.row[:-1] + self.row[-1]).astype(np.float32)

    def backward(self, d: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Adds to the gradient; the derivative by the hidden states. d float64 [N]"""
        self.gradient += np.append(d @ hidden, d.sum())
        return d[:, None] * self.row[None, :-1]

    def norm(self) -> float:
        return float(np.sqrt((self.gradient**2).sum()))

    def adamw(self, lr: float, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8, max_norm: float = 1.0, weight_decay: float = 0.0) -> None:
        """One step, of the gradient clipped to max_norm; it must be finite. The decay is of w, not of b."""
        g = self.gradient * min(1.0, max_norm / max(self.norm(), 1e-12))
        self.steps += 1
        self.m += (1 - beta1) * (g - self.m)
        self.v += (1 - beta2) * (g * g - self.v)
        self.row[:-1] *= 1 - lr * weight_decay
        self.row -= lr * (self.m / (1 - beta1**self.steps)) / (np.sqrt(self.v / (1 - beta2**self.steps)) + eps)

    def state(self) -> dict[str, np.ndarray]:
        own = {"head": self.row, "head_m": self.m, "head_v": self.v, "steps": np.array([self.steps], np.int64)}
        return {k: v.copy() for k, v in own.items()}

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        self.row[:], self.m[:], self.v[:], self.steps = arrays["head"], arrays["head_m"], arrays["head_v"], int(arrays["steps"][0])


class ValueModel:
    """`values(batch)` float32 [N], about the state in which each target is said; `backward` adds gradients; `step` is AdamW on both parts."""

    def __init__(self, model: Model):
        self.model, self.head = model, Head(model.config.d_model)
        self._hidden: np.ndarray | None = None

    def values(self, batch: Batch, keep: bool = False) -> np.ndarray:
        """keep: for one `backward`. Targets are not read, so the vocabulary's head is not computed."""
        blank = Batch(batch.tokens, np.full(len(batch.tokens), -1, np.int32), batch.positions, batch.cu_seqlens, batch.prefixes)
        (self.model.forward if keep else self.model.score)(blank)
        hidden = self.model.last_hidden()
        self._hidden = hidden if keep else None
        return self.head(hidden)

    def backward(self, dvalues: np.ndarray) -> None:
        """Given the loss's derivative by each value of the last `values(keep=True)`."""
        if self._hidden is None:
            raise RuntimeError("backward needs values(batch, keep=True) before it")
        self.model.backward(dhidden=self.head.backward(np.asarray(dvalues, np.float64), self._hidden))
        self._hidden = None

    def zero_grad(self) -> None:
        self.model.zero_grad()
        self.head.gradient[:] = 0

    def step(self, lr: float, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8, max_norm: float = 1.0, head_lr: float | None = None, weight_decay: float = 0.0) -> float:
        """AdamW on decoder and row, each clipped to max_norm; returns the larger norm. A non-finite one changes nothing. head_lr: the row's (None: lr)."""
        norm = self.head.norm()
        if not np.isfinite(norm):
            return norm
        other = self.model.adamw(lr, beta1, beta2, eps, weight_decay=weight_decay, max_norm=max_norm)
        if not np.isfinite(other):
            return other
        self.head.adamw(lr if head_lr is None else head_lr, beta1, beta2, eps, max_norm, weight_decay)
        return max(norm, other)

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs, by names that are not the policy's."""
        return {f"value.{k}": v for k, v in (self.head.state() | self.model.state()).items()}

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        mine = {k.removeprefix("value."): v for k, v in arrays.items() if k.startswith("value.")}
        self.head.load_state(mine)
        self.model.load_state({k: v for k, v in mine.items() if k not in ("head", "head_m", "head_v", "steps")})
