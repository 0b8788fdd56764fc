"""What people's ranks teach an open model: python benchmarks/rlhf_oasst.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data oasst_en_100_trees.jsonl.gz

100 trees of OASST, whose answers people ranked, split in three by hashes of the first message: about half are learned from, by some the weights are chosen,
and the rest is what is told. One JSON line each, of the test's trees alone:
1. reward: a row on the model's frozen hidden states, learned from the lists: pairs ordered right, with its interval over trees, and what length alone gets
   right. With --lora an adapter learns beside the row (longer).
2. dpo: an adapter, on the best and the worst answer of each list: loss, accuracy and margin.
About 8 minutes on 2 quiet cores. Stopped, it goes on from --out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.eval.statistics import interval
from freedive.inference import load_model, load_tokenizer
from freedive.rlhf.dpo import DPOConfig, DPOLearner, pairs_of
from freedive.rlhf.dpo import run as dpo
from freedive.rlhf.preferences import longer_is_better, read_preferences
from freedive.rlhf.reward_model import RewardModel
from freedive.rlhf.reward_stage import RewardConfig, pair_results
from freedive.rlhf.reward_stage import run as reward
from freedive.runs import read_json, write_atomic
from freedive.sft.data import is_held_out
from freedive.sft.rows import Ranking, rankings, trees

PARTS = ("train", "validation", "test")


def split(data: Path, out: Path, held_out: float, seed: int) -> dict[str, dict[str, Path]]:
    """{"ranks", "extremes"} -> {part -> file}: the ranked lists, and the best and the worst answer of each. A tree is in one part as a whole."""
    found: dict[str, list[Ranking]] = {part: [] for part in PARTS}
    for _, tree in trees(iter_rows(data)):
        for r in rankings(tree):
            found["test" if is_held_out(r.prompt, held_out, seed) else "validation" if is_held_out(r.prompt, held_out, seed + 1) else "train"].append(r)
    files: dict[str, dict[str, Path]] = {"ranks": {}, "extremes": {}}
    for part, lists in found.items():
        ordered = [(r, sorted(range(len(r.ranks)), key=r.ranks.__getitem__)) for r in lists]
        rows = {"ranks": [{"prompt": r.prompt, "completions": r.completions, "ranks": r.ranks} for r in lists],
                "extremes": [{"prompt": r.prompt, "chosen": r.completions[o[0]], "rejected": r.completions[o[-1]]} for r, o in ordered]}  # fmt: skip
        for kind, made in rows.items():
            files[kind][part] = out / f"{kind}-{part}.jsonl"
            write_atomic(files[kind][part], [json.dumps(row).encode() + b"\n" for row in made])
    return files


def tell(case: str, began: float, run: Path, keys: tuple[str, ...], found: dict[str, Any]) -> None:
    rounded = lambda v: [round(x, 4) for x in v] if isinstance(v, list) else round(v, 4) if isinstance(v, float) else v
    kept = {key: read_json(run / "run.json")["metrics"][key] for key in keys}
    print(json.dumps({"benchmark": "rlhf_oasst", "case": case, "seconds": round(time.perf_counter() - began), **{k: rounded(v) for k, v in {**kept, **found}.items()}}), flush=True)


def judged_reward(folder: Path, file: Path, context: int, threads: int | None) -> dict[str, Any]:
    model = RewardModel.load(folder, threads=threads)
    lists = read_preferences([str(file)], model.tok, context)[0]
    right, margins, prompts = pair_results(lists, [model.score(r.sequences) for r in lists])
    return {"test_accuracy": float(right.mean()), "test_accuracy_interval_95": interval(list(right), prompts), "test_margin": float(margins.mean()), "test_pairs": len(right),
            "test_trees": len(set(prompts)), "test_longer_is_better": float(longer_is_better(lists).mean())}  # fmt: skip


def judged_dpo(c: DPOConfig, folder: Path, file: Path) -> dict[str, Any]:
    tok = load_tokenizer(c.model)
    lists = read_preferences([str(file)], tok, c.context)[0]
    pairs = pairs_of(lists)
    learner = lambda path: DPOLearner(c, load_model(path, tok, max_tokens=max(c.micro_tokens, 2 * c.context), max_seqs=256, threads=c.threads, dtype=c.dtype, trainable=False, weights="auto"), pairs, 0)
    before, after = learner(c.model), learner(folder)
    before.refer()
    after.reference = before.reference
    return {f"test_{k.removeprefix('eval_')}": v for k, v in after.measure().items()} | {"test_pairs": len(pairs), "test_longer_is_better": float(longer_is_better(lists).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/rlhf-oasst"))
    parser.add_argument("--context", type=int, default=448)
    parser.add_argument("--held-out", type=float, default=0.3, help="part of the trees to judge by, and of the rest to choose weights by")
    parser.add_argument("--dpo-steps", type=int, default=16)
    parser.add_argument("--weight-decay", type=float, default=2.0, help="of the row: there are more numbers in it than answers to learn from")
    parser.add_argument("--lora", action="store_true", help="a reward model with an adapter too")
    parser.add_argument("--no-dpo", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of what is held out")
    parser.add_argument("--threads", type=int)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    files = split(a.data, a.out, a.held_out, a.seed)
    ranks = files["ranks"]
    common: dict[str, Any] = dict(model=a.model, context=a.context, dtype="auto", threads=a.threads, seed=a.seed)
    learned: dict[str, Any] = dict(data=[str(ranks["train"])], val_data=[str(ranks["validation"])], **common)
    settings = {"row alone": dict(out=a.out / "row", freeze=True, epochs=20.0, batch=16, lr=1e-3, weight_decay=a.weight_decay)}
    if a.lora:
        settings["adapter"] = dict(out=a.out / "adapter", lora_rank=8, epochs=2.0, batch=8, lr=2e-4, eval_every=10)
    for name, how in settings.items():
        began = time.perf_counter()
        out = reward(RewardConfig(**learned, **how))
        tell(f"reward, {name}", began, out, ("lists", "pairs", "best_step"), judged_reward(out, ranks["test"], a.context, a.threads))
    if a.no_dpo:
        return
    began = time.perf_counter()
    pairs = files["extremes"]
    c = DPOConfig(data=[str(pairs["train"])], val_data=[str(pairs["validation"])], out=a.out / "dpo", lora_rank=8, steps=a.dpo_steps, batch=8, lr=1e-4, eval_every=max(1, a.dpo_steps // 4), log_every=4, **common)
    out = dpo(c)
    tell("dpo, adapter", began, out, ("pairs", "best_step"), judged_dpo(c, out, pairs["test"]))


if __name__ == "__main__":
    main()
