"""The report: one self-contained page in the order of the talk, from the artefacts in a folder. What is missing is left out.

write_report("freedive-dive")          # a dive's folder, or any folder of freedive's stages
"""

from __future__ import annotations

import os
from pathlib import Path

from freedive.runs import UserError, write_atomic

from .found import Found
from .page import page, paragraph
from .sections_assistant import assistant, limits, practice
from .sections_base import base_samples, data, network, tokens, training
from .sections_end import settings, times

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
    "into LLMs like ChatGPT”. The models are tiny, so what they say is often wrong; each step is the one that large "
    "models go through."
)


def write_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes FOLDER/report.html (or `out`) and returns its path. UserError: there is no artefact in the folder."""
    found = Found(Path(folder))
    if not found.runs:
        raise UserError(f"{folder} holds no finished freedive run", hint="give a folder with run.json in it or below it")
    parts = [(anchor, title, body) for anchor, title, make in SECTIONS if (body := make(found))]
    path = Path(out) if out is not None else found.root / "report.html"
    write_atomic(path, [page("A deep dive", paragraph(INTRODUCTION), parts).encode("utf-8", "replace")])
    return path
