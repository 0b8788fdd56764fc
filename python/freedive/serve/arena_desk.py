"""Behind the arena's page: which battle is next, answers as they are being written, and votes, on the disk before names are shown.

Answers to the file's prompts are kept and serve every battle of their prompt; a worker stays some battles ahead of the voter. What a voter asks is
answered by two contestants drawn at random.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from freedive.eval.arena.contestants import Contestant, load_contestant
from freedive.eval.arena.log import WINNERS, Battle
from freedive.eval.arena.room import Match, Prompt, Room, decision, make_prompt
from freedive.runs import UserError
from freedive.tokenizer import render

from .candidates import Writer, their_writer
from .pages.source import Settings, local

AHEAD = 4  # battles
FAILED = "One of the two could not answer. Why is told in the terminal, for an address or a model's name would say who it is."


@dataclass
class Draft:
    """An answer that is being written, or is there."""

    text: str = ""
    done: bool = False
    failed: str = ""


def writers(room: Room, threads: int | None) -> tuple[list[Any], dict[str, Writer]]:
    """(services to be started, who writes for each contestant). A model that plays several times is loaded once. UserError for one that cannot be loaded."""
    from .service import Service

    services: dict[tuple[str, ...], Any] = {}
    found = {}
    for c in room.contestants.values():
        if c.service:
            found[c.name] = their_writer(c.where, c.model)
            continue
        if c.key() not in services:
            services[c.key()] = Service(load_contestant(c, threads), name=c.name)
        found[c.name] = _our_writer(services[c.key()], c)
    return list(services.values()), found


def _our_writer(service: Any, c: Contestant) -> Writer:
    tok = service.lm.tokenizer
    return Writer(c.name, lambda messages, settings: local(service, render(tok, list(messages), add_generation_prompt=True)[0], settings))


class Desk:
    """One voter; the page looks at the drafts, several times a second while they grow."""

    def __init__(self, room: Room, prompts: Sequence[Prompt], voter: str, written_by: dict[str, Writer], limit: int | None = None):
        self.room, self.voter, self.writers = room, voter, written_by
        self.matches = room.matches(prompts)[:limit]
        self.done = room.judged(voter)
        self.drafts: dict[tuple[str, str], Draft] = {key: Draft(text, True) for key, text in room.answers.items() if text is not None}
        self.asked: dict[str, Match] = {}  # battles of the voter's own prompts
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def open_matches(self) -> list[Match]:
        return [m for m in self.matches if m.id not in self.done]

    def find(self, id: str) -> Match | None:
        return self.asked.get(id) or next((m for m in self.matches if m.id == id), None)

    def ask(self, question: str) -> Match:
        """A battle about the voter's own question. Who plays is drawn anew each time. UserError for an empty one."""
        if not question.strip():
            raise UserError("there is no question yet")
        a, b = random.SystemRandom().sample(sorted(self.room.contestants), 2)
        match = self.room.match(make_prompt([{"role": "user", "content": question.strip()}]), a, b)
        self.asked[match.id] = match
        return match

    def draft(self, match: Match, name: str) -> Draft:
        """The answer of one side, begun now if it was not."""
        key = (match.prompt.id, name)
        if key not in self.drafts:
            self.drafts[key] = Draft()
            self._tasks[key] = asyncio.get_running_loop().create_task(self._write(match.prompt, name, self.drafts[key]))
        return self.drafts[key]

    def again(self, match: Match) -> None:
        """What failed is to be tried once more."""
        for name in (match.left, match.right):
            if (found := self.drafts.get((match.prompt.id, name))) is not None and found.failed:
                del self.drafts[match.prompt.id, name]

    async def _write(self, prompt: Prompt, name: str, draft: Draft) -> None:
        c = self.room.contestants[name]
        settings = Settings(temperature=c.temperature, top_p=c.top_p, max_tokens=c.max_tokens, alternatives=0, seed=self.room.seed_of(prompt, name))
        try:
            async with aclosing(self.writers[name].answer(c.asked(prompt.messages), settings)) as deltas:
                async for delta in deltas:
                    draft.text += delta.text
            draft.text = draft.text.strip()
            self.room.keep_answers(name, [(prompt, draft.text)])
            draft.done = True
        except Exception as error:  # of theirs, Busy, EngineFailure, a full disk: the page offers to try again
            draft.failed = FAILED
            print(f"{name} gave no answer: {error.message if isinstance(error, UserError) else str(error) or type(error).__name__}", file=sys.stderr, flush=True)
        finally:
            self._tasks.pop((prompt.id, name), None)

    def vote(self, match: Match, winner: str) -> None:
        """On the disk when this returns. UserError for a vote on answers that are not there."""
        sides = self.drafts.get((match.prompt.id, match.left)), self.drafts.get((match.prompt.id, match.right))
        if winner not in WINNERS:
            raise UserError(f"{winner!r:.40} is no vote")
        if not all(d is not None and d.done for d in sides):
            raise UserError("the answers are not finished yet")
        self.room.keep_battles([decision(match, winner, self.voter, (sides[0].text, sides[1].text))])  # type: ignore[union-attr]
        self.done.add(match.id)
        self._wake.set()

    def log(self) -> list[Battle]:
        """All battles of the folder."""
        return self.room.battles()[0] if self.room.log.is_file() else []

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Open while answers are to be written ahead."""
        worker = asyncio.create_task(self._ahead())
        try:
            yield
        finally:
            tasks = [worker, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ahead(self) -> None:
        while True:
            self._wake.clear()
            for match in self.open_matches()[:AHEAD]:
                for name in (match.left, match.right):
                    self.draft(match, name)
            await self._wake.wait()


