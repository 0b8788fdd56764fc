"""Label Studio's files: a list of tasks (tasks.json) and the labelling interface they are for (config.xml), both ways.

A task to be ranked has `messages` (shown by <Paragraphs>), the texts `answer_1` ..., and `answers`, their titles (a <List> with a <Ranker>). Its buckets
rank_1 (best) to rank_K hold ties, which a Ranker's plain list cannot. Text areas take the ideal answer and notes, ratings the scores. A task to be compared has `text1` and `text2`
(<Pairwise>); three answers are three such tasks, and an order again by how many each loses to. A skipped task is `was_cancelled`; seconds are `lead_time`.
What Label Studio has no field for stands under `freedive` in a task's data and in the `meta` of results, which it keeps as they are. An annotation that has no result
(a skipped one) is its importing user's after a way through it.

Formats: labelstud.io/guide/task_format, tags ranker, pairwise, rating, textarea (read 2026-11).
"""

from __future__ import annotations

import json
import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from freedive.runs import UserError

from .items import Item, dense, make_item
from .store import FLAGS, SCORES, Judgement, Labels, clean_name

TIE = "equally good"
_BUCKET = re.compile(r"rank_(\d+)")


def files(labels: Labels, judgements: Iterable[Judgement], *, pairwise: bool = False) -> dict[str, Any]:
    """{"tasks.json": tasks, "config.xml": bytes} of a folder; items without any answer have a place to write one only."""
    by_item: dict[str, list[Judgement]] = {}
    for j in judgements:
        by_item.setdefault(j.item, []).append(j)
    most = max((len(i.answers) for i in labels.items.values()), default=0)
    tasks = []
    for item in labels.items.values():
        found = by_item.get(item.id, [])
        tasks += list(_pair_tasks(item, found)) if pairwise else [_rank_task(item, found, most)]
    if pairwise and not tasks:
        raise UserError(f"no prompt of {labels.folder} has two answers to compare", hint="leave --pairwise out")
    return {"tasks.json": tasks, "config.xml": (_pair_config() if pairwise else _rank_config(most)).encode()}


# ---- a task to be ranked ---------------------------------------------------------------------------------------------


def _rank_task(item: Item, judgements: list[Judgement], most: int) -> dict[str, Any]:
    texts = {f"answer_{n}": item.answers[n - 1].text if n <= len(item.answers) else "(there is none)" for n in range(1, most + 1)}
    data = {"messages": _shown(item), **texts, "answers": [{"id": a.id, "title": f"Answer {n}"} for n, a in enumerate(item.answers, 1)]}
    task: dict[str, Any] = {"data": data | {"freedive": _hidden(item)}, "annotations": [_annotation(item, j) for j in judgements]}
    if item.ranks:  # the order of the file it came from, as a prediction
        task["predictions"] = [{"model_version": "file", "result": [_ranker(item.ranks)]}]
    return task


def _annotation(item: Item, j: Judgement) -> dict[str, Any]:
    result: list[dict[str, Any]] = [_ranker(j.ranks)] if j.ranks else []
    result += [_result("ideal", "messages", "textarea", {"text": [j.text]})] if j.text else []
    result += [_result("notes", "messages", "textarea", {"text": [j.notes]})] if j.notes else []
    result += [_result("flags", "messages", "choices", {"choices": j.flags})] if j.flags else []
    for n, answer in enumerate(item.answers, 1):
        if answer.id in j.scores:
            result.append(_result(f"score_{n}", f"answer_{n}", "rating", {"rating": j.scores[answer.id]}))
        if answer.id in j.answer_notes:
            result.append(_result(f"note_{n}", f"answer_{n}", "textarea", {"text": [j.answer_notes[answer.id]]}))
    return _signed(j, result)


def _ranker(ranks: dict[str, int]) -> dict[str, Any]:
    buckets: dict[str, list[str]] = {f"rank_{n}": [] for n in range(1, len(ranks) + 1)}
    for answer, rank in ranks.items():
        buckets[f"rank_{rank + 1}"].append(answer)
    return _result("rank", "answers", "ranker", {"ranker": {name: ids for name, ids in buckets.items() if ids}})


def _rank_config(most: int) -> str:
    view = ET.Element("View")
    ET.SubElement(view, "Paragraphs", name="messages", value="$messages", nameKey="role", textKey="content", layout="dialogue")
    for n in range(1, most + 1):
        ET.SubElement(view, "Header", value=f"Answer {n}", size="5")
        ET.SubElement(view, "Text", name=f"answer_{n}", value=f"$answer_{n}")
        ET.SubElement(view, "Rating", name=f"score_{n}", toName=f"answer_{n}", maxRating=str(SCORES[-1]))
        ET.SubElement(view, "TextArea", name=f"note_{n}", toName=f"answer_{n}", placeholder="A note", maxSubmissions="1")
    if most:
        ET.SubElement(view, "List", name="answers", value="$answers", title="To be ranked")
        ranker = ET.SubElement(view, "Ranker", name="rank", toName="answers")
        for n in range(1, most + 1):
            ET.SubElement(ranker, "Bucket", name=f"rank_{n}", title=f"{n}" + (" best" if n == 1 else ""))
    ET.SubElement(view, "TextArea", name="ideal", toName="messages", placeholder="The ideal answer", rows="8", maxSubmissions="1")
    _common(view)
    return _xml(view)


# ---- tasks to be compared --------------------------------------------------------------------------------------------


def _pair_tasks(item: Item, judgements: list[Judgement]) -> Iterator[dict[str, Any]]:
    for one, other in combinations(item.answers, 2):
        data = {"messages": _shown(item), "text1": one.text, "text2": other.text}
        annotations = []
        for j in judgements:
            result: list[dict[str, Any]] = []
            if one.id in j.ranks and other.id in j.ranks:
                a, b = j.ranks[one.id], j.ranks[other.id]
                side = {"selected": "left" if a < b else "right"}
                # a Pairwise is control and object in one: both names are its own
                result.append(_result("tie", "text1", "choices", {"choices": [TIE]}) if a == b else _result("compare", "compare", "pairwise", side))
            result += [_result("notes", "messages", "textarea", {"text": [j.notes]})] if j.notes else []
            result += [_result("flags", "messages", "choices", {"choices": j.flags})] if j.flags else []
            if result or j.skipped:
                annotations.append(_signed(j, result))
        yield {"data": data | {"freedive": _hidden(item) | {"pair": [one.id, other.id]}}, "annotations": annotations}


def _pair_config() -> str:
    view = ET.Element("View")
    ET.SubElement(view, "Paragraphs", name="messages", value="$messages", nameKey="role", textKey="content", layout="dialogue")
    ET.SubElement(view, "Pairwise", name="compare", toName="text1,text2")
    ET.SubElement(view, "Text", name="text1", value="$text1")
    ET.SubElement(view, "Text", name="text2", value="$text2")
    tie = ET.SubElement(view, "Choices", name="tie", toName="text1", choice="single")
    ET.SubElement(tie, "Choice", value=TIE)
    _common(view)
    return _xml(view)


# ---- shared ----------------------------------------------------------------------------------------------------------


def _shown(item: Item) -> list[dict[str, str]]:
    """Paragraphs shows a role and a text; a message with more in it is whole under `freedive`."""
    return [{"role": str(m["role"]), "content": str(m.get("content") or json.dumps(m.get("tool_calls") or "", ensure_ascii=False))} for m in item.prompt]


def _hidden(item: Item) -> dict[str, Any]:
    told: dict[str, Any] = {"item": item.id, "answers": {a.id: {"text": a.text, "source": a.source} for a in item.answers}, "prompt": list(item.prompt)}
    return told | ({"ranks": item.ranks} if item.ranks else {})


def _result(name: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": uuid.uuid4().hex[:10], "from_name": name, "to_name": to, "type": kind, "value": value}


def _signed(j: Judgement, result: list[dict[str, Any]]) -> dict[str, Any]:
    """An annotation. Label Studio passes over its key `freedive`, and keeps that of a result's `meta`; when it was made it writes anew."""
    ours = {"labeller": j.labeller, "time": j.time, "order": j.order, "guidelines": j.guidelines}
    result = [r | {"meta": {"freedive": ours}} for r in result]
    return {"result": result, "was_cancelled": j.skipped, "ground_truth": False, "lead_time": j.seconds, "created_at": j.time, "freedive": ours}


def _common(view: ET.Element) -> None:
    flags = ET.SubElement(view, "Choices", name="flags", toName="messages", choice="multiple")
    for flag in FLAGS:
        ET.SubElement(flags, "Choice", value=flag)
    ET.SubElement(view, "TextArea", name="notes", toName="messages", placeholder="Notes", maxSubmissions="1")


def _xml(view: ET.Element) -> str:
    ET.indent(view)
    return ET.tostring(view, encoding="unicode") + "\n"


# ---- back ------------------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[list[Item], list[Judgement]]:
    """Items and judgements of an export in Label Studio's JSON, or of a folder as `files` makes it. UserError for what is none.

    Of others' projects: a prompt is `messages`, `prompt`, `text`, `question` or `instruction` of a task's data; answers are a list of {"id", "body" |
    "title" | "text"}, or the two texts that <Pairwise> compares. Buckets count in the order in which they stand in config.xml, or in their names' order.
    """
    file = path / "tasks.json" if path.is_dir() else path
    config = file.with_name("config.xml")
    try:
        tasks = json.loads(file.read_bytes().decode("utf-8-sig", "surrogatepass"))
        view = ET.fromstring(config.read_bytes()) if config.is_file() else None
    except OSError as error:
        raise UserError(f"{file} could not be read: {error.strerror}", hint="give the JSON that Label Studio exports") from None
    except (ValueError, ET.ParseError) as error:
        raise UserError(f"{file} or its config.xml is damaged: {error}", hint="export as JSON once more") from None
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and isinstance(t.get("data"), dict) for t in tasks):
        raise UserError(f"{file} is no list of Label Studio's tasks", hint="export as JSON, not as JSON_MIN or CSV")
    items: dict[str, Item] = {}
    whole: dict[tuple[str, str], Judgement] = {}
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for number, task in enumerate(tasks, 1):
        try:
            item, ids = _item(task["data"], view)
            items.setdefault(item.id, item)
            for annotation in task.get("annotations") or task.get("completions") or []:
                _take(annotation, items[item.id], ids, view, whole, pairs)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file}, task {number} could not be understood: {error}", hint="see docs/labelling.md for the forms that are read") from None
    for key, found in pairs.items():
        whole[key] = _of_pairs(found, items[key[0]])
    return list(items.values()), [j for j in whole.values() if j.skipped or j.text or j.ranks or j.scores]


def _item(data: dict[str, Any], view: ET.Element | None) -> tuple[Item, list[str]]:
    """The item of a task, and the ids of answers that its Pairwise compares (or of all)."""
    ours = data.get("freedive")
    if isinstance(ours, dict):
        answers = [{"id": i, **a} for i, a in ours["answers"].items()]
        item = Item.of_record({"id": ours["item"], "prompt": ours["prompt"], "answers": answers, "ranks": ours.get("ranks")})
        return item, [str(i) for i in ours.get("pair") or [a.id for a in item.answers]]
    prompt = next((data[k] for k in ("messages", "prompt", "question", "instruction", "text") if data.get(k)), None)
    if prompt is None:
        raise ValueError(f"its data has no prompt, but {sorted(data)[:6]}")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [{"role": str(m["role"]), "content": str(m["content"])} for m in prompt]
    lists = [v for v in data.values() if isinstance(v, list) and v and all(isinstance(a, dict) and "id" in a for a in v)]
    if lists:
        texts = [str(a.get("body") or a.get("text") or a.get("html") or a.get("title") or "") for a in lists[0]]
        item = make_item(messages, texts)
        renamed = [str(a["id"]) for a in lists[0]]
        return _renamed(item, renamed), renamed
    sides = [data.get(_variable(view, name) or name) for name in _compared(view)]
    texts = [str(t) for t in sides if t is not None]
    item = make_item(messages, texts if len(texts) == 2 else [])
    return item, [a.id for a in item.answers]


def _renamed(item: Item, ids: list[str]) -> Item:
    if len(set(ids)) != len(ids):
        raise ValueError("two answers have the same id")
    return Item(item.id, item.prompt, tuple(type(a)(i, a.text, a.source) for a, i in zip(item.answers, ids)))


def _compared(view: ET.Element | None) -> list[str]:
    tag = view.find(".//Pairwise") if view is not None else None
    return (tag.get("toName") or "").split(",") if tag is not None else ["text1", "text2"]


def _variable(view: ET.Element | None, name: str) -> str:
    tag = next((t for t in view.iter() if t.get("name") == name), None) if view is not None else None
    return (tag.get("value") or "").lstrip("$") if tag is not None else ""


def _take(annotation: dict[str, Any], item: Item, ids: list[str], view: ET.Element | None, whole: dict[tuple[str, str], Judgement], pairs: dict[tuple[str, str], dict[str, Any]]) -> None:
    metas = [(r.get("meta") or {}).get("freedive") for r in annotation.get("result") or []]
    ours: dict[str, Any] = annotation.get("freedive") or next((m for m in metas if m), {})
    who = annotation.get("completed_by")
    name = ours.get("labeller") or (who.get("email") or who.get("id") if isinstance(who, dict) else who)
    labeller = clean_name(name if name is not None else "label-studio")
    fields: dict[str, Any] = {"scores": {}, "answer_notes": {}, "flags": [], "notes": "", "text": "", "ranks": {}}
    verdict = None
    for r in annotation.get("result") or []:
        kind, value, name = r.get("type"), r.get("value") or {}, str(r.get("from_name") or "")
        at = re.fullmatch(r".*_(\d+)", name)
        answer = ids[int(at[1]) - 1] if at and 0 < int(at[1]) <= len(ids) else ""
        if kind == "ranker":
            fields["ranks"] = _ranks(value["ranker"], [a.id for a in item.answers], view)
        elif kind == "pairwise":
            verdict = {"left": -1, "right": 1}[value["selected"]]
        elif kind == "textarea":
            text = "\n".join(value["text"]) if isinstance(value["text"], list) else str(value["text"])
            if answer and name.startswith("note_"):
                fields["answer_notes"][answer] = text
            else:
                fields["notes" if name in ("notes", "note", "comment", "comments") else "text"] = text
        elif kind == "rating" and answer:
            fields["scores"][answer] = int(value["rating"])
        elif kind == "choices":
            if TIE in value["choices"]:
                verdict = 0
            else:
                fields["flags"] += [str(choice) for choice in value["choices"] if name == "flags"]
    fields["scores"] = {k: v for k, v in fields["scores"].items() if v in SCORES}
    more = {"seconds": float(annotation.get("lead_time") or 0.0), "time": str(ours["time"] if "time" in ours else annotation.get("created_at") or ""), "skipped": bool(annotation.get("was_cancelled")),
            "order": [str(i) for i in ours.get("order") or []], "guidelines": str(ours.get("guidelines") or "")}  # fmt: skip
    key = (item.id, labeller)
    if verdict is not None or len(ids) == 2 and len(item.answers) > 2:
        found = pairs.setdefault(key, {"losses": {}, "judgement": Judgement(item.id, labeller, **fields | more)})
        if verdict is not None:
            found["losses"][tuple(ids)] = verdict
        return
    whole[key] = Judgement(item.id, labeller, **fields | more)


def _ranks(value: Any, ids: list[str], view: ET.Element | None) -> dict[str, int]:
    """Of buckets: the first is best, ties within one. Of a plain list: its order. What is in no bucket, or under "_", was not ranked."""
    lists: list[list[str]] = []
    if isinstance(value, dict) and len(value) == 1 and not any(map(_BUCKET.fullmatch, value)) and not _buckets(view):
        value = next(iter(value.values()))
    if isinstance(value, list):
        lists = [[str(i)] for i in value]
    else:
        order = _buckets(view)
        number = lambda name: (order.index(name), 0, "") if name in order else (len(order), int(m[1]) if (m := _BUCKET.fullmatch(name)) else 0, name)
        lists = [[str(i) for i in value[name]] for name in sorted(value, key=number) if name != "_" and value[name]]
    ranks = {answer: n for n, among in enumerate(lists) for answer in among if answer in ids}
    return dict(zip(ranks, dense(list(ranks.values()))))


def _buckets(view: ET.Element | None) -> list[str]:
    return [str(b.get("name")) for b in view.iter("Bucket")] if view is not None else []


def _of_pairs(found: dict[str, Any], item: Item) -> Judgement:
    """An order out of comparisons: by how many an answer lost (Copeland's), which gives a whole order back exactly."""
    from dataclasses import replace

    j: Judgement = found["judgement"]
    judged = [a.id for a in item.answers if any(a.id in pair for pair in found["losses"])]
    lost = [sum(v == 1 and p[0] == i or v == -1 and p[1] == i for p, v in found["losses"].items()) for i in judged]
    return replace(j, ranks=dict(zip(judged, dense(lost))))
