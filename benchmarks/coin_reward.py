"""Control of the RL stage: the same run as the dive's, rewarded by a coin thrown anew for each completion, must gain nothing.

    python benchmarks/coin_reward.py --dive freedive-dive [--steps 150]

Starts from the dive's SFT model, trains on its problems with the reward `coin`, and measures pass@1 with the real checker before and
after, on all held-out problems. The last line is JSON with `gain_points`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from freedive.eval.stage import EvalConfig
from freedive.eval.stage import run as evaluate
from freedive.rl.stage import RLConfig
from freedive.rl.stage import run as practise


def pass_at_1(model: Path, problems: Path, out: Path) -> float:
    evaluate(EvalConfig(model=model, data=problems, out=out, temperature=1.0, max_new_tokens=64, checker="freedive.tasks:check"))
    return json.loads((out / "eval.json").read_text())["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dive", type=Path, default=Path("freedive-dive"))
    parser.add_argument("--steps", type=int, default=150)
    a = parser.parse_args()
    tasks = a.dive / "crawl" / "tasks"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        before = pass_at_1(a.dive / "sft", tasks / "rl_eval.jsonl", work / "before")
        practise(RLConfig(model=a.dive / "sft", data=tasks / "rl_train.jsonl", out=work / "coin", reward=["coin"], steps=a.steps, eval_every=0))
        after = pass_at_1(work / "coin", tasks / "rl_eval.jsonl", work / "after")
    print(json.dumps({"benchmark": "coin_reward", "steps": a.steps, "before": before, "after": after, "gain_points": round(100 * (after - before), 1)}))


if __name__ == "__main__":
    main()
