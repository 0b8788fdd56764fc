"""A GRPO step and its rollouts beside TRL's on the same CPU, in turns: same model, adapter, prompts, numbers of tokens.

    FREEDIVE_TRL_PYTHON=venv-trl/bin/python python benchmarks/grpo_beside_trl.py --model EXPORTED --prompts gsm8k_train.jsonl.gz [--dtype float32 bfloat16]

EXPORTED is a Hugging Face folder (`freedive export MODEL --to hf`). 4 questions of GSM8K x 8 completions, each of exactly 48 tokens (neither side may end
earlier), LoRA of rank 16 on all matrices, dr_grpo, no reference; TRL with transformers' `generate`, its update in micro-batches of 8 (all 32 at
once take more memory and no less time). One JSON line a dtype; figures are ratios of the medians in CPU-seconds, and of the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from side_by_side import TUNED, Others, Worker, in_turns

from freedive.data.texts import iter_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--micro", type=int, default=8, help="TRL's sequences of one forward")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    python = os.environ.get("FREEDIVE_TRL_PYTHON")
    if not python:
        sys.exit("FREEDIVE_TRL_PYTHON must name a Python with torch, transformers, trl and peft")
    texts = []
    for _, row in iter_rows(a.prompts):
        texts.append([{"role": "user", "content": row["question"]}])
        if len(texts) == a.questions * (a.rounds + 1):
            break
    for dtype in a.dtype:
        with tempfile.TemporaryDirectory() as out, Worker(sys.executable, "grpo_worker.py", a.threads) as ours, Worker(python, "trl_worker.py", a.threads, TUNED) as theirs:
            common = {"model": str(a.model.resolve()), "length": a.length, "prompts": a.questions, "generations": a.generations, "threads": a.threads, "texts": texts, "dtype": dtype,
                      "micro": a.micro, "out": out}  # fmt: skip
            ours.ask("start", **common)
            versions = theirs.ask("start", **common)
            seen: dict[str, list[dict]] = {"ours": [], "trl": []}

            def step(worker: Worker, name: str) -> float:
                seen[name].append(worker.ask("step"))  # noqa: B023 - used within this turn of the loop
                return seen[name][-1]["cpu"]

            others = Others([ours, theirs])
            in_turns({"ours": lambda: step(ours, "ours"), "trl": lambda: step(theirs, "trl")}, a.rounds)  # noqa: B023
            middle = lambda name, key: statistics.median(s[key] for s in seen[name][1:])  # noqa: B023
            tokens = {name: middle(name, "tokens") for name in seen}
            print(json.dumps({
                "benchmark": "grpo_beside_trl", "dtype": dtype, **versions, "tokens_a_step": tokens, "busy_others": others.cpus(),
                "rollout_tokens_per_cpu_second": {n: round(tokens[n] / middle(n, "generate"), 1) for n in seen},
                "rollout_ratio_cpu": round(middle("trl", "generate") / middle("ours", "generate"), 2), "rollout_ratio_wall": round(middle("trl", "generate_wall") / middle("ours", "generate_wall"), 2),
                "step_cpu_seconds": {n: round(middle(n, "cpu"), 2) for n in seen}, "step_ratio_cpu": round(middle("trl", "cpu") / middle("ours", "cpu"), 2),
                "step_ratio_wall": round(middle("trl", "wall") / middle("ours", "wall"), 2)}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
