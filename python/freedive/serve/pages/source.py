"""Where answers come from: the model served here, with its token probabilities and its tools, or any OpenAI-compatible endpoint.

Both are an async iterator of `Delta`. Closing it stops the work: ours frees its row before the engine's next step, theirs closes the connection.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from freedive.inference import Params
from freedive.inference.stops import StopText
from freedive.inference.thinking import THINK, THINK_END, Thinking
from freedive.inference.tool_json import CALL, CALL_END
from freedive.inference.tool_loop import SLOTS
from freedive.inference.tools import Tool
from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, render

from .calls import calls_of, system_turn
from .conversations import Node

MAX_CALLS = 8


@dataclass
class Delta:
    """What is new of an answer."""

    text: str = ""
    reasoning: str = ""
    tokens: list[list[Any]] = field(default_factory=list)  # as conversations.Node.tokens
    tool: dict[str, Any] | None = None  # as conversations.Node.tools
    finish: str = ""
    prompt_tokens: int = 0


@dataclass
class Settings:
    """What the panel sets."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    seed: int | None = None  # None: another one each time
    stop: str = ""  # one a line
    alternatives: int = 8  # likeliest tokens kept for each token
    tools: bool = False

    def params(self, stop_ids: Sequence[int]) -> Params:
        """For our engine. Raises UserError for what cannot be."""
        stops = tuple(line.replace("\\n", "\n") for line in self.stop.splitlines() if line)
        return Params(self.max_tokens, self.temperature, self.top_k, self.top_p, self.min_p, tuple(stop_ids), stop=stops,
                      repetition_penalty=self.repetition_penalty, logprobs=self.alternatives)  # fmt: skip


# ---- ours ------------------------------------------------------------------------------------------------------------


def chat_prompt(tok: Tokenizer, name: str, system: str, nodes: Sequence[Node], prefix: Sequence[int] = (), tools: Sequence[str] = ()) -> list[int]:
    """Ids of a conversation whose last turn the assistant answers, beginning with `prefix`. Text of messages never gives a special token.

    tools: names of those it may call, which models that call in JSON are told of at the beginning. What this model said before goes in as the ids that it said, tools' answers included: so the cache knows all of it.
    """
    chat, head = tok.require_chat(), [{"role": "system", "content": system}] if system.strip() else []
    turns = [n for n in nodes if n.text or said_ids(tok, name, n)]
    if chat.form != "turns":
        return [*render(tok, [*head, *({"role": n.role, "content": n.text} for n in turns)], add_generation_prompt=True)[0], *prefix]
    ids = system_turn(tok, tools, system)
    opening: list[int] = []  # of an assistant's turn, which every question is followed by
    for node in turns:
        said = said_ids(tok, name, node)
        if said and ids:
            ids += [*opening, *said, tok.special(chat.end), *tok.encode(chat.after)]
        elif node.text:
            turn = [*([] if ids else head), {"role": node.role, "content": node.text}]
            whole, asked = (render(tok, turn, add_generation_prompt=more, continued=bool(ids))[0] for more in (True, False))
            opening = whole[len(asked) :]
            ids += asked
    return [*ids, *opening, *prefix]


def said_ids(tok: Tokenizer, name: str, node: Node) -> list[int]:
    """The ids of an answer, if it is this model's own; without what ended it."""
    ids = [t[0] for t in node.tokens if isinstance(t, list) and t]
    if node.role != "assistant" or node.source != name or not all(isinstance(i, int) and 0 <= i < tok.vocab_size and tok.vocab_mask[i] for i in ids):
        return []
    return ids


async def local(service: Any, prompt: Sequence[int], settings: Settings, *, before: Sequence[list[Any]] = (), tools: Mapping[str, Tool] | None = None,
                think: bool = True) -> AsyncGenerator[Delta, None]:  # fmt: skip
    """The served model goes on from `prompt`, ids, and from tokens `before` that its answer begins with.

    Raises UserError for a prompt that leaves no room, and for settings that cannot be.
    """
    tok, calls, said, made = service.lm.tokenizer, calls_of(service.lm.tokenizer, tools or {}), 0, 0
    last = before[-1][0] if before else -1
    if last in tok.stop_ids:  # the end was chosen
        before = before[:-1]
    out = [*prompt, *(t[0] for t in before)]
    room = service.room(out)
    if room < 1:
        raise UserError(f"there are {len(out):,} tokens, and this model's context is {service.context:,}", hint="begin a new one, or branch off earlier")
    settings = replace(settings, max_tokens=min(settings.max_tokens, room))
    text, reasoning, thinking = _parted(tok, before) if think else ("\n\n".join(spoken(tok, before)), "", Thinking())
    yield Delta(text, reasoning, list(before), prompt_tokens=len(prompt))
    for token, logprob, _ in before:
        calls.over() if logprob is None else calls.take(token)
    spoke = bool(text)
    finish = "stop" if last in tok.stop_ids or calls.due(last) else ""  # nothing is to be said before a call that is complete is run
    while True:
        if not finish:
            params = settings.params((*tok.stop_ids, *calls.ends, *calls.forged))
            params = replace(params, max_new_tokens=min(settings.max_tokens - said, service.room(out)), stop=(*params.stop, *calls.stops))
            words = StopText(tok, params.stop)  # outside of calls, whose own words are their cards'
            async with aclosing(service.stream(out, params, seed=settings.seed)) as events:
                async for event in events:
                    delta = Delta()
                    for i, token in enumerate(event.ids):
                        last = token
                        if token in calls.forged or (token in tok.stop_ids and event.finish_reason == "stop"):
                            continue
                        out.append(token)
                        said += 1
                        top = event.top_logprobs[i] if event.top_logprobs else {}
                        delta.tokens.append([token, round(event.logprobs[i], 4), [[t, round(lp, 4)] for t, lp in top.items()]])
                        if not calls.take(token):
                            words.push(token)
                    finish = event.finish_reason or ""
                    text = words.safe() + (words.rest() if finish else "") if tools else event.text
                    delta.text, delta.reasoning = thinking.push(text, bool(finish) and (calls.new_turn or not calls.due(last))) if think else (text, "")
                    spoke = spoke or bool(delta.text)
                    if delta.text or delta.reasoning or delta.tokens:
                        yield delta
        due = calls.due(last)
        if not due or made + len(due) > MAX_CALLS or said >= settings.max_tokens:
            break
        assert tools is not None
        made, answers = made + len(due), []
        for call in due:
            card = await asyncio.to_thread(call.run, tools)
            answers.append(card["answer"])
            yield Delta(tool=card | {"at": len(out) - len(prompt)})
        put = calls.answered(answers)
        out += put
        yield Delta(tokens=[[i, None, []] for i in put])
        if calls.new_turn and think:
            thinking = Thinking()
            if spoke:
                yield Delta("\n\n")
        finish = ""
        if service.room(out) < 1:
            finish = "length"
            break
    if left := calls.unfinished():  # nothing a model said is lost
        yield Delta(left)
    yield Delta(finish={"deadline": "error", "cancelled": "stopped"}.get(finish, finish) or "stop")


def spoken(tok: Tokenizer, tokens: Sequence[Sequence[Any]]) -> list[str]:
    """What an answer's tokens, as conversations.Node has them, say outside of tools' calls and answers: a text for each of its turns."""
    marks = [(SLOTS[name][0], SLOTS[name][1]) for name in SLOTS] + [(CALL, CALL_END)]
    opened = {tok.special_tokens[begin]: tok.special_tokens[end] for begin, end in marks if {begin, end} <= tok.special_tokens.keys()}
    shown = {tok.special_tokens[t] for t in (THINK, THINK_END) if t in tok.special_tokens}
    ends = tok.special_tokens.get(tok.chat.end) if tok.chat is not None else None
    turns: list[list[int]] = [[]]
    until = -1
    for token, logprob, _ in tokens:
        if logprob is None:  # a tool's
            until = -1
            if token == ends and turns[-1]:
                turns.append([])
        elif until >= 0:
            until = -1 if token == until else until
        elif token in opened:
            until = opened[token]
        elif token not in tok.special_ids or token in shown:
            turns[-1].append(token)
    return [tok.decode(ids) for ids in turns]


def said_of(tok: Tokenizer, tokens: Sequence[Sequence[Any]]) -> tuple[str, str]:
    """(answer, reasoning) of an answer that is over."""
    text, reasoning, last = _parted(tok, tokens)
    more = last.push("", over=True)
    return text + more[0], reasoning + more[1]


def _parted(tok: Tokenizer, tokens: Sequence[Sequence[Any]]) -> tuple[str, str, Thinking]:
    """(answer, reasoning) of tokens, and what parts those that come next."""
    answers, thoughts = [], []
    turns = spoken(tok, tokens)
    for at, turn in enumerate(turns):
        thinking = Thinking()
        answer, thought = thinking.push(turn, over=at + 1 < len(turns))
        answers.append(answer)
        thoughts.append(thought)
    return "\n\n".join(filter(None, answers)), "".join(thoughts), thinking


# ---- theirs ----------------------------------------------------------------------------------------------------------

_URL = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")
_MAX_LINE, _MAX_ANSWER = 1 << 20, 16 << 20  # bytes of an endpoint's line, and of all of its answer


def endpoint_url(base: str) -> str:
    """Where chat completions are asked for, of an address as clients take it (…/v1). UserError for what is none."""
    base = base.strip().rstrip("/")
    if not _URL.fullmatch(base):
        raise UserError(f"{base!r:.80} is not the address of an endpoint", hint="for example http://127.0.0.1:8080/v1")
    return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


async def endpoint(base: str, key: str, model: str, messages: Sequence[Mapping[str, str]], settings: Settings) -> AsyncGenerator[Delta, None]:
    """An OpenAI-compatible endpoint answers. Follows no redirect; the key goes to this address and nowhere else. Raises UserError."""
    import httpx

    body: dict[str, Any] = {"model": model, "messages": list(messages), "stream": True, "stream_options": {"include_usage": True},
                            "temperature": settings.temperature, "top_p": settings.top_p, "max_tokens": settings.max_tokens}  # fmt: skip
    if settings.seed is not None:
        body["seed"] = settings.seed
    if settings.stop:
        body["stop"] = [line.replace("\\n", "\n") for line in settings.stop.splitlines() if line][:4]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    thinking, finish = Thinking(), ""
    try:
        async with httpx.AsyncClient(timeout=httpx.Timeout(10, read=300), follow_redirects=False, trust_env=False) as client:
            async with client.stream("POST", endpoint_url(base), json=body, headers=headers) as answer:
                if answer.status_code != 200:
                    raise UserError(f"the endpoint answered {answer.status_code}: {await _told(answer)}")
                async for line in _lines(answer):
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        break
                    chunk = json.loads(data)
                    if chunk.get("error"):
                        raise UserError(f"the endpoint failed: {_message(chunk)}")
                    delta, reason = _chunk(chunk, thinking)
                    finish = reason or finish
                    if delta.text or delta.reasoning or delta.tool or delta.prompt_tokens:
                        yield delta
    except httpx.HTTPError as error:
        raise UserError(f"{base} could not be asked: {error or type(error).__name__}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("the endpoint's answer is not in the form of OpenAI's") from None
    text, reasoning = thinking.push("", over=True)
    yield Delta(text, reasoning, finish=finish or "stop")


def _chunk(chunk: dict[str, Any], thinking: Thinking) -> tuple[Delta, str]:
    usage = chunk.get("usage") or {}
    delta = Delta(prompt_tokens=int(usage.get("prompt_tokens") or 0))
    reason = ""
    for choice in chunk.get("choices") or []:
        more = choice.get("delta") or {}
        text, reasoning = thinking.push(more.get("content") or "")
        delta.text += text
        delta.reasoning += reasoning + (more.get("reasoning_content") or more.get("reasoning") or "")
        for call in more.get("tool_calls") or []:
            function = call.get("function") or {}
            delta.tool = {"tool": str(function.get("name") or ""), "call": str(function.get("arguments") or ""), "part": int(call.get("index") or 0)}
        reason = choice.get("finish_reason") or reason
    return delta, str(reason)


async def _lines(answer: Any) -> AsyncGenerator[str, None]:
    """Lines of a streamed answer. Raises UserError for one without end."""
    held, size = b"", 0
    async for part in answer.aiter_bytes():
        held, size = held + part, size + len(part)
        *whole, held = held.split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")
        if len(held) > _MAX_LINE or size > _MAX_ANSWER:
            raise UserError("the endpoint's answer has no end")
    if held:
        yield held.decode("utf-8", "replace")


async def _told(answer: Any) -> str:
    data = b""
    async for part in answer.aiter_bytes():
        data += part
        if len(data) > 4096:
            break
    try:
        return _message(json.loads(data))
    except ValueError:
        return data[:200].decode("utf-8", "replace") or answer.reason_phrase


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message") if isinstance(error, dict) else error or body)[:300]
