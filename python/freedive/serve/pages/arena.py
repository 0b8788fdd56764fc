"""Two answers side by side whose authors nobody sees, a vote, and then their names (talk 5.2); and the ratings that come of it.

The browser is told who wrote what only after the votes on all battles of the question are on the disk. Keys: 1 or A for the left answer, 2 or B for the right one, T for a tie, X for
both bad, N for the next battle.
"""

from __future__ import annotations

import asyncio

from nicegui import ui

from freedive.eval.arena.log import WINNERS
from freedive.eval.arena.report import ELO, EXPLAINED, SHUFFLES, rated, whiskers
from freedive.eval.arena.room import Match
from freedive.runs import UserError

from ..arena_desk import Desk
from .parts import Field, Prose, Tag, box, button, fixed_html
from .shell import framed, head

LINKS = (("/", "Arena"), ("/ratings", "Ratings"))
VOTES = (("A is better", "model_a", "1"), ("Tie", "tie", "t"), ("Both bad", "tie (bothbad)", "x"), ("B is better", "model_b", "2"))
MAX_CHARS = 20_000  # of a question
LOOK = 0.2  # seconds between looks at answers that grow


def register(desk: Desk) -> None:
    """Declare the pages."""

    @ui.page("/")
    def arena() -> None:
        Arena(desk)

    @ui.page("/ratings")
    async def ratings() -> None:
        await _ratings(desk)


class Arena:
    """One browser tab."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.match: Match | None = next(iter(desk.open_matches()), None)
        self.voted = ""
        self.prose: dict[str, Prose] = {}
        with framed(LINKS, "/", "Arena", desk.voter, f"voting as {desk.voter}", "arena.js"):
            with box("judged arena"):
                self.top, self.body = box("labelbar"), box("labelbody")
        self.client = ui.context.client
        self.timer = ui.timer(LOOK, self.look)
        self.show()

    def show(self) -> None:
        """Draw the battle, or that there is none."""
        for part in (self.top, self.body):
            part.clear()
        self.prose = {}
        total, open_now = len(self.desk.matches), len(self.desk.open_matches())
        with self.top, box("progress"):
            if total:
                Tag("span", f"{total - open_now:,} of {total:,} decided", role="status")
                with box("gauge wide", role="progressbar", aria_label="Decided", aria_valuemin=0, aria_valuemax=total, aria_valuenow=total - open_now):
                    box(tag="i", style=f"width:{100 * (total - open_now) / total:.1f}%")
            else:
                Tag("span", f"{len(self.desk.done):,} decided", role="status")
        with self.body:
            if self.match is not None:
                self._battle(self.match)
            elif total:
                with box("empty"):
                    Tag("h1", "All decided")
                    Tag("p", "Every battle of the file has your vote. Ask something of your own, or look at the ratings.")
            else:
                with box("empty"):
                    Tag("h1", "Which is better?")
                    Tag("p", "Ask something. Two of the models answer, and you see who they were once you have voted.")
            self._ask()

    def _battle(self, match: Match) -> None:
        with box("thread prompt", "section", aria_label="The question"):
            for message in match.prompt.messages:
                with box(f"turn {'user' if message['role'] == 'user' else 'assistant'}"):
                    if message["role"] == "user":
                        with box("said"):
                            Tag("span", str(message.get("content") or ""))
                    else:
                        with box("who"):
                            Tag("span", str(message["role"]).capitalize())
                        Prose().show(str(message.get("content") or ""), whole=True)
        with box("answers", "section", aria_label="Answers"):
            for letter, name, won in (("A", match.left, "model_a"), ("B", match.right, "model_b")):
                with box("card answer" + (" looked" if self.voted == won else ""), "article", aria_label=f"Answer {letter}", data_answer=letter):
                    Tag("h2", letter, "letter", aria_label=f"Answer {letter}")
                    with box():
                        self.prose[name] = Prose()
                    told = box("line author")
                    if self._named(match):
                        with told:
                            Tag("strong", name, "", data_author=letter)
        self.votes = box("card stack votes", "section", aria_label="Your vote")
        self._shown = ""
        self.look()

    def _named(self, match: Match) -> bool:
        """Whether the names are told: once every battle of this question has a vote, for its answers stand in the others too."""
        return bool(self.voted) and all(m.prompt.id != match.prompt.id for m in self.desk.open_matches())

    def look(self) -> None:
        """What has grown is drawn; once both are there, one can vote."""
        match = self.match
        if match is None or self.body.is_deleted or not self.prose:
            return
        drafts = {name: self.desk.draft(match, name) for name in (match.left, match.right)}
        for name, draft in drafts.items():
            self.prose[name].show(draft.text or ("(an empty answer)" if draft.done else "…"), whole=draft.done)
        failed = next((d.failed for d in drafts.values() if d.failed), "")
        state = self.voted or failed or ("ready" if all(d.done for d in drafts.values()) else "waiting")
        if state != self._shown:
            self._shown = state
            self._choices(match, failed, state)

    def _choices(self, match: Match, failed: str, state: str) -> None:
        self.votes.clear()
        with self.votes:
            if failed:
                with box("error", role="alert"):
                    Tag("span", failed)
                with box("line"):
                    button("Try again", self.again, kind="second")
                    button("Another battle", self.next, kind="second")
                return
            self.problem, named = box(role="alert"), self._named(match)
            with box("line votes", role="group", aria_label="Which is better?"):
                for label, winner, key in VOTES:
                        button(f"{label} ({key.upper()})", lambda winner=winner: self.vote(winner), kind="main" if self.voted == winner else "second", disabled=state == "waiting" or named,
                           data_key=key, aria_keyshortcuts=key.upper(), aria_pressed="true" if self.voted == winner else "false")  # fmt: skip
            if state == "waiting":
                Tag("p", "They are writing …", "hint", role="status")
            elif self.voted:
                told = f"A was {match.left}, B was {match.right}." if named else "Kept; voting again replaces it. Who wrote what is told when all battles of this question have your vote."
                Tag("p", told, role="status")
                button("Next (N)", self.next, kind="main", data_key="n", aria_keyshortcuts="N")

    def _ask(self) -> None:
        with box("card stack", "section", aria_label="Ask"):
            with Tag("label", "", "field"):
                Tag("span", "Ask something of your own")
                area = Field("area", "", "text", rows=2, maxlength=MAX_CHARS, id="question")
            self.told = box(role="alert")
            with box("line"):
                button("Ask two of them", self.ask, kind="second", takes=area, data_ask="", aria_keyshortcuts="Control+Enter")

    # ---- what the voter does

    def vote(self, winner: str) -> None:
        """Keep it, then show the names."""
        if self.match is None or winner not in WINNERS or self._named(self.match):  # who has seen the names votes no more
            return
        try:
            self.desk.vote(self.match, winner)
        except (UserError, OSError) as error:
            self.problem.clear()
            with self.problem, box("error"):
                Tag("span", error.message if isinstance(error, UserError) else f"it could not be written: {error.strerror}")
            return
        self.voted = winner
        self.show()

    def again(self) -> None:
        if self.match is not None:
            self.desk.again(self.match)
            self.show()

    def next(self) -> None:
        skipped = self.match.id if self.match is not None else ""
        left = self.desk.open_matches()
        self.match = next((m for m in left if m.id != skipped), next(iter(left), None))
        self.voted = ""
        self.show()
        self.client.run_javascript("document.querySelector('.judged').scrollTo(0, 0)")

    def ask(self, question: str) -> None:
        try:
            self.match = self.desk.ask(question[:MAX_CHARS])
        except UserError as error:
            self.told.clear()
            with self.told, box("error"):
                Tag("span", error.message)
            return
        self.voted = ""
        self.show()


async def _ratings(desk: Desk) -> None:
    """The ratings of all battles in the folder."""
    with framed(LINKS, "/ratings", "Ratings", desk.voter, f"voting as {desk.voter}"), box("page ratings"):
        head("Ratings", EXPLAINED)
        try:
            found = desk.log()
            if not found:
                raise UserError("there is no battle yet")
            made = await asyncio.to_thread(rated, found)
        except UserError as error:
            with box("error", role="alert"):
                Tag("span", error.message)
            return
        for text in made.main.warnings:
            Tag("p", f"Note: {text}.", "hint")
        with box("card drawn", "section", aria_label="Intervals"):
            fixed_html(whiskers([(r.model, r.rating, *r.interval_95) for r in made.main.ratings], "rating, with its 95 % interval"))
        with box("card tablebox", "section", aria_label="Ratings", tabindex="0"), Tag("table", "", "grid"):
            with Tag("thead"), Tag("tr"):
                for name in ("rank", "model", "rating", "95 % interval", "battles", "won", "Elo", "Elo in other orders"):
                    Tag("th", name, scope="col")
            with Tag("tbody"):
                for r in made.main.ratings:
                    at = made.battles.models.index(r.model)
                    spread = made.elo_spread[:, at]
                    with Tag("tr"):
                        for cell in (f"{r.rank}", r.model, f"{r.rating:.0f}", f"{r.interval_95[0]:.0f} to {r.interval_95[1]:.0f}", f"{r.battles:,}", f"{100 * r.win_rate:.1f} %",
                                     f"{made.elo[at]:.0f}", f"{spread.min():.0f} to {spread.max():.0f}"):  # fmt: skip
                            Tag("td", cell, "" if cell == r.model else "n")
        Tag("p", ELO.format(n=SHUFFLES), "hint")
        Tag("code", f"freedive arena --rank --style-control --out {desk.room.folder}", "command")
