"""Where people judge answers: the question, answers in an order drawn for each labeller, ranks, scores, an ideal answer, and the guidelines beside (talk 2.5.1).

Nothing on the page tells who wrote an answer: the browser knows letters only, in the order shown. What is being typed is kept as a draft every moment;
sending is one appended line (sft/labels/store.py), and the next prompt comes.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nicegui import ui
from nicegui.element import Element

from freedive.runs import UserError
from freedive.sft.labels.items import dense
from freedive.sft.labels.store import FLAGS, SCORES, Desk, Judgement

from .parts import Field, Prose, Tag, box, button, check
from .parts import field as text_field
from .shell import framed

if TYPE_CHECKING:
    from ..candidates import Candidates

LINKS = (("/", "Label"), ("/items", "Items"))
LETTERS = "ABCDEFGHI"
IDLE = 120.0  # seconds without a sign of the labeller that count at most
MAX_CHARS, PAGE = 100_000, 200  # of a field; items listed at once


@dataclass
class Form:
    """What is filled in for one item; answers by their ids."""

    text: str = ""
    notes: str = ""
    ranks: dict[str, int] = field(default_factory=dict)  # from 1, as on the page
    scores: dict[str, int] = field(default_factory=dict)
    answer_notes: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @staticmethod
    def of(draft: dict[str, Any] | None, judged: Judgement | None) -> Form:
        """From a draft, or from what was sent about the item before."""
        if draft is not None:
            kinds = {name: type(getattr(Form(), name)) for name in Form.__dataclass_fields__}
            return Form(**{k: v for k, v in draft.items() if k in kinds and isinstance(v, kinds[k])})
        if judged is not None:
            ranks = {i: rank + 1 for i, rank in judged.ranks.items()}
            return Form(judged.text, judged.notes, ranks, dict(judged.scores), dict(judged.answer_notes), list(judged.flags))
        return Form()


class Ranker(Element, component="static/ranker.js"):
    """Puts letters into ranks; emits ranks({letter: rank from 1})."""

    def __init__(self, letters: list[str], start: dict[str, int]) -> None:
        super().__init__()
        self._props.update(letters=letters, start=start)


class Score(Element, component="static/score.js"):
    """A score, 0 for none; emits score(number)."""

    def __init__(self, label: str, most: int, start: int) -> None:
        super().__init__()
        self._props.update(label=label, most=most, start=start)


def register(desk: Desk, candidates: Candidates, task: str) -> None:
    """Declare the pages."""

    @ui.page("/")
    def label(item: str = "") -> None:
        Labelling(desk, candidates, task, item)

    @ui.page("/items")
    def items(start: int = 0) -> None:
        _items(desk, task, max(0, start))


class Labelling:
    """One browser tab."""

    def __init__(self, desk: Desk, candidates: Candidates, task: str, item: str) -> None:
        self.desk, self.candidates, self.task = desk, candidates, task
        self.ids = list(desk.items)
        self.item = item if item in desk.items else next(iter(desk.open_items(task)), "")
        self.form, self.order = Form(), [""]
        self._seen = time.monotonic()
        with framed(LINKS, "/", "Label", desk.labeller, f"judging as {desk.labeller}", "labelling.js"):
            with box("label") as self.frame:
                with box("side list", "aside", id="guidelines", aria_label="Guidelines", tabindex="0"):
                    Prose().show(desk.guidelines() or "No guidelines.", whole=True)
                with box("judged"):
                    self.top, self.body = box("labelbar"), box("labelbody")
                self.panel = box("side panel", "aside", aria_label="Your judgement")
                button("Close", self._guidelines, kind="veil", bare=True, tabindex="-1", aria_hidden="true")
        self.client = ui.context.client
        self.candidates.tell.append(self._arrived)
        self.client.on_delete(lambda: self.candidates.tell.remove(self._arrived))
        self.show()

    # ---- drawing ------------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Draw the item that is looked at, or that all is done."""
        for part in (self.top, self.body, self.panel):
            part.clear()
        self._progress()
        if not self.item:
            self.frame.classes(add="finished")
            with self.body:
                _all_done(self.desk, self.task)
            return
        self.frame.classes(remove="finished")
        self.candidates.need(self.item)
        self.form = Form.of(self.desk.drafts.get(self.item), self.desk.mine.get(self.item))
        self.order = self.desk.order(self.item, self.desk.labeller)
        self._seen = time.monotonic()
        item = self.desk.items[self.item]
        ranking = self.task != "write"
        with self.body:
            with box("thread prompt", "section", aria_label="The question"):
                for message in item.prompt:
                    _turn(message)
            if ranking and self.candidates.lacks(self.item):
                self._waiting()
                return
            texts = {a.id: a.text for a in item.answers}
            if ranking and len(texts) > 1:
                with box("answers", "section", aria_label="Answers"):
                    for letter, id in zip(LETTERS, self.order):
                        self._answer(letter, id, texts[id])
            if ranking and len(texts) < 2:
                with box("error", role="alert"):
                    Tag("span", "There are no two answers to rank here. Start with --model to have some sampled, or skip it.")
            if self.task != "rank":
                with box("card stack", "section", aria_label="Ideal answer"):
                    area = text_field("The ideal answer, as you would have given it (Markdown)", self.form.text, lambda t: self._typed("text", t), rows=8, pause=0.4,
                                      maxlength=MAX_CHARS, data_field="text", id="ideal")  # fmt: skip
                    self._preview(area)
        with self.panel, box("stack"):
            self._judgement(ranking and len(texts) > 1)

    def _progress(self) -> None:
        done = len(self.ids) - len(self.desk.open_items(self.task))
        skipped = sum(j.skipped for j in self.desk.mine.values())
        with self.top:
            button("Guidelines", self._guidelines, icon_name="list", aria_controls="guidelines")
            at = self.ids.index(self.item) if self.item else len(self.ids)
            told = f"{at + 1:,} of {len(self.ids):,}" if self.item else "Done"
            with box("progress"):
                Tag("span", told)
                with box("gauge wide", role="progressbar", aria_label="Judged", aria_valuemin=0, aria_valuemax=len(self.ids), aria_valuenow=done):
                    box(tag="i", style=f"width:{100 * done / max(1, len(self.ids)):.1f}%")
                Tag("span", f"{done:,} done" + (f", {skipped:,} skipped" if skipped else ""), "hint", role="status")
            button("Previous prompt", lambda: self.go(at - 1), icon_name="left", bare=True, disabled=at == 0)
            button("Next prompt", lambda: self.go(at + 1), icon_name="right", bare=True, disabled=at + 1 >= len(self.ids))

    def _answer(self, letter: str, id: str, text: str) -> None:
        with box("card answer", "article", aria_label=f"Answer {letter}", data_answer=letter):
            Tag("h2", letter, "letter", aria_label=f"Answer {letter}")
            Prose().show(text, whole=True)
            with box("rate"):
                with box("line"):
                    Tag("span", f"{SCORES[0]} useless, {SCORES[-1]} excellent", "hint")
                    score = Score(f"Score of answer {letter}", SCORES[-1], self.form.scores.get(id, 0))
                score.on("score", lambda e: self._scored(id, e.args))
                note = Field("text", self.form.answer_notes.get(id, ""), "text", 0.4, maxlength=2000, aria_label=f"Note on answer {letter}", placeholder="A note on this answer",
                             data_field=f"note {letter}")  # fmt: skip
                for event in ("typed", "changed"):
                    note.on(event, lambda e: self._noted(id, str(e.args)))

    def _preview(self, area: Field) -> None:
        with Tag("details") as shown:
            Tag("summary", "As it will look", "hint", style="cursor:pointer")
            prose = Prose()
        shown.on("toggle", lambda _: prose.show(self.form.text, whole=True))
        for event in ("typed", "changed"):
            area.on(event, lambda e: prose.show(str(e.args)[:MAX_CHARS], whole=True))

    def _judgement(self, ranking: bool) -> None:
        judged = self.desk.mine.get(self.item)
        if ranking:
            Tag("h2", "Your order")
            letters = list(LETTERS[: len(self.order)])
            ranker = Ranker(letters, {letter: self.form.ranks[id] for letter, id in zip(letters, self.order) if id in self.form.ranks})
            ranker.on("ranks", lambda e: self._ranked(e.args))
            Tag("p", "Type a letter, then its rank: A 1, C 2. The same rank is a tie. Or drag, or tap a letter and then a rank.", "hint")
        elif self.task != "rank":
            self.client.run_javascript("document.querySelector('#ideal')?.focus({preventScroll: true})")
        with box("stack tight", "fieldset", aria_label="Flags"):
            Tag("legend", "Flag it", "hint")
            with box("flags"):
                for name in FLAGS:
                    check(name, name in self.form.flags, lambda on, name=name: self._flagged(name, on))  # type: ignore[misc]
        text_field("Notes", self.form.notes, lambda t: self._typed("notes", t), rows=2, pause=0.4, maxlength=5000, data_field="notes")
        self.problem = box(role="alert")
        with box("line"):
            gather = "() => emit(freedive.gather())"
            button("Send", kind="main", data_send="", aria_keyshortcuts="Control+Enter").on("click", lambda e: self.send(e.args), js_handler=gather)
            button("Skip", kind="second").on("click", lambda e: self.send(e.args, skipped=True), js_handler=gather)
        Tag("p", "Ctrl-Enter sends." + (f" You {'skipped' if judged.skipped else 'judged'} it {judged.time[:10]}; sending again replaces that." if judged else ""), "hint")

    def _waiting(self) -> None:
        with box("card stack", "section", aria_label="Answers"):
            failed = self.candidates.failed.get(self.item)
            if failed is None:
                Tag("p", "The answers are being written …", role="status")
            else:
                with box("error", role="alert"):
                    Tag("span", failed)
                with box("line"):
                    button("Try again", self._again, kind="second")
                    button("Skip", lambda: self.send({}, skipped=True), kind="second")
                self.problem = box(role="alert")

    def _again(self) -> None:
        self.candidates.again(self.item)
        self.show()

    def _guidelines(self) -> None:
        self.frame.classes(toggle="swapped")  # hidden where there is room for them, shown where there is none

    # ---- what the labeller does ---------------------------------------------------------------------------------------

    def go(self, at: int) -> None:
        """To another item, by its place."""
        if 0 <= at < len(self.ids):
            self._keep()
            self.item = self.ids[at]
            self.show()
            self._to_the_top()

    def _to_the_top(self) -> None:
        self.client.run_javascript("document.querySelector('.judged').scrollTo(0, 0); if (freedive.small()) scrollTo(0, 0)")

    def _typed(self, name: str, text: str) -> None:
        if getattr(self.form, name) != text[:MAX_CHARS]:
            setattr(self.form, name, text[:MAX_CHARS])
            self._keep(changed=True)

    def _noted(self, id: str, text: str) -> None:
        kept = {k: v for k, v in self.form.answer_notes.items() if k != id} | ({id: text[:2000]} if text.strip() else {})
        if kept != self.form.answer_notes:
            self.form.answer_notes = kept
            self._keep(changed=True)

    def _scored(self, id: str, score: Any) -> None:
        self.form.scores = {k: v for k, v in self.form.scores.items() if k != id} | ({id: score} if score in SCORES else {})
        self._keep(changed=True)

    def _ranked(self, ranks: Any) -> None:
        of = dict(zip(LETTERS, self.order))
        if isinstance(ranks, dict):
            self.form.ranks = {of[k]: v for k, v in ranks.items() if k in of and isinstance(v, int) and 0 < v <= len(self.order)}
            self._keep(changed=True)

    def _flagged(self, name: str, on: bool) -> None:
        self.form.flags = [f for f in FLAGS if (on if f == name else f in self.form.flags)]
        self._keep(changed=True)

    def _keep(self, changed: bool = False) -> None:
        """The time until now counts; a draft is written where something has changed."""
        now = time.monotonic()
        self.form.seconds = round(self.form.seconds + min(now - self._seen, IDLE), 1)
        self._seen = now
        if changed or self.item in self.desk.drafts:
            self.desk.draft(self.item, vars(self.form))

    def send(self, values: Any, skipped: bool = False) -> None:
        """Judge, and go on with the next prompt that is open. `values` are the page's fields at this moment: what was typed last is in no draft yet."""
        if not self.item:
            return
        told = {k: v[:MAX_CHARS] for k, v in values.items() if isinstance(k, str) and isinstance(v, str)} if isinstance(values, dict) else {}
        self.form.text, self.form.notes = told.get("text", self.form.text), told.get("notes", self.form.notes)
        for letter, id in zip(LETTERS, self.order):
            if f"note {letter}" in told:
                self.form.answer_notes = {k: v for k, v in self.form.answer_notes.items() if k != id} | ({id: n} if (n := told[f"note {letter}"].strip()) else {})
        self._keep()
        missing = "" if skipped else self._missing()
        try:
            if missing:
                raise UserError(missing)
            self.desk.judge(self._judge(skipped))
        except (UserError, OSError) as error:
            self.problem.clear()
            with self.problem, box("error"):
                Tag("span", error.message if isinstance(error, UserError) else f"it could not be written: {error.strerror}")
            return
        open_now = self.desk.open_items(self.task)
        after = set(self.ids[self.ids.index(self.item) :])
        self.item = next((i for i in open_now if i in after), next(iter(open_now), ""))
        self.show()
        self._to_the_top()

    def _missing(self) -> str:
        """What has to be filled in before it can be sent."""
        unranked = [letter for letter, id in zip(LETTERS, self.order) if id not in self.form.ranks]
        if self.task != "write" and unranked:
            return f"{', '.join(unranked)} {'has' if len(unranked) == 1 else 'have'} no rank yet"
        return "there is no ideal answer yet" if self.task != "rank" and not self.form.text.strip() else ""

    def _judge(self, skipped: bool) -> Judgement:
        """Of a task that shows a part only, the other part stays what it was."""
        f, before = self.form, self.desk.mine.get(self.item)
        ranks = dict(zip(f.ranks, dense(list(f.ranks.values())))) if self.task != "write" and set(f.ranks) == set(self.order) else {}
        ranks, order = (before.ranks, before.order) if self.task == "write" and before is not None else (ranks, self.order)
        text = before.text if self.task == "rank" and before is not None else f.text.strip()
        return Judgement(self.item, self.desk.labeller, skipped, text, ranks, dict(f.scores), dict(f.answer_notes), f.notes.strip(), list(f.flags), list(order),
                         f.seconds, guidelines=str(self.desk.head.get("guidelines") or ""))  # fmt: skip

    async def _arrived(self, item: str) -> None:
        """Answers came, or failed to."""
        if item == self.item and not self.frame.is_deleted:
            with self.client:
                self.show()


def _turn(message: dict[str, Any]) -> None:
    role, content = str(message["role"]), message.get("content") or ""
    if calls := message.get("tool_calls"):
        content = f"{content}\n{json.dumps(calls, ensure_ascii=False)}".strip()
    with box(f"turn {'user' if role == 'user' else 'assistant'}", data_role=role):
        if role == "user":
            with box("said"):
                Tag("span", str(content))
        else:
            with box("who"):
                Tag("span", role.capitalize())
            Prose().show(str(content), whole=True)


def _all_done(desk: Desk, task: str) -> None:
    with box("empty"):
        Tag("h1", "All done")
        Tag("p", f"{len(desk.mine):,} prompts judged by {desk.labeller}. Skipped ones can be opened again in the list of items.")
        with box("card stack").style("text-align:left; width:100%"):
            Tag("h2", "What now")
            for what in (f"freedive label export {desk.folder} --format {'sft' if task == 'write' else 'pairs'}", f"freedive label agreement {desk.folder}"):
                Tag("code", what, "command")


def _items(desk: Desk, task: str, start: int) -> None:
    """The list of items, with what this labeller made of each."""
    ids = list(desk.items)
    start = min(start, max(0, (len(ids) - 1) // PAGE * PAGE))
    with framed(LINKS, "/items", "Items", desk.labeller, f"judging as {desk.labeller}"), box("page"):
        with box("head"):
            Tag("h1", "Items")
            Tag("p", "Every prompt of the file, and what you made of it. Open one to judge it, or to judge it anew.")
        with box("card tablebox", "section", aria_label="Items", tabindex="0"), Tag("table", "", "grid"):
            with Tag("thead"), Tag("tr"):
                for name in ("", "prompt", "answers", "you", "flags"):
                    Tag("th", name or "number", "visually-hidden" if not name else "", scope="col")
            with Tag("tbody"):
                for n, id in enumerate(ids[start : start + PAGE], start + 1):
                    item, judged = desk.items[id], desk.mine.get(id)
                    state = "draft" if id in desk.drafts else "open" if judged is None else "skipped" if judged.skipped else "judged" if judged.done(task) else "in part"
                    with Tag("tr"):
                        Tag("td", f"{n:,}", "n")
                        with Tag("td"):
                            words = " ".join(str(item.prompt[-1].get("content") or "").split())
                            Tag("a", (words[:90] + ("…" if len(words) > 90 else "")) or "(empty)", href=f"/?item={id}")
                        Tag("td", str(len(item.answers)), "n")
                        Tag("td", state)
                        Tag("td", ", ".join(judged.flags) if judged else "")
        with box("line"):
            if start > 0:
                Tag("a", "Earlier ones", href=f"/items?start={start - PAGE}")
            if start + PAGE < len(ids):
                Tag("a", "Later ones", href=f"/items?start={start + PAGE}")
