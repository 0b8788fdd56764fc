"""Educational score of a document, 0 to 5, by FineWeb-Edu's method (2406.17557, section 4): documents are scored by a large model or by people
(`annotate`), a small one learns that (`edu_train`), and `freedive data --edu-model` scores every page with it and keeps those at 3 or more.

Two small models, both linear:

ngrams   hashed words and pairs of words of the first characters, as DCLM's fastText classifier has them: 0.1 ms a page
model    a head on the mean of the final hidden states of one of our decoders over the first tokens, which stays as it is; FineWeb-Edu
         does this with the vector of a BERT. Costs the decoder's forward pass

A scorer is a folder: edu.json, model.safetensors ("weight" float32 [features]) and, for "model", the decoder in body/. A score that a
crawl comes with (`--edu-column int_score`) is taken as it is.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.runs import UserError, folder_hash, option

from .decontaminate import simple_words

FORMAT = "freedive-edu-1"
HIGHEST = 5
BUCKETS = 1 << 18  # hashed words and pairs together
KINDS = ("ngrams", "model")
CHARACTERS_PER_TOKEN = 20  # more than enough text for the tokens that are read


@dataclass(frozen=True)
class Edu:
    """Where the score comes from, and the smallest whole one that is kept; None: all are kept."""

    model: Path | None = option(None, hash=False)
    digest: str = ""  # of the model's folder
    column: str = ""
    minimum: int | None = None


@dataclass(frozen=True)
class Settings:
    """What a scorer reads of a text: `characters` for "ngrams", `tokens` for "model"."""

    kind: str
    characters: int = 4000
    tokens: int = 512


def find(model: Path | None, column: str | None, minimum: int | None) -> Edu | None:
    """The rules, checked; None if there is nothing to score by. UserError for settings that cannot be, and a folder that is no scorer."""
    if model is None and not column:
        if minimum is not None:
            hint = "--edu-model FOLDER (made by freedive data edu-train), or --edu-column NAME for scores that the input has"
            raise UserError("--edu-min needs something that gives the score", hint=hint)
        return None
    if model is not None and column:
        raise UserError("--edu-model and --edu-column were both given", hint="one of them gives the score")
    if minimum is not None and not 0 <= minimum <= HIGHEST:
        raise UserError(f"--edu-min is {minimum}", hint=f"allowed: 0 to {HIGHEST}; FineWeb-Edu kept 3 and more")
    if model is None:
        return Edu(column=column or "", minimum=minimum)
    read_scorer(model)
    return Edu(model, folder_hash(model)[:16], minimum=minimum)


def edu_filter(text: str, meta: dict[str, Any], rules: Edu, scores: dict[str, Any]) -> str:
    """Puts "edu_score" and "edu_int_score" into `scores`; returns why the document goes, or "".

    `meta`: fields that came with the document, of which `rules.column` may be one.
    """
    if rules.model is None:
        value = as_score(meta.get(rules.column))
        if value is None:
            return "no_score"
    else:
        value = float(load(rules.model, os.getpid()).score([text])[0])
    scores.update(edu_score=round(value, 4), edu_int_score=int_score(value))
    return f"below_{rules.minimum}" if rules.minimum is not None and int_score(value) < rules.minimum else ""


def as_score(value: Any) -> float | None:
    """A number of a row as a score; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def int_score(score: float) -> int:
    """The nearest whole score from 0 to 5; FineWeb-Edu's cut of 3 is a score of 2.5."""
    return min(HIGHEST, max(0, math.floor(score + 0.5)))


# Features


def ngram_features(text: str, characters: int) -> tuple[np.ndarray, np.ndarray]:
    """(buckets uint32 [F], values float32 [F]) of a text: 1 + ln(count) of its words and pairs of words, scaled to length 1."""
    found = simple_words(text[:characters])
    grams = np.concatenate([found.grams(1), found.grams(2)]) & np.uint64(BUCKETS - 1)
    buckets, counts = np.unique(grams.astype(np.uint32), return_counts=True)
    values = 1 + np.log(counts)
    return buckets, (values / math.sqrt(float(values @ values) or 1.0)).astype(np.float32)


class Body:
    """A decoder folder, read for its hidden states."""

    def __init__(self, folder: Path, tokens: int, batch: int, threads: int | None):
        from freedive.inference import load_model, load_tokenizer
        from freedive.model.config import DecoderConfig

        self.tok = load_tokenizer(folder)
        if self.tok.kind == "chars":
            raise UserError(f"{folder} knows only the characters of its training text", hint="train it with --tokenizer bpe or bytes")
        self.model = load_model(folder, self.tok, trainable=False, max_tokens=max(batch, tokens), max_seqs=max(1, batch // 8), threads=threads)
        config: DecoderConfig = self.model.config
        self.tokens = min(tokens, config.max_positions)
        self.width = config.d_model

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [len(texts), d_model]: the mean of the hidden states of the first tokens, document edge included.

        A text's row does not depend on the others.
        """
        from freedive.model import Batch
        from freedive.tokenizer import encode_documents

        heads = [text[: CHARACTERS_PER_TOKEN * self.tokens] for text in texts]
        ids = [np.concatenate([[self.tok.bos_id], row])[: self.tokens] for row in encode_documents(self.tok, heads, 1)]
        out = np.zeros((len(ids), self.width), np.float32)
        first = 0
        while first < len(ids):
            last, size = first, 0
            while last < len(ids) and last - first < self.model.max_seqs and size + len(ids[last]) <= self.model.max_tokens:
                size += len(ids[last])
                last += 1
            batch = Batch.next_token([row.tolist() for row in ids[first:last]])
            hidden = self.model.hidden(batch)
            for row, (a, b) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True), first):
                out[row] = hidden[a:b].mean(0, dtype=np.float64)
            first = last
        return out


# Scorers


@dataclass(frozen=True)
class Scorer:
    """A trained scorer in memory."""

    settings: Settings
    weight: np.ndarray  # float32 [features]
    bias: float
    body: Body | None = None

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [len(texts)]: about 0 to 5, not rounded."""
        if self.body is not None:
            return (self.body.features(texts).astype(np.float64) * self.weight).sum(1) + self.bias  # a row at a time, whoever is beside it
        return np.array([self._ngrams(text) for text in texts], np.float64)

    def _ngrams(self, text: str) -> float:
        buckets, values = ngram_features(text, self.settings.characters)
        return float(values.astype(np.float64) @ self.weight[buckets]) + self.bias


@functools.lru_cache(maxsize=1)
def load(folder: Path, process: int) -> Scorer:
    """The scorer of a folder. `process` is the caller's id: a decoder's threads do not survive a fork, so each process loads its own."""
    settings, bias = read_scorer(folder)
    from safetensors.numpy import load_file

    weight = load_file(str(folder / "model.safetensors"))["weight"]
    body = Body(folder / "body", settings.tokens, settings.tokens, 1) if settings.kind == "model" else None
    if weight.shape != ((BUCKETS,) if body is None else (body.width,)):
        raise UserError(f"{folder} holds {weight.shape} weights", hint="is model.safetensors the one of this edu.json?")
    return Scorer(settings, weight, bias, body)


def read_scorer(folder: Path) -> tuple[Settings, float]:
    """(settings, bias) of a scorer's folder. UserError if it is none, or lacks a file."""
    try:
        told = json.loads((folder / "edu.json").read_bytes())
        if told["format"] != FORMAT or told["kind"] not in KINDS:
            raise ValueError(f"format {told['format']}, kind {told['kind']}")
        settings = Settings(told["kind"], int(told["characters"]), int(told["tokens"]))
        bias = float(told["bias"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no scorer: {error}", hint="give a folder made by freedive data edu-train") from None
    for name in ("model.safetensors", *(("body/config.json", "body/model.safetensors") if settings.kind == "model" else ())):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}", hint="give a folder made by freedive data edu-train")
    return settings, bias
