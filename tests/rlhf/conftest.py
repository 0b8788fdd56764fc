"""A tiny assistant of bytes, and preferences between its answers: "yes" and "no" to everything, and longer lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freedive.pretrain import stage as pretrain
from freedive.sft import stage as sft


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """chat/: a model; pairs.jsonl: TRL's rows; lists.jsonl: three ranked answers each, with ties in some."""
    folder = tmp_path_factory.mktemp("rlhf")
    (folder / "t.txt").write_text("Some text to learn from, again and again. " * 200)
    base = pretrain.run(pretrain.PretrainConfig(text=folder / "t.txt", out=folder / "base", tokenizer="bytes", depth=1, context=32, optimizer="adamw", batch_tokens=128, micro_tokens=128, steps=4,
                                                samples=0, max_positions=256, threads=1))  # fmt: skip
    rows = [{"messages": [{"role": "user", "content": f"Say {a}"}, {"role": "assistant", "content": "abc"[a % 3] * (1 + a % 2)}]} for a in range(12)]
    write(folder / "chats.jsonl", rows)
    sft.run(sft.SFTConfig(model=base, data=[str(folder / "chats.jsonl")], out=folder / "chat", context=128, steps=30, batch_tokens=256, micro_tokens=256, lr=5e-3, samples=[], threads=1))
    write(folder / "pairs.jsonl", [{"prompt": f"Say {a}", "chosen": "a" * (1 + a % 3), "rejected": "b" * (1 + a % 2)} for a in range(40)])
    write(folder / "lists.jsonl", [{"prompt": f"Say {a}", "completions": ["a", "b", "cc"], "ranks": [0, 1, 2] if a % 4 else [0, 1, 1]} for a in range(40)])
    return folder


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path
