"""`freedive.load(folder)`: a trained model and its tokenizer as one object, for scripts and notebooks.

    assistant = freedive.load("runs/dive/sft")
    print(assistant.generate([{"role": "user", "content": "Why is the sky blue?"}]))

Thin on purpose: everything here is a line or two of Model, Tokenizer and Engine, which are its attributes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freedive.inference import Engine
from freedive.model import Batch, Model, load_pretrained
from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, render

Prompt = str | Sequence[Mapping[str, str]]


def load(folder: str | os.PathLike[str], *, max_tokens: int = 4096, trainable: bool = False, threads: int | None = None) -> Loaded:
    """A model made by `freedive pretrain`, `sft` or `rl`. `trainable` also allocates gradients and optimizer state, for `backward`.

    UserError: the folder is missing, is not a model, or does not fit in memory.
    """
    folder = Path(folder)
    if not folder.is_dir():
        hint = "its training did not finish: run it again" if folder.with_name(folder.name + ".partial").is_dir() else None
        raise UserError(f"no such folder: {folder}", hint=hint)
    if not (folder / "config.json").is_file():
        inside = sorted(p.parent.name for p in folder.glob("*/config.json"))
        raise UserError(f"{folder} is not a model (it has no config.json)", hint=f"models inside it: {', '.join(inside)}" if inside else None)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    return Loaded(load_pretrained(folder, max_tokens=max_tokens, trainable=trainable, threads=threads), tokenizer)


class Loaded:
    """A model, its tokenizer, and an engine to sample from it."""

    def __init__(self, model: Model, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.engine = Engine(model, tokenizer)

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt: text to continue, begun as a document, or messages to answer (a list of {"role", "content"})."""
        if isinstance(prompt, str):
            return [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        return render(self.tokenizer, list(prompt), add_generation_prompt=True)[0]

    def _stops(self, prompt: Prompt) -> tuple[int, ...]:
        return (self.tokenizer.bos_id,) if isinstance(prompt, str) else (self.tokenizer.im_end, self.tokenizer.bos_id)

    def generate(self, prompt: Prompt, max_new_tokens: int = 128, seed: int = 0, **sampling: Any) -> str:
        """The continuation of a text, or the answer to messages. `sampling`: temperature, top_k, top_p, min_p. The same seed gives the same text."""
        out = self.engine.generate([self.encode(prompt)], max_new_tokens=max_new_tokens, stop_ids=self._stops(prompt), seeds=[seed], **sampling)[0]
        return self.tokenizer.decode(i for i in out.ids if i not in self.tokenizer.special_ids)

    def stream(self, prompt: Prompt, max_new_tokens: int = 128, seed: int = 0, **sampling: Any) -> Iterator[str]:
        """`generate`, piece by piece as it is sampled."""
        yield from self.engine.stream(self.encode(prompt), max_new_tokens=max_new_tokens, stop_ids=self._stops(prompt), seed=seed, **sampling)

    def score(self, text: str) -> tuple[list[str], np.ndarray]:
        """Each token of a text and its log-probability given what stands before it (natural logarithm, float32)."""
        ids = self.encode(text)
        if len(ids) > self.model.max_tokens:
            raise UserError(f"the text has {len(ids)} tokens; this model was loaded for {self.model.max_tokens}", hint="load(..., max_tokens=...) takes more")
        logprobs = np.asarray(self.model.score(Batch.next_token([ids])).logprobs)[: len(ids) - 1]
        return [self.tokenizer.decode([i]) for i in ids[1:]], logprobs

    def forward(self, batch: Batch, temperature: float = 1.0) -> Any:
        """Per-token outputs of a flat batch (`Batch.pack`), with activations kept for `backward`."""
        return self.model.forward(batch, temperature)

    def backward(self, dlogprobs: np.ndarray) -> dict[str, np.ndarray]:
        """Adds to the gradients, given a loss's derivative by each log-probability of the last `forward`; returns them by name."""
        if not self.model.trainable:
            raise UserError("this model was loaded without gradients", hint="use load(folder, trainable=True)")
        self.model.backward(dlogprobs)
        return self.model.gradients
