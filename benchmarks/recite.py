"""Memorisation against repetition, on text we did not make: children's stories, some of them repeated 2 to 32 times in the training data.

    python benchmarks/recite.py --text ../shared/data/text/children_stories.jsonl.gz

Trains a small model for a few minutes and asks it with `freedive recite` (prompt 32 tokens, 32 more word for word). One line per
number of copies; the last line is the largest group's share. Held-out stories (0 copies) are the control.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from freedive.data.texts import iter_documents
from freedive.eval.recite import ReciteConfig
from freedive.eval.recite import run as recite
from freedive.pretrain.stage import PretrainConfig
from freedive.pretrain.stage import run as pretrain

COPIES = (1, 2, 4, 8, 16, 32)
RECIPE = dict(tokenizer="bpe", vocab_size=1024, depth=4, d_model=128, n_head=4, n_kv_head=2, head_dim=32, context=256, batch_tokens=1024, optimizer="adamw", lr=3e-3, samples=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/data/text/children_stories.jsonl.gz"))
    parser.add_argument("--per-group", type=int, default=12, help="stories of each number of copies")
    parser.add_argument("--characters", type=int, default=400, help="of a story: its beginning, so that 32 copies of 12 fit")
    parser.add_argument("--epochs", type=float, default=4.0)
    arguments = parser.parse_args()
    stories = [{**row, "text": row["text"][: arguments.characters]} for row in iter_documents(arguments.text)]
    rng = random.Random(0)
    rng.shuffle(stories)
    per, held = arguments.per_group, 2 * arguments.per_group
    val, rest = stories[:held], stories[held:]
    train = []
    for group, copies in enumerate(COPIES):
        for story in rest[group * per : (group + 1) * per]:
            train += [story] * copies
    train += rest[len(COPIES) * per :]
    rng.shuffle(train)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for split, rows in (("train", train), ("val", val)):
            (data / f"{split}-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        began = time.perf_counter()
        pretrain(PretrainConfig(data=data, out=Path(folder) / "base", epochs=arguments.epochs, **RECIPE))
        seconds = time.perf_counter() - began
        metrics = json.loads((Path(folder) / "base" / "run.json").read_text())["metrics"]
        out = recite(ReciteConfig(model=Path(folder) / "base", data=data, out=Path(folder) / "recite"))
        result = json.loads((out / "recite.json").read_text())
    for g in result["groups"]:
        row = {key: g[key] for key in ("copies", "asked", "recited", "share", "mean_matched", "other_page")}
        print(json.dumps({"benchmark": "recite", **row}), flush=True)
    last = result["groups"][-1]
    print(json.dumps({"benchmark": "recite", "case": f"{last['copies']} copies", "share": last["share"], "seconds_of_training": round(seconds, 1),
                      "documents": len(train), "val_bits_per_byte": round(metrics["val_bits_per_byte"], 3), "epochs": arguments.epochs}))  # fmt: skip


if __name__ == "__main__":
    main()
