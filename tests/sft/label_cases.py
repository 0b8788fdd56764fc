"""Folders of labels drawn by hypothesis: prompts with 0 to 5 answers, judged by up to three people in every way the page allows."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from freedive.sft.labels.items import Item, dense, make_item
from freedive.sft.labels.store import FLAGS, SCORES, Judgement

TEXTS = st.text(min_size=1, max_size=30).map(str.strip).filter(bool)
NAMES = ("ada", "b.c+d@e-f", "Łukasz")


@st.composite
def drawn_items(draw: Any, least: int = 0) -> list[Item]:
    found: dict[str, Item] = {}
    for _ in range(draw(st.integers(1, 4))):
        turns = draw(st.lists(TEXTS, min_size=1, max_size=3))
        prompt = [{"role": ("user", "assistant")[(len(turns) - 1 - i) % 2], "content": t} for i, t in enumerate(turns)]
        texts = draw(st.lists(TEXTS, min_size=least, max_size=5))
        ranks = draw(st.none() | st.lists(st.integers(0, 4), min_size=len(texts), max_size=len(texts))) if len(texts) > 1 else None
        item = make_item(prompt, texts, ranks, draw(st.lists(st.sampled_from(["", "model a", "model b"]), min_size=len(texts), max_size=len(texts))))
        found[item.id] = item
    return list(found.values())


@st.composite
def drawn_judgement(draw: Any, item: Item, labeller: str) -> Judgement:
    ids = [a.id for a in item.answers]
    ranks = dict(zip(ids, dense(draw(st.lists(st.integers(0, 4), min_size=len(ids), max_size=len(ids)))))) if len(ids) > 1 and draw(st.booleans()) else {}
    scores = draw(st.dictionaries(st.sampled_from(ids), st.sampled_from(list(SCORES)))) if ids else {}
    notes = draw(st.dictionaries(st.sampled_from(ids), TEXTS)) if ids else {}
    text, skipped = draw(st.just("") | TEXTS), draw(st.booleans())
    if not (ranks or scores or text):
        skipped = True
    return Judgement(item.id, labeller, skipped, text, ranks, scores, notes, draw(st.just("") | TEXTS), draw(st.lists(st.sampled_from(FLAGS), unique=True)),
                     draw(st.permutations(ids)), draw(st.integers(0, 9999)) / 10, "2026-11-28T07:00:00Z", "0123456789ab")  # fmt: skip


@st.composite
def folders(draw: Any, least: int = 0) -> tuple[list[Item], list[Judgement]]:
    items = draw(drawn_items(least))
    return items, [draw(drawn_judgement(item, name)) for name in NAMES for item in items if draw(st.booleans())]
