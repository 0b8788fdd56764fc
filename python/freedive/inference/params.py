"""What a request asks for, and what comes back: sampling parameters with their limits, and completions. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from freedive.runs import UserError

from .grammar import Grammar

SEEDS = 2**64  # a seed counts modulo this
MAX_TOP = 100  # alternatives told for a token


@dataclass(frozen=True)
class Completion:
    """What was sampled for one prompt."""

    ids: list[int]  # the stop id included, if one was sampled
    logprobs: np.ndarray  # float32 [len(ids)], nats, at the sampling temperature before penalties, masks and truncation (temperature 0: at 1)
    stopped: bool  # ended by a stop id, a stop string or a finished grammar, not by a limit
    text: str  # without the stop id or string
    finish_reason: str = "length"  # "stop", "length" or "cancelled"
    top_logprobs: list[dict[int, float]] = field(default_factory=list)  # of each id, the likeliest ids there, if asked for
    prompt_logprobs: list[float | None] | None = None  # of each prompt id given those before; the first has none
    prompt_top_logprobs: list[dict[int, float] | None] | None = None
    cached_tokens: int = 0  # prompt ids whose keys and values were in the cache already


def _typed(name: str, value: object, types: tuple[type, ...], what: str, none: bool = False) -> None:
    """UserError for a value of another type. True and False are no numbers here."""
    if not (isinstance(value, types) and not isinstance(value, bool)) and not (none and value is None):
        raise UserError(f"{name} is {value!r:.60}, it must be {what}")


@dataclass(frozen=True)
class Params:
    """Sampling parameters. Order: grammar and min_new_tokens mask, logit_bias, penalties, temperature, top_k, min_p, top_p, draw.

    repetition_penalty divides logits above 0 by it, and multiplies those below, of every id of prompt and completion (CTRL,
    arXiv:1909.05858); frequency_penalty is subtracted for each time an id was sampled, presence_penalty once (OpenAI's).
    """

    max_new_tokens: int = 64
    temperature: float = 1.0  # 0 takes the likeliest
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()  # the completion ends where one of these appears, and does not hold it
    min_new_tokens: int = 0  # no stop id before so many
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int = 0  # likeliest ids told for each sampled token
    prompt_logprobs: int | None = None  # None: prompts are not scored; 0: their ids only; k: and the k likeliest at each place
    grammar: Grammar | None = None
    speculate: int = 0  # tokens guessed ahead from what was said before; changes nothing but time

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "min_new_tokens", "logprobs", "prompt_logprobs", "speculate"):
            _typed(name, getattr(self, name), (int, np.integer), "a whole number", none=name == "prompt_logprobs")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"):
            _typed(name, getattr(self, name), (int, float, np.integer, np.floating), "a number")
        _typed("logit_bias", self.logit_bias, (Mapping,), "a mapping of token ids to numbers")
        for value in self.logit_bias.values():
            _typed("logit_bias", value, (int, float, np.integer, np.floating), "a mapping of token ids to numbers")
        _typed("stop_ids", self.stop_ids, (tuple, list), "a list of token ids")
        _typed("stop", self.stop, (tuple, list), "texts")
        finite = lambda x: -1e6 < x < 1e6
        for ok, text in (
            (self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}, it must be at least 1"),
            (0 <= self.temperature < float("inf"), f"temperature is {self.temperature}, it must not be negative"),
            (0 <= self.top_k < 2**31, f"top_k is {self.top_k}; it must not be negative (0 turns it off)"),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 turns it off)"),
            (0 <= self.min_p < 1, f"min_p is {self.min_p}; it must be at least 0 (off) and below 1"),
            (0 <= self.min_new_tokens <= self.max_new_tokens, f"min_new_tokens is {self.min_new_tokens}; it must be 0 to max_new_tokens"),
            (0 < self.repetition_penalty < 1e6, f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1 turns it off)"),
            (finite(self.frequency_penalty), f"frequency_penalty is {self.frequency_penalty}, it must be a finite number"),
            (finite(self.presence_penalty), f"presence_penalty is {self.presence_penalty}, it must be a finite number"),
            (all(finite(b) for b in self.logit_bias.values()), "logit_bias holds a value that is no finite number"),
            (0 <= self.logprobs <= MAX_TOP, f"logprobs is {self.logprobs}; it must be 0 to {MAX_TOP}"),
            (self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= MAX_TOP, f"prompt_logprobs is {self.prompt_logprobs}; 0 to {MAX_TOP}, or None"),
            (all(isinstance(s, str) and s for s in self.stop), "a stop string is empty or no text"),
            (len(self.stop) <= 64 and sum(len(s) for s in self.stop if isinstance(s, str)) <= 16384, "there are more than 64 stop strings, or they are longer than 16,384 characters"),
            (0 <= self.speculate <= 64, f"speculate is {self.speculate}; it must be 0 (off) to 64"),
        ):
            if not ok:
                raise UserError(text)

    @property
    def special(self) -> bool:
        """Whether a token needs more than the fused sampler: logits of its own, or a look at the text."""
        plain = self.repetition_penalty == 1 and not self.frequency_penalty and not self.presence_penalty and not self.logit_bias
        return not plain or bool(self.stop or self.min_new_tokens or self.logprobs) or self.grammar is not None

    @property
    def changes_logits(self) -> bool:
        """Whether what is drawn differs from the fused sampler's draw."""
        plain = self.repetition_penalty == 1 and not self.frequency_penalty and not self.presence_penalty and not self.logit_bias
        return not plain or bool(self.min_new_tokens) or self.grammar is not None

    def check_ids(self, vocab_size: int) -> None:
        """UserError for an id in stop_ids or logit_bias that the model does not have."""
        for name, ids in (("stop_ids", self.stop_ids), ("logit_bias", self.logit_bias)):
            if any(not isinstance(i, (int, np.integer)) or not 0 <= i < vocab_size for i in ids):
                raise UserError(f"{name} are {tuple(ids)!r:.120}; the model's vocabulary has the ids 0 to {vocab_size - 1}")
