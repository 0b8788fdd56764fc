"""Learning what no checker can check (talk 4.4): jokes about the people of the town. What makes one good is known to `freedive.tasks.jokes.funny` alone,
the gold; everybody else has opinions of noisy labellers, who ranked four answers to each request, by Bradley-Terry.

A reward model learns to judge in their place; PPO practises for it, stopped by the monitor; DPO takes the opinions straight; and PPO for a weak reward
model, without anything that holds it, shows why this cannot be run for ever. Gold measures all of them, on requests that nobody was taught.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.dive.found import jsonl
from freedive.eval.statistics import bootstrap
from freedive.inference import load
from freedive.objectives import best_of_n_kl
from freedive.rl import stage as rl
from freedive.rl.problems import rendered
from freedive.rl.rollouts import sample
from freedive.rl.scoring import Scorer
from freedive.rl.stage import RLConfig
from freedive.rlhf import dpo, reward_stage
from freedive.rlhf.best_of import best_of
from freedive.rlhf.dpo import DPOConfig
from freedive.rlhf.reward_stage import RewardConfig
from freedive.runs import json_line, read_json, stage
from freedive.tasks import jokes
from freedive.tasks.draw import Draw

from .practice import share_of, taught
from .room import Figure, Room

GOLD = "freedive.tasks.jokes:funny"
TOKENS = 72  # of a joke; those of the conversations have up to 45
ANSWERS, STREAM = 4, 72
BEST_OF = 16


@dataclass(frozen=True)
class AskedConfig:
    """What a file of answers depends on, besides the model."""

    out: Path
    what: str
    n: int
    answers: int
    seed: int


@dataclass(frozen=True)
class Comedy:
    """One seed's comedian, his audience's opinions, and what learns from them; every folder is made once."""

    room: Room

    @property
    def comedian(self) -> Path:
        """The base model after jokes, good ones and bad ones."""
        o = self.room.tier.opinions
        return taught(self.room, "comedian", lambda: jokes.sft_rows(self.room.town, self.room.seed, o.jokes), lr=2e-3, epochs=o.epochs)

    def requests(self, split: str) -> Path:
        n = self.room.tier.opinions.held_out if split == "held_out" else 10**9
        return self.room.rows(f"joke-requests-{split}", lambda: jokes.prompt_rows(self.room.town, self.room.seed, n, split), n)

    def opinions(self, split: str) -> Path:
        """Ranked lists: the comedian's answers to requests, ordered by a labeller of that moment's mind; and what each is worth, for the ceiling."""
        o = self.room.tier.opinions
        n = o.held_out if split == "held_out" else o.lists
        c = AskedConfig(self.room.out / f"opinions-{split}", split, n, ANSWERS, self.room.seed)
        with stage("demos-opinions", c, out=c.out, inputs={"model": self.comedian, "requests": self.requests(split)}) as artefact:
            if not artefact.done:
                rows = list(jsonl(self.requests(split)))
                rows = [rows[i % len(rows)] for i in range(n)]
                draw = Draw(self.room.seed, STREAM + (split == "held_out"))
                for row, texts in zip(rows, self.said(self.comedian, rows, ANSWERS, 7 + (split == "held_out")), strict=True):
                    worths = [jokes.worth(t, row["name"], row["trade"]) for t in texts]
                    artefact.append("rows.jsonl", json_line({"prompt": row["prompt"], "completions": texts, "ranks": jokes.ranks(worths, draw), "worths": worths}))
        return c.out / "rows.jsonl"

    def said(self, model: Path, rows: Sequence[dict[str, Any]], n: int, seed: int) -> list[list[str]]:
        """n answers to each row at temperature 1."""
        lm = load(model, threads=self.room.threads, dtype="auto")
        seeds = [((self.room.seed * 16 + seed) << 32) + i for i in range(len(rows) * n)]
        outs = sample(lm.engine, [p.ids for p in rendered(rows, lm.tokenizer)], n, TOKENS, 1.0, (lm.tokenizer.im_end,), seeds)
        return [[r.text for r in outs[i : i + n]] for i in range(0, len(outs), n)]

    def reward_model(self, few: bool = False) -> Path:
        """From all lists, or from a few: the weak one."""
        room, o = self.room, self.room.tier.opinions
        data = self.opinions("train")
        if few:
            data = room.rows("opinions-few", lambda: list(jsonl(data))[: o.few], o.few, inputs={"opinions": data})
        return reward_stage.run(RewardConfig(
            model=self.comedian, data=[str(data)], val_data=[str(self.opinions("held_out"))], out=room.out / ("reward-weak" if few else "reward"), context=room.tier.size.context,
            epochs=4.0 if few else 2.0, batch=8 if few else 16, lr=3e-4, center="std", dtype="auto", seed=room.seed, threads=room.threads,
        ))  # fmt: skip

    def ppo(self, name: str, reward: Path, steps: int, **changes: Any) -> Path:
        """PPO for a reward model, watched by gold on held-out requests."""
        room, o = self.room, self.room.tier.opinions
        return rl.run(RLConfig(
            model=self.comedian, data=self.requests("train"), eval_data=self.requests("held_out"), out=room.out / name, reward=[str(reward)], gold_reward=GOLD, algorithm="ppo",
            steps=steps, prompts_per_step=o.prompts, num_generations=4, num_iterations=2, max_completion_length=TOKENS, lr=o.lr, missing_eos_penalty=1.0, eval_every=max(1, steps // 25),
            eval_problems=128, monitor_samples=2, micro_tokens=4096, show=3, dtype="auto", seed=room.seed, threads=room.threads, **changes,
        ))  # fmt: skip

    def dpo(self) -> Path:
        room = self.room
        return dpo.run(DPOConfig(model=self.comedian, data=[str(self.opinions("train"))], val_data=[str(self.opinions("held_out"))], out=room.out / "dpo", context=room.tier.size.context,
                                 steps=max(1, room.tier.opinions.lists // 8), batch=16, lr=1e-4, dtype="auto", seed=room.seed, threads=room.threads))  # fmt: skip

    def gold(self, model: Path, seed: int = 1) -> np.ndarray:
        """float64 [held-out requests, ANSWERS]: what the answers are worth."""
        rows = list(jsonl(self.requests("held_out")))
        return np.array([[jokes.worth(t, r["name"], r["trade"]) for t in texts] for r, texts in zip(rows, self.said(model, rows, ANSWERS, seed))])

    def best_of(self, reward: Path, n: int) -> np.ndarray:
        """float64 [held-out requests, 1]: of the best of n answers by the reward model."""
        rows = list(jsonl(self.requests("held_out")))
        lm = load(self.comedian, threads=self.room.threads, dtype="auto")
        with closing(Scorer([str(reward)], threads=self.room.threads)) as scorer:
            chosen = best_of(lm, scorer, rendered(rows, lm.tokenizer), n, TOKENS, seed=self.room.seed * 16 + 3)
        return np.array([[jokes.worth(group[best].text, r["name"], r["trade"])] for r, (best, group) in zip(rows, chosen)])


def wins(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Of each request: how often an answer of `a` is worth more than one of `b`; an equal one counts half."""
    return [float(np.mean((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None]))) for x, y in zip(a, b)]


def reward_model(room: Room) -> list[Figure]:
    comedy = Comedy(room)
    lists = list(jsonl(comedy.opinions("held_out")))
    ceiling = [float(np.mean(jokes.ceiling(row["worths"]))) for row in lists]
    of = {name: read_json(comedy.reward_model(few) / "run.json")["metrics"] for name, few in (("strong", False), ("weak", True))}
    pairs = int(of["strong"]["eval_pairs"])
    measured = lambda name, told, **more: Figure(name, told["eval_accuracy"], told["eval_accuracy_interval_95"], pairs, **more)
    best = float(np.mean(ceiling))
    low, high = of["strong"]["eval_accuracy_interval_95"]
    return [
        share_of("the best guess anybody can make of a labeller's opinion (Bayes)", ceiling, control=True),
        measured(f"the reward model, from {room.tier.opinions.lists:,} ranked lists", of["strong"]),
        Figure("the same, as a part of the best guess", min(1.0, of["strong"]["eval_accuracy"] / best), [low / best, min(1.0, high / best)], pairs, ">= 0.9"),
        measured(f"a weak one, from {room.tier.opinions.few:,} lists", of["weak"], control=True),
        Figure("the longer answer is the better one", of["strong"]["eval_longer_is_better"], None, pairs, control=True),
    ]


def preferred(room: Room) -> list[Figure]:
    comedy = Comedy(room)
    reward = comedy.reward_model()
    before = comedy.gold(comedy.comedian, 0)
    ppo = comedy.ppo("ppo", reward, room.tier.opinions.steps, beta=0.05, early_stop=3)
    return [
        share_of("PPO for the reward model, stopped early, beside SFT: better by gold", wins(comedy.gold(ppo), before), ">= 0.7"),
        share_of("DPO on the same opinions", wins(comedy.gold(comedy.dpo()), before), ">= 0.6"),
        share_of(f"the best of {BEST_OF} by the reward model (KL {best_of_n_kl(BEST_OF):.1f} nats)", wins(comedy.best_of(reward, BEST_OF), before)),
        share_of("SFT beside itself", wins(comedy.gold(comedy.comedian), before), control=True),
    ]


def overdone(room: Room) -> list[Figure]:
    comedy = Comedy(room)
    out = comedy.ppo("ppo-overdone", comedy.reward_model(few=True), room.tier.opinions.over, beta=0.0, final_lr_fraction=1.0)
    points = list(jsonl(out / "monitor.jsonl"))
    told = read_json(out / "run.json")["metrics"]
    gold, proxy = (np.array([p[k] for p in points]) for k in ("gold", "proxy"))
    at = int(gold.argmax())
    gain = max(float(gold[at] - gold[0]), 1e-9)
    rise = max(float(proxy[at] - proxy[0]), 1e-9)
    start = comedy.gold(comedy.comedian, 0).mean(1)
    kept = comedy.gold(out / "peak" if (out / "peak").is_dir() else out).mean(1) - start
    low, high = bootstrap(list(kept))
    error = 2 * float(np.hypot(points[-1]["gold_se"], points[at]["gold_se"])) / gain
    lost = float(gold[at] - gold[-1]) / gain
    bound = lambda x: min(1.0, max(-1.0, x))
    return [
        Figure("gold lost at the end, of what it had gained at its peak", lost, [lost - error, lost + error], len(points), ">= 0.3", unit="times"),
        Figure("proxy's rise at the end, beside its rise at gold's peak", float(proxy[-1] - proxy[0]) / rise, None, len(points), ">= 1.0", unit="times"),
        Figure("gain of the weights the monitor kept, of the highest", bound(float(kept.mean()) / gain), [bound(low / gain), bound(high / gain)], len(kept), ">= 0.8"),
        Figure("the stop rule fired", float(told["monitor/stop_step"] is not None), None, 1),
        Figure("an answer that games the reward was found", float((out / "gamed.json").is_file()), None, 1),
    ]


def examples(folder: Path) -> Iterator[dict[str, Any]]:
    """Of a seed's folder: the answer that games the reward."""
    if (folder / "ppo-overdone" / "gamed.json").is_file():
        yield read_json(folder / "ppo-overdone" / "gamed.json")
