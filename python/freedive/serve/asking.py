"""From a request's fields to the engine's parameters, and what all answers share."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request

from freedive.inference import Grammar, Params
from freedive.tokenizer import Tokenizer

from .errors import APIError, finite
from .schemas import Sampling, StructuredOutputs
from .service import Service

ONE_LINE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}  # llguidance's; spaced as chat templates write JSON

T = TypeVar("T")
UNFINISHED = ("deadline", "cancelled")  # reasons of the service's, not of the answer


def service_of(request: Request, model: str | None = None) -> Service:
    """The service; APIError 404 for a model that is not served here."""
    service: Service = request.app.state.service
    if model is not None and model != service.name:
        raise APIError(404, f"there is no model {model[:80]!r} here; this server has {service.name!r}", code="model_not_found", param="model")
    return service


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def now() -> int:
    return int(time.time())


def stop_ids(tok: Tokenizer, ask: Sampling) -> tuple[int, ...]:
    """What ends an answer: the model's own ends unless ignore_eos, and the request's."""
    return tuple(dict.fromkeys((*(() if ask.ignore_eos else tok.stop_ids), *(ask.stop_token_ids or ()))))


def stop_texts(ask: Sampling) -> tuple[str, ...]:
    return (ask.stop,) if isinstance(ask.stop, str) else tuple(ask.stop or ())


def params(ask: Sampling, tok: Tokenizer, max_new_tokens: int, ends: tuple[int, ...], form: Grammar | None, **more: Any) -> Params:
    """Params of a request. Raises UserError for what the fields' bounds did not catch."""
    if form is not None:  # where it is complete, the model's own end is what comes
        ends = tuple(dict.fromkeys((*ends, *tok.stop_ids)))
    return Params(
        max_new_tokens=max_new_tokens,
        temperature=1.0 if ask.temperature is None else ask.temperature,
        top_k=max(ask.top_k or 0, 0),
        top_p=1.0 if ask.top_p is None else max(ask.top_p, 1e-9),  # 0 is the likeliest alone
        min_p=ask.min_p or 0.0,
        stop_ids=ends,
        min_new_tokens=ask.min_tokens or 0,
        repetition_penalty=ask.repetition_penalty or 1.0,
        frequency_penalty=ask.frequency_penalty or 0.0,
        presence_penalty=ask.presence_penalty or 0.0,
        logit_bias={int(i): b for i, b in (ask.logit_bias or {}).items()},
        grammar=form,
        **more,
    )


async def beside(characters: int, function: Callable[..., T], *arguments: Any, **more: Any) -> T:
    """What a function gives: at once for a short text, and beside the event loop for one whose encoding others would feel."""
    if characters < 20_000:
        return function(*arguments, **more)
    return await asyncio.to_thread(function, *arguments, **more)


async def grammar(kind: str, text: str) -> Grammar:
    """A checked grammar; compiled beside the event loop, for it may take a while."""
    return await asyncio.to_thread(Grammar, kind, text)


def one_line(schema: Any) -> Any:
    """A schema whose JSON stands on one line: a small model that may write white space between its parts does so without end."""
    return schema | {"x-guidance": ONE_LINE} if isinstance(schema, dict) and "x-guidance" not in schema else schema


async def json_grammar(schema: Any) -> Grammar:
    """JSON of a schema, on one line."""
    return await grammar("json_schema", json.dumps(one_line(schema)))


async def structured(ask: StructuredOutputs | None) -> Grammar | None:
    """The grammar of `structured_outputs`. APIError unless it holds exactly one form."""
    if ask is None:
        return None
    forms = {"json_schema": ask.json_schema, "regex": ask.regex, "choice": ask.choice, "lark": ask.grammar}
    given = {kind: what for kind, what in forms.items() if what is not None}
    if len(given) != 1:
        raise APIError(400, "structured_outputs holds one of json, regex, choice, grammar", param="structured_outputs")
    kind, what = next(iter(given.items()))
    if kind == "json_schema":
        return await json_grammar(what)
    return await grammar(kind, what if isinstance(what, str) else json.dumps(what))


def usage(prompt: int, completion: int, cached: int, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def token_text(tok: Tokenizer, token: int) -> str:
    """A token as the API shows it: its text, or its bytes where they are no whole characters, as OpenAI writes them."""
    raw = tok.token_bytes(token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)


def token_texts(tok: Tokenizer, top: dict[int, float]) -> dict[str, float]:
    """Alternatives by their text; where two tokens have the same, the likelier."""
    out: dict[str, float] = {}
    for token, logprob in top.items():
        out.setdefault(token_text(tok, token), finite(logprob))
    return out


def ended(reason: str | None) -> str:
    """The finish_reason clients know: a deadline or a server that shuts down cuts an answer off like a limit of length."""
    return "stop" if reason == "stop" else "length"


def not_begun(service: Service) -> APIError:
    """Nothing was said in the time a request may take: it waited for others."""
    return APIError(503, f"the request was not begun within the {service.deadline:g} seconds it may take", code="deadline", headers={"Retry-After": "5"})
