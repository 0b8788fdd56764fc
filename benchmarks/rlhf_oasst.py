"""What people's ranks teach an open model: python benchmarks/rlhf_oasst.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data oasst_en_100_trees.jsonl.gz

100 trees of OASST, whose answers people ranked; a part of the trees is held out by a hash of the first message. One JSON line each:
1. reward: a row on the model's frozen hidden states, learned from the lists: held-out pairs ordered right, with its interval over trees, and what length
   alone gets right. With --lora an adapter learns beside the row (longer).
2. dpo: an adapter, on the best and the worst answer of each list: held-out loss and accuracy before and after.
About 8 minutes on 2 quiet cores. Stopped, it goes on from --out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.rlhf.dpo import DPOConfig
from freedive.rlhf.dpo import run as dpo
from freedive.rlhf.reward_stage import RewardConfig
from freedive.rlhf.reward_stage import run as reward
from freedive.runs import read_json
from freedive.sft.rows import rankings, trees


def extremes(data: Path) -> list[dict[str, Any]]:
    """The best and the worst ranked answer to each prompt."""
    rows = []
    for _, tree in trees(iter_rows(data)):
        for r in rankings(tree):
            order = sorted(range(len(r.ranks)), key=r.ranks.__getitem__)
            rows.append({"prompt": r.prompt, "chosen": r.completions[order[0]], "rejected": r.completions[order[-1]]})
    return rows


def told(name: str, out: Path, began: float, *keys: str) -> None:
    metrics = read_json(out / "run.json")["metrics"]
    rounded = lambda v: [round(x, 4) for x in v] if isinstance(v, list) else round(v, 4)
    print(json.dumps({"benchmark": "rlhf_oasst", "case": name, "seconds": round(time.perf_counter() - began), **{k: rounded(metrics[k]) for k in keys}}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/rlhf-oasst"))
    parser.add_argument("--context", type=int, default=448)
    parser.add_argument("--held-out", type=float, default=0.3)
    parser.add_argument("--dpo-steps", type=int, default=16)
    parser.add_argument("--weight-decay", type=float, default=2.0, help="of the row: there are more numbers in it than answers to learn from")
    parser.add_argument("--lora", action="store_true", help="a reward model with an adapter too")
    parser.add_argument("--no-dpo", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of what is held out")
    parser.add_argument("--threads", type=int)
    a = parser.parse_args()
    common: dict[str, Any] = dict(model=a.model, context=a.context, val_fraction=a.held_out, dtype="auto", threads=a.threads, seed=a.seed)
    keys = ("eval_accuracy", "eval_accuracy_interval_95", "eval_pairs", "eval_longer_is_better", "eval_loss", "best_step", "lists", "pairs")
    began = time.perf_counter()
    told("reward, the row alone", reward(RewardConfig(data=[str(a.data)], out=a.out / "row", freeze=True, epochs=20.0, batch=16, lr=1e-3, weight_decay=a.weight_decay, **common)), began, *keys)
    if a.lora:
        began = time.perf_counter()
        told("reward, an adapter", reward(RewardConfig(data=[str(a.data)], out=a.out / "adapter", lora_rank=8, epochs=2.0, batch=8, lr=2e-4, eval_every=10, **common)), began, *keys)
    if a.no_dpo:
        return
    a.out.mkdir(parents=True, exist_ok=True)
    pairs = a.out / "extremes.jsonl"
    pairs.write_text("".join(json.dumps(r) + "\n" for r in extremes(a.data)), encoding="utf-8")
    began = time.perf_counter()
    out = dpo(DPOConfig(data=[str(pairs)], out=a.out / "dpo", lora_rank=8, steps=a.dpo_steps, batch=8, lr=1e-4, eval_every=a.dpo_steps, log_every=4, **common))
    told("dpo, an adapter", out, began, "before/eval_loss", "eval_loss", "eval_rewards/accuracies", "eval_rewards/accuracies_interval_95", "eval_rewards/margins", "eval_logps/chosen",
         "before/eval_logps/chosen", "pairs", "held_out_pairs")  # fmt: skip


if __name__ == "__main__":
    main()
