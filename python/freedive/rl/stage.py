"""`freedive rl`: practice problems with checkable answers (talk 4.1-4.3).

Sample many solutions, keep what the checker says of each, and make the better ones likelier. One step: prompts -> G rollouts each ->
rewards -> advantages within the group -> policy gradient -> AdamW. Sampler and trainer are the same weights and kernels, so the
probability ratio of the first update is exactly 1.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freedive.inference import Engine, load_model, load_tokenizer, save_model_folder
from freedive.inference.folder import base_and_adapter
from freedive.model import Model
from freedive.objectives import PRESETS, Totals, advantages, count, kl_in_reward, merge_metrics, policy_loss, reward_metrics, zero_std
from freedive.objectives.policy import PolicySpec
from freedive.runs import Artefact, UserError, check_at_least, find_function, function_file, option, progress, stage, write_json_atomic
from freedive.tokenizer import Tokenizer
from freedive.train import learning_rate, restore, save

from .problems import Problem, practise, read_problems, shuffled
from .rewards import BUILT_IN, Reward
from .rollouts import Rollout, lay_out, micro_batches, rewarded, sample

ORDER_STREAM, EVAL_STREAM = 31, 32


@dataclass(frozen=True)
class RLConfig:
    """Reinforcement learning on problems with checkable answers."""

    model: Path = option(help="folder of the assistant to start from")
    data: Path = option(help='JSONL of problems: {"prompt": text or messages, "answer": "..."}; other keys go to the reward too')
    out: Path = option(Path("runs/rl"), "folder to write")
    eval_data: Path | None = option(None, "held-out problems, same form")
    reward: str = option("answer", "built in: answer, coin; or package.module:function, or file.py:function")
    algo: str = option("dr_grpo", "reinforce, grpo, dr_grpo, dapo, rloo, gspo, cispo, r1")
    steps: int = option(200, "optimizer steps")
    prompts_per_step: int = option(16, "problems drawn in a step")
    num_generations: int = option(8, "completions of each problem (G)")
    num_iterations: int = option(1, "updates made from one set of rollouts")
    max_completion_length: int = option(64, "tokens of a completion")
    temperature: float = option(1.0, "of sampling, and of the log-probs trained; above 1 it explores more")
    eval_temperature: float | None = option(None, "of the evaluations on held-out problems (default: that of sampling)")
    dynamic_sampling: int | None = option(
        None, "draws a step may make to find prompts_per_step problems whose completions earned unlike rewards, the only ones "
        "to learn from (default: 1; for dapo 4)"
    )  # fmt: skip
    lr: float | None = option(None, "peak learning rate (default: from the width)")
    warmup: int = option(5, "warm-up steps")
    final_lr_fraction: float = option(0.1, "learning rate of the last step, as a part of the peak")
    entropy_coef: float = option(0.0, "> 0 rewards entropy")
    beta: float | None = option(None, "weight of the KL to the starting model (default: the algorithm's; 0 needs no second copy of the weights)")
    eval_every: int = option(20, "steps between quick evaluations (0: only before and after)")
    eval_problems: int = option(128, "held-out problems of a quick evaluation; all are used before and after")
    save_every: int = option(20, "steps between checkpoints", hash=False)
    micro_tokens: int = option(8192, "tokens of one forward pass")
    seed: int = option(0, "of problems and samples")
    device: str = option("cpu", "cpu")
    dtype: str = option("float32", "float32; bfloat16: operands of products rounded, twice as fast where the processor has it; auto")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "print the plan and stop")


def policy_spec(c: RLConfig) -> PolicySpec:
    if c.algo not in PRESETS:
        raise UserError(f"unknown algo {c.algo!r}", hint="algorithms: " + ", ".join(PRESETS))
    spec = dataclasses.replace(PRESETS[c.algo], num_generations=c.num_generations, num_iterations=c.num_iterations,
                               max_completion_length=c.max_completion_length, entropy_coef=c.entropy_coef)  # fmt: skip
    return spec if c.beta is None else dataclasses.replace(spec, beta=c.beta)


def run(c: RLConfig) -> Path:
    """Train; returns the folder written. Raises UserError for input that cannot be used."""
    if c.num_generations < 2:
        raise UserError(f"num_generations is {c.num_generations}; a group needs at least 2 completions to compare")
    check_at_least(c, 1, "steps", "prompts_per_step", "num_iterations", "max_completion_length", "save_every", "micro_tokens", "dynamic_sampling", "threads")
    check_at_least(c, 0, "lr", "warmup", "final_lr_fraction", "eval_every", "eval_problems", "beta")
    if not 0 < c.temperature < float("inf"):
        raise UserError(f"temperature is {c.temperature}; sampling for RL needs one above 0")
    if c.eval_temperature is not None and not 0 <= c.eval_temperature < float("inf"):
        raise UserError(f"eval_temperature is {c.eval_temperature}; it must be 0 (the likeliest token) or more")
    policy_spec(c)
    sequences = c.prompts_per_step * c.num_generations
    print(f"{c.prompts_per_step} problems x {c.num_generations} completions = {sequences} sequences a step, {c.steps} steps, {c.algo}")
    if c.dry_run:
        _train(c, None)
        return c.out
    base, adapter = base_and_adapter(c.model, None)  # practice of an adapter moves it alone
    inputs = {"model": base, "adapter": adapter, "data": c.data, "eval_data": c.eval_data, "reward_file": function_file(c.reward)}
    with stage("rl", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if not artefact.done:
            _train(c, artefact)
    return artefact.out


def _train(c: RLConfig, artefact: Artefact | None) -> None:
    """The whole stage; without an artefact (a dry run) it ends when everything is loaded and checked."""
    spec, reward = policy_spec(c), find_function(c.reward, BUILT_IN, "reward")
    tok = load_tokenizer(c.model)
    problems = read_problems(c.data, tok)
    held_out = read_problems(c.eval_data, tok) if c.eval_data else []
    sequences = c.prompts_per_step * c.num_generations
    longest = max(len(p.ids) for p in problems + held_out) + c.max_completion_length
    model = load_model(c.model, tok, max_tokens=max(c.micro_tokens, longest), max_seqs=max(256, sequences), threads=c.threads, device=c.device, dtype=c.dtype)
    if longest > model.config.max_positions:
        raise UserError(f"a problem and its completion take up to {longest} tokens; the model was made for {model.config.max_positions}", hint="lower --max-completion-length")
    reference = load_model(c.model, tok, max_tokens=model.max_tokens, max_seqs=model.max_seqs, threads=c.threads, trainable=False, dtype=c.dtype) if spec.beta else None
    if artefact is None:
        print(f"{len(problems):,} problems, {len(held_out):,} held out, up to {longest} tokens with their completions; model: {model.config.n_params():,} parameters")
        return
    engine = Engine(model, tok)
    lr = c.lr or min(1e-3, 5e-4 * 128 / model.config.d_model)
    order = shuffled(len(problems), c.seed, ORDER_STREAM)

    state = restore(artefact, model)
    step, drawn = (state["step"], state["drawn"]) if state else (0, 0)
    draws = c.dynamic_sampling or (4 if spec.dynamic_sampling else 1)
    if state is None:
        if held_out:
            before = evaluate(c, engine, tok, held_out, reward, c.seed)
            artefact.summary(**{f"before/{k}": v for k, v in before.items()})
            artefact.log(step=0, **{f"eval/{k}": v for k, v in before.items()})
            save(artefact, model, {"step": 0, "drawn": 0})  # the evaluation need not be made again
    bar = progress.bar(c.steps, "rl")
    bar.advance(step)
    samples: list[dict[str, Any]] = state.get("samples", []) if state else []
    while step < c.steps:
        began = time.perf_counter()
        solve = lambda chosen, first: solutions(c, engine, tok, chosen, reward, [_seed(c.seed, step, first + i) for i in range(sequences)])
        practice = practise(solve, problems, order, drawn, c.prompts_per_step, c.num_generations, draws)
        sampled, drawn, rollouts = time.perf_counter(), practice.drawn, practice.rollouts
        rate = learning_rate(step, c.steps, lr, c.warmup, c.final_lr_fraction)
        metrics = update(c, model, spec, rollouts, rate, reference) | practice.metrics
        step += 1
        quick = {}
        if held_out and c.eval_every and step % c.eval_every == 0 and step < c.steps:
            quick = {f"eval/{k}": v for k, v in evaluate(c, engine, tok, held_out[: c.eval_problems], reward, c.seed).items()}
        artefact.log(step=step, lr=rate, **metrics, **quick)
        artefact.time(step=step, sampling_seconds=round(sampled - began, 4), step_seconds=round(time.perf_counter() - began, 4),
                      tokens=sum(len(r.ids) for r in rollouts))  # fmt: skip
        if step in (1, c.steps) or step % max(1, c.steps // 4) == 0:
            samples.append({"step": step, "prompt": practice.problems[0].row["prompt"], "text": rollouts[0].text, "reward": rollouts[0].reward})
        bar.advance(1, text=f"reward {metrics['reward']:.2f}, length {metrics['completions/mean_length']:.0f}, entropy {metrics.get('entropy', 0):.2f}")
        if step % c.save_every == 0 or step == c.steps:
            save(artefact, model, {"step": step, "drawn": drawn, "samples": samples})
    bar.close()
    if held_out:
        after = evaluate(c, engine, tok, held_out, reward, c.seed)
        artefact.summary(**{f"after/{k}": v for k, v in after.items()})
        artefact.log(step=step, **{f"eval/{k}": v for k, v in after.items()})
    write_json_atomic(artefact.work / "samples.json", samples)
    save_model_folder(model, tok, artefact.work, tok.im_end, trained_from=c.model)
    print(f"wrote {c.out}; to talk to it: freedive chat --model {c.out}")


def solutions(c: RLConfig, engine: Engine, tok: Tokenizer, chosen: Sequence[Problem], reward: Reward, seeds: Sequence[int]) -> list[Rollout]:
    """num_generations completions of each problem, rewarded."""
    rollouts = sample(engine, [p.ids for p in chosen], c.num_generations, c.max_completion_length, c.temperature, (tok.im_end,), seeds)
    return rewarded(rollouts, [p.row for p in chosen for _ in range(c.num_generations)], reward)


def _seed(seed: int, step: int, i: int) -> int:
    """One number per rollout of the whole run."""
    return (seed * 1_000_003 + step) * 65_536 + i


def update(c: RLConfig, model: Model, spec: PolicySpec, rollouts: list[Rollout], lr: float, reference: Model | None = None) -> dict[str, float]:
    """num_iterations policy-gradient steps on one set of rollouts; returns TRL's metrics."""
    rewards = np.array([r.reward for r in rollouts]).reshape(-1, c.num_generations)
    shaped = rewards
    if reference is not None and spec.kl_in == "reward":
        shaped = penalised(c, spec, rollouts, rewards, reference)
    adv = advantages(shaped, spec.advantage)
    lengths = np.array([len(r.ids) for r in rollouts])
    metrics: dict[str, float] = {**reward_metrics(rewards), "completions/mean_length": float(lengths.mean()),
                                 "completions/clipped_ratio": float(np.mean([not r.stopped for r in rollouts]))}  # fmt: skip
    # Groups whose completions all earned the same have advantage 0: left out, of the denominators too, unless the loss has another term.
    other_terms = spec.entropy_coef != 0 or (reference is not None and spec.kl_in == "loss")
    use = [i for i, dead in enumerate(np.repeat(zero_std(shaped), c.num_generations)) if other_terms or not dead]
    if spec.mask_truncated_completions:
        use = [i for i in use if rollouts[i].stopped]
    if not use:
        return metrics  # nothing to learn from: no loss, entropy or gradient to report
    chosen, values = [rollouts[i] for i in use], [float(adv.reshape(-1)[i]) for i in use]
    batches = micro_batches(chosen, values, model.max_tokens, model.max_seqs)
    for iteration in range(spec.num_iterations):
        parts_total = [count(b.mask, b.batch.cu_seqlens) for b in batches]
        totals = Totals(sum(t.sequences for t in parts_total), sum(t.tokens for t in parts_total))
        model.zero_grad()
        parts = []
        for b in batches:
            out = model.forward(b.batch, temperature=c.temperature)
            fixed = reference.score(b.batch, c.temperature).logprobs if reference is not None else None
            dlogprobs, dentropy, part = policy_loss(out.logprobs, b.behaviour_logprobs, b.advantages, b.mask, b.batch.cu_seqlens, spec, totals,
                                                    sampler_logprobs=b.behaviour_logprobs if iteration == 0 else None, entropy=out.entropy, reference_logprobs=fixed)  # fmt: skip
            if iteration == 0:
                gap = float(np.abs((out.logprobs - b.behaviour_logprobs)[b.mask > 0]).max())
                part["sampling/sampling_logp_difference/max"] = gap
            model.backward(dlogprobs, dentropy)
            parts.append(part)
        merged = merge_metrics(parts)
        merged["grad_norm"] = model.adamw(lr, beta2=0.95, weight_decay=0.0, max_norm=1.0)
        if iteration == 0:
            first = merged
    return metrics | {k: v for k, v in first.items() if np.isfinite(v)}


def penalised(c: RLConfig, spec: PolicySpec, rollouts: list[Rollout], rewards: np.ndarray, reference: Model) -> np.ndarray:
    """Rewards [P, G] less beta times the KL to the reference, estimated on each completion (k1 in the reward)."""
    parts = []
    for b in micro_batches(rollouts, [0.0] * len(rollouts), reference.max_tokens, reference.max_seqs):
        n = b.batch.n_seqs
        fixed = reference.score(b.batch, c.temperature).logprobs
        parts.append(kl_in_reward(np.zeros(n), b.behaviour_logprobs, fixed, b.mask, b.batch.cu_seqlens, spec.beta))
    return rewards + np.concatenate(parts).reshape(rewards.shape)


def evaluate(c: RLConfig, engine: Engine, tok: Tokenizer, problems: list[Problem], reward: Reward, seed: int) -> dict[str, float]:
    """pass@1: one sample a problem, at eval_temperature, and mean length, in tokens."""
    temperature = c.temperature if c.eval_temperature is None else c.eval_temperature
    right, length = 0.0, 0
    for at in range(0, len(problems), 256):
        part = problems[at : at + 256]
        seeds = [(seed + 1) * 7_000_003 + (EVAL_STREAM << 40) + at + i for i in range(len(part))]
        outs = rewarded(sample(engine, [p.ids for p in part], 1, c.max_completion_length, temperature, (tok.im_end,), seeds), [p.row for p in part], reward)
        right += sum(r.reward for r in outs)
        length += sum(len(r.ids) for r in outs)
    return {"pass@1": right / len(problems), "mean_length": length / len(problems)}


__all__ = ["Problem", "RLConfig", "evaluate", "lay_out", "read_problems", "run", "update"]
