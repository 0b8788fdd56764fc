"""What a model thinks of given continuations: log-probs by the training forward, flat batches, no padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from freedive.inference import LM
from freedive.model import Batch
from freedive.runs import UserError

Ids = Sequence[int]


def next_token_logprobs(lm: LM, prompts: Sequence[Ids], candidates: Sequence[Ids]) -> list[np.ndarray]:
    """Of each prompt, the log-probs (float64, nats) of its candidate ids as the next token."""
    out: list[np.ndarray] = []
    model = lm.model
    for part in _batches(lm, [len(p) for p in prompts]):
        with model.lock:
            model.score(Batch.pack((prompts[i], np.full(len(prompts[i]), -1)) for i in part))
            logits = model.logits(np.cumsum([len(prompts[i]) for i in part]) - 1).astype(np.float64)
        if model.vocab_mask is not None:
            logits[:, model.vocab_mask == 0] = -np.inf
        top = logits.max(axis=1, keepdims=True)
        logits -= top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        out += [row[np.asarray(candidates[i])] for i, row in zip(part, logits)]
    return out


def continuation_logprobs(lm: LM, pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """Of each (context, continuation), the sum of the continuation's log-probs in nats. A context has at least one id."""
    out: list[float] = []
    for part in _batches(lm, [len(a) + len(b) - 1 for a, b in pairs]):
        sequences = []
        for i in part:
            context, continuation = pairs[i]
            ids = np.array([*context, *continuation], np.int32)
            targets = np.full(len(ids) - 1, -1, np.int32)
            targets[len(context) - 1 :] = ids[len(context) :]
            sequences.append((ids[:-1], targets))
        batch = Batch.pack(sequences)
        logprobs = lm.model.score(batch).logprobs.astype(np.float64)
        out += [float(logprobs[a:b].sum()) for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:])]
    return out


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


def _batches(lm: LM, lengths: Sequence[int]) -> Iterator[range]:
    """Ranges of sequences that fit into one batch each."""
    at, most = 0, longest(lm)
    while at < len(lengths):
        if lengths[at] > most:
            raise UserError(f"a text of {lengths[at]} tokens; the model reads {most} at a time", hint="fewer --shots, or shorter texts")
        end, size = at, 0
        while end < len(lengths) and end - at < lm.model.max_seqs and size + lengths[end] <= lm.model.max_tokens:
            size += lengths[end]
            end += 1
        yield range(at, end)
        at = end
