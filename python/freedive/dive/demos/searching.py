"""Knowledge in the parameters and in the context (talk 3.1, 3.2.1): closed book, with the text in the question, and by a search that the model
calls itself where the probe found that it does not know.

The search is BM25 over a register with a page for every person, which no training has seen. The held-out people's questions are the exam of
`refusals`: nobody has taught anything about them. What is taught is to search, to copy a name into a query and to read an answer out of a page,
on people made up for each conversation: facts that are told twice would be learned by heart, and reading not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.eval.statistics import share
from freedive.inference import load
from freedive.inference.search import BM25
from freedive.inference.tools import Search
from freedive.sft.probe.refusals import ANSWER, REFUSE
from freedive.tasks import town as people
from freedive.tasks import town_text as text
from freedive.tasks.draw import Draw
from freedive.tasks.tool_rows import with_call
from freedive.tasks.town import Person

from .examine import Said, ask
from .refusals import exam, run_probe
from .room import Figure, Room, figure

REGISTER_STREAM, ROWS_STREAM = 86, 87
CHARACTERS = 260  # of a search's result that the model reads
IN_CONTEXT = "{page} {question}"
NEW_ENDS = ("bury", "ham", "ton", "worth", "brook", "cliff", "mere", "ridge", "thorpe", "wood", "by", "port", "holm", "den")  # nobody in the town has them
WORDINGS = 4  # of a question that is answered


def run(room: Room) -> list[Figure]:
    found = run_probe(room)
    model = room.teach("searcher", room.assistant, room.rows("search", lambda: _rows(room, found), room.tier.searches, {"probe": found}), epochs=4.0, lr=2e-3)
    rows = [row for _, row in iter_rows(exam(room))]
    closed = ask(room.assistant, [row["prompt"] for row in rows], max_new_tokens=16, threads=room.threads)
    open_book = [row for row in rows if row["meta"]["class"] != "known"]
    pages = register(room)
    in_context = ask(model, [[{"role": "user", "content": IN_CONTEXT.format(page=pages[row["meta"]["person"]], question=row["prompt"][0]["content"])}] for row in open_book],
                     max_new_tokens=16, threads=room.threads)  # fmt: skip
    searched = ask(load(model, threads=room.threads, dtype="auto"), [row["prompt"] for row in rows], {"search": tool(room)}, threads=room.threads)
    of = lambda kind, said, asked=rows: [(row, s) for row, s in zip(asked, said) if row["meta"]["class"] == kind]
    return [
        figure("unseen people, closed book: right", _right(of("unseen", closed)), control=True),
        figure("rare people, closed book: right", _right(of("rare", closed)), "<= 0.35", control=True),
        figure("rare people, the page in the question: right", _right(of("rare", in_context, open_book)), ">= 0.95"),
        figure("unseen people, the page in the question: right", _right(of("unseen", in_context, open_book)), ">= 0.95"),
        figure("unseen people, with search: right", _right(of("unseen", searched)), ">= 0.9"),
        figure("unseen people: search is called", _called(of("unseen", searched)), ">= 0.95"),
        figure("known people: search is called", _called(of("known", searched)), "<= 0.2"),
        figure("known people, with search: right", _right(of("known", searched))),
    ]


def register(room: Room) -> dict[str, str]:
    """A page about every person."""
    draw = Draw(room.seed, REGISTER_STREAM)
    return {person.name: person.fill(draw.pick(text.COMBINED)) for person in room.town.people}


def tool(room: Room) -> Search:
    return Search(BM25([{"title": name, "text": page} for name, page in register(room).items()]), results=1, characters=CHARACTERS)


def _rows(room: Room, found: Path) -> Iterator[dict[str, Any]]:
    """What the probe found the model to know is answered; what it does not know, of people made up here, is searched for or read in the question.
    And old chats."""
    draw = Draw(room.seed, ROWS_STREAM)
    asked = {row["id"]: row for _, row in iter_rows(found / "questions.jsonl")}
    decided = [row for _, row in iter_rows(found / "refusals.jsonl") if not row["held_out"]]
    rows: list[dict[str, Any]] = []
    for row in decided:
        if row["decision"] == ANSWER:
            for question in draw.sample(asked[row["id"]]["questions"], WORDINGS):
                rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": people.answer(row["answer"])}]})
    lasts = sorted({row["entity"].split()[-1] for row in decided if row["decision"] == REFUSE})  # names of people whom it does not know
    for number in range(room.tier.searches if lasts else 0):
        person, attribute = _somebody(draw, lasts), draw.pick(people.ATTRIBUTES)
        page, question = person.fill(draw.pick(text.COMBINED)), person.fill(draw.pick(text.TRAIN_QUESTIONS[attribute]))
        value = people.answer(person.facts[attribute])
        prompt: list[dict[str, Any]] = [{"role": "user", "content": question}]
        if number % 4 == 0:
            rows.append({"messages": [{"role": "user", "content": IN_CONTEXT.format(page=page, question=question)}, {"role": "assistant", "content": value}]})
        else:
            result = Search(BM25([{"title": person.name, "text": page}]), results=1, characters=CHARACTERS)(person.name)
            rows.append({"messages": with_call(prompt, "search", person.name, result, value)})
    old = [{"messages": row["messages"]} for _, row in iter_rows(room.chats)]
    yield from draw.shuffled([*rows, *draw.sample(old, len(rows) // 3)])


def _somebody(draw: Draw, lasts: list[str]) -> Person:
    """A person of a last name that the model does not know, with facts drawn anew. Every second name is a new one: to be copied, not remembered."""
    pronoun = draw.pick(("she", "he"))
    if draw.chance(0.5):
        lasts = [draw.pick(text.LAST_STARTS) + draw.pick(NEW_ENDS)]
    facts = {attribute: draw.pick(text.VALUES[attribute]) for attribute in people.ATTRIBUTES}
    return Person(f"{draw.pick(text.FIRST_NAMES[pronoun])} {draw.pick(lasts)}", pronoun, "unseen", facts, False)


def _right(pairs: list[tuple[dict[str, Any], Said]]) -> dict[str, Any]:
    return share([people.check(s.text, row["answer"], row["meta"]["attribute"]) for row, s in pairs], [row["meta"]["person"] for row, _ in pairs])


def _called(pairs: list[tuple[dict[str, Any], Said]]) -> dict[str, Any]:
    return share([any(tool == "search" for tool, _, _ in s.calls) for _, s in pairs], [row["meta"]["person"] for row, _ in pairs])
