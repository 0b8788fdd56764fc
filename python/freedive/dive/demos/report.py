"""The page of `freedive demos`: each claim with its bars, and some answers to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freedive.dive.found import jsonl
from freedive.runs import write_atomic
from freedive.runs.page import Reply, Share, asked, cards, page, paragraph, shares

from . import opinions
from .arms import ARMS
from .practice_page import practice
from .room import shown

EXAMPLES = {  # arm -> files with answers, (folder, words for who answered)
    "refusals": (("table-assistant", "naive"), ("table-honest", "after probing")),
    "sums": (("answers-sums", "assistant"),),
    "products": (("answers-products", "assistant"),),
    "dots": (("answers-dots", "assistant"),),
    "letters": (("answers-letters", "assistant"),),
}
INTRODUCTION = (
    "Chapters 3 and 4 of Andrej Karpathy's talk “Deep Dive into LLMs like ChatGPT”, measured: one model of a million parameters that has read a small invented "
    "web, one mixture of conversations, and for each claim an experiment with a control. Bars with a target say what was hoped for before it was measured."
)
SMOKE = "This is the smoke tier: it shows that everything runs. Its models have learned next to nothing, and its figures mean nothing."


def write_report(out: Path, tier: str, summary: Sequence[dict[str, Any]]) -> Path:
    """OUT/demos.html."""
    sections = []
    for arm in summary:
        about = ARMS[arm["arm"]]
        several, seed = len(arm["seeds"]) > 1, out / f"seed-{arm['seeds'][0]}"
        groups = [("", [_bar(f, several)]) for f in arm["figures"]]
        groups = [(f["name"], bars) for f, (_, bars) in zip(arm["figures"], groups)]
        note = f"Mean of {len(arm['seeds'])} seeds; the line in a bar goes from the least to the largest." if several else "The line in each bar is the 95 % interval (bootstrap)."
        body = paragraph(about.what) + shares(("", "", "share"), groups) + paragraph(note) + cards(_examples(seed, arm["arm"])) + practice(seed, arm["arm"]) + cards(_gamed(seed, arm["arm"]))
        met = [f["met"] for f in arm["figures"] if f["met"] is not None]
        sections.append((arm["arm"], f"{about.section} {about.title}", f"{sum(met)} of {len(met)} targets reached", body))
    words = INTRODUCTION + (f" {SMOKE}" if tier == "smoke" else "")
    path = out / "demos.html"
    write_atomic(path, [page("What a model knows, and how it thinks", paragraph(words), sections).encode("utf-8", "replace")])
    return path


def _bar(f: dict[str, Any], several: bool) -> Share:
    low, high = f["interval_95"] or (f["share"], f["share"])
    unit = f.get("unit", "share")
    clip = lambda x: min(1.0, max(0.0, x))
    hoped = f"target {f['target']}: {'reached' if f['met'] else 'not reached'}" if f["target"] else "for comparison"
    colour = 3 if f["control"] else 0 if f["met"] in (True, None) else 1
    return Share("", clip(f["share"]), clip(low), clip(high), shown(f["share"], unit), hoped, colour)


def _examples(seed: Path, arm: str) -> list[str]:
    """Cards with questions and what was said to them."""
    files = [(who, list(jsonl(seed / folder / "answers.jsonl"))) for folder, who in EXAMPLES.get(arm, ())]
    if not files or not all(rows for _, rows in files):
        return []
    first = files[0][1]
    key = lambda row: row.get("group") or row["meta"]["style"]
    chosen = [rows[len(rows) // 3] for kind in dict.fromkeys(map(key, first)) if (rows := [row for row in first if key(row) == kind])]
    others = [{r["prompt"][-1]["content"]: r for r in rows} for _, rows in files]
    made = []
    for row in chosen:
        question = row["prompt"][-1]["content"]
        replies = [Reply(who, _words(r), f"{key(r)}; it is {r['answer']}", _good(r)) for (who, _), by in zip(files, others) if (r := (row if len(files) == 1 else by.get(question)))]
        made.append(asked(question, *replies))
    return made


def _gamed(seed: Path, arm: str) -> list[str]:
    """A card with the answer that games the reward model."""
    if arm != "overdone":
        return []
    return [asked(str(g["prompt"]), Reply("practised for the weak reward model", str(g["text"]), f"reward {g['proxy']:.2f}, at the start {g['proxy_at_the_start']:.2f}; "
                                          f"worth {g['gold']:.2f}, at the start {g['gold_at_the_start']:.2f}", False)) for g in opinions.examples(seed)]  # fmt: skip


def _words(row: dict[str, Any]) -> str:
    called = [c if isinstance(c, dict) else {"text": c[1], "answer": c[2]} for c in row.get("calls") or []]
    return "".join(f"[{c['text']} → {c['answer']}] " for c in called) + str(row["reply"])


def _good(row: dict[str, Any]) -> bool:
    if "right" in row:
        return bool(row["right"])
    return row["outcome"] == "correct" or (row["outcome"] == "refused" and row["group"] != "known")
