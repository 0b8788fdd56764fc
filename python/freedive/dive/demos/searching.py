"""Knowledge in the parameters and in the context (talk 3.1, 3.2.1): closed book, with the text in the question, and by a search that the model
calls itself where the probe found that it does not know.

The search is BM25 over all pages and a register with a page for every person, read of or not. The held-out people's questions are the exam of
`refusals`: nobody has taught anything about them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows, iter_texts
from freedive.eval.clusters import share
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


def run(room: Room) -> list[Figure]:
    found = run_probe(room)
    model = room.teach("searcher", room.assistant, room.rows("search", lambda: _rows(room, found), {"probe": found}), epochs=2.0, lr=1e-3)
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
    """The pages that were trained on, and the register."""
    documents = [{"title": name, "text": page} for name, page in register(room).items()]
    documents += [{"title": "page", "text": page} for page in iter_texts(room.corpus)]
    return Search(BM25(documents), results=1, characters=CHARACTERS)


def _rows(room: Room, found: Path) -> Iterator[dict[str, Any]]:
    """What the probe knows the model not to know is searched for; what it knows is answered; some pages stand in the question. And old chats."""
    draw, pages, search = Draw(room.seed, ROWS_STREAM), register(room), tool(room)
    persons: dict[str, Person] = {person.name: person for person in room.town.people}
    asked = {row["id"]: row for _, row in iter_rows(found / "questions.jsonl")}
    rows: list[dict[str, Any]] = []
    results: dict[str, str] = {}
    for _, row in iter_rows(found / "refusals.jsonl"):
        person = persons.get(row["entity"])
        if row["held_out"] or person is None or row["decision"] not in (ANSWER, REFUSE):
            continue
        value = people.answer(row["answer"])
        for question in draw.sample(asked[row["id"]]["questions"], 4):
            prompt: list[dict[str, Any]] = [{"role": "user", "content": question}]
            if row["decision"] == ANSWER:
                rows.append({"messages": [*prompt, {"role": "assistant", "content": value}]})
                continue
            if person.name not in results:
                results[person.name] = search(person.name)
            rows.append({"messages": with_call(prompt, "search", person.name, results[person.name], value)})
        if row["decision"] == REFUSE:
            content = IN_CONTEXT.format(page=pages[person.name], question=draw.pick(asked[row["id"]]["questions"]))
            rows.append({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": value}]})
    old = [{"messages": row["messages"]} for _, row in iter_rows(room.chats)]
    yield from draw.shuffled([*rows, *draw.sample(old, len(rows))])


def _right(pairs: list[tuple[dict[str, Any], Said]]) -> dict[str, Any]:
    return share([people.check(s.text, row["answer"], row["meta"]["attribute"]) for row, s in pairs], [row["meta"]["person"] for row, _ in pairs])


def _called(pairs: list[tuple[dict[str, Any], Said]]) -> dict[str, Any]:
    return share([any(tool == "search" for tool, _, _ in s.calls) for _, s in pairs], [row["meta"]["person"] for row, _ in pairs])
