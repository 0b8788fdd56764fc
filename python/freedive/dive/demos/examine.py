"""Questions to a model, with or without tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.inference import LM, Params, ToolLoop, load
from freedive.inference.tools import Tool
from freedive.tokenizer import render

BATCH = 256  # prompts at once


@dataclass(frozen=True)
class Said:
    """A reply: its words, and the calls in it as (tool, text, answer)."""

    text: str
    calls: tuple[tuple[str, str, str], ...] = ()
    finish: str = "stop"


def ask(model: Path | LM, prompts: Sequence[Sequence[Mapping[str, Any]]], tools: Mapping[str, Tool] | None = None, max_new_tokens: int = 96, begin: str = "",
        threads: int | None = None) -> list[Said]:  # fmt: skip
    """The likeliest reply to each conversation. `begin`: words put into the assistant's mouth, which it goes on from."""
    lm = load(model, threads=threads, dtype="auto") if isinstance(model, Path) else model
    tok = lm.tokenizer
    ids = [render(tok, list(messages), add_generation_prompt=True)[0] + tok.encode(begin) for messages in prompts]
    if not tools:
        outs = lm.engine.generate(ids, max_new_tokens=max_new_tokens, temperature=0.0, stop_ids=tok.stop_ids, seeds=[0] * len(ids))
        return [Said(o.text, (), o.finish_reason) for o in outs]
    loop = ToolLoop(lm.engine, tools)
    said: list[Said] = []
    for at in range(0, len(ids), BATCH):
        part = ids[at : at + BATCH]
        done = loop.generate(part, Params(max_new_tokens=max_new_tokens, temperature=0.0, stop_ids=tok.stop_ids), [0] * len(part))
        said += [Said(o.text, tuple((c.tool, c.text, c.answer) for c in o.calls), o.finish_reason) for o in done]
    return said


def right(rows: Sequence[Mapping[str, Any]], said: Sequence[Said], check: Callable[[str, str], bool]) -> list[bool]:
    return [check(reply.text, str(row["answer"])) for row, reply in zip(rows, said, strict=True)]
