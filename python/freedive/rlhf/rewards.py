"""Rewards that are no function of the user's: a reward model's folder, and `judge:WHO`, a model that is asked. Their form is that of every reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from freedive.inference.folder import base_and_adapter
from freedive.model import is_adapter
from freedive.rl.rewards import Reward
from freedive.runs import UserError, read_json

from .judge import JUDGE, judge_reward
from .reward_model import FILE, RewardModel, is_reward_model


def learned_reward(name: str, threads: int | None = None, device: str = "cpu", dtype: str = "auto") -> Reward | None:
    """The reward of a reward model's folder or of `judge:WHO`; None for any other name. Raises UserError for one that cannot be used."""
    if name.startswith(JUDGE):
        return judge_reward(name, threads)
    if is_reward_model(name):
        return RewardModel.load(Path(name), threads, device, dtype)
    if Path(name).is_dir() or Path(f"{name}.partial").is_dir():
        hint = "an unfinished run: run its command again" if Path(f"{name}.partial").is_dir() else "`freedive reward` writes one"
        raise UserError(f"{name} is no reward model: it holds no {FILE}", hint=hint)
    return None


def reward_inputs(names: Sequence[str]) -> list[Path]:
    """The folders and files that these rewards depend on: reward models, what they stand on, judges on this machine."""
    found: list[Path] = []
    for name in names:
        if name.startswith(JUDGE):
            where = Path(name.removeprefix(JUDGE))
            found += [where] if where.exists() else []
        elif is_reward_model(name):
            folder = Path(name)
            told = read_json(folder / FILE)
            found.append(folder)
            if isinstance(told, dict) and told.get("kind") == "head" and Path(str(told.get("base_model_name_or_path"))).exists():
                found.append(Path(told["base_model_name_or_path"]))
            elif is_adapter(folder):
                found.append(base_and_adapter(folder, None)[0])
    return found
