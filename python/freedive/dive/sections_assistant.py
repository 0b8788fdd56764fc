"""The report's chapters 2 to 4: from the base model to an assistant, what it doesn't know, and practice.

Each function gives the HTML of one section, or None if what it shows is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from freedive.tasks import arithmetic

from .chart import chart
from .found import Answer, Exam, Found, jsonl, last_words
from .page import chat, code, details, facts, number, paragraph, percent, table
from .sections_base import speed

T = TypeVar("T")
MOST_GROUPS = 12  # a meta key with more values than this is a name, not a kind
LABELS = {"eval-base": "base model", "eval-sft": "assistant", "eval-rl": "after RL"}


def label(exam: Exam) -> str:
    return LABELS.get(exam.name, exam.name)


def assistant(found: Found) -> str | None:
    """2: the same training on conversations, and what it changed."""
    log = found.lines("sft", "metrics.jsonl")
    if not log:
        return None
    body = paragraph(
        "Nothing new happens in the network: it goes on predicting the next token, but now of conversations, and only "
        "the assistant's words count. From a few thousand of them it learns the form (answer, briefly, and stop), while "
        "most of what it says it must have read before."
    )
    metrics = found.metrics("sft")
    body += facts({k: metrics[m] for k, m in (("conversations", "conversations"), ("steps", "steps")) if m in metrics})
    curve = [(row["step"], row["loss"]) for row in log if row.get("loss") is not None]
    body += chart({"conversations": curve}, "step", "loss, nats a trained token", low=0)
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
    every_key = dict.fromkeys(key for e in exams for a in e.answers for key in a.kind)
    keys = [key for key in every_key if 1 < len(_values(exams, key)) <= MOST_GROUPS]
    rows: list[tuple[Any, ...]] = [("all questions", "", *(_right(e) for e in exams))]
    for key in keys:
        rows += [(key, value, *(_right(e, {key: value}) for e in exams)) for value in _values(exams, key)]
    rows.append(("ended its turn", "", *(percent(e.share(of="stopped")[0], 1) for e in exams)))
    body = "<h3>The exam</h3>" + paragraph(
        "Questions that are in no training set, in words that are in no training set. In brackets: how many were asked. "
        "Right means that the answer's text, or its last number, is the expected one."
    )
    body += table(("questions", "", *map(label, exams)), rows, left=2)
    for first, second in (("class", "template"), ("class", "split"), ("class", "attribute")):
        pairs = [(a, b) for a in _values(exams, first) for b in _values(exams, second) if first in keys and second in keys]
        lines = [(a, b, *(_right(e, {first: a, second: b}) for e in exams)) for a, b in pairs]
        lines = [line for line in lines if set(line[2:]) != {"–"}]
        if lines:
            body += details(f"By {first} and {second}", table((first, second, *map(label, exams)), lines, left=2))
    return body


def _right(exam: Exam, meta: dict[str, str] | None = None) -> str:
    share, count = exam.share(meta)
    return f"{percent(share, 1)} ({count:,})" if count else "–"


def _values(exams: Sequence[Exam], key: str) -> list[str]:
    return list(dict.fromkeys(value for e in reversed(exams) for value in e.values(key)))


def limits(found: Found) -> str | None:
    """3: what a small model can't do, with its own words."""
    exam = next((e for e in found.exams if e.name.endswith("sft")), found.exams[-1] if found.exams else None)
    if exam is None:
        return None
    body = paragraph(
        "The assistant learned that questions get confident answers, so it gives one whether or not it knows. What it "
        "read many times it mostly knows; of what it read once or never it makes up something of the right shape. This "
        "is a hallucination: nothing in the loss so far has ever rewarded “I don't know”."
    )
    told = {"known": "on dozens of pages", "rare": "on one or two pages", "unseen": "on no page"}
    classes = [c for c in told if any(a.kind.get("class") == c for a in exam.answers)]
    shown = ""
    if classes:
        rows = [(c, told[c], _right(exam, {"class": c})) for c in classes]
        body += table(("people", "their facts are told", "right"), rows, left=2)
        for c in classes:  # of those it knows, what it got right; of the others, what it made up
            chosen = [a for a in exam.answers if a.kind.get("class") == c and a.right == (c == "known")]
            shown += "".join(_asked(a, told[c]) for a in _spread(chosen, 3))
    else:
        shown = "".join(map(_asked, _spread([a for a in exam.answers if not a.right], 5)))
    if not shown:
        return None
    body += shown
    letters = [a for a in exam.answers if a.kind.get("task") in ("spell", "count")]
    if letters:
        body += "<h3>Letters inside tokens</h3>" + paragraph(
            "A word is one or two numbers to the model, so its letters are something to remember, not to see. Writing "
            "them out first turns one hard step into many easy ones."
        )
        body += "".join(map(_asked, _spread(letters, 3)))
    body += paragraph(
        "The cures (teaching it to say “I don't know” where it doesn't, and giving it tools and documents to look things "
        "up) are chapters of their own."
    )
    return body + code("freedive/eval/stage.py", "freedive/tasks/town.py")


def _verdict(a: Answer, told: str = "") -> str:
    verdict = "right" if a.right else f"wrong, it is {a.expected}"
    return f"{verdict}; told {told}" if told else verdict


def _asked(a: Answer, told: str = "") -> str:
    return chat([("user", a.question), ("assistant", a.shown())], _verdict(a, told))


def _spread(rows: list[T], count: int) -> list[T]:
    """`count` of the rows, evenly apart."""
    return rows[:: max(1, len(rows) // count)][:count]


def practice(found: Found) -> str | None:
    """4: reinforcement learning on sums."""
    log = found.lines("rl", "metrics.jsonl")
    if not log:
        return None
    body = paragraph(
        "Now nobody shows it answers. It tries each problem several times; a program checks the result; attempts that "
        "earned more than the others on the same problem are made likelier, the rest less likely. Nothing says how to "
        "solve a problem, so the model finds the way that works for a model of its size."
    )
    metrics, config = found.metrics("rl"), found.config("rl")
    measured = [when for when in ("before", "after") if f"{when}/pass@1" in metrics]
    numbers = {f"right at the first try, {when}": percent(metrics[f"{when}/pass@1"], 1) for when in measured}
    numbers |= {f"tokens an answer, {when}": number(metrics[f"{when}/mean_length"]) for when in measured}
    body += facts(numbers)
    if config:
        problems, attempts = config.get("prompts_per_step"), config.get("num_generations")
        body += paragraph(f"{config.get('algo')}: {config.get('steps')} steps of {problems} problems, {attempts} attempts each.")

    def curve(key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in log if row.get(key) is not None]

    rewards = {"reward while practising": curve("reward"), "pass@1 on held-out problems": curve("eval/pass@1")}
    body += chart(rewards, "step", "part of the answers that is right", 0, 1)
    # steps without a gradient (all attempts on each problem equally good) log an entropy of 0, measured on nothing
    undecided = [(row["step"], row["entropy"]) for row in log if row.get("entropy") and row.get("grad_norm", 1)]
    lengths = {"practice": curve("completions/mean_length"), "held-out problems": curve("eval/mean_length")}
    body += chart(lengths, "step", "length of an answer, tokens", low=0)
    body += chart({"entropy": undecided}, "step", "entropy of the next token, nats: how undecided the model is", low=0)
    body += _worked(found)
    gap = [row["sampling/sampling_logp_difference/max"] for row in log if "sampling/sampling_logp_difference/max" in row]
    if gap:
        body += paragraph(
            f"Sampler and trainer are the same code: their log-probabilities of a sampled token differed by at most {max(gap):g} in the whole run."
        )
    samples = found.json("rl", "samples.json") or []
    if samples:
        notes = [f"step {s['step']}, reward {s['reward']:g}" for s in samples]
        shown = [chat([("user", last_words(s["prompt"])), ("assistant", s["text"])], note) for s, note in zip(samples, notes)]
        body += details("An attempt now and then during practice", "".join(shown))
    return body + code("freedive/rl/stage.py", "freedive/objectives/policy.py", "freedive/tasks/arithmetic.py")


def _worked(found: Found) -> str:
    """The same sums before and after: how many answers are worked out column by column, and some of them."""
    sums = {e.name: {a.question: a for a in e.answers if a.kind.get("task") == "arithmetic"} for e in found.exams}
    before, after = ([s for name, s in sums.items() if name.endswith(end) and s] for end in ("sft", "rl"))
    if not before or not after:
        return ""
    old, new = before[0], after[0]
    share = [sum(arithmetic.is_worked(a.reply) for a in rows.values()) / len(rows) for rows in (old, new)]
    right = [sum(a.right for a in rows.values()) / len(rows) for rows in (old, new)]
    body = "<h3>The same sums, before and after</h3>" + table(
        ("answers to held-out sums", "before", "after"),
        [
            ("worked out column by column", *map(percent, share)),
            ("right, taking the likeliest token each time", *map(percent, right)),
        ],
    )
    for question in _spread([q for q in old if q in new], 3):
        a, b = old[question], new[question]
        body += chat([("user", question), ("assistant", a.shown())], f"before: {_verdict(a)}")
        body += chat([("assistant", b.shown())], f"after: {_verdict(b)}")
    return body
