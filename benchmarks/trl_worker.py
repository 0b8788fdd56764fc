"""TRL's GRPOTrainer as a worker of grpo_beside_trl.py, in the Python that has torch, transformers, trl and peft. One step of training for each line.

The trainer runs its own loop in this thread; a callback waits for a line before each step and answers after it. `generate` of transformers is
wrapped by a clock, nothing else is touched.
"""

from __future__ import annotations

import json
import os
import sys
import time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the libraries print does not disturb the answers

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402

request = json.loads(sys.stdin.readline())
torch.set_num_threads(request["threads"])
spent = {"generate": 0.0, "generate_wall": 0.0, "tokens": 0}
plain = transformers.GenerationMixin.generate


def timed(self, *a, **k):
    began, wall = time.process_time(), time.perf_counter()
    out = plain(self, *a, **k)
    spent["generate"] += time.process_time() - began
    spent["generate_wall"] += time.perf_counter() - wall
    asked = k["input_ids"] if "input_ids" in k else a[0]
    spent["tokens"] += out.numel() - asked.numel()
    return out


transformers.GenerationMixin.generate = timed


class Turns(transformers.TrainerCallback):
    def on_step_begin(self, args, state, control, **k):
        if state.global_step or self.asked:
            self.wait()
        self.asked = True

    asked = False

    def wait(self):
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        for name in spent:
            spent[name] = 0
        self.began, self.wall = time.process_time(), time.perf_counter()

    def on_step_end(self, args, state, control, **k):
        answers.write(json.dumps({"cpu": time.process_time() - self.began, "wall": time.perf_counter() - self.wall, **spent}) + "\n")
        answers.flush()


def reward(completions, **k):
    return [float(len(set(c[0]["content"])) % 2) for c in completions]


dtype = request["dtype"]
length, sequences = request["length"], request["prompts"] * request["generations"]
config = trl.GRPOConfig(
    output_dir=request["out"], use_cpu=True, bf16=False, per_device_train_batch_size=request["micro"], gradient_accumulation_steps=sequences // request["micro"],
    num_generations=request["generations"], max_completion_length=length, temperature=1.0, top_p=1.0, top_k=0, beta=0.0, loss_type="dr_grpo", scale_rewards="none", learning_rate=1e-5,
    max_steps=1000, save_strategy="no", report_to=[], logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False, generation_kwargs={"min_new_tokens": length},
    model_init_kwargs={"dtype": dtype}, dataloader_num_workers=0, seed=0,
)  # fmt: skip
turns = Turns()
turns.asked = True  # the first step waits too
trainer = trl.GRPOTrainer(model=request["model"], args=config, train_dataset=Dataset.from_list([{"prompt": p} for p in request["texts"]]), reward_funcs=reward,
                          peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
                          callbacks=[turns])  # fmt: skip
answers.write(json.dumps({"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}) + "\n")
answers.flush()
trainer.train()
