"""Who plays: a model's folder or file, an adapter, a service; each with its own sampling.

    runs/sft                                        a folder, a .gguf file, an adapter's folder
    model.gguf,temperature=1.2,name=hot             the same model may play several times, under different names
    model.gguf,adapter=runs/lora                    with an adapter beside
    http://127.0.0.1:8080/v1,model=NAME             an OpenAI-compatible service
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.inference.folder import base_and_adapter, chat_tokens_untrained, model_name
from freedive.runs import UserError, folder_hash

from ..asker import Message, OurModel, Service

KEYS = ("name", "adapter", "model", "temperature", "top_p", "max_tokens", "weights", "dtype", "system")
_SPLIT = re.compile(rf",(?=(?:{'|'.join(KEYS)})=)")
EXAMPLE = "model.gguf,temperature=1.2,name=hot"
MAX_SEQS = 32  # answers written at once


@dataclass(frozen=True)
class Contestant:
    """One who plays."""

    name: str
    where: str  # path, or address of a service
    service: bool = False
    adapter: str = ""
    model: str = "default"  # at the service
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256
    weights: str = "auto"
    dtype: str = "float32"
    system: str = ""

    def key(self) -> tuple[str, ...]:
        """What has to be loaded for it."""
        return (self.where, self.adapter, self.weights, self.dtype)

    def identity(self) -> dict[str, Any]:
        """What its answers depend on: contents of files, and not where they lie."""
        sampling = {k: getattr(self, k) for k in ("temperature", "top_p", "max_tokens", "system")}
        if self.service:
            return {"address": self.where, "model": self.model, **sampling}
        base, adapter = base_and_adapter(Path(self.where), Path(self.adapter) if self.adapter else None)
        hashes = {"model": folder_hash(base)} | ({"adapter": folder_hash(adapter)} if adapter else {})
        return {**hashes, "weights": self.weights, "dtype": self.dtype, **sampling}

    def asked(self, prompt: Sequence[Message]) -> list[Message]:
        """The conversation that it answers."""
        return [{"role": "system", "content": self.system}, *prompt] if self.system and prompt[0]["role"] != "system" else list(prompt)


def read_contestants(given: Sequence[str], **defaults: Any) -> list[Contestant]:
    """Of what stands on the command line. UserError for what is no contestant, is not there, or has the name of another."""
    found = [_read(text, defaults) for text in given]
    for i, one in enumerate(found):
        if any(other.name == one.name for other in found[:i]):
            raise UserError(f"two contestants are called {one.name}", hint=f"give them names: {EXAMPLE}")
    return found


def _read(text: str, defaults: dict[str, Any]) -> Contestant:
    where, *told = _SPLIT.split(text)
    values: dict[str, Any] = dict(defaults)
    for part in told:
        key, _, value = part.partition("=")
        values[key] = value
    for key, kind in (("temperature", float), ("top_p", float), ("max_tokens", int)):
        try:
            if key in values:
                values[key] = kind(values[key])
        except ValueError:
            raise UserError(f"{text}: {key} is {values[key]!r}, it must be a number") from None
    if not 0 <= values.get("temperature", 0) < 100 or not 0 < values.get("top_p", 1) <= 1 or values.get("max_tokens", 1) < 1:
        raise UserError(f"{text}: temperature is at least 0, top_p above 0 to 1, max_tokens at least 1")
    if where.startswith(("http://", "https://")):
        if "adapter" in values:
            raise UserError(f"{text}: a service has no adapter of ours")
        return Contestant(values.pop("name", "") or values.get("model", "") or where, where.rstrip("/"), True, **values)
    if "model" in values:
        raise UserError(f"{text}: model=NAME is for services; a model here is its path")
    path = Path(where)
    if not path.exists():
        hint = f"{path}.partial is an unfinished run: run its command again" if Path(f"{path}.partial").is_dir() else f"a folder, a .gguf file, or an address; with settings: {EXAMPLE}"
        raise UserError(f"no such model: {where}", hint=hint)
    base_and_adapter(path, Path(values["adapter"]) if values.get("adapter") else None)
    if path.is_dir() and chat_tokens_untrained(path):
        raise UserError(f"{path} is a base model: it knows no conversations, and answers nothing", hint="give assistants: freedive sft makes one")
    name = values.pop("name", "") or (f"{model_name(path)}+{Path(values['adapter']).name}" if values.get("adapter") else model_name(path))
    return Contestant(name, where, **values)


def draw(*parts: Any) -> int:
    """A seed of what it is for, 53 bits."""
    return int.from_bytes(hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest(), "big") >> 11


def load_contestant(c: Contestant, threads: int | None) -> Any:
    """Its model in memory. UserError for one that cannot be, or knows no turns."""
    from freedive.inference import load

    lm = load(c.where, adapter=c.adapter or None, weights=c.weights, dtype=c.dtype, threads=threads, max_seqs=MAX_SEQS)
    lm.tokenizer.require_chat()
    return lm


def answer(c: Contestant, lm: Any, prompts: Sequence[Sequence[Message]], seeds: Sequence[int], tell: Callable[[dict[int, str | None]], None]) -> None:
    """Answers to prompts; `tell({place: text})` as they are there, None for a prompt that is too long for it. `lm`: what load_contestant gave, None for a service."""
    from freedive.inference.thinking import answer_of
    from freedive.tokenizer import render

    if c.service:
        service = Service(c.where, c.model)
        for at in range(0, len(prompts), service.parallel):
            part = slice(at, at + service.parallel)
            replies = service.replies([c.asked(p) for p in prompts[part]], temperature=c.temperature, max_new_tokens=c.max_tokens, seeds=seeds[part])
            tell({i: None if reply.finish == "refused" else reply.text for i, reply in enumerate(replies, at)})
        return
    tok, room = lm.tokenizer, lm.model.config.max_positions
    ids = [render(tok, c.asked(p), add_generation_prompt=True)[0] for p in prompts]
    fitting = [i for i, one in enumerate(ids) if len(one) < room]
    if len(fitting) < len(ids):
        tell({i: None for i in range(len(ids)) if i not in fitting})
    lm.engine.generate([ids[i] for i in fitting], max_new_tokens=c.max_tokens, temperature=c.temperature, top_p=c.top_p, stop_ids=tok.stop_ids,
                       seeds=[seeds[i] for i in fitting], on_finish=lambda at, out: tell({fitting[at]: answer_of(out.text).strip()}))  # fmt: skip


def judge_model(where: str, name: str, threads: int | None) -> OurModel | Service:
    """A judge in words: a model or a service."""
    if where.startswith(("http://", "https://")):
        return Service(where, name)
    from freedive.inference import load

    return OurModel(load(Path(where), threads=threads, max_seqs=MAX_SEQS))
