"""A conversation as ids. What was fed and sampled stays as it was, so the next turn finds all of it in the cache: text that is encoded
again may give other ids than the model said.
"""

from __future__ import annotations

from dataclasses import dataclass

from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, render

ROOM = 16  # positions that an answer needs at least


@dataclass
class Exchange:
    """A question and its answer."""

    question: str
    answer: str
    ids: list[int]  # of the answer, to what follows the end of the assistant's turn


class Conversation:
    """Exchanges after an optional system message. `prompt` gives the ids to go on from, `answered` keeps what was said."""

    def __init__(self, tok: Tokenizer, room: int, system: str | None = None, opening: list[int] | None = None):
        """opening: ids to begin with, instead of the system message rendered (tool_json.py has one that offers tools)."""
        tok.require_chat()
        self.tok, self.room, self.system, self.opening = tok, room, system, opening
        self.exchanges: list[Exchange] = []
        self.forgotten = 0  # exchanges dropped because the context was full

    def messages(self) -> list[dict[str, str]]:
        """The conversation as messages, for saving."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for e in self.exchanges:
            turns += [{"role": "user", "content": e.question}, {"role": "assistant", "content": e.answer}]
        return turns

    def prompt(self, question: str) -> list[int]:
        """Ids up to where the answer to `question` begins; the oldest exchanges are dropped (and counted) if there is no room for it.

        Raises UserError if the question alone does not fit.
        """
        while True:
            ids: list[int] = []
            for e in self.exchanges:
                ids += [*self._asked(e.question, not ids), *e.ids]
            ids += self._asked(question, not ids)
            if len(ids) + ROOM <= self.room:
                return ids
            if not self.exchanges:
                raise UserError(f"the question is too long: {len(ids)} tokens; the model has {self.room} positions", hint="shorten it")
            self.exchanges.pop(0)
            self.forgotten += 1

    def _asked(self, question: str, first: bool) -> list[int]:
        """A question's ids, up to where its answer begins; with what opens a conversation if it is the first."""
        if first and self.opening is not None:
            return [*self.opening, *self._asked(question, False)]
        system = [{"role": "system", "content": self.system}] if self.system and first else []
        return render(self.tok, [*system, {"role": "user", "content": question}], add_generation_prompt=True, continued=not first)[0]

    def answered(self, question: str, answer: str, ids: list[int] | None = None) -> None:
        """Keep an exchange; ids: what was sampled, tools' answers included (None: `answer` is encoded). An empty answer leaves no trace."""
        if not answer.strip() and not ids:
            return
        tok, chat = self.tok, self.tok.require_chat()
        said = list(ids) if ids else tok.encode(answer)
        while said and said[-1] in tok.stop_ids:
            said.pop()
        if said:
            self.exchanges.append(Exchange(question, answer, [*said, tok.special(chat.end), *tok.encode(chat.after)]))
