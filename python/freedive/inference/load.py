"""`freedive.load(path)`: a model with its tokenizer, ready to generate, chat and score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freedive.model import Batch, Model, Outputs
from freedive.model.model import check_kv_cache_dtype
from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, render

from .engine import Engine
from .folder import load_model, load_tokenizer

Messages = Sequence[dict[str, str]]
ADAPTER_HELP = "folder of a LoRA adapter for the model, of freedive sft --lora-rank or of PEFT"
WEIGHTS_HELP = "how they are held. auto: as the file has them, exactly; float32; or rounded to bfloat16, float16, int8, int4"
DTYPE_HELP = "how products multiply. float32: exact; int8: activations rounded to 8 bits, fastest, for weights of 8 or 4 bits; bfloat16: both rounded; auto: bfloat16 where fast"
KV_CACHE_HELP = "what keys and values are kept in: float32, bfloat16, int8 (a quarter of the memory); auto: bfloat16 with --dtype bfloat16, which changes no bit, else float32"


class LM:
    """A model folder in memory: `.model`, `.tokenizer`, `.engine`, and the short ways to use them."""

    def __init__(self, model: Model, tokenizer: Tokenizer, kv_cache_dtype: str = "auto"):
        self.model, self.tokenizer, self.engine = model, tokenizer, Engine(model, tokenizer, kv_cache_dtype=kv_cache_dtype)

    def generate(self, prompt: str, max_new_tokens: int = 64, temperature: float = 0.8, seed: int = 0, **sampling: Any) -> str:
        """Continue a text, as a document of the training data would go on; returns the new text, at most max_new_tokens tokens of it.

        sampling: top_k, top_p, min_p, stop_ids as of Engine.generate. Raises UserError for a text too long for the model.
        """
        _one_answer(sampling)
        tok = self.tokenizer
        sampling.setdefault("stop_ids", tok.stop_ids)
        out = self.engine.generate([tok.document_ids(prompt)], max_new_tokens=max_new_tokens, temperature=temperature, seeds=[seed], **sampling)
        return out[0].text

    def chat(self, messages: str | Messages, max_new_tokens: int = 128, temperature: float = 0.0, seed: int = 0, **sampling: Any) -> str:
        """The assistant's answer to a question, or to a list of {"role", "content"}; by default the likeliest (temperature 0).

        sampling: as of `generate`. Raises UserError for messages that cannot be rendered or are too long for the model.
        """
        _one_answer(sampling)
        if not isinstance(messages, (str, list, tuple)):
            raise UserError(f"messages is {messages!r:.60}, it must be a text or a list of messages", hint='[{"role": "user", "content": "..."}]')
        tok = self.tokenizer
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        ids = render(tok, turns, add_generation_prompt=True)[0]
        sampling.setdefault("stop_ids", tok.stop_ids)
        return self.engine.generate([ids], max_new_tokens=max_new_tokens, temperature=temperature, seeds=[seed], **sampling)[0].text

    def score(self, text: str) -> tuple[list[int], np.ndarray]:
        """Each token of a text and its log-prob given what stands before it, in a document that begins there: (ids [L], log-probs float32 [L], nats).

        Raises ValueError for a text of more tokens than max_tokens or than the model has positions.
        """
        tok = self.tokenizer
        ids = tok.encode(text)
        if not ids:
            return [], np.zeros(0, np.float32)
        whole = [tok.bos_id, *ids]
        return ids, self.model.score(Batch.pack([(whole[:-1], whole[1:])])).logprobs

    def forward(self, batch: Batch, temperature: float = 1.0) -> Outputs:
        """Model.forward of a Batch of N tokens: .logprobs like its targets, .entropy [N] and .lse [N], float32, nats; kept for one `backward`.

        Raises RuntimeError unless loaded with trainable=True, ValueError for a batch beyond the capacities.
        """
        return self.model.forward(batch, temperature)

    def backward(self, dlogprobs: np.ndarray | None = None, dentropy: np.ndarray | None = None, dlse: np.ndarray | None = None) -> None:
        """Model.backward: add to .model.gradients, given the loss's derivative by each output of the last `forward`, shaped like it; None is 0.

        Raises ValueError for another number of entries, RuntimeError without a `forward` before it.
        """
        self.model.backward(dlogprobs, dentropy, dlse)


def _one_answer(sampling: dict[str, Any]) -> None:
    """UserError if more than one completion is asked of what returns one."""
    if sampling.get("n", 1) != 1:
        raise UserError(f"n is {sampling['n']!r}, and this returns one answer", hint="lm.engine.generate(..., n=N) returns them all")


def load(path: str | Path, *, trainable: bool = False, max_tokens: int = 4096, max_seqs: int = 256, threads: int | None = None,
         dtype: str = "float32", weights: str | None = None, kv_cache_dtype: str = "auto", adapter: str | Path | None = None,
         device: str = "cpu") -> LM:  # fmt: skip
    """Load what `freedive pretrain`, `sft` or `rl` wrote, or an open model: a Hugging Face folder (gpt2, llama, qwen2, qwen3), a GGUF file
    or a llama2.c checkpoint.

    trainable: keep room for gradients and moments, so that `forward`, `backward` and `adamw` work. max_tokens, max_seqs: the most tokens and
    sequences of one batch. threads: default the usable cores. device: one of `freedive.ops.devices()`. adapter: folder of a LoRA adapter for this model (`freedive sft --lora-rank`, or PEFT's);
    such a folder can also be loaded by itself when it names its base. `.model.without_adapter()` gives the model as it was.

    weights: how they are held. "auto" (the default unless trainable): in the file's own types, without a copy in float32; its results are those of
    "float32", bit for bit. "bfloat16", "float16", "int8", "int4": rounded to these. dtype: how products multiply. "float32" (exact), "bfloat16" or
    "auto" as of Model; "int8" rounds activations to 8 bits in blocks of 32 and multiplies integers, which is fastest and needs weights of 8 or
    4 bits: those of a float file are then rounded to int8. kv_cache_dtype: as of Engine. Raises UserError saying what is missing, damaged or does not fit in memory.
    """
    check_kv_cache_dtype(kv_cache_dtype, dtype)
    tok = load_tokenizer(Path(path), None if adapter is None else Path(adapter))
    weights = weights or ("float32" if trainable else "auto")
    model = load_model(Path(path), tok, None if adapter is None else Path(adapter), trainable=trainable, max_tokens=max_tokens, max_seqs=max_seqs, threads=threads, device=device, dtype=dtype, weights=weights)
    return LM(model, tok, kv_cache_dtype)
