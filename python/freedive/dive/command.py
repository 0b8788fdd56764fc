"""A stage of the dive as the command line that runs it by itself: what `freedive dive --dry-run` prints."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, Field, fields
from typing import Any

from freedive.data.stage import DataConfig
from freedive.eval.stage import EvalConfig
from freedive.pretrain.stage import PretrainConfig
from freedive.rl.stage import RLConfig
from freedive.sft.stage import SFTConfig
from freedive.tokenizer.stage import TokenizerConfig

VERBS = {DataConfig: "data", TokenizerConfig: "tokenizer", PretrainConfig: "pretrain", EvalConfig: "eval", SFTConfig: "sft", RLConfig: "rl"}


def command_of(config: Any) -> str:
    """The command line that runs this stage by itself; the first stage has none, so its settings."""
    changed = {f.name: value for f in fields(config) if (value := getattr(config, f.name)) != _default(f)}
    if (verb := VERBS.get(type(config))) is None:
        return ", ".join(f"{name} {value}" for name, value in changed.items())
    words, flags = ["freedive", verb], []
    for f in fields(config):
        if f.name in changed:
            value = changed[f.name]
            values = [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]
            flag = f"--{f.name.replace('_', '-')}"
            if f.metadata.get("positional"):
                words += values
            elif isinstance(value, bool):
                flags.append(flag if value else flag.replace("--", "--no-", 1))
            else:
                flags += [flag, *values]
    return shlex.join(words + flags)


def _default(f: Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()
