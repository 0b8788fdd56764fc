"""Answers to be judged, sampled while somebody judges: a worker stays some prompts ahead of the labeller, so nobody waits for a model.

Answer k of a prompt comes from writer k modulo their number, with a seed that the folder's seed, the item and k give: our models give the same answers after a
restart. What was sampled is in the folder's answers.jsonl, and is never sampled again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from freedive.runs import UserError
from freedive.sft.labels.items import Answer, Item
from freedive.sft.labels.store import Desk
from freedive.tokenizer import render

from .pages.source import Delta, Settings, endpoint, local

AHEAD = 6  # prompts
TRIES = 3  # to get an answer that is not there already


@dataclass(frozen=True)
class Writer:
    """Who writes answers: a name, and a stream of an answer to messages."""

    name: str
    answer: Callable[[Sequence[dict[str, Any]], Settings], AsyncGenerator[Delta, None]]


def our_writer(service: Any) -> Writer:
    """A model served in this process. UserError for one that knows no turns."""
    tok = service.lm.tokenizer
    tok.require_chat()
    return Writer(service.name, lambda messages, settings: local(service, render(tok, list(messages), add_generation_prompt=True)[0], settings))


def their_writer(url: str, model: str) -> Writer:
    """An OpenAI-compatible endpoint; its key, if it wants one, is in OPENAI_API_KEY."""
    key = os.environ.get("OPENAI_API_KEY", "")
    return Writer(model, lambda messages, settings: endpoint(url, key, model, [{"role": str(m["role"]), "content": str(m.get("content") or "")} for m in messages], settings))


class Candidates:
    """Samples what items lack of `wanted` answers. `need(item)` makes it begin there; `tell` is called after each item that is whole, or failed."""

    def __init__(self, desk: Desk, writers: Sequence[Writer], wanted: int, settings: Settings, task: str):
        self.desk, self.writers, self.wanted, self.settings, self.task = desk, writers, wanted, settings, task
        self.failed: dict[str, str] = {}  # item: what went wrong
        self.tell: list[Callable[[str], Awaitable[None]]] = []
        self._first = ""
        self._wake = asyncio.Event()

    def lacks(self, item: str) -> bool:
        """Whether an item has fewer answers than are wanted."""
        return bool(self.writers) and len(self.desk.items[item].answers) < self.wanted

    def need(self, item: str) -> None:
        """The labeller is here: what it lacks comes first, then what follows."""
        self._first = item
        self._wake.set()

    def again(self, item: str) -> None:
        """What failed is to be tried once more."""
        self.failed.pop(item, None)
        self.need(item)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Open while answers are to be sampled."""
        worker = asyncio.create_task(self._work())
        try:
            yield
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            item = self._next()
            if item is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._fill(self.desk.items[item])
            except UserError as error:
                self.failed[item] = error.message
            except Exception as error:  # Busy, EngineFailure, a full disk: told on the page, which offers to try again
                self.failed[item] = str(error) or type(error).__name__
            for tell in list(self.tell):
                await tell(item)

    def _next(self) -> str | None:
        """The first item that lacks answers, from where the labeller is, some prompts ahead."""
        lacking = lambda i: self.lacks(i) and i not in self.failed
        if self._first and lacking(self._first):
            return self._first
        ids = list(self.desk.items)
        after = set(ids[ids.index(self._first) if self._first else 0 :])
        ahead = [i for i in self.desk.open_items(self.task) if i in after][:AHEAD]
        return next((i for i in ahead if lacking(i)), None)

    async def _fill(self, item: Item) -> None:
        """All that an item lacks, at once: answers do not depend on who is sampled beside them, so a restart that finds some gives the same others."""
        self.desk.read_answers()  # another labeller's process may have been here
        numbers = range(len(self.desk.items[item.id].answers), self.wanted)
        found = await asyncio.gather(*(self._sample(item, k, 0) for k in numbers), return_exceptions=True)
        for k, text in zip(numbers, found):
            if isinstance(text, BaseException):
                raise text
            attempt = 0
            while attempt + 1 < TRIES and (not text or any(text == a.text for a in self.desk.items[item.id].answers)):
                attempt += 1
                text = await self._sample(item, k, attempt)
            if not text:
                raise UserError(f"{self._writer(k).name} wrote an empty answer {TRIES} times", hint="a higher temperature, or another model")
            sampling = {"temperature": self.settings.temperature, "top_p": self.settings.top_p, "max_tokens": self.settings.max_tokens}
            self.desk.add_answer(item.id, Answer(f"s{k}", text, self._writer(k).name), **sampling, seed=draw(self.desk.seed, item.id, k, attempt))

    def _writer(self, k: int) -> Writer:
        return self.writers[k % len(self.writers)]

    async def _sample(self, item: Item, k: int, attempt: int) -> str:
        return await said(self._writer(k), item, replace(self.settings, seed=draw(self.desk.seed, item.id, k, attempt)))


async def said(writer: Writer, item: Item, settings: Settings) -> str:
    """A whole answer; what a model thought before it is left out."""
    text = ""
    async with aclosing(writer.answer(item.prompt, settings)) as deltas:
        async for delta in deltas:
            text += delta.text
    return text.strip()


def draw(seed: int, item: str, k: int, attempt: int) -> int:
    """A seed for an answer, 53 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{item}\0{k}\0{attempt}".encode(), digest_size=8).digest(), "big") >> 11
