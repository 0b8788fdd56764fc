"""The report's chapters 2 and 3: from the base model to an assistant, and what it doesn't know.

Each function gives the HTML of one section, or None if what it shows is not there.
"""

from __future__ import annotations

from pathlib import Path

from freedive.runs.chart import chart
from freedive.runs.page import Reply, asked, cards, chat, code, details, facts, lead, paragraph, shares

from .found import Answer, Exam, Found, jsonl
from .sections_base import speed
from .sections_exam import INTERVAL, every_group, judged, share_of, share_table, side_by_side, spread


def assistant(found: Found) -> str | None:
    """2: the same training on conversations, and what it changed."""
    log = found.lines("sft", "metrics.jsonl")
    if not log:
        return None
    body = lead(
        "Nothing new happens in the network: it goes on predicting the next token, but now of conversations, and only the "
        f"assistant's words count. People ({'here a program' if found.source == 'town' else 'or a program'}) write what an ideal assistant would say, and the model learns "
        "to imitate them. This takes far less text than pretraining: it learns the form (answer, briefly, and stop), while "
        "most of what it knows it must have read before.",
        "The same questions to the base model and to the assistant. What changed is mostly the manner; does it also know the answer?",
    )
    metrics = found.metrics("sft")
    body += facts({k: metrics[m] for k, m in (("conversations", "conversations"), ("steps", "steps")) if m in metrics})
    curve = [(row["step"], row["loss"]) for row in log if row.get("loss") is not None]
    body += chart({"conversations": curve}, "step", "loss on the assistant's words, nats a token", low=0)
    rows = found.folders.get("crawl", Path("-")) / "tasks" / "sft_train.jsonl"
    lessons = [chat([(m["role"], m["content"]) for m in row["messages"]]) for row in jsonl(rows, 6)]
    if lessons:
        body += details("Some of the conversations it learned from", cards(lessons))
    exams = [e for end in ("base", "sft") if (e := found.exam(end))]
    pairs = side_by_side(exams, 6) if len(exams) == 2 else []
    if pairs:
        body += "<h3>The same question, before and after</h3>" + cards(pairs)
    body += _said(found)
    if exams:
        body += "<h3>The exam, before and after</h3>" + paragraph(
            ("Questions that are in no training set. " if found.source == "town" else "") + "Right means that the answer's text, or its last number, is the expected one."
        )
        body += share_table(exams) + every_group([e for e in found.exams if e.answers])
    return body + speed(found, "sft") + code("freedive/sft/stage.py", "freedive/tokenizer/chat.py")


def _said(found: Found) -> str:
    """The assistant's own samples; where the base model was given the same words, what it made of them."""
    before = {s["prompt"].strip(): s["text"] for s in found.json("pretrain", "samples.json") or [] if s["prompt"].strip()}
    shown = []
    for sample in found.json("sft", "samples.json") or []:
        question = _question(sample["prompt"])
        dreamt = [Reply("base model, going on with the text", before[question])] if question in before else []
        shown.append(asked(question, *dreamt, Reply("assistant", sample["text"])))
    return "<h3>What it says</h3>" + cards(shown) if shown else ""


def _question(prompt: str) -> str:
    """What the user said last in a rendered prompt (`<|im_start|>user<|im_sep|>Hello!<|im_end|>...`); the prompt itself if it has no such form."""
    said = [part.partition("<|im_sep|>") for part in prompt.split("<|im_start|>")[1:]]
    words = [words.removesuffix("<|im_end|>") for role, _, words in said if role == "user"]
    return words[-1] if words else prompt


# Of the invented town: how often a person's facts were read, in pages and in conversations (freedive.tasks).
LADDER = (
    ({"class": "known", "split": "held_template"}, "told on dozens of pages, and asked about in conversations"),
    ({"class": "known", "split": "held_person"}, "told on dozens of pages, in no conversation"),
    ({"class": "rare"}, "told on one or two pages, in no conversation"),
    ({"class": "unseen"}, "told nowhere"),
)


def limits(found: Found) -> str | None:
    """3: what a small model can't do, with its own words."""
    exam = found.exam("sft") or next((e for e in found.exams if e.answers), None)
    if exam is None:
        return None
    body = lead(
        "The assistant learned that questions get confident answers, so it gives one whether or not it knows. Where it has "
        "nothing to remember it makes up something of the right shape: a hallucination. It would say “I don't know” only if its "
        "conversations had shown it when.",
        "The wrong answers sound exactly as sure as the right ones.",
    )
    ladder = _ladder(exam) if found.source == "town" else ""
    if ladder:
        body += ladder
    else:
        body += share_table([exam])
        wrong = cards(asked(a.question, judged(a)) for a in spread([a for a in exam.answers if not a.right], 6))
        body += "<h3>Wrong answers</h3>" + wrong if wrong else ""
    letters = [a for a in exam.answers if a.kind.get("task") in ("spell", "count")]
    if letters:
        body += "<h3>Letters inside tokens</h3>" + paragraph(
            "A word is one or two numbers to the model, so its letters are something to remember, not to see. Writing "
            "them out first turns one hard step into many easy ones. A count can be right by luck: read the letters it wrote."
        )
        spelt, counted = ([a for a in letters if a.kind["task"] == task] for task in ("spell", "count"))
        body += cards(asked(a.question, judged(a)) for a in [*spread(spelt, 3), *spread(counted, 3)])
    body += paragraph(
        "Large models are taught to say “I don't know” where they don't, and get tools and documents to look things up; these are chapters of their own."
    )
    places = ["freedive/eval/stage.py", *(["freedive/tasks/town.py"] if ladder else [])]
    return body + code(*places)


def _ladder(exam: Exam) -> str:
    """The town's people from well known to never heard of: the share that is right, and some answers."""
    rungs = [(meta, told, s) for meta, told in LADDER if (s := share_of(exam, meta, name=""))]
    if len(rungs) < 2:
        return ""
    body = "<h3>How often it read a fact, and whether it knows it</h3>"
    body += shares(("the person's facts were", "", "right answers"), [(told, [s]) for _, told, s in rungs])
    body += paragraph(
        f"{INTERVAL} Of people it never read about, any right answer is luck: there are only so many jobs, pets and streets to guess from."
    )
    body += "<h3>In its own words</h3>"
    items = []
    for meta, told, _ in rungs:  # of those it mostly knows, what it got right; of the others, what it made up
        chosen = [a for a in exam.answers if meta.items() <= a.kind.items() and a.right == (meta.get("split") == "held_template")]
        items += [asked(a.question, judged(a, note=told)) for a in _people(chosen, 3)]
    return body + cards(items)


def _people(answers: list[Answer], count: int) -> list[Answer]:
    """Some answers, each about another person."""
    return spread(list({a.kind.get("person", a.question): a for a in answers}.values()), count)
