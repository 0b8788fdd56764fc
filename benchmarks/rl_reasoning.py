"""Reinforcement learning of an open model on a family of reasoning-gym, with a control: how many points of held-out pass@1 it gains.

    python benchmarks/rl_reasoning.py --model SmolLM2-135M-Instruct.BF16.gguf [--steps 100] [--out FOLDER]

SmolLM2-135M with a LoRA adapter, in three steps:
1. format SFT: short answers "Answer: ..." to 80 problems each of eleven families, the practised one among them. (Without it the start is below 1 %.)
2. RL (dr_grpo, on correctness alone) on the practised family: needle_haystack, "who is committed to pigs?" among four to eight statements.
3. the control: the same, paid for the form "Answer: ..." alone. What it gains is what the form is worth.
Before and after, 4 answers at temperature 1 to each of 200 held-out problems (held out by a hash of the question), judged by the library's own
checker on a leniently read answer, so a right answer in a wrong form counts; and the likeliest answer to each. Intervals resample problems;
that of the gain pairs them. Needs reasoning-gym (pip install 'freedive[rl]'). Stopped, it goes on from --out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import freedive
from freedive.eval.statistics import bootstrap
from freedive.objectives import pass_at_k
from freedive.rl.rewards import form
from freedive.rl.stage import RLConfig
from freedive.rl.stage import run as practise
from freedive.rl.tasks import check, task_rows
from freedive.sft.stage import SFTConfig
from freedive.sft.stage import run as finetune
from freedive.tokenizer import render

FAMILY = "needle_haystack,min_num_statements=4,max_num_statements=8"
OTHERS = ("chain_sum", "gcd,min_numbers=2,max_numbers=2,min_value=2,max_value=60", "letter_counting,min_words=1,max_words=3", "count_bits,max_n=1023",
          "products,min_digits=1,max_digits=2", "number_sequence", "lcm,min_value=1,max_value=20", "syllogism", "leg_counting,min_animals=1,max_animals=2", "basic_arithmetic")  # fmt: skip
SAMPLES = 4


def format_rows(own: str, n: int) -> list[dict]:
    """Conversations whose answers have the form and nothing else."""
    rows = [row for family in (*OTHERS, own) for row in task_rows(f"reasoning_gym:{family}", 1, n, "train")]
    return [{"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": f"Answer: {r['answer']}"}]} for r in rows]


def measure(model: Path, rows: list[dict]) -> dict:
    """Right answers of each problem at temperature 1 and taking the likeliest, and the share in the form."""
    lm = freedive.load(model, dtype="bfloat16", max_seqs=128)
    tok = lm.tokenizer
    prompts = [render(tok, [{"role": "user", "content": r["prompt"]}], add_generation_prompt=True)[0] for r in rows]
    drawn = lm.engine.generate(prompts, max_new_tokens=24, temperature=1.0, stop_ids=(tok.im_end,), seeds=range(len(rows)), n=SAMPLES)
    likeliest = lm.engine.generate(prompts, max_new_tokens=24, temperature=0.0, stop_ids=(tok.im_end,))
    right = np.array([o.stopped and check(o.text, rows[i // SAMPLES]) >= 1 for i, o in enumerate(drawn)]).reshape(-1, SAMPLES).sum(1)
    greedy = [float(o.stopped and check(o.text, r) >= 1) for o, r in zip(likeliest, rows)]
    return {"right": right, "greedy": greedy, "form": float(np.mean(form([""] * len(drawn), [o.text for o in drawn]))), "example": drawn[0].text}


def told(m: dict) -> dict:
    share = m["right"] / SAMPLES
    return {"pass@1": round(float(share.mean()), 4), "interval_95": [round(x, 4) for x in bootstrap(share)],
            f"pass@{SAMPLES}": round(float(np.mean([pass_at_k(SAMPLES, int(c), SAMPLES) for c in m["right"]])), 4), "greedy": round(float(np.mean(m["greedy"])), 4),
            "in_the_form": round(m["form"], 4), "example": m["example"]}  # fmt: skip


def gain(after: dict, before: dict) -> dict:
    difference = (after["right"] - before["right"]) / SAMPLES
    return {"points": round(100 * float(difference.mean()), 1), "interval_95": [round(100 * x, 1) for x in bootstrap(difference)],
            "greedy_points": round(100 * float(np.mean(after["greedy"]) - np.mean(before["greedy"])), 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/rl-reasoning"))
    parser.add_argument("--family", default=FAMILY)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--problems", type=int, default=200, help="held out")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-control", action="store_true")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    data = a.out / "format.jsonl"
    if not data.exists():
        data.write_text("".join(json.dumps(r) + "\n" for r in format_rows(a.family, 80)))
    start = finetune(SFTConfig(model=a.model, data=[str(data)], out=a.out / "format", lora_rank=16, epochs=1.0, batch_tokens=2048, micro_tokens=2048, context=512, lr=5e-4,
                               dtype="bfloat16", samples=[], seed=a.seed))  # fmt: skip
    rows = task_rows(f"reasoning_gym:{a.family}", a.seed, a.problems, "held_out")
    before = measure(start, rows)
    print(json.dumps({"after_format_sft": told(before), "minutes": round((time.perf_counter() - began) / 60, 1)}), flush=True)
    common = dict(model=start, task=[f"reasoning_gym:{a.family}"], task_size=1500, eval_size=64, eval_every=0, prompts_per_step=8, num_generations=8, steps=a.steps,
                  max_completion_length=24, dtype="bfloat16", micro_tokens=3072, lr=a.lr, seed=a.seed)  # fmt: skip
    solver = practise(RLConfig(out=a.out / "solver", **common))  # type: ignore[arg-type]
    minutes = (time.perf_counter() - began) / 60
    after = measure(solver, rows)
    report = {"benchmark": "rl_reasoning", "family": a.family, "steps": a.steps, "seed": a.seed, "problems": len(rows), "before": told(before), "after": told(after),
              "gain": gain(after, before), "minutes": round(minutes, 1)}  # fmt: skip
    print(json.dumps(report), flush=True)
    if not a.no_control:
        formed = practise(RLConfig(out=a.out / "control", reward=["form"], eval_reward="task", **common))  # type: ignore[arg-type]
        control = measure(formed, rows)
        report |= {"control": told(control), "control_gain": gain(control, before)}
    lines = [json.loads(line) for line in (solver / "metrics.jsonl").read_text().splitlines()]
    report["sampler_trainer_logp_difference"] = max(r[key] for r in lines if (key := "sampling/sampling_logp_difference/max") in r)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
