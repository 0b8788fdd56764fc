"""Learning what no checker can check (talk 4.4): jokes about the people of the town. What makes one good is known to `freedive.tasks.jokes.funny` alone,
the gold; everybody else has opinions of noisy labellers, who ranked four answers to each request, by Bradley-Terry.

A reward model learns to judge in their place; PPO practises for it, stopped by the monitor; DPO takes the opinions straight; and PPO for a weak reward
model, without anything that holds it, shows why this cannot be run for ever. Requests are split in three: "train" is learned from, by "validation" runs
are stopped and weights chosen, and "test" is what figures are about, seen by nothing before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.dive.found import jsonl
from freedive.eval.statistics import interval
from freedive.inference import load
from freedive.objectives import best_of_n_kl
from freedive.rl import stage as rl
from freedive.rl.problems import rendered
from freedive.rl.rollouts import Rollout, sample
from freedive.rl.scoring import Scorer
from freedive.rl.stage import RLConfig
from freedive.rlhf import dpo, reward_stage
from freedive.rlhf.best_of import best_of
from freedive.rlhf.dpo import DPOConfig
from freedive.rlhf.preferences import longer_is_better, read_preferences
from freedive.rlhf.reward_model import RewardModel
from freedive.rlhf.reward_stage import RewardConfig, pair_results
from freedive.runs import json_line, read_json, stage
from freedive.tasks import jokes
from freedive.tasks.draw import Draw

from .practice import ratio_of, share_of, taught
from .room import Figure, Room

GOLD = "freedive.tasks.jokes:funny"
TOKENS = 72  # of a joke; those of the conversations have up to 45
ANSWERS, STREAM = 4, 76
TASTE = [jokes.LIKED, jokes.PUN, jokes.STEP, jokes.TOO_MUCH, jokes.LABELLERS]
BEST_OF = 16


@dataclass(frozen=True)
class AskedConfig:
    """What a file of answers depends on, besides the model."""

    out: Path
    what: str
    n: int
    answers: int
    seed: int
    taste: Any  # what of jokes an audience's opinion depends on


@dataclass(frozen=True)
class Comedy:
    """One seed's comedian, his audience's opinions, and what learns from them; every folder is made once."""

    room: Room

    @property
    def comedian(self) -> Path:
        """The base model after jokes, good ones and bad ones."""
        o = self.room.tier.opinions
        return taught(self.room, "comedian", lambda: jokes.sft_rows(self.room.town, self.room.seed, o.jokes), lr=2e-3, epochs=o.epochs, of=[o.jokes, jokes.SOME, jokes.SPLITS])

    def requests(self, split: str) -> Path:
        n = 10**9 if split == "train" else self.room.tier.opinions.held_out
        return self.room.rows(f"joke-requests-{split}", lambda: jokes.prompt_rows(self.room.town, self.room.seed, n, split), [n, jokes.SPLITS])

    def opinions(self, split: str) -> Path:
        """Ranked lists: the comedian's answers to requests, ordered by a labeller of that moment's mind; and what each is worth, for the ceiling."""
        o, at = self.room.tier.opinions, list(jokes.SPLITS).index(split)
        n = {"train": o.lists, "validation": o.held_out, "test": o.judged}[split]
        c = AskedConfig(self.room.out / f"opinions-{split}", split, n, ANSWERS, self.room.seed, TASTE)
        with stage("demos-opinions", c, out=c.out, inputs={"model": self.comedian, "requests": self.requests(split)}) as artefact:
            if not artefact.done:
                rows = list(jsonl(self.requests(split)))
                rows = [rows[i % len(rows)] for i in range(n)]
                draw = Draw(self.room.seed, STREAM + at)
                for row, answers in zip(rows, self.said(self.comedian, rows, ANSWERS, 7 + at), strict=True):
                    texts = [r.text for r in answers]
                    worths = [jokes.worth(x, row["name"], row["trade"]) for x in texts]
                    artefact.append("rows.jsonl", json_line({"prompt": row["prompt"], "completions": texts, "ranks": jokes.ranks(worths, draw), "worths": worths}))
        return c.out / "rows.jsonl"

    def tame_opinions(self, split: str) -> Path:
        """The same by labellers who never heard a joke that overdoes it; of "train" a few."""
        data, n = self.opinions(split), self.room.tier.opinions.few if split == "train" else None
        return self.room.rows(f"opinions-{split}-tame", lambda: list(_tame(jsonl(data)))[:n], [n, jokes.LIKED], inputs={"opinions": data})

    def said(self, model: Path, rows: Sequence[dict[str, Any]], n: int, seed: int) -> list[list[Rollout]]:
        """n answers to each row at temperature 1."""
        lm = load(model, threads=self.room.threads, dtype="auto")
        seeds = [((self.room.seed * 16 + seed) << 32) + i for i in range(len(rows) * n)]
        outs = sample(lm.engine, [p.ids for p in rendered(rows, lm.tokenizer)], n, TOKENS, 1.0, (lm.tokenizer.im_end,), seeds)
        return [outs[i : i + n] for i in range(0, len(outs), n)]

    def reward_model(self, weak: bool = False) -> Path:
        """All weights, from all lists. The weak one: the row alone, from a few lists of tame jokes: of those, more was always better."""
        room = self.room
        lists = self.tame_opinions if weak else self.opinions
        how: dict[str, Any] = {"freeze": True, "epochs": 10.0, "batch": 8, "lr": 3e-3, "weight_decay": 1.0} if weak else {"epochs": 2.0, "batch": 16, "lr": 3e-4}
        return reward_stage.run(RewardConfig(
            model=self.comedian, data=[str(lists("train"))], val_data=[str(lists("validation"))], out=room.out / ("reward-weak" if weak else "reward"),
            context=room.tier.size.context, center="std", dtype="auto", seed=room.seed, threads=room.threads, **how,
        ))  # fmt: skip

    def right(self, reward: Path, lists: Path) -> tuple[np.ndarray, list[str], float]:
        """(1 of each pair that the reward model orders as its labeller did, else 0; the pair's prompt; how often the longer one is the better one)."""
        rm = RewardModel.load(reward, threads=self.room.threads)
        found = read_preferences([str(lists)], rm.tok, self.room.tier.size.context)[0]
        right, _, prompts = pair_results(found, [rm.score(r.sequences) for r in found])
        return right, prompts, float(longer_is_better(found).mean())

    def ppo(self, name: str, reward: Path, steps: int, lr: float, **changes: Any) -> Path:
        """PPO for a reward model, watched by gold on the requests for that."""
        room, o = self.room, self.room.tier.opinions
        return rl.run(RLConfig(
            model=self.comedian, data=self.requests("train"), eval_data=self.requests("validation"), out=room.out / name, reward=[str(reward)], gold_reward=GOLD, algorithm="ppo",
            steps=steps, prompts_per_step=o.prompts, num_generations=4, num_iterations=2, max_completion_length=TOKENS, lr=lr, missing_eos_penalty=1.0, eval_every=max(1, steps // 25),
            eval_problems=128, monitor_samples=2, micro_tokens=4096, show=3, dtype="auto", seed=room.seed, threads=room.threads, **changes,
        ))  # fmt: skip

    def dpo(self) -> Path:
        room = self.room
        return dpo.run(DPOConfig(model=self.comedian, data=[str(self.opinions("train"))], val_data=[str(self.opinions("validation"))], out=room.out / "dpo", context=room.tier.size.context,
                                 steps=max(1, room.tier.opinions.lists // 8), batch=16, lr=1e-4, dtype="auto", seed=room.seed, threads=room.threads))  # fmt: skip

    def gold(self, model: Path, seed: int = 1) -> np.ndarray:
        """float64 [requests of the test, ANSWERS]: what the answers are worth."""
        rows = list(jsonl(self.requests("test")))
        return self._worths(rows, self.said(model, rows, ANSWERS, seed))

    def gold_and_proxy(self, model: Path, reward: Path) -> tuple[np.ndarray, np.ndarray]:
        """float64 [requests of the test, ANSWERS] each: what the answers are worth, and what the reward model says of them."""
        rows = list(jsonl(self.requests("test")))
        said = self.said(model, rows, ANSWERS, 2)
        with closing(Scorer([str(reward)], threads=self.room.threads)) as scorer:
            scored = scorer([r for group in said for r in group], [row for row in rows for _ in range(ANSWERS)], ANSWERS)
        return self._worths(rows, said), np.array([r.reward for r in scored]).reshape(-1, ANSWERS)

    def best_of(self, reward: Path, n: int) -> np.ndarray:
        """float64 [requests of the test, 1]: of the best of n answers by the reward model."""
        rows = list(jsonl(self.requests("test")))
        lm = load(self.comedian, threads=self.room.threads, dtype="auto")
        with closing(Scorer([str(reward)], threads=self.room.threads)) as scorer:
            chosen = best_of(lm, scorer, rendered(rows, lm.tokenizer), n, TOKENS, seed=self.room.seed * 16 + 3)
        return self._worths(rows, [[group[best]] for best, group in chosen])

    @staticmethod
    def _worths(rows: Sequence[dict[str, Any]], said: Sequence[Sequence[Rollout]]) -> np.ndarray:
        return np.array([[jokes.worth(r.text, row["name"], row["trade"]) for r in group] for row, group in zip(rows, said, strict=True)])


def _tame(lists: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Lists without the answers that have too much of something, as far as two are left."""
    for row in lists:
        kept = [i for i, text in enumerate(row["completions"]) if jokes.tame(text)]
        if len(kept) > 1:
            yield {"prompt": row["prompt"], **{key: [row[key][i] for i in kept] for key in ("completions", "ranks", "worths")}}


def wins(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Of each request: how often an answer of `a` is worth more than one of `b`; an equal one counts half."""
    return [float(np.mean((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None]))) for x, y in zip(a, b)]


def reward_model(room: Room) -> list[Figure]:
    comedy = Comedy(room)
    test = comedy.opinions("test")
    ceiling = [float(np.mean(jokes.ceiling(row["worths"]))) for row in jsonl(test)]
    strong, weak = comedy.reward_model(), comedy.reward_model(weak=True)
    right, prompts, longer = comedy.right(strong, test)
    at_best = np.array([one for row in jsonl(test) for one in jokes.ceiling(row["worths"])])

    def measured(name: str, reward: Path, lists: Path) -> Figure:
        right, prompts, _ = comedy.right(reward, lists)
        return Figure(name, float(right.mean()), interval(list(right), prompts), len(right), control=True)

    return [
        share_of("the best guess anybody can make of a labeller's opinion (Bayes)", ceiling, control=True),
        Figure(f"the reward model, from {room.tier.opinions.lists:,} ranked lists", float(right.mean()), interval(list(right), prompts), len(right)),
        part_of("the same, as a part of the best guess", right, at_best, ">= 0.9", prompts, unit="share"),
        measured(f"a weak one: the row alone, from {room.tier.opinions.few:,} lists of jokes that do not overdo it", weak, test),
        measured("the weak one, on such jokes", weak, comedy.tame_opinions("test")),
        Figure("the longer answer is the better one", longer, None, len(right), control=True),
    ]


def preferred(room: Room) -> list[Figure]:
    comedy, o = Comedy(room), room.tier.opinions
    reward = comedy.reward_model()
    before = comedy.gold(comedy.comedian, 0)
    ppo = comedy.ppo("ppo", reward, o.steps, o.lr, beta=0.05, early_stop=3)
    return [
        share_of("PPO for the reward model, stopped early, beside SFT: better by gold", wins(comedy.gold(ppo), before), ">= 0.7"),
        share_of("DPO on the same opinions", wins(comedy.gold(comedy.dpo()), before), ">= 0.6"),
        share_of(f"the best of {BEST_OF} by the reward model (KL {best_of_n_kl(BEST_OF):.1f} nats)", wins(comedy.best_of(reward, BEST_OF), before)),
        share_of("SFT beside itself", wins(comedy.gold(comedy.comedian), before), control=True),
    ]


def overdone(room: Room) -> list[Figure]:
    """The monitor's points say where gold was highest and when the rule fired; what that was worth is measured on requests that chose nothing."""
    comedy, o = Comedy(room), room.tier.opinions
    weak = comedy.reward_model(weak=True)
    out = comedy.ppo("ppo-overdone", weak, o.over, o.over_lr, beta=0.0, final_lr_fraction=1.0)
    kept = out / "peak" if (out / "peak").is_dir() else out
    judged = [comedy.gold_and_proxy(model, weak) for model in (comedy.comedian, kept, out)]
    (start, start_proxy), (peak, peak_proxy), (end, end_proxy) = ((gold.mean(1), proxy.mean(1)) for gold, proxy in judged)
    watched = [p["gold"] for p in jsonl(out / "monitor.jsonl")]
    stopped = read_json(out / "run.json")["metrics"]["monitor/stop_step"] is not None
    return [
        part_of("gold lost at the end, of what the weights of its peak had gained", peak - end, peak - start, ">= 0.3"),
        part_of("proxy's rise at the end, beside that at gold's peak", end_proxy - start_proxy, peak_proxy - start_proxy, ">= 1.0"),
        part_of("gold gained by the weights the monitor kept, beside the highest it saw", peak - start, np.full_like(start, max(watched) - watched[0]), ">= 0.8"),
        share_of("their jokes beside SFT's: better by gold", wins(judged[1][0], judged[0][0]), control=True),
        share_of("jokes of the end beside SFT's", wins(judged[2][0], judged[0][0]), control=True),
        Figure("the stop rule fired", float(stopped), None, 1),
        Figure("an answer that games the reward was found", float((out / "gamed.json").is_file()), None, 1),
    ]


def part_of(name: str, of: np.ndarray, whole: np.ndarray, target: str, clusters: Sequence[str] | None = None, unit: str = "times") -> Figure:
    """A mean beside another over the same items. Where the other cannot be told from 0: 0, and no interval."""
    found = ratio_of(of, whole, STREAM, clusters)
    if found is None:
        return Figure(f"{name}: that cannot be told from nothing", 0.0, None, len(of), target, unit=unit)
    return Figure(name, *found, len(of), target, unit=unit)


def examples(folder: Path) -> Iterator[dict[str, Any]]:
    """Of a seed's folder: the answer that games the reward."""
    if (folder / "ppo-overdone" / "gamed.json").is_file():
        yield read_json(folder / "ppo-overdone" / "gamed.json")
