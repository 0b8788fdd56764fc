"""Your own reward: practise until a function of yours is pleased.   python 03_own_reward.py      (after 02_own_chats.py)

The reward sees texts and returns numbers; here it likes big digits, whatever the sum really is. Rows need a "prompt"; their other keys
(such as "answer") reach the reward as keyword arguments.
"""

import json
from pathlib import Path

import freedive
from freedive.rl.stage import RLConfig, run


def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: list) -> list[float]:
    """One number for each completion; what did not stop by itself counts 0 whatever is returned."""
    return [max((int(c) for c in text if c in "0123456789"), default=0) / 9 for text in completions]


if __name__ == "__main__":
    problems = Path("problems.jsonl")
    problems.write_text("".join(json.dumps({"prompt": f"What is {a}+{b}?"}) + "\n" for a in range(4) for b in range(4)), encoding="utf-8")

    # The same as: freedive rl --model chat --data problems.jsonl --reward 03_own_reward.py:reward --steps 40 --prompts-per-step 4
    # --max-completion-length 16 --out big
    run(RLConfig(model=Path("chat"), data=problems, out=Path("big"), reward=[f"{__file__}:reward"], steps=40, prompts_per_step=4,
                 num_generations=8, max_completion_length=16))  # fmt: skip

    rows = [json.loads(line) for line in Path("big/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    print("reward per step:", " ".join(f"{row['reward']:.2f}" for row in rows[::3]))
    print("What is 2+1? ->", freedive.load("big").chat("What is 2+1?", max_new_tokens=16))
