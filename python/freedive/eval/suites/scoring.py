"""What a model thinks of given continuations: log-probs by the training forward, flat batches, no padding. What neighbours begin with alike (the
choices of a question, the examples before questions) is read once a batch; the numbers are those of each alone, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from freedive.inference import LM
from freedive.model import Batch, alike
from freedive.runs import UserError

Ids = Sequence[int]
Row = tuple[np.ndarray, np.ndarray]  # ids and targets


def next_token_logprobs(lm: LM, prompts: Sequence[Ids], candidates: Sequence[Ids]) -> list[np.ndarray]:
    """Of each prompt, the log-probs (float64, nats) of its candidate ids as the next token."""
    out: list[np.ndarray] = []
    model = lm.model
    for part, batch in _batches(lm, ((np.array(p, np.int32), np.full(len(p), -1, np.int32)) for p in prompts)):
        with model.lock:
            model.score(batch)
            logits = model.logits(batch.cu_seqlens[1:] - 1).astype(np.float64)
        if model.vocab_mask is not None:
            logits[:, model.vocab_mask == 0] = -np.inf
        top = logits.max(axis=1, keepdims=True)
        logits -= top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        out += [row[np.asarray(candidates[i])] for i, row in zip(part, logits)]
    return out


def continuation_logprobs(lm: LM, pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """Of each (context, continuation), the sum of the continuation's log-probs in nats. A context has at least one id."""
    out: list[float] = []
    for _, batch in _batches(lm, (_continued(*pair) for pair in pairs)):
        logprobs = lm.model.score(batch).logprobs.astype(np.float64)
        out += [float(logprobs[a:b].sum()) for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:])]
    return out


def _continued(context: Ids, continuation: Ids) -> Row:
    ids = np.array([*context, *continuation], np.int32)
    targets = np.full(len(ids) - 1, -1, np.int32)
    targets[len(context) - 1 :] = ids[len(context) :]
    return ids[:-1], targets


def split(lm: LM, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a text that begins a document, cut where the continuation begins: both are encoded as one text, so that a space goes to the
    word behind it as in training."""
    whole, head = lm.tokenizer.document_ids(context + continuation), lm.tokenizer.document_ids(context)
    if len(whole) <= len(head) or not head:  # the last token of the context takes the continuation in, or there is no context
        keep = max(1, len(whole) - 1)
        return whole[:keep], whole[keep:]
    return whole[: len(head)], whole[len(head) :]


def longest(lm: LM) -> int:
    """The most tokens of one sequence that can be scored."""
    return min(lm.model.config.max_positions, lm.model.max_tokens)


def _batches(lm: LM, sequences: Iterable[Row]) -> Iterator[tuple[range, Batch]]:
    """As many sequences in a row as fit into one batch each: (which, the batch)."""
    most, at = longest(lm), 0
    rows: list[Row] = []
    prefixes: list[tuple[int, int]] = []
    root, size = 0, 0  # the last sequence that is whole, in rows
    whole: list[Row] = []
    for ids, targets in sequences:
        if len(ids) > most:
            raise UserError(f"a text of {len(ids)} tokens; the model reads {most} at a time", hint="fewer --shots, or shorter texts")
        shared = alike(whole[root], (ids, targets)) if rows else 0
        if rows and (len(rows) == lm.model.max_seqs or size + len(ids) - shared > lm.model.max_tokens):
            yield range(at, at + len(rows)), Batch.pack(rows, prefixes)
            at, rows, prefixes, whole, size, shared = at + len(rows), [], [], [], 0, 0
        if not shared:
            root = len(rows)
        prefixes.append((root, shared))
        rows.append((ids[shared:], targets[shared:]))
        whole.append((ids, targets))
        size += len(ids) - shared
    if rows:
        yield range(at, at + len(rows)), Batch.pack(rows, prefixes)
