"""Argilla's files, as its `rg.Dataset.to_disk` writes and `from_disk` reads them: settings, dataset and records, both ways.

An Argilla dataset has one set of fields and a submitted ranking names all its options, so prompts with 2, 3, ... answers are datasets of their own,
in folders answers-K: fields `prompt` (chat) and `answer_1` to `answer_K`; questions `ranking` (equal ranks are ties), `score_1` ... (1 to 7), `ideal`, `notes`,
`note_1` ..., `flags`. Argilla knows users by UUID: labellers.json says which is whose, and a UUID it does not name becomes the labeller's name.
Seconds, times and the order shown are in a record's metadata, which Argilla keeps. From a server, Argilla's client saves rankings as plain lists, without
ties: these are read as the order they are.

Formats: argilla 2.8, settings/_resource.py, records/_io/_json.py, _models (read 2026-11).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from freedive.runs import UserError

from .items import Item, dense, make_item
from .store import FLAGS, SCORES, Judgement, Labels, clean_name

_SPACE = uuid.UUID("6f1c1b8e-3d0a-5e0c-9d5c-2f6b1a7e4c11")  # of the UUIDs that stand for labellers


def user_id(labeller: str) -> str:
    """The UUID that stands for a labeller: the same in every export."""
    return str(uuid.uuid5(_SPACE, labeller))


def files(labels: Labels, judgements: Iterable[Judgement]) -> dict[str, Any]:
    """Files of one dataset for each number of answers, and who is who."""
    by_item: dict[str, list[Judgement]] = {}
    for j in judgements:
        by_item.setdefault(j.item, []).append(j)
    counts = sorted({len(i.answers) for i in labels.items.values()})
    out: dict[str, Any] = {}
    for k in counts:
        name = f"answers-{k}"
        out[f"{name}/.argilla/settings.json"] = _settings(k, labels.guidelines())
        out[f"{name}/.argilla/dataset.json"] = {"id": None, "name": f"{labels.folder.name}-{name}", "status": "ready", "guidelines": labels.guidelines() or None,
                                                "allow_extra_metadata": True, "distribution": {"strategy": "overlap", "min_submitted": 1}}  # fmt: skip
        out[f"{name}/records.json"] = [_record(i, by_item.get(i.id, [])) for i in labels.items.values() if len(i.answers) == k]
    names = dict.fromkeys(j.labeller for found in by_item.values() for j in found)
    return out | {"labellers.json": {user_id(name): name for name in names}}


def _settings(k: int, guidelines: str) -> dict[str, Any]:
    answers = [f"answer_{n}" for n in range(1, k + 1)]
    fields = [_field("prompt", "Prompt", {"type": "chat", "use_markdown": True})]
    fields += [_field(a, f"Answer {n}", {"type": "text", "use_markdown": True}) for n, a in enumerate(answers, 1)]
    rating = {"type": "rating", "options": [{"value": v} for v in SCORES]}
    questions = []
    if k > 1:
        options = [{"value": a, "text": f"Answer {n}"} for n, a in enumerate(answers, 1)]
        questions.append(_question("ranking", "Order, best first; equal ranks are ties", {"type": "ranking", "options": options}))
    questions += [_question(f"score_{n}", f"How good is answer {n}?", rating) for n in range(1, k + 1)]
    questions.append(_question("ideal", "The ideal answer", {"type": "text", "use_markdown": True}, required=k < 2))  # one question has to be
    questions += [_question(f"note_{n}", f"A note on answer {n}", {"type": "text", "use_markdown": False}) for n in range(1, k + 1)]
    questions.append(_question("notes", "Notes", {"type": "text", "use_markdown": False}))
    options = [{"value": f, "text": f} for f in FLAGS]
    questions.append(_question("flags", "Flags", {"type": "multi_label_selection", "options": options, "visible_options": len(FLAGS), "options_order": "natural"}))
    return {"guidelines": guidelines or None, "questions": questions, "fields": fields, "vectors": [], "metadata": [], "allow_extra_metadata": True,
            "distribution": {"strategy": "overlap", "min_submitted": 1}, "mapping": None}  # fmt: skip


def _field(name: str, title: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {"id": None, "name": name, "title": title, "required": True, "description": None, "dataset_id": None, "settings": settings}


def _question(name: str, title: str, settings: dict[str, Any], required: bool | None = None) -> dict[str, Any]:
    needed = name == "ranking" if required is None else required
    return {"id": None, "name": name, "title": title, "description": None, "required": needed, "dataset_id": None, "settings": settings}


def _record(item: Item, judgements: list[Judgement]) -> dict[str, Any]:
    number = {a.id: n for n, a in enumerate(item.answers, 1)}
    fields: dict[str, Any] = {"prompt": [{"role": str(m["role"]), "content": str(m.get("content") or "")} for m in item.prompt]}
    fields |= {f"answer_{n}": a.text for n, a in enumerate(item.answers, 1)}
    responses: dict[str, list[dict[str, Any]]] = {}
    for j in judgements:
        told: dict[str, Any] = {}
        if j.ranks:
            told["ranking"] = [{"value": f"answer_{number[i]}", "rank": rank + 1} for i, rank in sorted(j.ranks.items(), key=lambda one: one[1])]
        told |= {f"score_{number[i]}": score for i, score in j.scores.items()} | {f"note_{number[i]}": note for i, note in j.answer_notes.items()}
        told |= {name: value for name, value in (("ideal", j.text), ("notes", j.notes), ("flags", j.flags)) if value}
        if j.skipped and not told:
            told = {"notes": ""}  # a discarded response has some value
        for question, value in told.items():
            responses.setdefault(question, []).append({"value": value, "user_id": user_id(j.labeller), "status": "discarded" if j.skipped else "submitted"})
    metadata: dict[str, Any] = {"item": item.id, "sources": [a.source for a in item.answers], "answer_ids": [a.id for a in item.answers], "messages": list(item.prompt)}
    metadata |= {"judgements": {user_id(j.labeller): {"seconds": j.seconds, "time": j.time, "order": j.order, "guidelines": j.guidelines} for j in judgements}}
    suggestions = {}
    if item.ranks and len(item.answers) > 1:
        metadata["ranks"] = item.ranks
        order = [{"value": f"answer_{number[i]}", "rank": rank + 1} for i, rank in sorted(item.ranks.items(), key=lambda one: one[1])]
        suggestions["ranking"] = {"value": order, "score": None, "agent": "file"}
    done = any(not j.skipped for j in judgements)
    return {"id": item.id, "fields": fields, "metadata": metadata, "suggestions": suggestions, "responses": responses, "vectors": {},
            "status": "completed" if done else "pending", "_server_id": None}  # fmt: skip


# ---- back ------------------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[list[Item], list[Judgement]]:
    """Items and judgements of an Argilla dataset on disk, of a folder of several, or of a records.json. UserError for what is none.

    Of others' datasets: fields of texts in their order; those that a ranking question names are the answers (or `answer...`, `response...`, `completion...`,
    `generation...`), the first other one is the prompt. Text questions named notes, note or comment are notes, any other is the ideal answer.
    """
    found = [path] if path.is_file() else sorted([*path.glob("records.json"), *path.glob("*/records.json")])
    if not found:
        raise UserError(f"{path} holds no records.json", hint="give what rg.Dataset.to_disk wrote, or the folder of a freedive label export")
    names: dict[str, str] = {}
    for folder in {found[0].parent, found[0].parent.parent}:
        names |= _json(folder / "labellers.json", dict) if (folder / "labellers.json").is_file() else {}
    items: dict[str, Item] = {}
    judgements: list[Judgement] = []
    for file in found:
        for number, record in enumerate(_json(file, list), 1):
            try:
                item, answers = _item(record)
                if item.id not in items:
                    items[item.id] = item
                judgements += _judgements(record, items[item.id], answers, names)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{file}, record {number} could not be understood: {error}", hint="see docs/labelling.md for the forms that are read") from None
    return list(items.values()), judgements


def _json(file: Path, kind: type) -> Any:
    try:
        value = json.loads(file.read_bytes().decode("utf-8", "surrogatepass"))
    except OSError as error:
        raise UserError(f"{file} could not be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}", hint="export it once more") from None
    if not isinstance(value, kind):
        raise UserError(f"{file} is not what Argilla writes: no {'list of records' if kind is list else 'table'}")
    return value


def _item(record: dict[str, Any]) -> tuple[Item, dict[str, str]]:
    """The item, and which field is which answer."""
    fields, metadata = record["fields"], record.get("metadata") or {}
    named = [option for told in (record.get("responses") or {}).values() for one in told for option in _order(one.get("value"))]
    named += [option for s in (record.get("suggestions") or {}).values() for option in _order(s.get("value"))]
    begins = ("answer", "response", "completion", "generation", "output")
    answers = [f for f in fields if f in named or f.startswith(begins) and isinstance(fields[f], str)]
    prompt = next((fields[f] for f in ("prompt", "instruction", "question") if f in fields), None) or next((v for f, v in fields.items() if f not in answers), None)
    if prompt is None:
        raise ValueError(f"it has no prompt, but the fields {list(fields)[:6]}")
    messages = metadata.get("messages") or ([{"role": "user", "content": prompt}] if isinstance(prompt, str) else [{"role": m["role"], "content": m["content"]} for m in prompt])
    item = make_item(messages, [str(fields[f]) for f in answers], sources=metadata.get("sources"))
    ids = [str(i) for i in metadata.get("answer_ids") or []]
    if len(ids) != len(answers):
        ids = [a.id for a in item.answers]
    kept = tuple(type(a)(i, a.text, a.source) for a, i in zip(item.answers, ids))
    ranks = {str(k): int(v) for k, v in (metadata.get("ranks") or {}).items()}
    return Item(str(metadata.get("item") or item.id), tuple(messages), kept, ranks), dict(zip(answers, ids))


def _order(value: Any) -> list[str]:
    """The options that a ranking's value names."""
    if not isinstance(value, list):
        return []
    if all(isinstance(v, str) for v in value):  # as its client saves an order
        return value
    return [str(v["value"]) for v in value] if all(isinstance(v, dict) and "value" in v for v in value) else []


def _judgements(record: dict[str, Any], item: Item, answers: dict[str, str], names: dict[str, str]) -> list[Judgement]:
    by_user: dict[str, dict[str, Any]] = {}
    begins = list(answers)
    for question, told in (record.get("responses") or {}).items():
        for one in told:
            user, value = str(one.get("user_id")), one.get("value")
            if one.get("status") == "draft":
                continue
            j = by_user.setdefault(user, {"scores": {}, "answer_notes": {}, "flags": [], "notes": "", "text": "", "ranks": {}, "skipped": False})
            j["skipped"] = j["skipped"] or one.get("status") == "discarded"
            answer = answers.get(begins[int(question.rpartition("_")[2]) - 1], "") if question.rpartition("_")[2].isdecimal() and 0 < int(question.rpartition("_")[2]) <= len(begins) else ""
            if isinstance(value, list) and value and all(_named(v, answers) for v in value):
                ranked = [(_named(v, answers), int(v["rank"]) if isinstance(v, dict) and v.get("rank") is not None else n) for n, v in enumerate(value)]
                j["ranks"] = dict(zip((i for i, _ in ranked), dense([r for _, r in ranked])))
            elif isinstance(value, int) and not isinstance(value, bool) and answer and value in SCORES:
                j["scores"][answer] = value
            elif isinstance(value, str) and question.startswith("note_") and answer:
                j["answer_notes"][answer] = value
            elif isinstance(value, str):
                j["notes" if question in ("notes", "note", "comment", "comments") else "text"] = value
            elif isinstance(value, list) and question == "flags":
                j["flags"] = [str(v) for v in value]
    more = (record.get("metadata") or {}).get("judgements") or {}
    out = []
    for user, j in by_user.items():
        m = more.get(user) or {}
        one = Judgement(item.id, clean_name(names.get(user) or user), **j, order=[str(i) for i in m.get("order") or []], seconds=float(m.get("seconds") or 0.0),
                        time=str(m.get("time") or ""), guidelines=str(m.get("guidelines") or ""))  # fmt: skip
        if one.skipped or one.text or one.ranks or one.scores:
            out.append(one)
    return out


def _named(value: Any, answers: dict[str, str]) -> str:
    """The answer that a place of a ranking names, or ""."""
    name = value.get("value") if isinstance(value, dict) else value
    return answers.get(name, "") if isinstance(name, str) else ""
