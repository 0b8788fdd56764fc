"""Tiny runs of the three training stages, for the tests of this folder. Run as a program it is one stage, to be killed:

python train_cases.py pretrain TEXT OUT | muon TEXT OUT | sft MODEL ROWS OUT | rl MODEL PROBLEMS OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from freedive.pretrain import stage as pretrain
from freedive.rl import stage as rl
from freedive.sft import stage as sft

SENTENCES = ["The cat sat on the mat.", "A dog ran after it.", "Rain fell on the old roof.", "Two birds sang.", "Nobody saw the green door."]


def text_file(folder: Path, documents: int = 40) -> Path:
    """JSONL of short documents."""
    path = folder / "text.jsonl"
    rows = [{"text": f"{SENTENCES[i % 5]} {SENTENCES[(i * i + 1) % 5]} Number {i}."} for i in range(documents)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def chat_file(folder: Path, long_one: bool = True) -> Path:
    path = folder / "chats.jsonl"
    talk = lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    rows = [talk(f"What is {a}+{b}?", str(a + b)) for a in range(4) for b in range(4)]
    if long_one:
        rows.insert(3, talk("Tell me all.", "again " * 200))  # longer than any context used here
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def problem_file(folder: Path) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {a}+1?", "answer": str(a + 1)}) + "\n" for a in range(6)))
    return path


def pretrain_config(text: Path, out: Path, **changes: Any) -> pretrain.PretrainConfig:
    small = dict(text=text, out=out, tokenizer="bytes", depth=1, context=32, batch_tokens=128, micro_tokens=64, optimizer="adamw", steps=14, save_every=3, log_every=2,
                 samples=1, max_positions=256, threads=1)  # fmt: skip
    return pretrain.PretrainConfig(**(small | changes))  # type: ignore[arg-type]


def sft_config(model: Path, data: Path, out: Path, **changes: Any) -> sft.SFTConfig:
    small = dict(model=model, data=data, out=out, context=128, batch_tokens=256, micro_tokens=128, steps=10, save_every=2, log_every=2,
                 samples=["What is 1+1?"], threads=1)  # fmt: skip
    return sft.SFTConfig(**(small | changes))  # type: ignore[arg-type]


def rl_config(model: Path, data: Path, out: Path, **changes: Any) -> rl.RLConfig:
    small = dict(model=model, data=data, out=out, eval_data=data, reward="coin", steps=6, prompts_per_step=2, num_generations=4,
                 max_completion_length=12, save_every=1, eval_every=3, eval_problems=4, micro_tokens=256, threads=1)  # fmt: skip
    return rl.RLConfig(**(small | changes))  # type: ignore[arg-type]


def main(verb: str, *paths: str) -> None:
    where = [Path(p) for p in paths]
    if verb == "pretrain":
        pretrain.run(pretrain_config(*where))
    elif verb == "muon":
        pretrain.run(pretrain_config(*where, optimizer="muon"))
    elif verb == "sft":
        sft.run(sft_config(*where))
    else:
        rl.run(rl_config(*where))


if __name__ == "__main__":
    main(*sys.argv[1:])
