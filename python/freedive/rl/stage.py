"""`freedive rl`: practice problems with checkable answers (talk 4.1-4.3).

Sample many solutions, keep what the checker says of each, and make the better ones likelier. One step: prompts -> G rollouts each ->
rewards -> advantages within the group -> policy gradient -> AdamW. Sampler and trainer are the same weights and kernels, so the
probability ratio of the first update is exactly 1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from freedive.data.texts import iter_texts
from freedive.inference import Engine, load_model, load_tokenizer, save_model_folder
from freedive.inference.engine import Params
from freedive.inference.folder import base_and_adapter, new_adapter
from freedive.model import Model, init_adapter, is_adapter
from freedive.model.packed import check_weights
from freedive.objectives.policy import PolicySpec
from freedive.rlhf.monitor import Monitor, StopRule, fit, kl_of
from freedive.rlhf.rewards import reward_inputs
from freedive.runs import Artefact, UserError, function_file, json_line, progress, stage, write_json_atomic
from freedive.tokenizer import Tokenizer, encode_documents
from freedive.train import Documents, PackedLoader, learning_rate, restore

from .config import RLConfig, check, unused
from .environments import find_environment, schema, tools_of
from .episodes import Episodes
from .evaluate import evaluate, keep_shown, scalars
from .problems import Practice, Problem, made_problems, practise, read_problems, shuffled
from .rollouts import Rollout, sample
from .scoring import Scorer
from .update import Learner
from .values import ValueModel

ORDER_STREAM, MONITOR_STREAM = 31, 42
__all__ = ["Learner", "Problem", "RLConfig", "evaluate", "read_problems", "run"]


def run(c: RLConfig) -> Path:
    """Train; returns the folder written. Raises UserError for input that cannot be used."""
    c = replace(c, model=c.start, path=None)
    spec = check(c)
    check_weights(c.weights)
    if ignored := unused(c, spec):
        print(f"note: these change nothing in this run: {'; '.join(ignored)}")
    sequences = c.prompts_per_step * c.num_generations
    print(f"{c.prompts_per_step} problems x {c.num_generations} completions = {sequences} sequences a step, {c.steps} steps, {c.algorithm}")
    if c.dry_run:
        _train(c, None)
        return c.out
    base, adapter = base_and_adapter(c.start, None)  # practice of an adapter moves it alone
    files = [f for name in [*c.rewards, c.eval_reward, c.gold_reward] if (f := function_file(name)) is not None]
    tasks = [f for t in c.task if t.startswith("gsm8k:") and (f := Path(t.removeprefix("gsm8k:"))).is_file()]
    learned = reward_inputs([*c.rewards, c.eval_reward, c.gold_reward])
    inputs: dict[str, Any] = {"model": base, "adapter": adapter, "data": c.data, "eval_data": c.eval_data, "ptx_data": c.ptx_data, "reward_model": learned or None, "reward_file": files or None, "task_file": tasks or None,
              "environment_file": function_file(c.environment) if c.environment else None}  # fmt: skip
    with stage("rl", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if not artefact.done:
            _train(c, artefact)
    return artefact.out


@dataclass
class _Practice:
    """All that is loaded: who learns, who samples, who judges, and on what."""

    c: RLConfig
    tok: Tokenizer
    problems: list[Problem]
    held_out: list[Problem]
    learner: Learner
    engine: Engine
    episodes: Episodes | None
    scorer: Scorer
    judge: Scorer  # of held-out problems
    monitor: Monitor | None = None
    gold: Scorer | None = None  # what the monitor measures beside

    def solve(self, chosen: Sequence[Problem], generations: int, seeds: Sequence[int], temperature: float, scorer: Scorer) -> tuple[list[Rollout], dict[str, float]]:
        """`generations` completions of each problem, rewarded, and the metrics of the rewards."""
        c, stops = self.c, (self.tok.im_end,)
        if self.episodes is None:
            rollouts = sample(self.engine, [p.ids for p in chosen], generations, c.max_completion_length, temperature, stops, seeds)
        else:
            rollouts = self.episodes.sample([p.row for p in chosen], generations, Params(c.max_completion_length, temperature, stop_ids=stops), seeds)
        return scorer.score(rollouts, [p.row for p in chosen for _ in range(generations)], generations)

    def evaluate(self, problems: list[Problem], samples: int) -> tuple[dict[str, Any], list[Rollout]]:
        temperature = self.c.temperature if self.c.eval_temperature is None else self.c.eval_temperature
        return evaluate(lambda chosen, n, seeds: self.solve(chosen, n, seeds, temperature, self.judge)[0], problems, samples, self.c.seed)


def _load(c: RLConfig) -> _Practice:
    """Everything loaded and checked. Raises UserError."""
    spec = check(c)
    where: dict[str, Any] = {"threads": c.threads, "device": c.device, "dtype": c.dtype, "max_completion_length": c.max_completion_length, "loaded": {}}  # reward models: all three scorers have the same
    timeout = 0.0 if c.environment else c.reward_timeout  # instances of environments live in this process
    scorer = Scorer(c.rewards, c.reward_weights, timeout=timeout, workers=c.reward_workers, overlong=(c.max_completion_length, c.overlong_cache) if c.overlong_cache else None,
                    environment_timeout=c.reward_timeout, missing_eos_penalty=c.missing_eos_penalty, **where)  # fmt: skip
    other = c.eval_reward or c.gold_reward
    judge = Scorer(c.judged_by, timeout=timeout, workers=c.reward_workers, environment_timeout=c.reward_timeout, environment=not other, **where)
    gold = Scorer([c.gold_reward], timeout=timeout, workers=c.reward_workers, environment_timeout=c.reward_timeout, environment=False, **where) if c.gold_reward else None
    factory = find_environment(c.environment) if c.environment else None
    if factory is not None and not c.rewards and not hasattr(factory(), "get_reward"):
        raise UserError(f"nothing rewards: {c.environment} has no get_reward(), and there is no --reward", hint="--reward file.py:function gets the instances as `environments`")
    tok = load_tokenizer(c.start)
    tools = [schema(n, m) for n, m in tools_of(factory()).items()] if factory is not None and "<|python_start|>" not in tok.special_tokens else None
    if c.task:
        problems = made_problems(c.task, c.seed, c.task_size, "train", tok, tools)
        held_out = made_problems(c.task, c.seed, c.eval_size, "held_out", tok, tools)
    else:
        assert c.data is not None
        problems = read_problems(c.data, tok, tools, c.rewards)
        judges = [*c.judged_by, c.gold_reward, *(c.rewards if c.monitored else [])]  # of held-out answers
        held_out = read_problems(c.eval_data, tok, tools, judges) if c.eval_data else []
    longest = max(len(p.ids) for p in problems + held_out) + c.max_completion_length
    room = longest + (c.max_tool_calls * (Episodes.ANSWER_TOKENS + 32) if factory is not None else 0)
    model = _model(c, tok, max(c.micro_tokens, room))
    if longest > model.config.max_positions:
        raise UserError(f"a problem and its completion take up to {longest} tokens; the model was made for {model.config.max_positions}", hint="lower --max-completion-length")
    engine = Engine(model, tok)
    episodes = Episodes(engine, factory, max_calls=c.max_tool_calls, timeout=c.reward_timeout) if factory is not None else None
    value = ValueModel(_model(c, tok, model.max_tokens)) if spec.advantage == "gae" else None
    reference = _reference(c, tok, spec, model)
    learner = Learner(c, spec, model, reference if spec.beta else None, value, _ptx(c, tok, model.config.max_positions))
    practice = _Practice(c, tok, problems, held_out, learner, engine, episodes, scorer, judge)
    if c.monitored:
        assert reference is not None
        practice.gold, practice.monitor = gold, _monitor(practice, gold, reference)
    return practice


def _monitor(p: _Practice, gold: Scorer | None, reference: Model) -> Monitor:
    """Over-optimisation, measured on the first held-out problems; always with the same seeds."""
    c, chosen = p.c, p.held_out[: p.c.eval_problems]
    rows = [q.row for q in chosen for _ in range(c.monitor_samples)]
    seeds = [(c.seed + 1) * 7_000_003 + (MONITOR_STREAM << 40) + i for i in range(len(rows))]
    frozen = reference is p.learner.model
    return Monitor(
        lambda: p.solve(chosen, c.monitor_samples, seeds, c.temperature, p.scorer)[0],
        None if gold is None else lambda rollouts: [r.reward for r in gold.score(rollouts, rows, c.monitor_samples)[0]],
        lambda rollouts: kl_of(rollouts, reference, c.temperature, frozen, p.learner.model.max_tokens),
        c.monitor_samples, StopRule(c.early_stop or 3), c.max_kl,
    )  # fmt: skip


def _ptx(c: RLConfig, tok: Tokenizer, max_positions: int) -> PackedLoader | None:
    """The text whose language-model loss goes into every update."""
    if c.ptx_data is None:
        return None
    context = min(256, c.ptx_tokens, c.micro_tokens, max_positions)
    documents = Documents(encode_documents(tok, list(iter_texts(c.ptx_data))), context, tok.special_tokens.get(tok.bos), c.seed)
    return PackedLoader(documents, c.ptx_tokens, min(c.ptx_tokens, c.micro_tokens), 64, c.seed)


def _model(c: RLConfig, tok: Tokenizer, max_tokens: int) -> Model:
    """The model to train: all its weights, or an adapter beside them."""
    lora = new_adapter(c.start, c.lora_rank, c.lora_alpha, c.lora_targets)
    frozen = lora is not None or is_adapter(c.start)
    model = load_model(c.start, tok, max_tokens=max_tokens, max_seqs=max(256, c.prompts_per_step * c.num_generations), threads=c.threads, device=c.device, dtype=c.dtype,
                       recompute=c.recompute, lora=lora, weights=c.weights if frozen else "float32")  # fmt: skip
    if lora is not None:
        init_adapter(model, c.seed)
    return model


def _reference(c: RLConfig, tok: Tokenizer, spec: PolicySpec, model: Model) -> Model | None:
    """What a KL is measured to: the model as it was. Beside a new adapter that is the model without it; else a second copy."""
    if not spec.beta and not c.monitored:
        return None
    if model.lora is not None and not is_adapter(c.start):
        return model
    weights = c.weights if is_adapter(c.start) else "float32"
    return load_model(c.start, tok, max_tokens=model.max_tokens, max_seqs=model.max_seqs, threads=c.threads, device=c.device, trainable=False, dtype=c.dtype, weights=weights)


def _train(c: RLConfig, artefact: Artefact | None) -> None:
    """The whole stage; without an artefact (a dry run) it ends when everything is loaded and checked."""
    p = _load(c)
    model = p.learner.model
    with closing(p.scorer), closing(p.judge), closing(p.gold) if p.gold else nullcontext():
        if artefact is None:
            longest = max(len(q.ids) for q in p.problems + p.held_out) + c.max_completion_length
            print(f"{len(p.problems):,} problems, {len(p.held_out):,} held out, up to {longest} tokens with their completions; model: {model.config.n_params():,} parameters")
            return
        _practise(p, artefact)
    save_model_folder(model, p.tok, artefact.work, p.tok.im_end, trained_from=c.start)
    print(f"wrote {c.out}; to talk to it: freedive chat --model {c.out}")


def _practise(p: _Practice, artefact: Artefact) -> None:
    c, learner, model = p.c, p.learner, p.learner.model
    lr = c.peak_lr(model.config.d_model)
    order = shuffled(len(p.problems), c.seed, ORDER_STREAM)
    draws = c.dynamic_sampling or (4 if learner.spec.dynamic_sampling else 1)
    sequences = c.prompts_per_step * c.num_generations
    state = restore(artefact, model)
    step, drawn, tokens, unrewarded = (state["step"], state["drawn"], state["num_tokens"], state.get("unrewarded", 0)) if state else (0, 0, 0, 0)
    peak: np.ndarray | None = None  # the weights where gold was highest

    def measure() -> str:
        nonlocal peak
        if p.monitor is None:
            return ""
        point, best = p.monitor.measure(step)
        if p.monitor.gold is not None and np.isnan(point["gold"]) and not p.monitor.points[:-1]:
            print(f"note: --gold-reward says nothing (None) of any of {point['gold_none']:,} answers before the first step; as long as that is so, "
                  + ("--early-stop cannot act, and " * bool(c.early_stop)) + "there is no peak")  # fmt: skip
        artefact.append("monitor.jsonl", json_line(point))
        if best:
            peak = model.trained().copy()
        return f", gold {_shown(point['gold'])}" if "gold" in point else ""

    def save(background: bool = False) -> None:
        state = {"step": step, "drawn": drawn, "num_tokens": tokens, "unrewarded": unrewarded, "samples": samples, "monitor": p.monitor and p.monitor.state()}
        _save(artefact, learner, state, {} if peak is None else {"monitor.peak": peak}, background)

    samples: list[dict[str, Any]] = state.get("samples", []) if state else []
    if state:
        _restore(learner, state, artefact.arrays)
        if p.monitor is not None and state["monitor"]:
            p.monitor.load_state(state["monitor"])
            peak = artefact.arrays["monitor.peak"].copy() if "monitor.peak" in artefact.arrays else None
    elif p.held_out:
        before, outs = p.evaluate(p.held_out, c.eval_samples)
        artefact.summary(**{f"before/{k}": v for k, v in before.items()})
        artefact.log(step=0, **{f"eval/{k}": v for k, v in scalars(before).items()})
        keep_shown(artefact, 0, p.held_out, outs, c.eval_samples, c.show)
        measure()
        save()  # the evaluation need not be made again
    bar = progress.bar(c.steps, "rl")
    bar.advance(step)
    stopping = lambda: p.monitor is not None and (bool(c.early_stop) and p.monitor.rule.stop_step is not None or p.monitor.kl_stop is not None)
    note = ""
    while step < c.steps and not stopping():
        began, cpu = time.perf_counter(), time.process_time()
        told: list[dict[str, float]] = []

        def solve(chosen: Sequence[Problem], first: int) -> list[Rollout]:
            seeds = [_seed(c.seed, step, first + i) for i in range(sequences)]
            rollouts, more = p.solve(chosen, c.num_generations, seeds, c.temperature, p.scorer)
            told.append(more)
            return rollouts

        practice = practise(solve, p.problems, order, drawn, c.prompts_per_step, c.num_generations, draws)
        sampled, drawn, rollouts = time.perf_counter(), practice.drawn, practice.rollouts
        tokens += sum(len(r.prompt_ids) + len(r.ids) for r in rollouts)
        rate = learning_rate(step, c.steps, lr, c.warmup, c.final_lr_fraction)
        metrics = learner.update(rollouts, rate) | practice.metrics | _mean(told)
        cpu = time.process_time() - cpu
        step += 1
        if np.isnan(metrics["reward"]):
            unrewarded += 1
            if unrewarded == 1:
                print(f"note: step {step}: nothing was rewarded, and nothing is learned from that ({p.scorer.silence(told, sequences)}); such a step's reward is null in metrics.jsonl")
        if c.log_completions:
            _keep(artefact, step, practice)
        quick = {}
        if p.monitor is not None and (step % c.eval_every == 0 or step == c.steps):
            note = measure()
        if p.held_out and c.eval_every and step % c.eval_every == 0 and step < c.steps:
            found, outs = p.evaluate(p.held_out[: c.eval_problems], 1)
            quick = {f"eval/{k}": v for k, v in scalars(found).items()}
            keep_shown(artefact, step, p.held_out, outs, 1, c.show)
        artefact.log(step=step, lr=rate, num_tokens=tokens, **metrics, **quick)
        artefact.time(step=step, sampling_seconds=round(sampled - began, 4), step_seconds=round(time.perf_counter() - began, 4), cpu_seconds=round(cpu, 4),
                      tokens=sum(r.length for r in rollouts))  # fmt: skip
        if step in (1, c.steps) or step % max(1, c.steps // 4) == 0:
            samples.append({"step": step, "prompt": practice.problems[0].row["prompt"], "text": rollouts[0].text, "reward": None if np.isnan(rollouts[0].reward) else rollouts[0].reward})
        bar.advance(1, text=f"reward {_shown(metrics['reward'])}, length {metrics['completions/mean_length']:.0f}, entropy {metrics.get('entropy', 0):.2f}{note}")
        last = step == c.steps or stopping()
        if last or step % c.save_every == 0:
            save(background=not last)
    bar.close()
    if unrewarded:
        artefact.summary(unrewarded_steps=unrewarded)
        print(f"note: in {unrewarded:,} of {step:,} steps nothing was rewarded" + (": no weight was changed by a reward" if unrewarded == step else ""))
    if p.monitor is not None:
        _conclude(p, artefact, peak, step)
    if p.held_out:
        after, outs = p.evaluate(p.held_out, c.eval_samples)
        if "unjudged" in after:
            print(f"note: of {after['unjudged']:,} of {len(outs):,} answers to held-out problems the reward said nothing; they are in no mean")
        artefact.summary(**{f"after/{k}": v for k, v in after.items()})
        artefact.log(step=step, **{f"eval/{k}": v for k, v in scalars(after).items()})
        keep_shown(artefact, step, p.held_out, outs, c.eval_samples, c.show)
    write_json_atomic(artefact.work / "samples.json", samples)


def _conclude(p: _Practice, artefact: Artefact, peak: np.ndarray | None, step: int) -> None:
    """What the monitor found, and the weights of the peak: the run's own where it was to stop early, else in peak/."""
    monitor, model, c = p.monitor, p.learner.model, p.c
    assert monitor is not None
    first, rule = monitor.points[0], monitor.rule
    by_gold = monitor.gold is not None
    told: dict[str, Any] = {"monitor/stop_step": monitor.stop_step, "monitor/final_kl": monitor.points[-1]["kl"], "monitor/proxy": [first["proxy"], monitor.points[-1]["proxy"]]}
    if by_gold:
        told |= {"monitor/peak_step": rule.peak_step if rule.peak else None, "monitor/gold": [first["gold"], monitor.points[-1]["gold"]], "monitor/peak_gold": monitor.peak_gold}
        told |= {f"monitor/fit_{k}": v for k, v in fit([q["kl"] for q in monitor.points], [q["gold"] - first["gold"] for q in monitor.points]).items()}
        at = monitor.gamed()
        if at is not None:
            row = p.held_out[at // c.monitor_samples].row
            write_json_atomic(artefact.work / "gamed.json", {"prompt": row["prompt"], **monitor.last[at], "proxy_at_the_start": first["proxy"], "gold_at_the_start": first["gold"]})
            print(f"an answer that games the reward (proxy {monitor.last[at]['proxy']:.2f}, at the start {first['proxy']:.2f} on average; gold {monitor.last[at]['gold']:.2f}, "
                  f"at the start {first['gold']:.2f}): {monitor.last[at]['text'][:300]!r}")  # fmt: skip
    artefact.summary(**told)
    if by_gold and not rule.peak:
        print("note: --gold-reward said nothing of any answer in the whole run: no peak was found" + (", and --early-stop could not act" if c.early_stop else ""))
    if peak is None or (by_gold and rule.peak_step == step):
        return
    now = model.trained().copy()
    model.trained()[...] = peak
    model.touch()
    if c.early_stop or c.max_kl:
        print(f"the weights of step {rule.peak_step}, where gold was highest, are kept; ended at step {step}" if by_gold else f"ended at step {step}; the last weights within --max-kl are kept")
        return
    save_model_folder(model, p.tok, artefact.work / "peak", p.tok.im_end, trained_from=c.start)
    model.trained()[...] = now
    model.touch()


def _shown(value: float) -> str:
    return "none" if np.isnan(value) else f"{value:.2f}"


def _seed(seed: int, step: int, i: int) -> int:
    """One number per rollout of the whole run."""
    return (seed * 1_000_003 + step) * 65_536 + i


def _save(artefact: Artefact, learner: Learner, state: dict[str, Any], arrays: dict[str, np.ndarray], background: bool = False) -> None:
    """In the background: written while the next steps run."""
    more = arrays if learner.value is None else arrays | learner.value.state()
    snapshot = learner.model.snapshot()
    state |= {"bad": learner.bad, "beta": learner.spec.beta, "ptx": learner.ptx and learner.ptx.state()}
    artefact.checkpoint(state, lambda: snapshot() | more, background)


def _restore(learner: Learner, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    learner.bad = state["bad"]
    if learner.ptx is not None:
        learner.ptx.load_state(state["ptx"])
    if learner.value is not None:
        learner.value.load_state(arrays)
    if learner.adaptive is not None:
        learner.adaptive.beta = state["beta"]
        learner.spec = replace(learner.spec, beta=state["beta"])


def _mean(told: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metrics of the rewards, over the draws of a step."""
    names = dict.fromkeys(k for t in told for k in t)
    return {n: float(np.mean([t[n] for t in told if n in t])) for n in names}


def _keep(artefact: Artefact, step: int, practice: Practice) -> None:
    """Every rollout of a step, as others exchange them: ids, mask, log-probs, reward."""
    for i, r in enumerate(practice.rollouts):
        row = practice.problems[i * len(practice.problems) // len(practice.rollouts)].row
        artefact.append("completions.jsonl", json_line({
            "step": step, "prompt": row["prompt"], "completion": r.text, "prompt_ids": r.prompt_ids, "completion_ids": r.ids, "mask": [int(m) for m in r.sampled],
            "logprobs": [float(x) for x in r.logprobs], "reward": None if np.isnan(r.reward) else r.reward, "rewards": {k: None if np.isnan(v) else v for k, v in r.parts.items()},
            "finish_reason": r.finish_reason, "seed": r.seed}))  # fmt: skip
