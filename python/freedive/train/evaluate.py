"""Loss on held-out documents, in nats a token and bits per byte."""

from __future__ import annotations

import numpy as np

from freedive.model import Batch, Model

from .loader import Documents, Example


def rows_loss(model: Model, rows: list[Example]) -> float:
    """Mean negative log-prob, nats a token, of what is learned in rows (conversations with their mask)."""
    total = weight = 0.0
    at = 0
    while at < len(rows):
        end, size = at, 0
        while end < len(rows) and end - at < model.max_seqs and size + len(rows[end][0]) <= model.max_tokens:
            size += len(rows[end][0])
            end += 1
        part = rows[at:end]
        out = model.score(Batch.pack([(ids, targets) for ids, targets, _ in part]))
        weights = np.concatenate([w for _, _, w in part]).astype(np.float64)
        total -= float(np.dot(out.logprobs.astype(np.float64), weights))
        weight += float(weights.sum())
        at = end
    return total / weight if weight else float("nan")


def held_out_loss(model: Model, documents: list[np.ndarray], context: int, bos: int | None, n_bytes: int, max_tokens: int = 0) -> dict[str, float]:
    """Mean negative log-prob (nats a token) and bits per byte of documents, in windows of `context` side by side. max_tokens = 0: all."""
    windows: list[tuple[np.ndarray, np.ndarray]] = []
    used = 0
    for d in documents:
        ids = Documents([d], context, bos, 0).ids if len(d) > (bos is None) else np.zeros(0, np.int32)
        for a in range(0, len(ids) - 1, context):
            b = min(a + context, len(ids) - 1)
            windows.append((ids[a:b], ids[a + 1 : b + 1]))
            used += b - a
        if max_tokens and used >= max_tokens:
            break
    if not windows:
        return {}
    total, count, at = 0.0, 0, 0
    while at < len(windows):
        end, size = at, 0
        while end < len(windows) and end - at < model.max_seqs and size + len(windows[end][0]) <= model.max_tokens:
            size += len(windows[end][0])
            end += 1
        out = model.score(Batch.pack(windows[at:end]))
        total -= float(out.logprobs.sum(dtype=np.float64))
        count += size
        at = end
    result = {"val_loss": total / count}
    if not max_tokens or used < max_tokens:  # the bytes of a part of the documents are not known here
        result["val_bits_per_byte"] = total / np.log(2) / max(1, n_bytes)
    return result
