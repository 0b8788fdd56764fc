"""The report: one self-contained page in the order of the talk, from the artefacts in a folder. What is missing is left out.

write_report("freedive-dive")          # a dive's folder, or any folder of freedive's stages
"""

from __future__ import annotations

import os
from pathlib import Path

from freedive.runs import UserError, human_bytes, write_atomic
from freedive.runs.page import page, paragraph, percent

from .found import Found, jsonl
from .sections_assistant import LADDER, assistant, limits
from .sections_base import base_samples, data, network, tokens, training
from .sections_end import clock, settings, times
from .sections_practice import practice

SECTIONS = (  # anchor, title (as in the talk), function
    ("data", "1.1 The training data", data),
    ("tokens", "1.2 Tokenization", tokens),
    ("training", "1.3 The training process", training),
    ("network", "1.4 Inside the network", network),
    ("base", "1.5 The base model dreams", base_samples),
    ("assistant", "2 Post-training: the assistant", assistant),
    ("limits", "3 What it doesn't know", limits),
    ("practice", "4 Reinforcement learning", practice),
    ("times", "How long it took", times),
    ("settings", "Settings and results", settings),
)
INTRODUCTION = (
    "Everything below was made on one machine, by code you can read, in the order of Andrej Karpathy's talk “Deep Dive "
    "into LLMs like ChatGPT”. The models are small, so what they say is often wrong; each step is the one that large "
    "models go through."
)
SOURCES = {
    "town": "The web they read is invented, so that it is known what is true: a town with its people, sums worked out on paper, "
    "words spelt out, some of Python's real documentation, and a good deal of junk between them.",
    "own": "",
}


def write_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes FOLDER/report.html (or `out`) and returns its path. UserError: there is no artefact in the folder."""
    found = Found(Path(folder))
    if not found.runs:
        raise UserError(f"{folder} holds no finished freedive run", hint="give a folder with run.json in it or below it")
    results = headlines(found)
    parts = [(anchor, title, results.get(anchor, ""), body) for anchor, title, make in SECTIONS if (body := make(found))]
    words = " ".join(filter(None, (INTRODUCTION, SOURCES.get(found.source, ""))))
    path = Path(out) if out is not None else found.root / "report.html"
    write_atomic(path, [page("A deep dive", paragraph(words), parts).encode("utf-8", "replace")])
    return path


def headlines(found: Found) -> dict[str, str]:
    """What came out of each section, in a few words for the table of contents; sections that it can't be said of are left out."""
    lines = {}
    if fall := found.json("data", "waterfall.json"):
        size = human_bytes(fall["bytes_out"])
        lines["data"] = f"{fall['documents_in']:,} raw pages, {fall['documents_out']:,} kept, {size} of clean text"
    if found.tokenizer is not None:
        each = found.metrics("tokenizer").get("bytes_per_token")
        lines["tokens"] = f"{found.tokenizer.vocab_size:,} tokens" + (f", {each:.2f} bytes of text in each" if each else "")
    losses = [row["loss"] for row in found.lines("pretrain", "metrics.jsonl") if row.get("loss") is not None]
    if losses:
        last = found.metrics("pretrain").get("val_loss")
        lines["training"] = f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at last" + (f", {last:.2f} on unseen pages" if last is not None else "")
    if parameters := found.metrics("pretrain").get("parameters"):
        lines["network"] = f"{parameters:,} parameters"
    if samples := found.json("pretrain", "samples.json"):
        lines["base"] = f"{len(samples)} documents, written token by token"
    base, chat = found.exam("base"), found.exam("sft")
    if base and chat:
        ended, before = (percent(e.share(of="stopped")[0]) for e in (chat, base))
        lines["assistant"] = f"{ended} of its answers end by themselves, of the base model's {before}"
    if chat:
        lines["limits"] = f"{percent(chat.share()[0])} of {chat.share()[1]:,} questions right"
        often, nowhere = (chat.share(LADDER[at][0])[0] for at in (0, -1))
        if often is not None and nowhere is not None:  # the invented town
            lines["limits"] = f"right about people it read of often {percent(often)}, about people it read of nowhere {percent(nowhere)}"
    rl = found.metrics("rl")
    if "before/pass@1" in rl and "after/pass@1" in rl:
        lines["practice"] = f"pass@1 {percent(rl['before/pass@1'])} before, {percent(rl['after/pass@1'])} after"
    seconds = sum(row.get("seconds", 0.0) for row in jsonl(found.root / "timings.jsonl"))
    if seconds:
        lines["times"] = f"{clock(seconds)} in all" + (f" on {found.machine['threads']} threads" if "threads" in found.machine else "")
    return lines
