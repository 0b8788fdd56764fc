"""Texts, pages and checks shared by the tests of this folder."""

import json
import random
from pathlib import Path

from freedive.data import iter_documents

NOUNS = "river bridge garden window market teacher winter candle letter mountain kitchen soldier orchard harbour".split()
VERBS = "saw found followed painted remembered crossed described opened watched carried forgot measured".split()


def story(seed: int, sentences: int = 12) -> str:
    draw = random.Random(seed)
    return " ".join(
        f"The {draw.choice(NOUNS)} of the {draw.choice(NOUNS)} {draw.choice(VERBS)} a {draw.choice(NOUNS)} and then {draw.choice(VERBS)} it."
        for _ in range(sentences)
    )


def page(text: str) -> bytes:
    head = "<html><head><title>t</title></head><body><nav><a href='/'>Home</a></nav>"
    return f"{head}<article><p>{text}</p></article></body></html>".encode()


def splits(folder: Path) -> list[str]:
    return [split for split in ("train", "val") if any(folder.glob(f"{split}-*"))]


def documents(folder: Path) -> list[dict]:
    return [d for split in splits(folder) for d in iter_documents(folder, split)]


def adds_up(folder: Path) -> dict:
    """waterfall.json, after checking that its counts add up and agree with the shards."""
    result = json.loads((folder / "waterfall.json").read_text())
    count, size = result["documents_in"], result["bytes_in"]
    for step in result["steps"]:
        assert (step["documents_in"], step["bytes_in"]) == (count, size)
        count -= sum(lost["documents"] for lost in step["removed"].values())
        size -= sum(lost["bytes"] for lost in step["removed"].values()) + step["bytes_trimmed"]
        assert (step["documents_out"], step["bytes_out"]) == (count, size)
    written = [d["text"] for d in documents(folder)]
    assert (result["documents_out"], result["bytes_out"]) == (count, size) == (len(written), sum(len(t.encode()) for t in written))
    return result


def reasons(result: dict) -> dict:
    return {f"{step['step']}/{rule}": lost["documents"] for step in result["steps"] for rule, lost in step["removed"].items()}
