"""Training objectives: pure NumPy functions from a model's per-token outputs to the derivatives of the loss by them.

Everything is flat: entry t of every per-token array is about targets[t]; sequence s is entries cu_seqlens[s] up to
cu_seqlens[s+1]; what lies behind cu_seqlens[-1] is an unused tail and changes nothing. `model.backward` takes it from there.

Notation: l = log-prob now, b = behaviour log-prob (when the token was drawn), f = reference model's, A = advantage,
r = exp(l - b), w = the token's share of the loss (see `aggregation` below), H = entropy. Loss = sum over trained tokens:

| objective                    | term of the loss                      | derivative by l (by H)                                 |
|------------------------------|---------------------------------------|--------------------------------------------------------|
| pretrain, SFT                | -w l,  w = weight / total             | -w                                                     |
| reinforce                    | -w A l                                | -w A                                                   |
| clip, token ratio            | -w min(r A, clip(r) A)                | -w A r, or 0 where the clipped branch is smaller       |
| ... dual clip (delta)        | A < 0: -w max(that, delta A)          | 0 also where r > delta                                 |
| clip, sequence ratio (GSPO)  | same, s = exp(mean over tokens l - b) | -(s / L) sum over the sequence's unclipped t of w_t A_t|
| cispo                        | -w min(r, is_clip_max) A l, r frozen  | -w A min(r, is_clip_max)                               |
| KL k1, d = l - f             | w beta d                              | w beta           (expectation: zero)                   |
| KL k2                        | w beta d^2 / 2                        | w beta d         (expectation: grad KL(now, ref))      |
| KL k3                        | w beta (exp(-d) - 1 + d)              | w beta (1 - exp(-d))  (grad KL(ref, now))              |
| KL k3_is                     | w beta r k3, r not frozen             | w beta r (k3 + 1 - exp(-d))  (grad KL(now, ref))       |
| entropy bonus                | -w entropy_coef H                     | by H: -w entropy_coef                                  |
| PPO's value loss (by V)      | w vf_coef/2 max((V-R)^2, (clip V - R)^2) | w vf_coef (V - R), or 0 where the clipped branch is larger and flat |
| reward model (by scores r)   | mean over lists, over pairs of -log sigmoid(r_better - r_worse) | -sigmoid(-(r_better - r_worse)) for better, + for worse, shared out |
| DPO, h = log-ratio chosen - rejected | -log sigmoid(beta h) / pairs  | -+ beta sigmoid(-beta h) / pairs on each trained token |
| IPO, h of means              | (h - 1/(2 beta))^2 / pairs            | +- 2 (h - 1/(2 beta)) / (L pairs)                      |

A rollout correction (TIS, MIS) multiplies the policy term by a constant. Denominators are counted over the whole optimizer
step before the first forward, so cutting a step into micro-batches changes neither loss nor gradient.
"""

from .advantages import ADVANTAGES, advantages, reward_metrics, zero_std
from .policy import PRESETS, PolicySpec, Totals, count, kl_in_reward, merge_metrics, policy_loss
from .ppo import AdaptiveKL, gae, token_rewards, value_loss, whiten
from .preference import dpo_loss, ranking_loss, sequence_logps
from .rewards import best_of_n_kl, cosine_reward, pass_at_k, repetition_penalty, soft_overlong
from .supervised import sft_weights

__all__ = [
    "ADVANTAGES",
    "AdaptiveKL",
    "PRESETS",
    "PolicySpec",
    "Totals",
    "advantages",
    "best_of_n_kl",
    "cosine_reward",
    "count",
    "dpo_loss",
    "gae",
    "kl_in_reward",
    "merge_metrics",
    "pass_at_k",
    "policy_loss",
    "ranking_loss",
    "repetition_penalty",
    "reward_metrics",
    "sequence_logps",
    "sft_weights",
    "soft_overlong",
    "token_rewards",
    "value_loss",
    "whiten",
    "zero_std",
]
