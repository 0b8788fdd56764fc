"""`freedive data annotate DATA --model DIR`: a chat model reads documents and says how educational each is, from 0 to 5.

FineWeb-Edu's way (2406.17557, section 4 and appendix F): the question adds a point for each of five things, so that the answer is
a count and not a taste, and the answer ends with the number. Answers without one are counted and kept apart. It takes a model that
follows such instructions; a small one of your own will mostly not.
"""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.inference import LM, load
from freedive.runs import Artefact, UserError, check_at_least, json_line, option, progress, stage
from freedive.tokenizer import render

from .dedup import text_id
from .edu import HIGHEST
from .texts import iter_documents

PROMPT = """Below is an extract of a web page. Judge how useful it would be for teaching at school, from primary school to the end of
high school. Start from 0 and add one point for each of these that is true:

1. It says something that belongs to a school subject, even if advertising or chatter stands beside it.
2. A school subject is a main part of it, though it may be disordered, shallow or mixed with other things.
3. It is fit to be read in class: it explains ideas of the curriculum in order, if not completely.
4. It is written for learners: clear, consistent, with little beside the subject, like a chapter of a textbook or a tutorial.
5. It is excellent teaching: at the right level, easy to follow, thorough, and with nothing beside the subject.

The extract:

{text}

Give your reasons in one or two sentences. Then end with one line of this form, a whole number from 0 to 5 in place of N:
Educational score: N"""
BATCH = 64  # documents between two checkpoints
LEAST_TOKENS = 32  # of a document that must have room beside the question
_SCORE = re.compile(r"score\b[^\d\n-]{0,20}(\d+(?:\.\d+)?)(?![\d.]*\d)(?!\s*(?:/|out of)\s*(?!5\b)\d)", re.IGNORECASE)
_ALONE = re.compile(r"\W*(\d(?:\.\d+)?)(?:\s*(?:/|out of)\s*5)?\W*")


@dataclass(frozen=True)
class AnnotateConfig:
    """Let a chat model score documents."""

    data: Path = option(help="folder made by `freedive data`, or a text, JSONL or parquet file, or a folder of them", positional=True)
    model: Path = option(help="folder of the chat model")
    out: Path = option(Path("runs/annotations"), "folder to be made, for annotations.jsonl; then: freedive data edu-train FOLDER")
    count: int = option(0, "documents to score, drawn by the hash of their text; 0: all")
    characters: int = option(3000, "of a document that are shown (fewer if the model has no room); these are what is written")
    max_new_tokens: int = option(160, "longest answer, in tokens")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    dry_run: bool = option(False, "check the input and the model, and stop")
    force: bool = option(False, "replace OUT if it was made with other settings")


def run(c: AnnotateConfig) -> Path:
    """Writes annotations.jsonl and unparsed.jsonl, and returns their folder. UserError if no answer held a score."""
    check_at_least(c, 0, "count")
    check_at_least(c, 1, "characters", "max_new_tokens", "threads")
    next(iter_documents(c.data))
    lm = load(c.model, threads=c.threads)
    room = _room(lm, c)
    if c.dry_run:
        print(f"would score {c.count or 'all'} documents of {c.data}, with room for {room} tokens of each, and write {c.out}")
        return c.out
    with stage("annotate", c, out=c.out, inputs={"data": c.data, "model": c.model}, force=c.force) as artefact:
        if artefact.done:
            print(f"{c.out} is finished already: nothing to do")
            return artefact.out
        _annotate(artefact, c, lm, room)
    return artefact.out


def parse_score(answer: str) -> float | None:
    """The last score that an answer names ("Educational score: 3", "score of 3/5"), or the number that is all of it; None if there is none
    from 0 to 5."""
    found = [match[1] for match in _SCORE.finditer(answer)]
    alone = _ALONE.fullmatch(answer)
    value = float(found[-1]) if found else float(alone[1]) if alone else HIGHEST + 1.0
    return value if value <= HIGHEST else None


def _room(lm: LM, c: AnnotateConfig) -> int:
    """Tokens of a document that fit beside question and answer."""
    asked = len(render(lm.tokenizer, _messages(""), add_generation_prompt=True)[0])
    positions = lm.model.config.max_positions
    room = positions - c.max_new_tokens - asked
    if room < LEAST_TOKENS:
        told = f"{c.model} has {positions} positions; the question takes {asked} of them and the answer {c.max_new_tokens}"
        raise UserError(told, hint="that leaves no room for a document: give a model with a longer context")
    return room


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPT.replace("{text}", text)}]


def _annotate(artefact: Artefact, c: AnnotateConfig, lm: LM, room: int) -> None:
    state = artefact.resume or {"done": 0, "parsed": 0, "counts": [0] * (HIGHEST + 1)}
    chosen = _chosen(c)
    total = len(chosen) if chosen is not None else None
    shown = f"edu: {c.model.name}"
    with progress.bar(total, shown) as bar:
        bar.advance(state["done"])
        batch: list[dict[str, Any]] = []
        at = 0
        for number, row in enumerate(iter_documents(c.data)):
            if chosen is not None and number not in chosen:
                continue
            at += 1
            if at <= state["done"]:
                continue
            batch.append(row)
            if len(batch) == BATCH:
                _batch(artefact, c, lm, room, batch, state)
                bar.advance(len(batch), text=f"{state['parsed']:,} scored")
                artefact.checkpoint(state)
                batch = []
        if batch:
            _batch(artefact, c, lm, room, batch, state)
    if not state["parsed"]:
        raise UserError(
            f"none of the {state['done']:,} answers of {c.model} held a score, such as: {state['last'][:80]!r}",
            hint="it takes a model that follows instructions",
        )
    unparsed = state["done"] - state["parsed"]
    artefact.summary(documents=state["done"], scored=state["parsed"], unparsed=unparsed, scores=state["counts"])
    counts = ", ".join(f"{score}: {count:,}" for score, count in enumerate(state["counts"]))
    print(f"{state['parsed']:,} documents scored ({counts}); {unparsed:,} answers held no score")


def _chosen(c: AnnotateConfig) -> set[int] | None:
    """Numbers of the documents with the smallest hashes; None: all."""
    if not c.count:
        return None
    return {number for _, number in heapq.nsmallest(c.count, ((text_id(row["text"]), i) for i, row in enumerate(iter_documents(c.data))))}


def _batch(artefact: Artefact, c: AnnotateConfig, lm: LM, room: int, rows: list[dict[str, Any]], state: dict[str, Any]) -> None:
    tok, prompts, texts = lm.tokenizer, [], []
    for row in rows:
        text, left = row["text"][: c.characters], room
        ids = tok.encode(text)
        while True:  # cutting at tokens may cut a character, and the text is split anew inside the question
            if len(ids) > left:
                text = tok.decode(ids[:left]).rstrip("\ufffd")
            prompt = render(tok, _messages(text), add_generation_prompt=True)[0]
            if len(prompt) + c.max_new_tokens <= lm.model.config.max_positions:
                break
            left -= 8
        prompts.append(prompt)
        texts.append(text)
    answers = lm.engine.generate(prompts, c.max_new_tokens, temperature=0.0, stop_ids=(tok.im_end,), seeds=[0] * len(prompts))
    for row, text, answer in zip(rows, texts, answers, strict=True):
        score = parse_score(answer.text)
        line = {"text": text, "score": score, "answer": answer.text, "id": row["id"], "url": row["url"], "source": row["source"]}
        artefact.append("unparsed.jsonl" if score is None else "annotations.jsonl", json_line(line))
        state["done"] += 1
        state["parsed"] += score is not None
        if score is not None:
            state["counts"][int(score + 0.5)] += 1
        state["last"] = answer.text
