"""POST /v1/chat/completions: the answer to a conversation, whole or as it is said; functions called, forms kept, thoughts apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response

from freedive.inference import Grammar
from freedive.tokenizer import Tokenizer

from .. import sse
from ..asking import (
    UNFINISHED,
    beside,
    ended,
    json_grammar,
    new_id,
    not_begun,
    now,
    params,
    service_of,
    stop_ids,
    stop_texts,
    structured,
    token_text,
    usage,
)
from ..chat_form import Offer, call_ends, can_think, chat_ids, grammar_of, no_thoughts, offer
from ..chat_parse import Parser, Part
from ..errors import JSON, APIError, finite
from ..schemas import ChatRequest, ObjectFormat, SchemaFormat
from ..service import Service
from ..stream import ContextOverflow, Event, Stream

router = APIRouter()


class _Answer:
    """One choice: what was said so far, and the parts that each event adds."""

    def __init__(self, tok: Tokenizer, what: Offer, ask: ChatRequest, ends: tuple[int, ...], stops: tuple[str, ...], index: int):
        self.tok, self.ask, self.ends, self.index = tok, ask, frozenset(ends), index
        self.parser = Parser(tok, what, stops, ends)
        self.parts: list[Part] = []
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []
        self.tokens = 0
        self.reason: str | None = None

    def take(self, event: Event, stream: Stream) -> tuple[list[Part], list[dict[str, Any]]]:
        """New parts and log-probs. A stop string in the content ends the choice here where the engine was not told of it."""
        if self.reason is not None:
            return [], []  # it had ended here when this was already on its way
        self.tokens += len(event.ids)
        parts = self.parser.push(event.ids)
        reason = event.finish_reason
        if self.parser.stopped and reason is None:
            stream.cancel(self.index)
            reason = "stop"
        if reason is not None:
            parts += self.parser.finish()
            self.reason = reason
        told = self._logprobs(event) if self.ask.logprobs else []
        self.logprobs += told
        if self.ask.parallel_tool_calls is False:
            before = [p for p in self.parts if p.kind == "call"]
            parts = [p for i, p in enumerate(parts) if p.kind != "call" or not any(q.kind == "call" for q in before + parts[:i])]
        self.parts += parts
        return parts, told

    def call(self, part: Part) -> dict[str, Any]:
        """A call in the API's form; its place among the answer's calls is its index."""
        made = {"id": new_id("call"), "type": "function", "function": {"name": part.name, "arguments": part.text}}
        self.calls.append(made)
        return made

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.calls and self.reason == "stop" else ended(self.reason)

    def message(self) -> dict[str, Any]:
        calls = [self.call(p) for p in self.parts if p.kind == "call"]
        said = {kind: "".join(p.text for p in self.parts if p.kind == kind) for kind in ("content", "reasoning")}
        message: dict[str, Any] = {"role": "assistant", "content": said["content"] or (None if calls else ""), "refusal": None}
        if said["reasoning"]:
            message["reasoning_content"] = said["reasoning"]
        return message | ({"tool_calls": calls} if calls else {})

    def _logprobs(self, event: Event) -> list[dict[str, Any]]:
        tops = event.top_logprobs or [{}] * len(event.ids)
        return [
            self._entry(token, logprob) | {"top_logprobs": [self._entry(t, p) for t, p in list(top.items())[: self.ask.top_logprobs or 0]]}
            for token, logprob, top in zip(event.ids, event.logprobs, tops, strict=True)
            if token not in self.ends
        ]

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": token_text(self.tok, token), "logprob": finite(logprob), "bytes": list(self.tok.token_bytes(token))}


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, ask: ChatRequest) -> Response:
    """Answer a conversation."""
    service = service_of(request, ask.model)
    tok, n = service.lm.tokenizer, ask.n or 1
    if ask.top_logprobs and not ask.logprobs:
        raise APIError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    tok.require_chat()
    what = offer(tok, ask.tools, ask.tool_choice)
    size = sum(len(m.text) for m in ask.messages)
    ids = await beside(size, chat_ids, tok, ask.messages, what, go_on=bool(ask.continue_final_message))
    if ask.reasoning_effort == "none" and not ask.continue_final_message:
        ids = [*ids, *no_thoughts(tok)]
    ends = tuple(dict.fromkeys((*stop_ids(tok, ask), *call_ends(tok, what))))
    asked = ask.max_completion_tokens or ask.max_tokens
    if len(ids) + (asked or 1) > service.context:
        raise ContextOverflow(len(ids), asked or 1, service.context)
    stops = stop_texts(ask)
    # Stop strings are about the content. Where a model may think first, the engine cannot tell the two apart; the parser can.
    apart = can_think(tok)
    sampled = params(ask, tok, asked or service.room(ids), ends, await _grammar(tok, ask, what), stop=() if apart else stops,
                     logprobs=(ask.top_logprobs or 0) if ask.logprobs else 0)  # fmt: skip
    stream = await service.open(ids, sampled, seed=ask.seed, n=n)
    answers = [_Answer(tok, what, ask, sampled.stop_ids, stops, i) for i in range(n)]
    head = {"id": new_id("chatcmpl"), "created": now(), "model": service.name, "system_fingerprint": None, "x_seed": stream.seed}
    if ask.stream:
        return sse.Answer(stream, _streamed(service, ask, stream, answers, head | {"object": "chat.completion.chunk"}))
    try:
        return JSON(await sse.while_there(request, _whole(service, ask, stream, answers, head | {"object": "chat.completion"})))
    finally:
        stream.close()


async def _grammar(tok: Tokenizer, ask: ChatRequest, what: Offer) -> Grammar | None:
    """The form an answer must have: of a call, of response_format (of either, with both), of structured_outputs."""
    form = ask.response_format
    schema = {"type": "object"} if isinstance(form, ObjectFormat) else form.json_schema.schema_ or {} if isinstance(form, SchemaFormat) else None
    if ask.structured_outputs is not None and (what.form != "none" or schema is not None):
        raise APIError(400, "structured_outputs says what an answer looks like, and so do tools and response_format: give one of them", param="structured_outputs")
    if what.form != "none":
        return await asyncio.to_thread(grammar_of, tok, what, schema)
    return await structured(ask.structured_outputs) if schema is None else await json_grammar(schema)


async def _whole(service: Service, ask: ChatRequest, stream: Stream, answers: list[_Answer], head: dict[str, Any]) -> dict[str, Any]:
    cached = 0
    async for event in stream:
        cached += event.cached_tokens if event.index == 0 else 0
        answers[event.index].take(event, stream)
    choices = []
    for a in answers:
        if a.reason in UNFINISHED and not a.tokens:
            raise not_begun(service)
        message = a.message()
        choices.append({"index": a.index, "message": message, "logprobs": {"content": a.logprobs, "refusal": None} if ask.logprobs else None, "finish_reason": a.finish_reason})
    return head | {"choices": choices, "usage": _usage(stream, answers, cached)}


def _usage(stream: Stream, answers: list[_Answer], cached: int) -> dict[str, Any]:
    return usage(stream.prompt_tokens, sum(a.tokens for a in answers), cached, sum(a.parser.reasoning_tokens for a in answers))


async def _streamed(service: Service, ask: ChatRequest, stream: Stream, answers: list[_Answer], head: dict[str, Any]) -> AsyncIterator[bytes]:
    with_usage = bool(ask.stream_options and ask.stream_options.include_usage)
    empty: dict[str, Any] = {"usage": None} if with_usage else {}
    cached = 0

    def chunk(index: int, delta: dict[str, Any], logprobs: list[dict[str, Any]] | None = None, reason: str | None = None) -> bytes:
        told = {"content": logprobs, "refusal": None} if logprobs else None
        return sse.data(head | {"choices": [{"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}]} | empty)

    def said(event: Event) -> bytes:
        nonlocal cached
        cached += event.cached_tokens if event.index == 0 else 0
        answer = answers[event.index]
        if answer.reason is not None:
            return b""
        parts, logprobs = answer.take(event, stream)
        if answer.reason in UNFINISHED and not answer.tokens:
            raise not_begun(service)
        out = b""
        for part in parts:
            if part.kind == "call":
                delta: dict[str, Any] = {"tool_calls": [{"index": len(answer.calls)} | answer.call(part)]}
            else:
                delta = {"content" if part.kind == "content" else "reasoning_content": part.text}
            out += chunk(event.index, delta, logprobs)
            logprobs = []
        if logprobs:  # tokens whose text is held back
            out += chunk(event.index, {}, logprobs)
        return out + (chunk(event.index, {}, None, answer.finish_reason) if answer.reason is not None else b"")

    def end() -> bytes:
        return sse.data(head | {"choices": [], "usage": _usage(stream, answers, cached)}) if with_usage else b""

    begin = b"".join(chunk(a.index, {"role": "assistant", "content": ""}) for a in answers)
    async for piece in sse.events(stream, said, end, begin):
        yield piece
