"""Our GRPO step as a worker of grpo_beside_trl.py: one step of sampling and update for each line, timed in CPU-seconds and on the wall."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

from freedive.inference import Engine, load_model, load_tokenizer
from freedive.model import LoRA, init_adapter
from freedive.objectives import PRESETS
from freedive.rl.config import RLConfig
from freedive.rl.rollouts import sample
from freedive.rl.update import Learner
from freedive.tokenizer import render


def main() -> None:
    request = json.loads(sys.stdin.readline())
    model_path, length, prompts, generations = Path(request["model"]), request["length"], request["prompts"], request["generations"]
    tok = load_tokenizer(model_path)
    model = load_model(model_path, tok, max_tokens=4096, max_seqs=256, threads=request["threads"], dtype=request["dtype"], lora=LoRA(16, 32.0),
                       weights="bfloat16" if request["dtype"] == "bfloat16" else "auto")  # fmt: skip
    init_adapter(model, 0)
    engine = Engine(model, tok)
    ids = [render(tok, p, add_generation_prompt=True)[0] if isinstance(p, list) else tok.encode(p) for p in request["texts"]]
    c = RLConfig(model=model_path, data=model_path, num_generations=generations, prompts_per_step=prompts, max_completion_length=length)
    learner = Learner(c, dataclasses.replace(PRESETS["dr_grpo"], max_completion_length=length), model)
    print(json.dumps({}), flush=True)
    for step, _ in enumerate(sys.stdin):
        began, wall = time.process_time(), time.perf_counter()
        chosen = [ids[(step * prompts + i) % len(ids)] for i in range(prompts)]
        rollouts = sample(engine, chosen, generations, length, 1.0, (), [step * 1000 + i for i in range(prompts * generations)])
        sampled, sampled_wall = time.process_time(), time.perf_counter()
        learner.update([dataclasses.replace(r, reward=float(len(set(r.text)) % 2)) for r in rollouts], 1e-5)
        print(json.dumps({"cpu": time.process_time() - began, "wall": time.perf_counter() - wall, "generate": sampled - began, "generate_wall": sampled_wall - wall,
                          "tokens": sum(r.length for r in rollouts)}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
