"""Looking into a model: the residual stream after every layer, what the head would say to it there, and who attends to whom (talk 1.4).

The numbers are those of the decoder's own forward, copied on the way (csrc/model/trace.cpp), in whatever types the weights are held. The
logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens") sends an intermediate residual stream through the last norm and the
head, as if the layers after it were not there; its last row is the model's prediction, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from freedive.model.batch import Batch
from freedive.model.config import DecoderConfig
from freedive.model.model import Model
from freedive.runs import UserError

MAX_TRACE_TOKENS = 256  # an attention map of a head is N x N, and the lens is a head's product for each layer and token
_ROWS = 32  # logits at once: 32 rows of a vocabulary of 150,000 are 19 MB


@dataclass(frozen=True)
class Trace:
    """One forward of N tokens through L layers of H heads, as it passed."""

    config: DecoderConfig
    ids: np.ndarray  # int32 [N]
    residual: np.ndarray  # float32 [L + 1, N, d_model]: the embedding, then after each layer
    q: np.ndarray  # float32 [L, N, H, head_dim], after QK-norm and rotation
    k: np.ndarray  # float32 [L, N, n_kv_head, head_dim]

    def attention(self, layer: int, head: int) -> np.ndarray:
        """float32 [N, N]: row i is how much of each token before and at i is read there; rows add up to 1. IndexError for no such layer or head."""
        c = self.config
        if not (0 <= layer < c.n_layer and 0 <= head < c.n_head):
            raise IndexError(f"layer {layer}, head {head}: the model has {c.n_layer} layers of {c.n_head} heads")
        q, k = self.q[layer, :, head], self.k[layer, :, head // (c.n_head // c.n_kv_head)]
        scores = q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(c.head_dim)
        scores[np.triu_indices(len(scores), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    def norms(self) -> np.ndarray:
        """float32 [L + 1, N]: root mean square of the residual stream. It grows with depth; each layer adds to it."""
        return np.sqrt(np.mean(np.square(self.residual, dtype=np.float64), axis=2)).astype(np.float32)


@dataclass(frozen=True)
class Lens:
    """The likeliest next tokens as read after each of some layers; layer 0 is the embedding."""

    layers: tuple[int, ...]
    ids: np.ndarray  # int32 [layers, N, K], the likeliest first
    logprobs: np.ndarray  # float32 [layers, N, K], nats
    entropy: np.ndarray  # float32 [layers, N], nats


def trace(model: Model, ids: Sequence[int]) -> Trace:
    """Run `ids` as one sequence and keep what passed. Raises UserError for no tokens, more than MAX_TRACE_TOKENS, or ids the model does not have.

    Takes the model's lock: an engine's step waits for it, and it for a step.
    """
    tokens = np.asarray(ids)
    c, most = model.config, min(MAX_TRACE_TOKENS, model.max_tokens, model.config.max_positions)
    if tokens.ndim != 1 or not 1 <= len(tokens) <= most:
        raise UserError(f"a trace takes 1 to {most} tokens, not {tokens.size}", hint="shorten the text")
    if tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() >= c.vocab_size:
        raise UserError(f"there are ids outside of the model's vocabulary of {c.vocab_size}")
    batch = Batch.pack([(tokens.astype(np.int32), np.full(len(tokens), -1, np.int32))])
    with model.lock:
        residual, q, k = model._core.trace(batch.tokens, batch.positions, batch.cu_seqlens)
    return Trace(c, batch.tokens, residual, q, k)


def lens_logits(model: Model, x: np.ndarray) -> np.ndarray:
    """Logits float32 [R, vocab_size] of rows x [R, d_model] of a residual stream, through the last norm and the head, before mask and temperature.

    Raises ValueError for another shape, or more rows than the model's capacity.
    """
    with model.lock:
        return model._core.lens(np.ascontiguousarray(x, np.float32))


def lens(model: Model, seen: Trace, layers: Sequence[int] | None = None, k: int = 5) -> Lens:
    """The k likeliest next tokens after each of `layers` (default: the embedding and every layer), at each position, at temperature 1.

    A few rows at a time, and an engine's steps come in between. Raises UserError for a layer that is not there, or k below 1 or above 100.
    """
    L = seen.config.n_layer
    chosen = tuple(range(L + 1)) if layers is None else tuple(int(i) for i in layers)
    if not chosen or any(not 0 <= i <= L for i in chosen):
        raise UserError(f"layers are {list(chosen)}; the model has 0 (its embedding) to {L}")
    if not 1 <= k <= min(100, seen.config.vocab_size):
        raise UserError(f"top_k is {k}; it must be 1 to {min(100, seen.config.vocab_size)}")
    rows = seen.residual[list(chosen)].reshape(-1, seen.config.d_model)
    ids, logprobs, entropy = np.empty((len(rows), k), np.int32), np.empty((len(rows), k), np.float32), np.empty(len(rows), np.float32)
    step = min(_ROWS, model.max_seqs, model.max_tokens)
    for at in range(0, len(rows), step):
        part = slice(at, min(at + step, len(rows)))
        ids[part], logprobs[part], entropy[part] = likeliest(lens_logits(model, rows[part]), model.vocab_mask, k)
    shape = (len(chosen), len(seen.ids))
    return Lens(chosen, ids.reshape(*shape, k), logprobs.reshape(*shape, k), entropy.reshape(shape))


def likeliest(logits: np.ndarray, mask: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids int32 [R, k], log-probs float32 [R, k], entropy float32 [R], nats) of logits [R, V]; ids with mask 0 have no probability.

    Ties go to the lower id.
    """
    values = logits.astype(np.float64)
    if mask is not None:
        values[:, mask == 0] = -np.inf
    values -= values.max(axis=1, keepdims=True)
    p = np.exp(values)
    total = p.sum(axis=1, keepdims=True)
    entropy = np.log(total[:, 0]) - np.sum(np.where(p > 0, p * np.where(p > 0, values, 0.0), 0.0), axis=1) / total[:, 0]
    best = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)
    found = np.take_along_axis(values, best, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    chosen = np.take_along_axis(best, order, axis=1)
    return chosen.astype(np.int32), (np.take_along_axis(found, order, axis=1) - np.log(total)).astype(np.float32), entropy.astype(np.float32)
