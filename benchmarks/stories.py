"""Bits per byte on held-out children's stories (split by story), beside a byte 6-gram and xz given the same training text.

    python benchmarks/stories.py --text ../shared/data/text/children_stories.jsonl.gz
    python benchmarks/stories.py --no-peers --set optimizer=muon epochs=5      # another recipe, ours alone

The 6-gram is interpolated by Witten-Bell from order 6 down to uniform; xz is what the held-out text adds to the compressed training
text. The last line is ours, with `bits_per_byte` and the CPU-seconds of the whole run: equal time is equal CPU-seconds where the machine is shared.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from freedive.pretrain.corpus import read_texts
from freedive.pretrain.stage import PretrainConfig, run

RECIPE = dict(optimizer="adamw", tokenizer="bpe", vocab_size=1024, depth=4, d_model=128, n_head=4, n_kv_head=2, head_dim=32, context=256, batch_tokens=2048,
              epochs=6.0, lr=3e-3, weight_decay=0.3)  # fmt: skip


def ngram_bits(train: bytes, val: list[bytes], order: int = 6) -> float:
    """Bits a byte of a Witten-Bell interpolated n-gram: P_n = (count + T * P_{n-1}) / (total + T), T = distinct continuations."""
    tables: list[dict[bytes, dict[int, int]]] = [defaultdict(dict) for _ in range(order)]
    for n in range(order):
        table = tables[n]
        for i in range(n, len(train)):
            follow = table[train[i - n : i]]
            follow[train[i]] = follow.get(train[i], 0) + 1
    totals = [{k: sum(v.values()) for k, v in t.items()} for t in tables]
    bits, count = 0.0, 0
    for text in val:
        for i, byte in enumerate(text):
            p = 1 / 256
            for n in range(min(order, i + 1)):
                context = text[i - n : i]
                follow = tables[n].get(context)
                if follow is None:
                    break
                p = (follow.get(byte, 0) + len(follow) * p) / (totals[n][context] + len(follow))
            bits -= math.log2(p)
            count += 1
    return bits / count


def as_number(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/data/text/children_stories.jsonl.gz"))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="change a field of the recipe")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    arguments = parser.parse_args()
    recipe: dict[str, Any] = dict(RECIPE)
    for item in arguments.set:
        name, value = item.split("=")
        recipe[name] = as_number(value)
    train, val = read_texts(arguments.text, 0.1)
    n = sum(len(t.encode()) for t in val)
    joined, held = "\n".join(train).encode(), "\n".join(val).encode()
    if not arguments.no_peers:
        peers(joined, held, val, n)
    ours(arguments.text, recipe, len(train), len(val))


def peers(joined: bytes, held: bytes, val: list[str], n: int) -> None:
    print(json.dumps({"benchmark": "stories", "case": "byte 6-gram", "bits_per_byte": round(ngram_bits(joined, [t.encode() for t in val]), 4)}), flush=True)
    extra = len(lzma.compress(joined + held, preset=9 | lzma.PRESET_EXTREME)) - len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME))
    print(json.dumps({"benchmark": "stories", "case": "xz, given the training text", "bits_per_byte": round(8 * extra / n, 4)}), flush=True)


def ours(text: Path, recipe: dict[str, Any], n_train: int, n_val: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        began, cpu = time.perf_counter(), time.process_time()
        run(PretrainConfig(text=text, samples=0, out=out, **recipe))
        metrics = json.loads((out / "run.json").read_text())["metrics"]
        print(json.dumps({"benchmark": "stories", "case": "freedive", "seconds": round(time.perf_counter() - began, 1),
                          "cpu_seconds": round(time.process_time() - cpu, 1), "train_stories": n_train, "val_stories": n_val, "parameters": metrics["parameters"], "recipe": recipe,
                          "bits_per_byte": round(metrics["val_bits_per_byte"], 4)}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
