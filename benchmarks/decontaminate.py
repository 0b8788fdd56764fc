"""Decontamination on real text: evaluation items planted into pages of a corpus, how many of these `freedive data` removes, which other
pages it takes for contaminated and by what words, and CPU time per page.

    python benchmarks/decontaminate.py --set gsm8k_train.jsonl.gz --corpus openstax.jsonl.gz

The corpus is cut into pages of 4,000 characters. Every tenth page gets the question of an item in its middle: a third
of them as it is, a third in capitals without punctuation, a third cut to its middle 20 words.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from pathlib import Path

from freedive.data import DataConfig, run
from freedive.data import decontaminate as d
from freedive.data.texts import iter_rows
from freedive.runs import json_line, progress

PAGE = 4000  # characters


def disguised(item: str, way: int) -> str:
    """The item as it is, as capitals without punctuation, or 20 words of its middle. What stands inside numbers stays: 1.75 is one number, 1 75 are two."""
    if way == 0:
        return item
    if way == 1:
        return re.sub(r"(?<!\d)[^\w\s]|[^\w\s](?!\d)", " ", item).upper()
    words = item.split()
    first = max(0, len(words) // 2 - 10)
    return " ".join(words[first : first + 20])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=8000)
    parser.add_argument("--field", default="question", help="of an item, to plant")
    parser.add_argument("--words", type=int, default=13)
    a = parser.parse_args()
    progress.quiet = True
    draw = random.Random(0)
    items = [str(row[a.field]) for _, row in iter_rows(a.set)]
    texts = [str(row["text"]) for _, row in iter_rows(a.corpus)]
    pages = [text[at : at + PAGE] for text in texts for at in range(0, len(text), PAGE)]
    pages = draw.sample(pages, min(a.pages, len(pages)))
    planted = {i: disguised(draw.choice(items), i // 10 % 3) for i in range(0, len(pages), 10)}
    begun = time.process_time()
    rules = d.find([f"set={a.set}"], a.words, "remove", ())
    assert rules is not None
    table = d.load(rules)
    print(json.dumps({"case": "set", **table.found[0], "lengths": list(table.lengths), "cpu_seconds": round(time.process_time() - begun, 2)}))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "pages.jsonl")
        with open(source, "wb") as file:
            for i, text in enumerate(pages):
                half = len(text) // 2
                file.write(json_line({"text": f"{text[:half]}\n{planted[i]}\n{text[half:]}" if i in planted else text}))
        settings = {"preset": "none", "languages": (), "exact_dedup": False, "pii": False, "decisions": True, "samples": 100_000}
        run(DataConfig((source,), Path(folder, "out"), decontaminate=(f"set={a.set}",), decontaminate_words=a.words, **settings))
        removed = set()
        for number, (_, row) in enumerate(iter_rows(Path(folder, "out", "decisions.jsonl"))):
            if row["reason"]:
                removed.add(number)
        why = {row["url"]: row["why"] for _, row in iter_rows(Path(folder, "out", "rejected.jsonl"))}
    for number in sorted(removed - planted.keys()):
        print(json.dumps({"case": "false positive", "page": number, "why": why[f"pages.jsonl:{number + 1}"]}))
    short = {number for number, text in planted.items() if not any(len(d.simple_words(text).grams(n)) for n in (d.MIN_WORDS, a.words))}
    for number in sorted(planted.keys() - removed - short):
        print(json.dumps({"case": "missed", "page": number, "planted": planted[number]}))
    whole = [number for number, text in enumerate(texts) if d.matches(text, rules)]
    print(json.dumps({"case": "whole documents of the corpus that match", "documents": len(texts), "match": len(whole)}))
    best = {}
    for name, work in (("all", lambda text: d.matches(text, rules)), ("words", d.simple_words)):
        rounds = []
        for _ in range(5):
            begun = time.process_time()
            for text in pages[1:1000:2]:
                work(text)
            rounds.append((time.process_time() - begun) / len(pages[1:1000:2]))
        best[name] = min(rounds)
    print(
        json.dumps(
            {"case": "time", "page_characters": PAGE, "milliseconds": round(1e3 * best["all"], 3), "of_which_words": round(1e3 * best["words"], 3)}
        )
    )
    counts = {
        "pages": len(pages),
        "planted": len(planted),
        "too_short": len(short),
        "found": len(removed & planted.keys()),
        "false_positives": len(removed - planted.keys()),
    }
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
