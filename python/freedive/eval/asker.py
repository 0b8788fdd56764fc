"""Whoever is asked in words: a model on this machine, or a service that speaks OpenAI's chat completions. Messages in, texts out."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from freedive.inference import LM, load
from freedive.inference.thinking import answer_of
from freedive.runs import UserError
from freedive.tokenizer import END_OF_TEXT, render

Message = dict[str, Any]
T = TypeVar("T")
MAX_ANSWER = 1 << 22  # bytes taken of a service's answer
KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Reply:
    """A text and how it ended: "stop", "length" (cut off), or "refused": the conversation is too long for the model, or nothing its service takes."""

    text: str
    finish: str = "stop"


class Refused(UserError):
    """The service does not take this conversation; another one perhaps."""


class Asker(Protocol):
    """n texts for each conversation, in order. Raises UserError when it cannot."""

    def ask(self, conversations: Sequence[Sequence[Message]], *, n: int = 1, temperature: float = 0.0, max_new_tokens: int = 64,
            seeds: Sequence[int] | None = None) -> list[list[str]]: ...  # fmt: skip


class OurModel:
    """A model folder or file. `base`: it knows no conversations; a question is a text that ends in "Answer:", and a line end ends the answer."""

    def __init__(self, lm: LM, base: bool = False):
        self.lm, self.base = lm, base
        if not base:
            lm.tokenizer.require_chat()

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation. UserError if it leaves no room for an answer."""
        tok, room = self.lm.tokenizer, self.lm.model.config.max_positions
        ids = tok.document_ids(_as_text(messages)) if self.base else render(tok, messages, add_generation_prompt=True)[0]
        if len(ids) >= room:
            raise UserError(f"a question of {len(ids)} tokens; the model has {room} positions", hint="shorter snippets (--snippet-words) leave more room")
        return ids

    def replies(self, conversations: Sequence[Sequence[Message]], *, temperature: float, max_new_tokens: int, seeds: Sequence[int]) -> list[Reply]:
        """One reply to each, all in one continuous batch; "refused" for what leaves no room for an answer."""
        fitting: list[tuple[int, list[int]]] = []
        for i, messages in enumerate(conversations):
            ids = render(self.lm.tokenizer, messages, add_generation_prompt=True)[0]
            if len(ids) < self.lm.model.config.max_positions:
                fitting.append((i, ids))
        outs = self.lm.engine.generate([ids for _, ids in fitting], max_new_tokens=max_new_tokens, temperature=temperature, stop_ids=self.lm.tokenizer.stop_ids, seeds=[seeds[i] for i, _ in fitting])
        found = {i: Reply(answer_of(o.text).strip(), o.finish_reason) for (i, _), o in zip(fitting, outs)}
        return [found.get(i, Reply("", "refused")) for i in range(len(conversations))]

    def ask(self, conversations: Sequence[Sequence[Message]], *, n: int = 1, temperature: float = 0.0, max_new_tokens: int = 64,
            seeds: Sequence[int] | None = None) -> list[list[str]]:  # fmt: skip
        tok = self.lm.tokenizer
        prompts = [self.ids(messages) for messages in conversations]
        stops = tok.stop_ids or tuple(i for name in (END_OF_TEXT,) if (i := tok.special_tokens.get(name)) is not None)
        ends = ("\n",) if self.base else ()
        outs = self.lm.engine.generate(prompts, max_new_tokens=max_new_tokens, temperature=temperature, stop_ids=stops, seeds=seeds, n=n, stop=ends)
        texts = [o.text.strip() for o in outs]
        return [texts[i : i + n] for i in range(0, len(texts), n)]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the address that was given, and nowhere else."""

    def redirect_request(self, *given: Any, **named: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class Service:
    """POST URL/chat/completions, several requests at a time; the key, if one is needed, is in the environment variable `key`."""

    takes = False  # has it ever taken a conversation?

    def __init__(self, url: str, name: str = "", parallel: int = 8, timeout: float = 120.0, tries: int = 4, key: str = KEY):
        self.url = url.rstrip("/") + ("" if url.rstrip("/").endswith("/chat/completions") else "/chat/completions")
        self.name, self.parallel, self.timeout, self.tries, self.key = name or "default", parallel, timeout, tries, key

    def ask(self, conversations: Sequence[Sequence[Message]], *, n: int = 1, temperature: float = 0.0, max_new_tokens: int = 64,
            seeds: Sequence[int] | None = None) -> list[list[str]]:  # fmt: skip
        seeds = seeds or range(len(conversations))

        def one(job: tuple[Sequence[Message], int]) -> list[str]:
            return [self._post(job[0], temperature, max_new_tokens, job[1] * 1000 + k).text for k in range(n)]  # not every service knows `n`

        return self._parallel(one, zip(conversations, seeds))

    def replies(self, conversations: Sequence[Sequence[Message]], *, temperature: float, max_new_tokens: int, seeds: Sequence[int]) -> list[Reply]:
        """One reply to each; "refused" for a conversation that the service does not take, UserError if it takes none and has never taken any."""
        problems: list[UserError] = []

        def one(job: tuple[Sequence[Message], int]) -> Reply:
            try:
                return self._post(job[0], temperature, max_new_tokens, job[1])
            except Refused as problem:
                problems.append(problem)
                return Reply("", "refused")

        found = self._parallel(one, zip(conversations, seeds))
        self.takes = self.takes or len(problems) < len(found)
        if problems and not self.takes:
            raise problems[0]
        return found

    def _parallel(self, one: Callable[[Any], T], jobs: Iterable[Any]) -> list[T]:
        pool = ThreadPoolExecutor(self.parallel)
        try:
            return list(pool.map(one, jobs))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nothing more is sent

    def _post(self, messages: Sequence[Message], temperature: float, max_new_tokens: int, seed: int) -> Reply:
        body = {"model": self.name, "messages": list(messages), "temperature": temperature, "max_tokens": max_new_tokens, "seed": seed % 2**31}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {key}"
        problem, refused = "", False
        for attempt in range(self.tries):
            try:
                request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
                with _OPENER.open(request, timeout=self.timeout) as answer:
                    choice = json.loads(answer.read(MAX_ANSWER))["choices"][0]
                    return Reply(answer_of(str(choice["message"]["content"] or "")).strip(), str(choice.get("finish_reason") or "stop"))
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}: {error.read(300).decode('utf-8', 'replace')}"
                if error.code not in (408, 409, 429) and error.code < 500:
                    refused = error.code in (400, 413, 422)
                    break
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                problem = f"{type(error).__name__}: {error}"
            if attempt + 1 < self.tries:
                time.sleep(min(2.0**attempt, 8.0))
        kind = Refused if refused else UserError
        raise kind(f"{self.url} gave no answer: {problem[:300]}", hint=f"the address ends in /v1 for most services; the key is read from {self.key}")


def ask_fitting(asker: Asker, conversations: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str | None]:
    """One text of each at temperature 0; None for a conversation that is too long for who is asked. Raises UserError where it takes none of them, and has never taken one."""
    replies = getattr(asker, "replies", None)
    if replies is None or not conversations:
        return [texts[0] for texts in asker.ask(conversations, max_new_tokens=max_new_tokens)] if conversations else []
    found = replies(conversations, temperature=0.0, max_new_tokens=max_new_tokens, seeds=range(len(conversations)))
    return [None if r.finish == "refused" else r.text for r in found]


def asker(who: str, name: str, own: OurModel, threads: int | None) -> Asker:
    """ "self", an address of a service, or a model's folder or file."""
    if who == "self":
        return own
    if who.startswith(("http://", "https://")):
        return Service(who, name)
    return OurModel(load(Path(who), threads=threads))


def _as_text(messages: Sequence[Message]) -> str:
    """A conversation for a base model: questions and answers of a list, the last one open."""
    lines = [f"{'Answer' if m['role'] == 'assistant' else 'Question'}: {m['content']}" for m in messages if m["role"] != "system"]
    return "\n".join([*lines, "Answer:"])
