"""POST /v1/completions: texts or token ids continued; prompts scored (echo with logprobs), which lm-evaluation-harness asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from freedive.tokenizer import Tokenizer

from .. import sse
from ..asking import (
    UNFINISHED,
    beside,
    ended,
    new_id,
    not_begun,
    now,
    params,
    service_of,
    stop_ids,
    stop_texts,
    structured,
    token_text,
    token_texts,
    usage,
)
from ..errors import JSON, APIError, finite
from ..schemas import MOST_PROMPTS, CompletionRequest
from ..service import Service
from ..stream import ContextOverflow, Event, Stream

router = APIRouter()


@dataclass
class _Told:
    """Log-probs of one choice in the form of this path, and where in the text the next token begins."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "token_logprobs": self.token_logprobs, "top_logprobs": self.top_logprobs, "text_offset": self.text_offset}


class _Writer:
    """One choice as it is written: its echo, its text, its log-probs."""

    def __init__(self, tok: Tokenizer, ask: CompletionRequest, prompt: list[int], text: str | None, ends: Sequence[int]):
        self.tok, self.ask, self.prompt, self.ends = tok, ask, prompt, frozenset(ends)
        self.echo = (tok.decode(prompt) if text is None else text) if ask.echo else ""
        self.begun, self.offset = False, 0
        self.decoder = tok.stream_decoder()

    def write(self, event: Event) -> tuple[str, dict[str, Any] | None]:
        """(new text, log-probs of the new tokens)."""
        told, text, ids, logprobs, tops = _Told(), "", event.ids, event.logprobs, event.top_logprobs
        nothing_new = self.ask.max_tokens == 0  # one was sampled, for the engine gives at least one
        if not self.begun:
            self.begun, text = True, self.echo
            if self.ask.echo and self.ask.logprobs is not None:
                self._add(told, self.prompt, event.prompt_logprobs or [], event.prompt_top_logprobs, echoed=True)
        if nothing_new:
            return text, told.body() if self.ask.logprobs is not None else None
        if self.ask.logprobs is not None:
            self._add(told, ids, logprobs, tops)
        return text + event.text, told.body() if self.ask.logprobs is not None else None

    def _add(self, told: _Told, ids: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[dict[int, float] | None] | None, echoed: bool = False) -> None:
        begins = echoed and self.ask.prompt is not None and not _is_ids(self.ask.prompt)
        for at, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
            told.tokens.append(token_text(self.tok, token))
            told.token_logprobs.append(None if logprob is None else finite(logprob))
            top = dict(tops[at] or {}) if tops else {}
            if logprob is not None:
                top.setdefault(token, logprob)  # the chosen one is always among them
            told.top_logprobs.append(None if logprob is None else token_texts(self.tok, top))
            told.text_offset.append(self.offset)
            if token not in self.ends and not (begins and at == 0 and token in self.tok.special_ids):
                self.offset += len(self.decoder.push(token))


@dataclass
class _Choice:
    text: str = ""
    told: _Told | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: str | None = None

    def add(self, event: Event, text: str, told: dict[str, Any] | None) -> None:
        self.text += text
        self.ids += event.ids
        self.logprobs += event.logprobs
        self.reason = event.finish_reason
        if told is not None:
            self.told = self.told or _Told()
            for name, values in told.items():
                getattr(self.told, name).extend(values)

    @property
    def mean(self) -> float:
        return sum(self.logprobs) / max(len(self.logprobs), 1)


@router.post("/v1/completions")
async def completions(request: Request, ask: CompletionRequest) -> Response:
    """Continue texts, or lists of token ids."""
    service = service_of(request, ask.model)
    tok, n = service.lm.tokenizer, ask.n or 1
    best_of = ask.best_of or n
    if best_of < n:
        raise APIError(400, f"best_of is {best_of}, it must be at least n, which is {n}", param="best_of")
    if best_of > n and ask.stream:
        raise APIError(400, "best_of above n chooses among whole completions, which cannot be streamed", param="best_of")
    if ask.max_tokens == 0 and not ask.echo:
        raise APIError(400, "max_tokens is 0, which asks for nothing without echo", param="max_tokens")
    prompts = await beside(_characters(ask.prompt), _prompts, tok, ask)
    if len(prompts) * best_of > MOST_PROMPTS:
        raise APIError(400, f"{len(prompts)} prompts of {best_of} completions; a request may have {MOST_PROMPTS} in all", param="prompt")
    ends = stop_ids(tok, ask)
    most = max(1, 16 if ask.max_tokens is None else ask.max_tokens)
    for ids, _ in prompts:
        # A default is cut to what fits; what was asked for is not. max_tokens 0 needs no room, but the engine samples one.
        if len(ids) + (most if ask.max_tokens else 1) > service.context:
            raise ContextOverflow(len(ids), most if ask.max_tokens else 1, service.context)
        most = min(most, service.room(ids))
    score = ask.logprobs if ask.echo and ask.logprobs is not None else None
    asked = params(ask, tok, most, ends, await structured(ask.structured_outputs), stop=stop_texts(ask), logprobs=ask.logprobs or 0, prompt_logprobs=score)
    writers = [_Writer(tok, ask, ids, text, asked.stop_ids) for ids, text in prompts for _ in range(best_of)]
    stream = await service.open_all([ids for ids, _ in prompts], asked, seed=ask.seed, n=best_of)
    head = {"id": new_id("cmpl"), "object": "text_completion", "created": now(), "model": service.name, "x_seed": stream.seed}
    if ask.stream:
        return sse.Answer(stream, _streamed(service, ask, stream, writers, head, best_of))
    try:
        return JSON(await sse.while_there(request, _whole(service, ask, stream, writers, head, best_of)))
    finally:
        stream.close()


def _characters(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, str) else 0 if prompt is None or _is_ids(prompt) else sum(map(len, prompt))


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and not isinstance(prompt[0], str)


def _prompts(tok: Tokenizer, ask: CompletionRequest) -> list[tuple[list[int], str | None]]:
    """(ids, text or None) of each prompt. Ids are taken as they are, texts begin a document."""
    prompt = ask.prompt
    if prompt is None:
        return [([tok.bos_id], "")]
    if isinstance(prompt, str):
        return [(tok.document_ids(prompt), prompt)]
    if not _is_ids(prompt):
        return [(tok.document_ids(str(text)), str(text)) for text in prompt]
    lists: list[Any] = list(prompt) if isinstance(prompt[0], list) else [prompt]
    return [(ids, None) for ids in lists]


async def _whole(service: Service, ask: CompletionRequest, stream: Stream, writers: list[_Writer], head: dict[str, Any], best_of: int) -> dict[str, Any]:
    found, cached, n = [_Choice() for _ in writers], 0, ask.n or 1
    async for event in stream:
        cached += event.cached_tokens if event.index % best_of == 0 else 0
        found[event.index].add(event, *writers[event.index].write(event))
    choices: list[dict[str, Any]] = []
    for first in range(0, len(found), best_of):
        of_prompt = found[first : first + best_of]
        for choice in sorted(of_prompt, key=lambda c: -c.mean)[:n] if best_of > n else of_prompt:
            if choice.reason in UNFINISHED and not choice.ids:
                raise not_begun(service)
            choices.append({"index": len(choices), "text": choice.text, "logprobs": choice.told.body() if choice.told is not None else None,
                            "finish_reason": "length" if ask.max_tokens == 0 else ended(choice.reason)})  # fmt: skip
    return head | {"choices": choices, "usage": usage(stream.prompt_tokens, _completed(ask, found), cached)}


def _completed(ask: CompletionRequest, choices: list[_Choice]) -> int:
    return sum(len(c.ids) for c in choices) if ask.max_tokens != 0 else 0


async def _streamed(service: Service, ask: CompletionRequest, stream: Stream, writers: list[_Writer], head: dict[str, Any], best_of: int) -> AsyncIterator[bytes]:
    found, cached = [_Choice() for _ in writers], 0
    with_usage = bool(ask.stream_options and ask.stream_options.include_usage)
    empty: dict[str, Any] = {"usage": None} if with_usage else {}

    def chunk(event: Event) -> bytes:
        nonlocal cached
        text, told = writers[event.index].write(event)
        found[event.index].ids += event.ids
        if event.finish_reason in UNFINISHED and not found[event.index].ids:
            raise not_begun(service)
        cached += event.cached_tokens if event.index % best_of == 0 else 0
        reason = None if event.finish_reason is None else "length" if ask.max_tokens == 0 else ended(event.finish_reason)
        return sse.data(head | {"choices": [{"index": event.index, "text": text, "logprobs": told, "finish_reason": reason}]} | empty)

    def end() -> bytes:
        return sse.data(head | {"choices": [], "usage": usage(stream.prompt_tokens, _completed(ask, found), cached)}) if with_usage else b""

    async for piece in sse.events(stream, chunk, end):
        yield piece
