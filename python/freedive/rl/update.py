"""The update: rewards of whole groups to advantages, advantages to gradients, gradients to weights.

Everything that couples completions (advantages, denominators, whitening) is computed over the step, or over the mini-batch that makes one
optimizer step, before the first forward; so how it is cut into micro-batches changes neither loss nor gradient. The behaviour log-probs are
the sampler's: on CPU they are the trainer's, bit for bit, and the difference is measured in every step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import numpy as np

from freedive.model import Model
from freedive.objectives import (
    AdaptiveKL,
    Totals,
    advantages,
    count,
    gae,
    kl_in_reward,
    merge_metrics,
    policy_loss,
    sft_weights,
    token_rewards,
    value_loss,
    whiten,
)
from freedive.objectives.policy import PolicySpec, check_batch, sampling_metrics
from freedive.runs import UserError
from freedive.train import PackedLoader

from .config import RLConfig
from .groups import dead, group_metrics
from .rollouts import MISTAKES, Rollout, RolloutBatch, cuts, lay_out, micro_batches
from .values import ValueModel

BAD_STEPS = 10  # non-finite updates in a row that end a run


@dataclass
class _Part:
    """A micro-batch with all that is fixed before the first update."""

    b: RolloutBatch
    reference: np.ndarray | None = None  # float32 [N]
    old: np.ndarray | None = None  # trainer's log-probs before the step, where a correction is asked for
    values: np.ndarray | None = None  # of the value model, before the step
    returns: np.ndarray | None = None


class Learner:
    """What learns: the policy, for a KL its reference, for PPO its value model. `reference` may be `model` itself: then without its adapter."""

    def __init__(self, c: RLConfig, spec: PolicySpec, model: Model, reference: Model | None = None, value: ValueModel | None = None,
                 ptx: PackedLoader | None = None):  # fmt: skip
        self.c, self.spec, self.model, self.reference, self.value, self.ptx = c, spec, model, reference, value, ptx
        self.adaptive = AdaptiveKL(spec.beta, c.target_kl, c.horizon) if c.target_kl is not None else None
        self.bad = 0

    def update(self, rollouts: list[Rollout], lr: float) -> dict[str, float]:
        """num_iterations x num_mini_batches optimizer steps on one set of rollouts, whole groups next to each other; returns TRL's metrics.

        Raises UserError when the gradient stays non-finite.
        """
        spec, c = self.spec, self.c
        rewards = np.array([r.reward for r in rollouts]).reshape(-1, c.num_generations)
        metrics = {**group_metrics(rewards), **length_metrics(rollouts)}
        valid = np.isfinite(rewards)
        per_token = spec.advantage == "gae"
        shaped, kl = rewards, None
        if self.reference is not None and spec.kl_in == "reward" and not per_token:
            kl = self._sequence_kl(rollouts)
            shaped = rewards - spec.beta * kl.reshape(rewards.shape)
        # with a value model the score of a completion goes where its advantage will be
        adv = np.where(valid, rewards, 0.0) if per_token else advantages(np.where(valid, shaped, 0.0), spec.advantage, valid=valid)
        updates: list[dict[str, float]] = []
        parts = [self._prepared(chosen, a) for chosen, a in self._mini_batches(rollouts, shaped, adv, valid)]
        if per_token:
            kl = self._generalised(parts, metrics)
        for iteration in range(spec.num_iterations):
            for number, mini in enumerate(parts):
                if mini:
                    with np.errstate(over="ignore", invalid="ignore"):  # a step that is no number is skipped, and counted
                        updates.append(self._step(mini, lr, first=iteration == 0 and number == 0))
        if kl is not None and len(kl):
            metrics["objective/kl"] = float(kl.mean())  # of a completion, nats
            if self.adaptive is not None:
                self.spec = replace(spec, beta=self.adaptive.update(float(kl.mean()), len(kl)))
                metrics["beta"] = self.spec.beta
        if not updates:
            return metrics  # nothing to learn from: no loss, entropy or gradient to report
        shown = dict(updates[0])
        if len(updates) > 1:  # what the later ones tell: how far the policy has moved
            shown |= {k: float(np.mean([u[k] for u in updates])) for k in shown if k.startswith("clip_ratio/")}
        if skipped := sum(u.pop("skipped", 0.0) for u in updates):
            shown["skipped"] = skipped
        return metrics | {k: v for k, v in shown.items() if np.isfinite(v)}

    def _mini_batches(self, rollouts: list[Rollout], shaped: np.ndarray, adv: np.ndarray, valid: np.ndarray) -> list[tuple[list[Rollout], list[float]]]:
        """Rollouts and advantages of each optimizer step: those that have something to teach.

        Groups whose completions all earned the same have advantage 0: left out, of the denominators too, unless the loss has another term.
        """
        spec, G, P = self.spec, self.c.num_generations, len(shaped)
        other_terms = spec.entropy_coef != 0 or (self.reference is not None and spec.kl_in == "loss") or spec.advantage in ("gae", "none")
        learn = np.repeat(~dead(shaped) | other_terms, G) & valid.reshape(-1)
        if spec.mask_truncated_completions:
            learn &= [r.stopped or r.finish_reason in MISTAKES for r in rollouts]
        if spec.advantage == "best":
            learn &= adv.reshape(-1) > 0
        learn &= [r.length > 0 for r in rollouts]
        edges = [round(P * i / self.c.num_mini_batches) * G for i in range(self.c.num_mini_batches + 1)]
        out = []
        for begin, end in zip(edges, edges[1:]):
            use = [i for i in range(begin, end) if learn[i]]
            out.append(([rollouts[i] for i in use], [float(adv.reshape(-1)[i]) for i in use]))
        return out

    def _prepared(self, chosen: list[Rollout], adv: list[float]) -> list[_Part]:
        """The micro-batches of one optimizer step, with the log-probs of reference and trainer before the first update."""
        c, spec = self.c, self.spec
        parts = [_Part(b) for b in micro_batches(chosen, adv, self.model.max_tokens, self.model.max_seqs)]
        needs_reference = self.reference is not None and (spec.kl_in == "loss" or spec.advantage == "gae")
        for part in parts:
            if needs_reference:
                part.reference = self._reference(part.b)
            if spec.correction != "none":
                part.old = self.model.score(part.b.batch, c.temperature).logprobs
        return parts

    def _reference(self, b: RolloutBatch) -> np.ndarray:
        if self.reference is self.model:
            with self.model.without_adapter() as frozen:
                return frozen.score(b.batch, self.c.temperature).logprobs
        assert self.reference is not None
        return self.reference.score(b.batch, self.c.temperature).logprobs

    def _sequence_kl(self, rollouts: list[Rollout]) -> np.ndarray:
        """float64 [P G]: k1, summed over each completion."""
        assert self.reference is not None
        parts = []
        for begin, end in cuts(rollouts, self.reference.max_tokens, self.reference.max_seqs):
            b = lay_out(rollouts[begin:end], [0.0] * (end - begin))
            parts.append(-kl_in_reward(np.zeros(b.batch.n_seqs), b.behaviour_logprobs, self._reference(b), b.mask, b.batch.cu_seqlens, 1.0))
        return np.concatenate(parts)

    def _generalised(self, minis: list[list[_Part]], metrics: dict[str, float]) -> np.ndarray:
        """Fills in PPO's values, returns and advantages, whitened over the step; returns the KL of each completion.

        What stands in `advantages` of a part until now is the score of its completions.
        """
        assert self.value is not None
        spec, kls, every = self.spec, [], [part for mini in minis for part in mini]
        earned = [token_rewards(p.b.advantages[p.b.batch.cu_seqlens[:-1]], p.b.behaviour_logprobs, p.reference, p.b.mask, p.b.batch.cu_seqlens,
                                spec.beta if p.reference is not None else 0.0) for p in every]  # fmt: skip
        if self.c.whiten_rewards and every:
            inside = np.concatenate([r[p.b.mask > 0] for r, p in zip(earned, every)])
            earned = [r / np.sqrt(inside.var(ddof=1) + 1e-8) for r in earned] if len(inside) > 1 else earned
        for part, rewards in zip(every, earned):
            b, cu = part.b, part.b.batch.cu_seqlens
            part.values = self.value.values(b.batch)
            adv, part.returns = gae(rewards, part.values, b.mask, cu, spec.gamma, spec.lam)
            part.b = dataclasses.replace(b, advantages=adv.astype(np.float32))
            if part.reference is not None:
                kls.append(-kl_in_reward(np.zeros(b.batch.n_seqs), b.behaviour_logprobs, part.reference, b.mask, cu, 1.0))
        if every:
            if spec.whiten:
                white = whiten(np.concatenate([p.b.advantages for p in every]), np.concatenate([p.b.mask for p in every]))
                at = 0
                for part in every:
                    n = len(part.b.mask)
                    part.b = dataclasses.replace(part.b, advantages=white[at : at + n].astype(np.float32))
                    at += n
            target = np.concatenate([p.returns[p.b.mask > 0] for p in every])  # type: ignore[index]
            value = np.concatenate([p.values[p.b.mask > 0] for p in every])  # type: ignore[index]
            if target.var() > 0:
                metrics["critic/vf_explained_var"] = float(1 - (target - value).var() / target.var())
        return np.concatenate(kls) if kls else np.zeros(0)

    def _step(self, mini: list[_Part], lr: float, first: bool) -> dict[str, float]:
        """One optimizer step of the policy, and of the value model if there is one."""
        c, spec, model = self.c, self.spec, self.model
        counted = [count(p.b.mask, p.b.batch.cu_seqlens) for p in mini]
        totals = Totals(sum(t.sequences for t in counted), sum(t.tokens for t in counted))
        model.zero_grad()
        if self.value is not None:
            self.value.zero_grad()
        told = []
        for p in mini:
            b = p.b
            out = model.forward(b.batch, temperature=c.temperature)
            dlogprobs, dentropy, part = policy_loss(
                out.logprobs, b.behaviour_logprobs if p.old is None else p.old, b.advantages, b.mask, b.batch.cu_seqlens, spec, totals,
                sampler_logprobs=None if p.old is None else b.behaviour_logprobs, entropy=out.entropy, reference_logprobs=p.reference,
            )  # fmt: skip
            if first:
                _, trained, _ = check_batch(b.mask, b.batch.cu_seqlens)
                part |= sampling_metrics((out.logprobs.astype(np.float64) - b.behaviour_logprobs)[: len(trained)], trained, totals)
            model.backward(dlogprobs, dentropy)
            if self.value is not None:
                dvalues, more = value_loss(self.value.values(b.batch, keep=True), p.values, p.returns, b.mask, b.batch.cu_seqlens, totals,  # type: ignore[arg-type]
                                           coefficient=spec.vf_coef, cliprange=spec.cliprange_value)  # fmt: skip
                self.value.backward(dvalues)
                part |= more
            told.append(part)
        merged = merge_metrics(told)
        if self.ptx is not None:  # PPO-ptx (arXiv:2203.02155): the language-model loss of other text in the same step
            other = self.ptx.next_step()
            total = float(sum(m.weights.sum(dtype=np.float64) for m in other))
            outs = [(m, model.forward_backward(m.batch, (c.ptx_coef * sft_weights(m.weights, total)).astype(np.float32))) for m in other]
        merged["grad_norm"] = norm = model.adamw(lr, beta2=0.95, weight_decay=0.0, max_norm=c.max_grad_norm)
        if self.ptx is not None:  # looked at when the step is under way
            merged["loss/ptx"] = -sum(float(np.dot(out.logprobs.astype(np.float64), m.weights)) for m, out in outs) / total
        if self.value is not None and np.isfinite(norm):
            peak = c.peak_lr(model.config.d_model)
            rate = lr if c.value_lr is None else c.value_lr * (lr / peak if peak else 1.0)  # the same schedule
            merged["value/grad_norm"] = self.value.step(rate, max_norm=c.max_grad_norm)
            norm = max(norm, merged["value/grad_norm"]) if np.isfinite(merged["value/grad_norm"]) else merged["value/grad_norm"]
        self.bad = 0 if np.isfinite(norm) else self.bad + 1
        if not np.isfinite(norm):
            merged["skipped"] = 1.0
        if self.bad >= BAD_STEPS:
            raise UserError(f"the gradient was not finite in {self.bad} updates in a row; the last checkpoint is whole", hint="lower --lr")
        return merged


def length_metrics(rollouts: list[Rollout]) -> dict[str, float]:
    """TRL's completions/* and tools/*: lengths count what the model said."""
    lengths = np.array([r.length for r in rollouts])
    stopped = np.array([r.stopped for r in rollouts])
    out = {"completions/mean_length": float(lengths.mean()), "completions/min_length": float(lengths.min()), "completions/max_length": float(lengths.max()),
           "completions/clipped_ratio": float(np.mean(~stopped))}  # fmt: skip
    if stopped.any():
        out["completions/mean_terminated_length"] = float(lengths[stopped].mean())
    if any(r.environment is not None for r in rollouts):
        calls = sum(r.calls for r in rollouts)
        out["tools/call_frequency"] = calls / len(rollouts)
        out["tools/failure_frequency"] = sum(r.failed_calls for r in rollouts) / calls if calls else 0.0
        for reason in MISTAKES:
            if found := sum(r.finish_reason == reason for r in rollouts):
                out[f"tools/{reason}_ratio"] = found / len(rollouts)
    return out
