"""`freedive generate`: continue texts given on the command line, in a file or through a pipe; as text, or as JSON Lines with log-probs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.runs import UserError, check_at_least, json_line, option
from freedive.tokenizer import render

from .chat import printable
from .grammar import Grammar
from .load import ADAPTER_HELP, DTYPE_HELP, KV_CACHE_HELP, LM, WEIGHTS_HELP, load
from .params import Completion, Params


@dataclass(frozen=True)
class GenerateConfig:
    """Continue texts, or answer questions with --chat."""

    model: Path = option(help="the model: a folder, a .gguf file or a llama2.c .bin file", positional=True)
    adapter: Path | None = option(None, ADAPTER_HELP)
    prompt: list[str] = option([], "texts to continue (default: one, read from standard input)")
    file: Path | None = option(None, 'JSONL of prompts: {"prompt": text, or messages for --chat}')
    chat: bool = option(False, "prompts are questions to an assistant")
    max_new_tokens: int = option(128, "longest completion, in tokens")
    min_new_tokens: int = option(0, "no end before so many tokens")
    temperature: float = option(0.0, "0 takes the likeliest token; 1 samples as trained")
    top_k: int = option(0, "sample among the k likeliest (0: off)")
    top_p: float = option(1.0, "sample among the likeliest that make up p (1: off)")
    min_p: float = option(0.0, "sample among those at least so likely as this part of the likeliest (0: off)")
    repetition_penalty: float = option(1.0, "above 1: what is there already becomes less likely")
    frequency_penalty: float = option(0.0, "taken off a token's logit for each time it was sampled")
    presence_penalty: float = option(0.0, "taken off once it was sampled")
    stop: list[str] = option([], "texts that end a completion")
    n: int = option(1, "completions of each prompt")
    seed: int = option(0, "of sampling; prompt i has seed + i")
    json_schema: Path | None = option(None, "file with a JSON schema that completions keep to")
    regex: str | None = option(None, "expression that completions match")
    speculate: int = option(0, "tokens guessed ahead from the text so far: faster on text that repeats itself, the same result")
    logprobs: int = option(-1, "with --jsonl: log-probs of each token, and of so many alternatives (-1: none)")
    jsonl: bool = option(False, "print one JSON object a completion")
    threads: int | None = option(None, "CPU threads (default: all)")
    weights: str = option("auto", WEIGHTS_HELP)
    dtype: str = option("float32", DTYPE_HELP)
    kv_cache_dtype: str = option("auto", KV_CACHE_HELP)


def run(c: GenerateConfig) -> int:
    """Print the completions; returns the exit code."""
    check_at_least(c, 1, "max_new_tokens", "n", "threads")
    check_at_least(c, -1, "logprobs")
    if c.json_schema is not None and c.regex is not None:
        raise UserError("give --json-schema or --regex, not both")
    grammar = Grammar("regex", c.regex) if c.regex is not None else None
    if c.json_schema is not None:
        try:
            grammar = Grammar("json_schema", c.json_schema.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{c.json_schema} could not be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"{c.json_schema} is not UTF-8 text") from None
    more: dict[str, Any] = dict(min_new_tokens=c.min_new_tokens, repetition_penalty=c.repetition_penalty, frequency_penalty=c.frequency_penalty,
                                presence_penalty=c.presence_penalty, stop=tuple(c.stop), grammar=grammar, speculate=c.speculate,
                                logprobs=max(c.logprobs, 0))  # fmt: skip
    Params(c.max_new_tokens, c.temperature, c.top_k, c.top_p, c.min_p, **more)  # raises for what cannot be, before anything is loaded
    prompts = _prompts(c)
    lm = load(c.model, threads=c.threads, dtype=c.dtype, weights=c.weights, kv_cache_dtype=c.kv_cache_dtype, adapter=c.adapter)
    ids = [_ids(c, lm, p) for p in prompts]
    told: list[Completion | None] = [None] * (len(ids) * c.n)
    next_one = 0

    def finished(index: int, completion: Completion) -> None:  # in order, each as soon as those before it are there
        nonlocal next_one
        told[index] = completion
        while next_one < len(told) and (ready := told[next_one]) is not None:
            _print(c, lm, prompts[next_one // c.n], next_one, ready, len(told) > 1)
            next_one += 1

    if len(ids) * c.n == 1 and not c.jsonl:
        for piece in lm.engine.stream(ids[0], c.max_new_tokens, c.temperature, c.top_k, c.top_p, c.min_p, lm.tokenizer.stop_ids, c.seed, **more):
            print(printable(piece), end="", flush=True)
        print()
    else:
        lm.engine.generate(ids, c.max_new_tokens, c.temperature, c.top_k, c.top_p, c.min_p, lm.tokenizer.stop_ids,
                           [c.seed + i for i in range(len(ids))], finished, n=c.n, **more)  # fmt: skip
    return 0


def _prompts(c: GenerateConfig) -> list[Any]:
    if c.file is not None:
        found = [(line, row) for line, row in iter_rows(c.file)]
        for line, row in found:
            if not isinstance(row.get("prompt"), (str, list)):
                raise UserError(f"{c.file}, line {line}: it has no 'prompt'", hint='{"prompt": "Once upon a time"}')
        if not found:
            raise UserError(f"{c.file} holds no prompt")
        return [*c.prompt, *(row["prompt"] for _, row in found)]
    if c.prompt:
        return list(c.prompt)
    text = sys.stdin.read()
    return [text.removesuffix("\n")]


def _ids(c: GenerateConfig, lm: LM, prompt: Any) -> list[int]:
    if c.chat:
        return render(lm.tokenizer, [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, add_generation_prompt=True)[0]
    if not isinstance(prompt, str):
        raise UserError("a prompt is a list of messages", hint="add --chat")
    return lm.tokenizer.document_ids(prompt)


def _print(c: GenerateConfig, lm: LM, prompt: Any, index: int, done: Completion, several: bool) -> None:
    if not c.jsonl:
        if several:
            print(f"--- {index // c.n}" + (f".{index % c.n}" if c.n > 1 else "") + f": {prompt if isinstance(prompt, str) else json.dumps(prompt)!s:.60}")
        print(printable(done.text), flush=True)
        return
    row: dict[str, Any] = {"prompt": prompt, "text": done.text, "ids": done.ids, "finish_reason": done.finish_reason}
    if c.logprobs >= 0:
        row["logprobs"] = [float(x) for x in done.logprobs]
        row["top_logprobs"] = [[[i, lm.tokenizer.decode([i]), x] for i, x in top.items()] for top in done.top_logprobs]
    print(json_line(row).decode().rstrip("\n"), flush=True)
