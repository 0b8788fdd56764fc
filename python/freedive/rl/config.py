"""The settings of `freedive rl`, and which policy loss they mean: a preset, in which every field can be replaced. Names are TRL's where the meaning is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.model import is_adapter
from freedive.model.model import RECOMPUTE_HELP
from freedive.objectives import ADVANTAGES, PRESETS
from freedive.objectives.policy import CORRECTIONS, KL_ESTIMATORS, PolicySpec
from freedive.runs import UserError, check_at_least, option
from freedive.runs.reporting import REPORT_HELP

from .rewards import BUILT_IN, SHAPERS

# TRL's loss_type -> (loss, aggregation)
LOSS_TYPES = {"grpo": ("clip", "grpo"), "dapo": ("clip", "token"), "bnpo": ("clip", "token"), "dr_grpo": ("clip", "dr_grpo"), "cispo": ("cispo", "token"),
              "reinforce": ("reinforce", "token"), "reinforce_sum": ("reinforce", "sum")}  # fmt: skip
SCALE_REWARDS = {"group": "grpo", "batch": "batch", "none": "dr_grpo"}  # TRL's scale_rewards -> advantage


@dataclass(frozen=True)
class RLConfig:
    """Reinforcement learning on problems with checkable answers."""

    path: Path | None = option(None, "the assistant to start from: a folder, a .gguf file, an adapter's folder", positional=True)
    model: Path | None = option(None, "the same, by name")
    task: list[str] = option([], "built-in problems, NAME or NAME:key=value,...: arithmetic, countdown, letters, parity, reverse, sorting, gsm8k:FILE, reasoning_gym:FAMILY; several are mixed")
    task_size: int = option(2000, "problems made of the tasks, to practise on")
    eval_size: int = option(200, "problems made of the tasks, held out by a hash of the question")
    data: Path | None = option(None, 'JSONL of problems: {"prompt": text or messages, "answer": "..."}; other keys go to the reward too')
    out: Path = option(Path("runs/rl"), "folder to write")
    eval_data: Path | None = option(None, "held-out problems, same form")
    reward: list[str] = option([], f"built in: {', '.join(BUILT_IN)}; or package.module:function, or file.py:function, in the form of TRL, verl or OpenRLHF; or a reward model's folder, or judge:MODEL (docs/rlhf.md); "
                               "several are added up (default: the task's checker; for --data answer)")  # fmt: skip
    reward_weights: list[float] = option([], "a number for each --reward (default: 1)")
    reward_timeout: float = option(10.0, "seconds that a reward function of yours may take for the completions of one problem; then its process is killed and they have no reward; and for a method of an environment (0: no limit, in this process)")
    reward_workers: int = option(2, "processes for each reward function", hash=False)
    eval_reward: str = option("", "what says whether a held-out answer is right (1) (default: the first --reward that can, which cosine and repetition cannot)")
    environment: str = option("", "file.py:Class, an environment for each completion: reset(**row), methods as tools, step(text), get_reward() (docs/rl.md)")
    max_tool_calls: int = option(8, "calls of tools, or turns with step, in a completion")
    algorithm: str = option("dr_grpo", ", ".join(PRESETS))
    steps: int = option(200, "steps: sampling, then num_iterations x num_mini_batches updates")
    prompts_per_step: int = option(16, "problems drawn in a step")
    num_generations: int = option(8, "completions of each problem (G)")
    num_iterations: int | None = option(None, "passes over one set of rollouts (default: the algorithm's: 1; gspo, ppo 4)")
    num_mini_batches: int = option(1, "updates made of one pass, each from a part of the problems")
    max_completion_length: int = option(64, "tokens of a completion; of several turns, those the model says")
    temperature: float = option(1.0, "of sampling, and of the log-probs trained; above 1 it explores more")
    eval_temperature: float | None = option(None, "of the evaluations on held-out problems (default: that of sampling)")
    eval_samples: int = option(1, "answers to each held-out problem before and after: pass@1, and pass@k up to it, unbiased, with intervals")
    dynamic_sampling: int | None = option(
        None, "draws a step may make to find prompts_per_step problems whose completions earned unlike rewards, the only ones "
        "to learn from (default: 1; for dapo 4)"
    )  # fmt: skip
    overlong_cache: int = option(0, "a completion's reward falls to -1 over its last so many tokens before max_completion_length (DAPO's soft punishment; 0: off)")
    lr: float | None = option(None, "peak learning rate (default: from the width)")
    warmup: int = option(5, "warm-up steps")
    final_lr_fraction: float = option(0.1, "learning rate of the last step, as a part of the peak")
    max_grad_norm: float = option(1.0, "longest gradient")
    lora_rank: int = option(0, "train a LoRA adapter of this rank instead of the weights (0: all weights; an adapter's folder trains on as it is)")
    lora_alpha: float | None = option(None, "what the adapter is multiplied with, divided by the rank (default: twice the rank)")
    lora_targets: str = option("all", "matrices with an adapter: all, attention, mlp, or names: q_proj,v_proj")
    weights: str = option("auto", "how frozen weights are held: auto (as the file has them), float32, bfloat16, float16, int8, int4")
    advantage: str | None = option(None, f"replaces the algorithm's: {', '.join(ADVANTAGES)}")
    scale_rewards: str | None = option(None, f"TRL's word for it: {', '.join(SCALE_REWARDS)}")
    loss_type: str | None = option(None, f"replaces the algorithm's, TRL's names: {', '.join(LOSS_TYPES)}")
    importance_sampling_level: str | None = option(None, "ratio of each token, or of the whole sequence (GSPO): token, sequence")
    epsilon: float | None = option(None, "the ratio is clipped at 1 - epsilon")
    epsilon_high: float | None = option(None, "and at 1 + epsilon_high (DAPO: 0.28; default: epsilon if that is given)")
    delta: float | None = option(None, "dual clip: the ratio's bound where the advantage is negative, for example 3")
    is_clip_max: float | None = option(None, "cispo: the largest ratio")
    entropy_coef: float = option(0.0, "> 0 rewards entropy")
    beta: float | None = option(None, "weight of the KL to the starting model (default: the algorithm's; 0 needs no second copy of the weights)")
    kl: str | None = option(None, f"estimator of that KL: {', '.join(KL_ESTIMATORS)}")
    kl_in: str | None = option(None, "where it acts: loss, reward")
    mask_truncated_completions: bool | None = option(None, "completions cut at the limit are not trained on (default: the algorithm's)")
    correction: str | None = option(None, f"for a trainer that is not the sampler: {', '.join(CORRECTIONS)}")
    correction_low: float | None = option(None, "least weight of the correction")
    correction_high: float | None = option(None, "largest weight of the correction")
    gamma: float | None = option(None, "ppo: discount")
    lam: float | None = option(None, "ppo: lambda of the generalised advantage estimation")
    vf_coef: float | None = option(None, "ppo: weight of the value loss")
    cliprange_value: float | None = option(None, "ppo: how far a value may move in an update")
    value_lr: float | None = option(None, "ppo: learning rate of the value model (default: that of the policy)")
    target_kl: float | None = option(None, "ppo and KL in the reward: beta adapts so that the KL of a completion stays about here (Ziegler et al. 2019)")
    horizon: int = option(10_000, "target_kl: completions over which beta adapts; fewer is faster")
    whiten_rewards: bool = option(False, "ppo: divide each token's reward by the deviation over the step's; nothing is subtracted")
    missing_eos_penalty: float = option(0.0, "taken off the reward of a completion that did not end by itself (and earns nothing)")
    ptx_coef: float = option(0.0, "weight of the language-model loss on --ptx-data beside every update, a mean over tokens (PPO-ptx)")
    ptx_data: Path | None = option(None, "text, or a folder of `freedive data`, for --ptx-coef: what was read stays known")
    ptx_tokens: int = option(1024, "tokens of that text in an update")
    gold_reward: str = option("", "monitor of over-optimisation: a reward that is not practised, measured with the one that is, and with the KL, every eval_every steps on held-out problems (docs/rlhf.md)")
    monitor_samples: int = option(1, "monitor: answers to each of the eval_problems")
    early_stop: int = option(0, "monitor: stop when gold was significantly below its peak so often in a row, for example 3, and keep the weights of the peak (0: never; they are in peak/ then)")
    max_kl: float = option(0.0, "monitor: stop when the KL of a completion exceeds this, for who has no --gold-reward (0: no limit)")
    eval_every: int = option(20, "steps between quick evaluations (0: only before and after)")
    eval_problems: int = option(128, "held-out problems of a quick evaluation; all are used before and after")
    show: int = option(4, "held-out problems whose answers are kept at every evaluation, in trajectories.jsonl")
    log_completions: bool = option(False, "keep every rollout in completions.jsonl: ids, mask, log-probs, reward, advantage")
    save_every: int = option(20, "steps between checkpoints", hash=False)
    report_to: str = option("", REPORT_HELP, hash=False)
    micro_tokens: int = option(8192, "tokens of one forward pass")
    seed: int = option(0, "of problems and samples")
    device: str = option("cpu", "cpu, or cuda where the build and the machine have it")
    recompute: str = option("none", RECOMPUTE_HELP, hash=False)
    dtype: str = option("float32", "float32; bfloat16: operands of products rounded, twice as fast where the processor has it; auto")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "print the plan and stop")

    def __post_init__(self) -> None:
        for name in ("reward", "task"):  # one name is a list of one
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, [getattr(self, name)])

    def peak_lr(self, d_model: int) -> float:
        """The policy's largest learning rate."""
        return min(1e-3, 5e-4 * 128 / d_model) if self.lr is None else self.lr

    @property
    def start(self) -> Path:
        """The model to start from."""
        found = self.model or self.path
        if found is None:
            raise UserError("which model?", hint="freedive rl runs/assistant --task countdown")
        return found

    @property
    def monitored(self) -> bool:
        """Whether over-optimisation is measured."""
        return bool(self.gold_reward or self.max_kl)

    @property
    def judged_by(self) -> list[str]:
        """What says whether a held-out answer is right: as given, or the first reward that can say so."""
        if other := self.eval_reward or self.gold_reward:
            return [other]
        return [r for r in self.rewards if r not in SHAPERS][:1] or (["task"] if self.task else [] if self.environment else ["answer"])

    @property
    def rewards(self) -> list[str]:
        """Names of the reward functions: as given, or the task's checker, or `answer`; none where the environment rewards."""
        if self.reward:
            return self.reward
        return ["task"] if self.task else [] if self.environment else ["answer"]


def policy_spec(c: RLConfig) -> PolicySpec:
    """The preset with what the settings replace. Raises UserError for what does not go together."""
    if c.algorithm not in PRESETS:
        raise UserError(f"unknown algorithm {c.algorithm!r}", hint="algorithms: " + ", ".join(PRESETS))
    changes: dict[str, Any] = {"max_completion_length": c.max_completion_length, "entropy_coef": c.entropy_coef}
    for name in ("num_iterations", "epsilon", "epsilon_high", "delta", "is_clip_max", "beta", "kl", "kl_in", "mask_truncated_completions", "correction",
                 "correction_low", "correction_high", "gamma", "lam", "vf_coef", "cliprange_value", "advantage"):  # fmt: skip
        if getattr(c, name) is not None:
            changes[name] = getattr(c, name)
    if c.epsilon is not None and c.epsilon_high is None:
        changes["epsilon_high"] = c.epsilon
    if c.importance_sampling_level is not None:
        changes["ratio"] = c.importance_sampling_level
    for name, known in (("loss_type", LOSS_TYPES), ("scale_rewards", SCALE_REWARDS)):
        if getattr(c, name) is not None and getattr(c, name) not in known:
            raise UserError(f"{name} is {getattr(c, name)!r}", hint="one of " + ", ".join(known))
    if c.loss_type is not None:
        changes["loss"], changes["aggregation"] = LOSS_TYPES[c.loss_type]
    if c.scale_rewards is not None:
        if c.advantage is not None:
            raise UserError("--advantage and --scale-rewards both say what the advantage is", hint="give one of them")
        changes["advantage"] = SCALE_REWARDS[c.scale_rewards]
    if changes.get("advantage", "gae") not in (*ADVANTAGES, "gae"):
        raise UserError(f"advantage is {c.advantage!r}", hint=f"one of {', '.join(ADVANTAGES)}, gae")
    try:
        return dataclasses.replace(PRESETS[c.algorithm], **changes)
    except ValueError as error:
        raise UserError(str(error)) from None


def unused(c: RLConfig, spec: PolicySpec) -> list[str]:
    """Settings that were given, as flags, and have no part in this run: each with what it belongs to. A value that is the default does not count as given."""
    gae, clip, kl = spec.advantage == "gae", spec.loss == "clip", bool(spec.beta) or c.target_kl is not None
    adapter = bool(c.lora_rank)
    parts: list[tuple[bool, str, tuple[str, ...]]] = [  # whether they are used; where they would be; which
        (gae, "a value model: --algorithm ppo", ("gamma", "lam", "vf_coef", "cliprange_value", "value_lr")),
        (clip, "a loss with a clipped ratio", ("epsilon", "epsilon_high", "delta", "importance_sampling_level")),
        (spec.loss == "cispo", "--algorithm cispo", ("is_clip_max",)),
        (kl, "a KL: --beta above 0", ("kl", "kl_in")),
        (c.target_kl is not None, "--target-kl", ("horizon",)),
        (spec.correction != "none", "--correction", ("correction_low", "correction_high")),
        (c.monitored, "--gold-reward or --max-kl", ("monitor_samples",)),
        (bool(c.ptx_coef), "--ptx-coef", ("ptx_tokens",)),
        (bool(c.environment), "--environment", ("max_tool_calls",)),
        (bool(c.task), "--task", ("task_size", "eval_size")),
        (bool(c.task or c.eval_data), "held-out problems: --eval-data", ("eval_reward", "eval_samples", "eval_temperature", "eval_every", "eval_problems", "show")),
        (adapter, "--lora-rank", ("lora_alpha", "lora_targets")),
        (adapter or is_adapter(c.start), "an adapter: --lora-rank", ("weights",)),
    ]
    default = {f.name: f.default for f in dataclasses.fields(c)}
    flag = lambda name: "--" + name.replace("_", "-")
    return [f"{', '.join(given)} (of {where})" for used, where, names in parts if not used and (given := [flag(n) for n in names if getattr(c, n) != default[n]])]


def check(c: RLConfig) -> PolicySpec:
    """The policy loss, with every number of the settings checked. Raises UserError."""
    check_at_least(c, 1, "steps", "prompts_per_step", "num_iterations", "num_mini_batches", "max_completion_length", "save_every", "micro_tokens", "dynamic_sampling",
                   "threads", "task_size", "eval_size", "eval_samples", "reward_workers", "num_generations")  # fmt: skip
    check_at_least(c, 0, "lr", "warmup", "final_lr_fraction", "eval_every", "eval_problems", "beta", "reward_timeout", "max_tool_calls", "overlong_cache", "lora_rank",
                   "show", "value_lr", "gamma", "lam", "vf_coef", "cliprange_value", "epsilon", "epsilon_high", "correction_low", "correction_high")  # fmt: skip
    spec = policy_spec(c)
    if c.num_generations < 2 and spec.advantage not in ("gae", "none"):
        raise UserError(f"num_generations is {c.num_generations}; a group needs at least 2 completions to compare")
    if not 0 < c.temperature < float("inf"):
        raise UserError(f"temperature is {c.temperature}; sampling for RL needs one above 0")
    if c.eval_temperature is not None and not 0 <= c.eval_temperature < float("inf"):
        raise UserError(f"eval_temperature is {c.eval_temperature}; it must be 0 (the likeliest token) or more")
    if c.eval_samples > 1 and c.eval_temperature == 0:
        raise UserError(f"eval_samples is {c.eval_samples}, and at eval_temperature 0 all of them are the same")
    if c.overlong_cache > c.max_completion_length:
        raise UserError(f"overlong_cache is {c.overlong_cache}, longer than max_completion_length {c.max_completion_length}")
    if c.max_grad_norm <= 0:
        raise UserError(f"max_grad_norm is {c.max_grad_norm}, it must be above 0")
    if c.num_mini_batches > c.prompts_per_step:
        raise UserError(f"num_mini_batches is {c.num_mini_batches}, and a step has {c.prompts_per_step} problems")
    if c.target_kl is not None and (not 0 < c.target_kl < float("inf") or spec.kl_in != "reward" or not spec.beta):
        raise UserError(f"target_kl is {c.target_kl}: it must be above 0, and there must be a KL in the reward", hint="--kl-in reward --beta 0.05")
    if c.task and (c.data or c.eval_data):
        raise UserError("--task makes its own problems; --data was given too", hint="give one of them")
    if not c.task and c.data is None:
        raise UserError("no problems: neither --task nor --data was given", hint='--task countdown, or --data FILE of {"prompt": "...", "answer": "..."}')
    check_at_least(c, 1, "horizon", "ptx_tokens", "monitor_samples")
    check_at_least(c, 0, "missing_eos_penalty", "ptx_coef", "early_stop", "max_kl")
    if c.whiten_rewards and spec.advantage != "gae":
        raise UserError("--whiten-rewards is PPO's: it is of the rewards of single tokens", hint="--algorithm ppo")
    if bool(c.ptx_coef) != (c.ptx_data is not None):
        raise UserError("--ptx-coef and --ptx-data go together", hint="--ptx-coef 0.5 --ptx-data runs/data")
    if c.early_stop and not (c.gold_reward or c.max_kl):
        raise UserError("--early-stop needs something to stop by", hint="--gold-reward file.py:function, or --max-kl 20")
    if c.monitored and not (c.task or c.eval_data):
        raise UserError("the monitor needs held-out problems", hint="--eval-data FILE")
    if c.monitored and c.eval_problems < 2:
        raise UserError(f"eval_problems is {c.eval_problems}; the monitor compares at least 2 held-out problems", hint="--eval-problems 64")
    if c.monitored and not c.eval_every:
        raise UserError("the monitor measures every --eval-every steps, and that is 0", hint="--eval-every 10")
    return spec
