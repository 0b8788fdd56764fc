"""PPO's values: the golden numbers of generalised advantage estimation, its limits, and the value loss against finite differences."""

import numpy as np
import pytest

from freedive.objectives import AdaptiveKL, Totals, advantages, count, gae, token_rewards, value_loss, whiten
from freedive.objectives.policy import PRESETS

R = np.array([-0.1, -0.2, -0.1, 1.0])
V = np.array([0.5, 0.4, 0.6, 0.7])
ONES, CU = np.ones(4), [0, 4]


@pytest.mark.parametrize("lam, want", [(1, [0.1, 0.3, 0.3, 0.3]), (0, [-0.2, 0, 0, 0.3]), (0.95, [0.057212, 0.27075, 0.285, 0.3])])
def test_gae(lam, want):
    adv, returns = gae(R, V, ONES, CU, lam=lam)
    np.testing.assert_allclose(adv, want, atol=1e-6)
    np.testing.assert_allclose(returns, adv + V)


def test_gae_with_lambda_1_is_the_return_less_the_value():
    adv, returns = gae(R, V, ONES, CU, lam=1)
    np.testing.assert_allclose(returns, R[::-1].cumsum()[::-1])
    adv, _ = gae([0, 0, 0, 1.0], np.full(4, 0.25), ONES, CU, lam=1)  # a constant value: REINFORCE with a baseline
    np.testing.assert_allclose(adv, 0.75)


def test_what_a_tool_said_is_no_step():
    """With ids of a tool between, the model's own tokens have the advantages they have without."""
    mask = np.array([0, 1, 1, 0, 0, 1, 1, 0])
    place = np.flatnonzero(mask)
    r, v = np.full(8, np.nan), np.full(8, 99.0)
    r[place], v[place] = R, V
    adv, returns = gae(r, v, mask, [0, 8])
    np.testing.assert_array_equal(adv[place], gae(R, V, ONES, CU)[0])
    assert (adv[mask == 0] == 0).all() and (returns[mask == 0] == 0).all()


def test_sequences_know_nothing_of_each_other():
    adv, _ = gae(np.tile(R, 2), np.tile(V, 2), np.ones(8), [0, 4, 8])
    np.testing.assert_array_equal(adv, np.tile(gae(R, V, ONES, CU)[0], 2))


def test_the_score_lands_on_the_end_of_the_turn():
    mask = np.array([0, 1, 1, 0, 0, 0, 1, 0])  # two sequences; the second ends with an id that is not the model's
    got = token_rewards([2.0, -1.0], np.full(8, -1.0), np.full(8, -1.5), mask, [0, 4, 8], 0.1)
    np.testing.assert_allclose(got, [0, -0.05, 1.95, 0, 0, 0, -1.05, 0])
    with pytest.raises(ValueError, match="reference"):
        token_rewards([0.0], [0.0], None, [1], [0, 1], 0.1)


def test_whitened_over_what_is_trained():
    mask = np.array([1, 0, 1, 1])
    got = whiten([1.0, 50.0, 2.0, 6.0], mask)
    assert got[1] == 0 and got[mask > 0].mean() == pytest.approx(0) and got[mask > 0].var(ddof=1) == pytest.approx(1)


def test_the_value_loss_is_its_own_finite_difference():
    rng = np.random.default_rng(0)
    old, returns = rng.normal(size=12), rng.normal(size=12)
    values, mask, cu = old + 0.3 * rng.normal(size=12), (rng.random(12) < 0.7).astype(float), [0, 5, 12]
    totals = count(mask, cu)
    loss = lambda v: value_loss(v, old, returns, mask, cu, totals)[1]["loss/value"]
    d, _ = value_loss(values, old, returns, mask, cu, totals)
    for t in range(12):
        e = np.eye(12)[t] * 1e-6
        assert d[t] == pytest.approx((loss(values + e) - loss(values - e)) / 2e-6, abs=1e-8)
    halves = [value_loss(values[a:b], old[a:b], returns[a:b], mask[a:b], [0, b - a], totals)[0] for a, b in ((0, 5), (5, 12))]
    np.testing.assert_array_equal(np.concatenate(halves), d)


def test_a_value_far_from_the_old_one_is_held():
    d, metrics = value_loss([1.0], [0.0], [2.0], [1], [0, 1], Totals(1, 1), coefficient=1.0)
    assert metrics["loss/value"] == pytest.approx((0.2 - 2) ** 2 / 2) and d[0] == 0 and metrics["val/clipfrac"] == 1


def test_beta_follows_the_kl():
    held = AdaptiveKL(0.1, target=6.0, horizon=100)
    assert held.update(60.0, 10) == pytest.approx(0.1 * 1.02)  # clipped at 0.2, times 10/100
    assert held.update(6.0, 10) == pytest.approx(0.1 * 1.02)
    assert held.update(0.0, 10) == pytest.approx(0.1 * 1.02 * 0.98)
    with pytest.raises(ValueError):
        AdaptiveKL(0.1, 0.0)


def test_a_completion_without_a_reward_is_no_part_of_its_group():
    r, valid = np.array([[1.0, 0.0, 9.0, 1.0], [9.0, 9.0, 9.0, 1.0]]), np.array([[1, 1, 0, 1], [0, 0, 0, 1]], bool)
    for kind in ("grpo", "dr_grpo", "rloo", "best"):
        got = advantages(r, kind, valid=valid)
        np.testing.assert_allclose(got[0, [0, 1, 3]], advantages([[1.0, 0.0, 1.0]], kind)[0])
        assert got[0, 2] == 0 and (got[1] == 0).all()
    assert (advantages(r, "batch", valid=np.ones((2, 4), bool)) == advantages(r, "batch")).all()


def test_the_best_of_n_is_sft_on_it():
    assert advantages([[0.0, 1.0, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 1.0]], "best").tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert PRESETS["rft"].loss == "reinforce" and PRESETS["ppo"].kl_in == "reward"


def test_the_adaptive_kl_never_turns_its_sign():
    beta = AdaptiveKL(0.05, 5.0, horizon=2)
    assert all(beta.update(0.0, 100) > 0 for _ in range(50)) and AdaptiveKL(0.05, 5.0).update(0.0, 100) == pytest.approx(0.05 * (1 - 0.2 * 100 / 10_000))
    with pytest.raises(ValueError, match="positive"):
        AdaptiveKL(0.05, float("nan"))
