"""Numbers worked out by hand or by full enumeration: advantages, aggregation, clipping, KL estimators, corrections, shapers."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from freedive.objectives import (
    PRESETS,
    PolicySpec,
    Totals,
    advantages,
    best_of_n_kl,
    cosine_reward,
    count,
    kl_in_reward,
    pass_at_k,
    policy_loss,
    repetition_penalty,
    reward_metrics,
    sft_weights,
    soft_overlong,
    zero_std,
)
from freedive.objectives.policy import correction_weights, kl_term

R = [[1, 0, 0, 1]]
ONE_HIT = [[1, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    "kind, rewards, want",
    [
        ("grpo", R, [0.865875, -0.865875, -0.865875, 0.865875]),
        ("dr_grpo", R, [0.5, -0.5, -0.5, 0.5]),
        ("rloo", R, [2 / 3, -2 / 3, -2 / 3, 2 / 3]),
        ("batch", R, [0.865875, -0.865875, -0.865875, 0.865875]),  # one group: the batch is the group
        ("maxrl", R, [1, -1, -1, 1]),
        ("none", R, [1, 0, 0, 1]),
        ("grpo", ONE_HIT, [2.474174] + 7 * [-0.353453]),
        ("maxrl", ONE_HIT, [7] + 7 * [-1]),
    ],
)
def test_advantages(kind, rewards, want):
    np.testing.assert_allclose(advantages(rewards, kind)[0], want, atol=1e-6)


def test_leave_one_out_is_a_scaled_group_mean():
    r = np.random.default_rng(0).normal(size=(5, 6))
    loo = np.array([[row[i] - np.delete(row, i).mean() for i in range(6)] for row in r])
    np.testing.assert_allclose(advantages(r, "rloo"), loo, atol=1e-12)
    np.testing.assert_allclose(advantages(r, "dr_grpo") * 6 / 5, loo, atol=1e-12)


def test_batch_std_is_over_all_groups():
    r = np.array([[0.0, 1.0], [5.0, 5.0], [2.0, 6.0]])
    want = np.array([[-0.5, 0.5], [0, 0], [-2, 2]]) / (r.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(advantages(r, "batch"), want)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo", "batch", "maxrl"])
def test_a_group_of_equal_rewards_is_exactly_zero(kind):
    r = np.array([[0.1, 0.1, 0.1], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])  # 0.1 - mean is not 0 in floating point
    assert (advantages(r, kind)[:2] == 0).all() and (advantages(r, kind)[2] != 0).all()
    assert zero_std(r).tolist() == [True, True, False]
    assert reward_metrics(r)["frac_reward_zero_std"] == pytest.approx(2 / 3)


def test_reward_metrics():
    assert reward_metrics(R + [[1, 1, 1, 1]]) == {
        "reward": 0.75,
        "reward_std": pytest.approx(0.577350 / 2, abs=1e-6),
        "frac_reward_zero_std": 0.5,
    }


@pytest.mark.parametrize(
    "rewards, kind, message",
    [
        ([[1.0]], "grpo", "at least 2"),
        ([1.0, 2.0], "grpo", "shape"),
        ([[np.nan, 1.0]], "grpo", "finite"),
        ([[-1.0, 1.0]], "maxrl", "zero or more"),
        (R, "gae", "unknown advantage 'gae'"),
    ],
)
def test_bad_rewards(rewards, kind, message):
    with pytest.raises(ValueError, match=message):
        advantages(rewards, kind)


@pytest.mark.parametrize(
    "p, want", [(0.05, [0.905, 0.815, 0.663, 0.440]), (0.18, [0.705, 0.453, 0.204, 0.042]), (0.5, [0.5, 0.125, 0.008, 0])]
)
def test_share_of_groups_without_a_signal(p, want):
    for G, expected in zip((2, 4, 8, 16), want):
        if G > 8:
            continue  # enumeration of 2^G outcomes
        outcomes = np.array(list(itertools.product([0, 1], repeat=G)))
        probability = np.prod(np.where(outcomes == 1, p, 1 - p), axis=1)
        assert probability[zero_std(outcomes)].sum() == pytest.approx(expected, abs=6e-4)


# Two sequences of 2 and 6 tokens, advantages +1 and -1, ratio 1: the loss of a token is -A
CU = np.array([0, 2, 8])


@pytest.mark.parametrize("aggregation, want", [("grpo", 0.0), ("token", 0.5), ("dr_grpo", 0.25), ("sum", 2.0)])
def test_aggregation(aggregation, want):
    spec = PolicySpec(aggregation=aggregation, max_completion_length=8)
    l, mask = np.full(8, -1.0), np.ones(8)
    dlogprobs, _, metrics = policy_loss(l, l, [1.0, -1.0], mask, CU, spec, count(mask, CU))
    assert metrics["loss"] == pytest.approx(want, abs=1e-12)
    share = {"grpo": [1 / 4, 1 / 12], "token": [1 / 8, 1 / 8], "dr_grpo": [1 / 16, 1 / 16], "sum": [1 / 2, 1 / 2]}[aggregation]
    np.testing.assert_allclose(dlogprobs, np.repeat([-share[0], share[1]], [2, 6]), rtol=1e-6)


def one_token(spec, ratio, A, l=-1.0):
    return policy_loss([l], [l - math.log(ratio)], [A], [1], [0, 1], spec, Totals(1, 1))


@pytest.mark.parametrize(
    "ratio, A, want, slope",
    [(1.5, 1, -1.28, 0), (1.5, -1, 1.5, 1.5), (0.5, 1, -0.5, -0.5), (0.5, -1, 0.8, 0), (1.25, 1, -1.25, -1.25), (10, -1, 10, 10)],
)
def test_clip(ratio, A, want, slope):
    dlogprobs, dentropy, metrics = one_token(PolicySpec(epsilon_high=0.28, aggregation="token"), ratio, A)
    assert metrics["loss"] == pytest.approx(want) and dlogprobs[0] == pytest.approx(slope) and dentropy is None
    assert metrics["clip_ratio/low_mean"] == (ratio == 0.5 and A < 0)
    assert metrics["clip_ratio/high_mean"] == (ratio == 1.5 and A > 0)
    assert metrics["clip_ratio/region_mean"] == (slope == 0)


@pytest.mark.parametrize("ratio, A, want, slope", [(10, -1, 3, 0), (2, -1, 2, 2), (10, 1, -1.28, 0), (0.5, -1, 0.8, 0)])
def test_dual_clip(ratio, A, want, slope):
    dlogprobs, _, metrics = one_token(PolicySpec(epsilon_high=0.28, delta=3.0, aggregation="token"), ratio, A)
    assert metrics["loss"] == pytest.approx(want) and dlogprobs[0] == pytest.approx(slope)


def test_gspo_ratio_is_the_geometric_mean():
    log_ratio = np.array([0.1, -0.3, 0.2, 0.4])
    spec = dataclasses.replace(PRESETS["gspo"], epsilon=10.0, epsilon_high=10.0)
    dlogprobs, _, metrics = policy_loss(log_ratio - 1, np.full(4, -1.0), [1.0], np.ones(4), [0, 4], spec, Totals(1, 4))
    assert metrics["loss"] == pytest.approx(-1.105171, abs=1e-6)
    np.testing.assert_allclose(dlogprobs, -1.105171 / 4, atol=1e-6)
    dlogprobs, _, metrics = policy_loss(log_ratio - 1, np.full(4, -1.0), [1.0], np.ones(4), [0, 4], PRESETS["gspo"], Totals(1, 4))
    assert (dlogprobs == 0).all() and metrics["clip_ratio/high_mean"] == 1


def test_cispo_bound_is_absolute():
    for ratio, coefficient in ((0.01, 0.01), (1.5, 1.5), (4.9, 4.9), (7.0, 5.0)):
        for A in (1.0, -2.0):
            dlogprobs, _, metrics = one_token(PRESETS["cispo"], ratio, A)
            assert dlogprobs[0] == pytest.approx(-coefficient * A)  # never zero: every token keeps a gradient
            assert metrics["loss"] == pytest.approx(-coefficient * A * -1.0)


# KL estimators, policy -1.0, reference -1.5


@pytest.mark.parametrize("kind, want", [("k1", 0.5), ("k2", 0.125), ("k3", 0.106531)])
def test_kl_estimators(kind, want):
    assert kl_term(kind, np.array([-1.0]), np.array([-1.5]), np.ones(1))[0][0] == pytest.approx(want, abs=1e-6)
    spec = PolicySpec(aggregation="token", beta=2.0, kl=kind)
    _, _, metrics = policy_loss([-1.0], [-1.0], [0.0], [1], [0, 1], spec, Totals(1, 1), reference_logprobs=[-1.5])
    assert metrics["kl"] == pytest.approx(want, abs=1e-6) and metrics["loss"] == pytest.approx(2 * want, abs=2e-6)


def softmax(theta):
    e = np.exp(theta - theta.max())
    return e / e.sum()


def test_kl_gradients_by_enumeration():
    """Expected over a categorical policy: what each estimator's gradient really is"""
    rng = np.random.default_rng(0)
    V = 6
    theta, theta_ref = rng.normal(size=V), rng.normal(size=V)
    p, q = softmax(theta), softmax(theta_ref)
    score = np.eye(V) - p  # score[x] = gradient of log p(x)
    numeric = lambda f: np.array([(f(softmax(theta + 1e-6 * e)) - f(softmax(theta - 1e-6 * e))) / 2e-6 for e in np.eye(V)])
    reverse = numeric(lambda p: (p * np.log(p / q)).sum())
    forward = numeric(lambda p: (q * np.log(q / p)).sum())
    kl = (p * np.log(p / q)).sum()
    for kind, gradient in (("k1", np.zeros(V)), ("k2", reverse), ("k3", forward), ("k3_is", reverse)):
        value, slope = kl_term(kind, np.log(p), np.log(q), np.ones(V))
        np.testing.assert_allclose((p[:, None] * slope[:, None] * score).sum(0), gradient, atol=1e-8)
        if kind != "k2":
            assert (p * value).sum() == pytest.approx(kl, abs=1e-12)
    # k1 in the reward: the score function carries it. Reward -k1 alone gives -gradient of KL(policy, reference)
    rewards = kl_in_reward(np.zeros(V), np.log(p), np.log(q), np.ones(V), np.arange(V + 1), beta=1.0)
    np.testing.assert_allclose((p[:, None] * rewards[:, None] * score).sum(0), -reverse, atol=1e-8)


@pytest.mark.parametrize("kind, unbiased", [("rloo", 1.0), ("dr_grpo", 0.5)])
def test_baselines_by_enumeration_of_groups_of_two(kind, unbiased):
    """The leave-one-out baseline is unbiased; the group's mean gives (G-1)/G of the gradient"""
    rng = np.random.default_rng(1)
    V = 5
    theta, reward = rng.normal(size=V), rng.normal(size=V)
    p = softmax(theta)
    score = np.eye(V) - p
    want = (p[:, None] * reward[:, None] * score).sum(0)
    got = np.zeros(V)
    for a, b in itertools.product(range(V), repeat=2):
        A = advantages([[reward[a], reward[b]]], kind)[0]
        got += p[a] * p[b] * (A[0] * score[a] + A[1] * score[b]) / 2
    np.testing.assert_allclose(got, unbiased * want, atol=1e-12)


# Rollout correction, weights .3 .9 2.7, bounds [.5, 2]


@pytest.mark.parametrize(
    "correction, want",
    [
        ("token_truncate", [0.5, 0.9, 2.0]),
        ("token_mask", [0, 0.9, 0]),
        ("sequence_truncate", [0.729] * 3),  # .3 * .9 * 2.7
        ("sequence_mask", [0.729] * 3),
    ],
)
def test_correction(correction, want):
    w = np.array([0.3, 0.9, 2.7])
    spec = PolicySpec(aggregation="token", correction=correction, correction_low=0.5, correction_high=2.0)
    np.testing.assert_allclose(correction_weights(spec, np.log(w), np.full(3, np.log(w).sum())), want, atol=1e-6)
    l = np.full(3, -1.0)
    dlogprobs, _, metrics = policy_loss(l, l, [1.0], np.ones(3), [0, 3], spec, Totals(1, 3), sampler_logprobs=l - np.log(w))
    np.testing.assert_allclose(dlogprobs, -np.array(want) / 3, atol=1e-6)
    assert metrics["sampling/importance_sampling_ratio/min"] == pytest.approx(0.3)
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.3)
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(2.7)
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(-math.log(0.3))


def test_same_engines_need_no_correction():
    l = np.random.default_rng(0).normal(size=8)
    plain = policy_loss(l, l, [1.0, -1.0], np.ones(8), CU, PolicySpec(aggregation="token"), Totals(2, 8))
    for correction in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        spec = PolicySpec(aggregation="token", correction=correction)
        corrected = policy_loss(l, l, [1.0, -1.0], np.ones(8), CU, spec, Totals(2, 8), sampler_logprobs=l)
        np.testing.assert_array_equal(plain[0], corrected[0])
        assert plain[2]["loss"] == corrected[2]["loss"]


# Shapers and evaluation


@pytest.mark.parametrize("length, want", [(80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1)])
def test_soft_overlong(length, want):
    assert soft_overlong(length, 100, 20) == pytest.approx(want)


def test_cosine_reward():
    assert cosine_reward(True, 50, 100) == pytest.approx(0.75) and cosine_reward(False, 50, 100) == pytest.approx(-0.75)
    assert [cosine_reward(True, n, 100) for n in (0, 100, 200)] == pytest.approx([1, 0.5, 0.5])
    assert [cosine_reward(False, n, 100) for n in (0, 100)] == pytest.approx([-1, -0.5])


def test_repetition_penalty():
    assert repetition_penalty([5, 5, 5, 5, 5], 2) == -0.75
    assert repetition_penalty([1, 2, 3, 4], 2) == 0 and repetition_penalty([1], 2) == 0 and repetition_penalty([], 1) == 0


def test_pass_at_k():
    assert [pass_at_k(10, 3, k) for k in (1, 5, 8)] == pytest.approx([0.3, 0.916667, 1.0], abs=1e-6)
    drawn = [any(i < 3 for i in chosen) for chosen in itertools.combinations(range(10), 5)]
    assert pass_at_k(10, 3, 5) == pytest.approx(np.mean(drawn))
    with pytest.raises(ValueError, match="k <= n"):
        pass_at_k(4, 1, 5)


def test_best_of_n_kl():
    assert [best_of_n_kl(n) for n in (1, 2, 4, 16, 64)] == pytest.approx([0, 0.193147, 0.636294, 1.835089, 3.174508], abs=1e-6)


def test_sft_weights():
    got = sft_weights([0, 1, 1, 0.5], total=5)
    np.testing.assert_allclose(got, [0, -0.2, -0.2, -0.1])
    assert got.dtype == np.float32
    for mask, total in (([1], 0), ([1], np.nan), ([-1], 1), ([np.nan], 1)):
        with pytest.raises(ValueError):
            sft_weights(mask, total)
