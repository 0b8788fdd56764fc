"""The educational score on real text, with labels that stand in for annotations: each page gets the score of the source it is from.

    python benchmarks/edu.py --data FOLDER [--body-steps 400]

FOLDER holds openstax, factbook, children_stories, eltec_eng (text/) and sgd_train (sft/), all .jsonl.gz. Pages of 3,000 characters: textbooks 5,
country profiles 3, children's stories 2, novels 1, dialogues about bookings 0. Sources are easier to tell apart than quality, so the
held-out tenth says little; the figure to look at is `unseen`: books, novels and dialogue services left out of training altogether, and
sources of kinds never seen (shown by their mean score, without a right answer). Every figure of `unseen` goes through `freedive data`.
With --body-steps a decoder is first pretrained on the pages for so many steps, and a head on its hidden states is measured too.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from freedive.data import DataConfig, edu_train, run
from freedive.data.edu import load
from freedive.data.texts import iter_rows
from freedive.runs import json_line, progress

PAGE = 3000  # characters
SCORES = {"textbook": 5, "profile": 3, "story": 2, "novel": 1, "dialogue": 0}
UNSEEN_BOOKS = ("physics", "american-government", "introduction-sociology")
UNSEEN_SERVICES = ("Flights", "Banks", "Homes", "Weather")
Pages = dict[str, list[str]]


def pages_of(text: str) -> list[str]:
    return [text[at : at + PAGE] for at in range(0, len(text) - PAGE // 3, PAGE)]


def sources(data: Path) -> tuple[Pages, Pages, Pages]:
    """(to learn from, unseen of the same kinds, unseen of other kinds), each kind -> its pages."""
    known: Pages = defaultdict(list)
    unseen: Pages = defaultdict(list)
    other: Pages = defaultdict(list)
    books = sorted({row["book"] for _, row in iter_rows(data / "text" / "openstax.jsonl.gz")})
    left_out = [book for book in books if any(name in book for name in UNSEEN_BOOKS)]
    for _, row in iter_rows(data / "text" / "openstax.jsonl.gz"):
        (unseen if row["book"] in left_out else known)["textbook"] += pages_of(row["text"])
    for number, (_, row) in enumerate(iter_rows(data / "text" / "factbook.jsonl.gz")):
        (unseen if number % 5 == 0 else known)["profile"] += pages_of("\n".join(f"{key}: {value}" for key, value in row["facts"].items()))
    for number, (_, row) in enumerate(iter_rows(data / "text" / "children_stories.jsonl.gz")):
        (unseen if number % 5 == 0 else known)["story"] += pages_of(row["text"])
    for number, (_, row) in enumerate(iter_rows(data / "text" / "eltec_eng.jsonl.gz")):
        (unseen if number % 5 == 0 else known)["novel"] += pages_of(row["text"])
    for _, row in iter_rows(data / "sft" / "sgd_train.jsonl.gz"):
        strange = any(service.startswith(UNSEEN_SERVICES) for service in row["services"])
        (unseen if strange else known)["dialogue"].append("\n".join(turn["text"] for turn in row["turns"]))
    for name, path, key in (
        ("GSM8K questions", "rl/gsm8k_train", "question"),
        ("MMLU questions", "eval/mmlu_val", "q"),
        ("Shakespeare", "text/tinyshakespeare", "text"),
    ):
        texts = [str(row[key]) for _, row in iter_rows(data / f"{path}.jsonl.gz")]
        joined = "\n".join(texts)
        other[name] += pages_of(joined)
    for _, row in iter_rows(data / "sft" / "oasst_en_100_trees.jsonl.gz"):
        replies = row["prompt"]["replies"]
        other["OASST conversations"].append("\n".join([row["prompt"]["text"], *(reply["text"] for reply in replies[:1])]))
    print(json.dumps({"case": "books left out", "books": left_out, "of": len(books)}))
    return known, unseen, other


def measure(name: str, scorer: Path, work: Path, unseen: Pages, other: Pages) -> None:
    """What `freedive data --edu-model` makes of the pages that were left out."""
    rows = [(kind, text) for pages in (unseen, other) for kind, texts in pages.items() for text in texts]
    source = work / "unseen.jsonl"
    source.write_bytes(b"".join(json_line({"text": text, "id": kind}) for kind, text in rows))
    settings: dict[str, Any] = {"preset": "none", "languages": (), "exact_dedup": False, "pii": False, "decisions": True, "page_seconds": 100.0}
    out = run(DataConfig((source,), work / f"out-{name}", edu_model=scorer, edu_min=3, **settings))
    kept = [not row["reason"] for _, row in iter_rows(out / "decisions.jsonl")]
    loaded = load(scorer, 0)
    begun = time.process_time()
    scores = loaded.score([text for _, text in rows[:200]])
    each = (time.process_time() - begun) / 200
    scores = np.concatenate([scores, loaded.score([text for _, text in rows[200:]])])
    by_kind = defaultdict(list)
    for (kind, _), keep, score in zip(rows, kept, scores, strict=True):
        by_kind[kind].append((keep, score))
    for kind, found in by_kind.items():
        share, mean = (float(np.mean([row[i] for row in found])) for i in (0, 1))
        print(
            json.dumps(
                {
                    "case": f"{name}, unseen",
                    "kind": kind,
                    "label": SCORES.get(kind),
                    "pages": len(found),
                    "kept": round(share, 3),
                    "mean": round(mean, 2),
                }
            )
        )
    truth = np.array([SCORES.get(kind, -1) for kind, _ in rows])
    judged = truth >= 0
    told = edu_train.report(scores[judged], truth[judged].astype(float), 3, 2.5)
    figures = {key: round(told[key], 3) for key in ("f1", "precision", "recall", "mae", "correlation")}
    print(json.dumps({"case": f"{name}, unseen", "pages": int(judged.sum()), **figures, "milliseconds_a_page": round(1e3 * each, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=1200, help="of each kind to learn from; a quarter as many unseen ones")
    parser.add_argument("--body-steps", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep everything here")
    a = parser.parse_args()
    progress.quiet = True
    draw = random.Random(0)
    known, unseen, other = (
        {kind: draw.sample(texts, min(count, len(texts))) for kind, texts in pages.items()}
        for pages, count in zip(sources(a.data), (a.pages, a.pages // 4, a.pages // 4), strict=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        work = a.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        rows = [{"text": text, "score": SCORES[kind]} for kind, texts in known.items() for text in texts]
        draw.shuffle(rows)
        labelled = work / "labelled.jsonl"
        labelled.write_bytes(b"".join(map(json_line, rows)))
        print(json.dumps({"case": "learned from", **{kind: len(texts) for kind, texts in known.items()}}))
        begun = time.process_time()
        edu_train.run(edu_train.EduTrainConfig((labelled,), work / "ngrams"))
        print(json.dumps({"case": "ngrams", "cpu_seconds": round(time.process_time() - begun, 1)}))
        measure("ngrams", work / "ngrams", work, unseen, other)
        if a.body_steps:
            from freedive.pretrain.stage import PretrainConfig
            from freedive.pretrain.stage import run as pretrain

            pretrain(PretrainConfig(text=labelled, out=work / "body", steps=a.body_steps, context=512, optimizer="adamw", samples=0))
            begun = time.process_time()
            edu_train.run(edu_train.EduTrainConfig((labelled,), work / "model", body=work / "body"))
            print(json.dumps({"case": "model", "cpu_seconds": round(time.process_time() - begun, 1)}))
            measure("model", work / "model", work, unseen, other)


if __name__ == "__main__":
    main()
