"""The report's chapters 2 to 4: from the base model to an assistant, what it doesn't know, and practice. Each function gives the HTML of one
section, or None if what it shows is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from freedive.tasks import arithmetic

from .chart import chart
from .found import Exam, Found, jsonl
from .page import chat, code, details, facts, number, paragraph, percent, table
from .sections_base import speed

Answer = dict[str, Any]
MOST_GROUPS = 12  # a meta key with more values than this is a name, not a kind
LABELS = {"eval-base": "base model", "eval-sft": "assistant", "eval-rl": "after RL"}


def question_text(row: Answer) -> str:
    """The last thing the user said in a row of answers.jsonl or of a task."""
    prompt = row.get("prompt", "")
    return prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""


def answer_text(row: Answer) -> str:
    """What the model said, with a mark where it was cut off."""
    said = row.get("completion", row.get("text", ""))
    return said + ("" if row.get("stopped", True) else " …")


def label(exam: Exam) -> str:
    return LABELS.get(exam.name, exam.name)


def assistant(found: Found) -> str | None:
    """2: the same training on conversations, and what it changed."""
    log = found.lines("sft", "metrics.jsonl")
    if not log:
        return None
    body = paragraph(
        "Nothing new happens in the network: it goes on predicting the next token, but now of conversations, and only the assistant's words count. From a few thousand of "
        "them it learns the form (answer, briefly, and stop), while most of what it says it must have read before."
    )
    metrics = found.metrics("sft")
    body += facts({k: metrics[m] for k, m in (("conversations", "conversations"), ("steps", "steps")) if m in metrics})
    body += chart({"conversations": [(row["step"], row["loss"]) for row in log if row.get("loss") is not None]}, "step", "loss, nats a trained token", low=0)
    rows = found.folders.get("crawl", Path("-")) / "tasks" / "sft_train.jsonl"
    lessons = [[(m["role"], m["content"]) for m in row["messages"]] for row in jsonl(rows, 4)]
    if lessons:
        body += details("Some of the conversations it learned from", "".join(chat(turns) for turns in lessons))
    samples = found.json("sft", "samples.json") or []
    if samples:
        body += "<h3>What it says</h3>" + "".join(chat(_turns(s["prompt"], s["text"])) for s in samples)
    return body + exam_tables(found.exams) + speed(found, "sft") + code("freedive/sft/stage.py", "freedive/tokenizer/chat.py")


def _turns(prompt: str, said: str) -> list[tuple[str, str]]:
    """A rendered prompt, decoded (`<|im_start|>user<|im_sep|>Hello!<|im_end|>...`), as turns."""
    turns = []
    for part in prompt.split("<|im_start|>")[1:]:
        role, _, words = part.partition("<|im_sep|>")
        words = words.removesuffix("<|im_end|>")
        if words:
            turns.append((role, words))
    return [*(turns or [("user", prompt)]), ("assistant", said)]


def exam_tables(exams: Sequence[Exam]) -> str:
    """Right answers by kind of question, a column for each model examined."""
    exams = [e for e in exams if e.answers]
    if not exams:
        return ""
    keys = [key for key in dict.fromkeys(k for e in exams for a in e.answers for k in a.get("meta", {})) if 1 < len(_values(exams, key)) <= MOST_GROUPS]
    rows: list[tuple[Any, ...]] = [("all questions", "", *(_right(e, lambda a: True) for e in exams))]
    for key in keys:
        for value in _values(exams, key):
            rows.append((key, value, *(_right(e, lambda a, k=key, v=value: a.get("meta", {}).get(k) == v) for e in exams)))
    rows.append(("ended its turn", "", *(percent(e.share("stopped"), 1) for e in exams)))
    body = "<h3>The exam</h3>" + paragraph(
        "Questions that are in no training set, in words that are in no training set. In brackets: how many were asked. Right means that the answer's text or its last number is."
    )
    body += table(("questions", "", *map(label, exams)), rows, left=2)
    crossed = [pair for pair in (("class", "template"), ("class", "split")) if all(k in keys for k in pair)]
    for first, second in crossed:
        lines = [
            (a, b, *(_right(e, lambda x, a=a, b=b: (x.get("meta", {}).get(first), x.get("meta", {}).get(second)) == (a, b)) for e in exams))
            for a in _values(exams, first)
            for b in _values(exams, second)
        ]
        body += details(f"By {first} and {second}", table((first, second, *map(label, exams)), [x for x in lines if any("(" in c for c in x[2:])], left=2))
    return body


def _right(exam: Exam, where: Callable[[Answer], bool]) -> str:
    count = sum(1 for a in exam.answers if where(a))
    return f"{percent(exam.share('correct', where), 1)} ({count:,})" if count else "–"


def _values(exams: Sequence[Exam], key: str) -> list[str]:
    found = dict.fromkeys(a["meta"][key] for e in reversed(exams) for a in e.answers if isinstance(a.get("meta", {}).get(key), str))
    return list(found)


def limits(found: Found) -> str | None:
    """3: what a small model can't do, with its own words."""
    exam = next((e for e in found.exams if e.name.endswith("sft")), found.exams[-1] if found.exams else None)
    if exam is None:
        return None
    body = paragraph(
        "The assistant learned that questions get confident answers, so it gives one whether or not it knows. What it read many times it mostly knows; of what it read once or "
        "never it makes up something of the right shape. This is a hallucination: nothing in the loss so far has ever rewarded “I don't know”."
    )
    classes = [c for c in ("known", "rare", "unseen") if any(a.get("meta", {}).get("class") == c for a in exam.answers)]
    told = {"known": "on dozens of pages", "rare": "on one or two pages", "unseen": "on no page"}
    shown = ""
    if classes:
        rows = [(c, told[c], _right(exam, lambda a, c=c: a.get("meta", {}).get("class") == c)) for c in classes]
        body += table(("people", "their facts are", "right"), rows, left=2)
        for c in classes:
            wrong = _spread([a for a in exam.answers if a.get("meta", {}).get("class") == c and bool(a.get("correct")) == (c == "known")], 2 if c == "known" else 3)
            shown += "".join(chat([("user", question_text(a)), ("assistant", answer_text(a))], _verdict(a, told[c])) for a in wrong)
    else:
        wrong = _spread([a for a in exam.answers if not a.get("correct")], 5)
        shown = "".join(chat([("user", question_text(a)), ("assistant", answer_text(a))], _verdict(a)) for a in wrong)
    if not shown:
        return None
    body += shown
    letters = [a for a in exam.answers if a.get("meta", {}).get("task") in ("spell", "count")]
    if letters:
        body += "<h3>Letters inside tokens</h3>" + paragraph(
            "A word is one or two numbers to the model, so its letters are something to remember, not to see. Writing them out first turns one hard step into many easy ones."
        )
        body += "".join(chat([("user", question_text(a)), ("assistant", answer_text(a))], _verdict(a)) for a in _spread(letters, 3))
    body += paragraph("The cures (teaching it to say “I don't know” where it doesn't, and giving it tools and documents to look things up) are chapters of their own.")
    return body + code("freedive/eval/stage.py", "freedive/tasks/town.py")


def _verdict(a: Answer, told: str = "") -> str:
    verdict = "right" if a.get("correct") else f"wrong: {a.get('answer')}"
    return f"{verdict}; told {told}" if told else verdict


def _spread(rows: list[Answer], count: int) -> list[Answer]:
    """`count` of the rows, evenly apart."""
    return rows[:: max(1, len(rows) // count)][:count]


def practice(found: Found) -> str | None:
    """4: reinforcement learning on sums."""
    log = found.lines("rl", "metrics.jsonl")
    if not log:
        return None
    body = paragraph(
        "Now nobody shows it answers. It tries each problem several times; a program checks the result; attempts that earned more than the others on the same problem are "
        "made likelier, the rest less likely. Nothing says how to solve a problem, so the model finds the way that works for a model of its size."
    )
    metrics, config = found.metrics("rl"), found.config("rl")
    numbers = {f"right at the first try, {when}": percent(metrics[f"{when}/pass@1"], 1) for when in ("before", "after") if f"{when}/pass@1" in metrics}
    numbers |= {f"tokens an answer, {when}": number(metrics[f"{when}/mean_length"]) for when in ("before", "after") if f"{when}/mean_length" in metrics}
    body += facts(numbers)
    if config:
        body += paragraph(f"{config.get('algo')}: {config.get('steps')} steps of {config.get('prompts_per_step')} problems, {config.get('num_generations')} attempts each.")

    def curve(key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in log if row.get(key) is not None]

    body += chart({"reward while practising": curve("reward"), "pass@1 on held-out problems": curve("eval/pass@1")}, "step", "part of the answers that is right", 0, 1)
    body += chart({"practice": curve("completions/mean_length"), "held-out problems": curve("eval/mean_length")}, "step", "length of an answer, tokens", low=0)
    body += chart({"entropy": curve("entropy")}, "step", "entropy of the next token, nats: how undecided the model still is", low=0)
    body += _worked(found)
    gap = [row["sampling/sampling_logp_difference/max"] for row in log if "sampling/sampling_logp_difference/max" in row]
    if gap:
        body += paragraph(f"Sampler and trainer are the same code: their log-probabilities of a sampled token differed by at most {max(gap):g} in the whole run.")
    samples = found.json("rl", "samples.json") or []
    if samples:
        shown = (chat([("user", question_text(s)), ("assistant", s["text"])], f"step {s['step']}, reward {s['reward']:g}") for s in samples)
        body += details("An attempt now and then during practice", "".join(shown))
    return body + code("freedive/rl/stage.py", "freedive/objectives/policy.py", "freedive/tasks/arithmetic.py")


def _worked(found: Found) -> str:
    """The same sums before and after: how many answers are worked out column by column, and some of them."""
    sums = {e.name: {question_text(a): a for a in e.answers if a.get("meta", {}).get("task") == "arithmetic"} for e in found.exams}
    before, after = ([s for name, s in sums.items() if name.endswith(end) and s] for end in ("sft", "rl"))
    if not before or not after:
        return ""
    old, new = before[0], after[0]
    share = [sum(arithmetic.is_worked(answer_text(a)) for a in rows.values()) / len(rows) for rows in (old, new)]
    right = [sum(bool(a.get("correct")) for a in rows.values()) / len(rows) for rows in (old, new)]
    body = "<h3>The same sums, before and after</h3>" + table(
        ("answers to held-out sums", "before", "after"),
        [("worked out column by column", *map(percent, share)), ("right, taking the likeliest token each time", *map(percent, right))],
    )
    for question in _spread([{"q": q} for q in old if q in new], 3):
        a, b = old[question["q"]], new[question["q"]]
        body += chat([("user", question["q"]), ("assistant", answer_text(a))], f"before: {_verdict(a)}")
        body += chat([("assistant", answer_text(b))], f"after: {_verdict(b)}")
    return body
