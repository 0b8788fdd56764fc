"""The long way to a token, for requests that need more than the fused draw: masks, penalties, biases, alternatives, stop strings.

The one idea: logits are taken from the same product, changed here in NumPy, and given back to the same kernel as a head of one input
(weight [V, 1], x = 1), so that the order of cuts, the random number and the log-prob of an id are the fused sampler's own, bit for bit.
Log-probs told are those of the model: before masks, biases and penalties.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from freedive import ops
from freedive.tokenizer import Tokenizer

from .grammar import Matcher
from .params import Params
from .stops import StopText

_ONE = np.ones((1, 1), np.float32)


class Work:
    """What is kept of one request from token to token."""

    def __init__(self, params: Params, prompt: np.ndarray, vocab_size: int, tokenizer: Tokenizer | None):
        self.params = params
        self.seen = np.zeros(vocab_size, bool)  # ids of prompt and completion
        self.seen[prompt] = True
        self.counts = np.zeros(vocab_size, np.int32) if params.frequency_penalty or params.presence_penalty else None  # of the completion
        self.new = 0
        self.top: list[dict[int, float]] = []
        self.matcher = Matcher(params.grammar, tokenizer) if params.grammar is not None and tokenizer is not None else None
        self.text = StopText(tokenizer, params.stop) if params.stop and tokenizer is not None else None
        self.needs_logits = params.changes_logits or params.logprobs > 0
        self.finished = False  # by a stop string or a grammar with nothing left to say

    def choose(self, logits: np.ndarray, mask: np.ndarray | None, seed: int, counter: int, token: int, logprob: float) -> tuple[int, float]:
        """(token, log-prob) at logits float32 [V]; `token` and `logprob` are the fused sampler's, kept where nothing changes them.

        mask: uint8 [V], ids that stand for something; None is all.
        """
        p = self.params
        if p.changes_logits:
            z, allowed = self._changed(logits, mask)
            if allowed is not None and not allowed.any():
                self.finished = True  # the grammar permits nothing: it is complete
                allowed = mask
            drawn, _ = ops.head_sample(_ONE, z[:, None], p.temperature, p.top_k, p.top_p, p.min_p, seed, counter, allowed)
            token = int(drawn[0])
            logprob = float(logprobs_of(logits, np.array([token], np.int32), p.temperature, mask)[0])
        if p.logprobs:
            self.top.append(top_logprobs(logits, p.logprobs, p.temperature, mask))
        return token, logprob

    def _changed(self, logits: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        p, z = self.params, logits.copy()
        allowed = mask
        if self.matcher is not None:
            allowed = self.matcher.mask(len(z)) & (1 if mask is None else mask)
        if self.new < p.min_new_tokens and p.stop_ids:
            allowed = np.ones(len(z), np.uint8) if allowed is None else allowed.copy()
            allowed[list(p.stop_ids)] = 0
        for i, bias in p.logit_bias.items():
            z[i] += np.float32(bias)
        if p.repetition_penalty != 1:
            at = self.seen
            z[at] = np.where(z[at] > 0, z[at] / np.float32(p.repetition_penalty), z[at] * np.float32(p.repetition_penalty))
        if self.counts is not None:
            z -= np.float32(p.frequency_penalty) * self.counts + np.float32(p.presence_penalty) * (self.counts > 0)
        return z, allowed

    def push(self, token: int) -> bool:
        """Take a token that was sampled; True if the completion ends with it."""
        self.new += 1
        self.seen[token] = True
        if self.counts is not None:
            self.counts[token] += 1
        if token in self.params.stop_ids:
            return True
        if self.matcher is not None and self.matcher.push(token):
            self.finished = True
        if self.text is not None and self.text.push(token):
            self.finished = True
        return self.finished


def logprobs_of(logits: np.ndarray, ids: np.ndarray, temperature: float, mask: np.ndarray | None) -> np.ndarray:
    """Log-probs float32 [K] of ids int32 [K] at logits [V] and a temperature (0 counts as 1): the bits of training's head."""
    return ops.head_forward(_ONE, logits[:, None], ids[None], temperature or 1.0, mask)[0][0]


def top_logprobs(logits: np.ndarray, k: int, temperature: float, mask: np.ndarray | None) -> dict[int, float]:
    """The k likeliest ids and their log-probs, the likeliest first, the smaller id on ties."""
    z = logits if mask is None else np.where(mask > 0, logits, -np.inf)
    k = min(k, len(z) if mask is None else int(np.count_nonzero(mask)))
    border = np.partition(z, len(z) - k)[len(z) - k]
    ids = np.flatnonzero(z >= border)
    ids = ids[np.lexsort((ids, -z[ids]))][:k].astype(np.int32)
    return dict(zip(ids.tolist(), logprobs_of(logits, ids, temperature, mask).tolist(), strict=True))


class PromptScores:
    """Log-probs of a prompt's ids, gathered chunk by chunk."""

    def __init__(self, prompt: Sequence[int] | np.ndarray, alternatives: int):
        self.prompt, self.alternatives = np.asarray(prompt, np.int32), alternatives
        self.logprobs: list[float | None] = [None]
        self.top: list[dict[int, float] | None] = [None]

    @property
    def complete(self) -> bool:
        return len(self.logprobs) == len(self.prompt)

    def add(self, position: int, logits: np.ndarray, mask: np.ndarray | None) -> None:
        """What the model expects after `position`, in order of positions."""
        at = position + 1
        if at != len(self.logprobs) or at >= len(self.prompt):
            return
        self.logprobs.append(float(logprobs_of(logits, self.prompt[at : at + 1], 1.0, mask)[0]))
        self.top.append(top_logprobs(logits, self.alternatives, 1.0, mask) if self.alternatives else {})
