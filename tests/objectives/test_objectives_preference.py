"""Reward models' and DPO's losses: golden numbers, closed forms, finite differences, and what must not matter."""

import itertools
import math

import numpy as np
import pytest

from freedive.objectives import dpo_loss, merge_metrics, ranking_loss, sequence_logps
from freedive.objectives.preference import log_sigmoid, ranked_pairs

GOLDEN = np.array([2.0, 1.0, 0.5, -1.0])


def one(scores, ranks, **more):
    return ranking_loss(scores, ranks, [0, len(scores)], 1, **more)


def test_golden_list_of_four():
    d, told = one(GOLDEN, [0, 1, 2, 3])
    assert told["loss"] == pytest.approx(0.227613, abs=1e-6)
    np.testing.assert_allclose(d, [-0.083132, -0.037967, 0.062923, 0.058176], atol=1e-6)
    assert abs(d.sum()) < 1e-7 and told["accuracy"] == 1.0
    _, luce = one(GOLDEN, [0, 1, 2, 3], loss="plackett_luce")
    assert luce["loss"] * 3 == pytest.approx(1.251552, abs=1e-6)
    assert one(np.zeros(4), [3, 0, 1, 2])[1]["loss"] == pytest.approx(math.log(2))


def test_the_order_of_a_list_is_in_its_ranks_alone():
    order = np.array([2, 0, 3, 1])
    d, told = one(GOLDEN[order], np.arange(4)[order])
    np.testing.assert_allclose(d, one(GOLDEN, [0, 1, 2, 3])[0][order], atol=1e-7)
    assert told["loss"] == pytest.approx(0.227613, abs=1e-6)


@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce"])
def test_a_shift_changes_nothing_and_two_answers_are_a_pair(loss):
    for ranks in ([0, 1, 2, 3], [1, 0, 1, 0]):
        np.testing.assert_allclose(one(GOLDEN + 7, ranks, loss=loss)[0], one(GOLDEN, ranks, loss=loss)[0], atol=1e-7)
    d, told = one([0.3, -0.4], [0, 1], loss=loss)
    assert told["loss"] == pytest.approx(-float(log_sigmoid(0.7)))
    assert d[0] == pytest.approx(-1 / (1 + math.exp(0.7)), rel=1e-6) and d[1] == -d[0]


@pytest.mark.parametrize("more", [{}, {"center": 0.3}, {"loss": "plackett_luce"}, {"loss": "plackett_luce", "center": 0.1}, {"margins": [0.5, 0.0, 1.5]}])
def test_derivative_by_scores_is_its_finite_difference(more):
    rng = np.random.default_rng(0)
    scores, ranks, cu = rng.normal(size=9), [0, 1, 1, 2, 1, 0, 0, 1, 0], [0, 4, 6, 9]  # a tie in the first and the last
    d, _ = ranking_loss(scores, ranks, cu, 3, **more)
    for i in range(9):
        step = np.eye(9)[i] * 1e-6
        numeric = (ranking_loss(scores + step, ranks, cu, 3, **more)[1]["loss"] - ranking_loss(scores - step, ranks, cu, 3, **more)[1]["loss"]) / 2e-6
        assert d[i] == pytest.approx(numeric, abs=1e-6)


def test_a_tie_wants_no_margin():
    """Whatever the margin, two tied answers are best where they score the same, and cost log 2 there."""
    for margin in (0.0, 3.0):
        d, told = one([0.7, 0.7], [0, 0], margins=[margin])
        assert told["loss"] == pytest.approx(math.log(2)) and np.abs(d).max() < 1e-12
    np.testing.assert_allclose(one(GOLDEN, [1, 1, 1, 1], margins=[2.0])[0], one(GOLDEN, [1, 1, 1, 1])[0])
    mixed = one([1.0, 0.2, 0.1], [0, 1, 1], margins=[0.5])[1]["loss"]
    assert mixed == pytest.approx(-(log_sigmoid(0.8 - 0.5) + log_sigmoid(0.9 - 0.5) + (log_sigmoid(0.1) + log_sigmoid(-0.1)) / 2) / 3)


def test_micro_batches_add_up_and_ties_are_half_a_pair_each_way():
    rng = np.random.default_rng(1)
    scores, ranks = rng.normal(size=7), [0, 1, 2, 0, 1, 1, 0]
    whole, told = ranking_loss(scores, ranks, [0, 3, 5, 7], 3, center=0.1)
    parts = [ranking_loss(scores[a:b], ranks[a:b], np.array(cu), 3, center=0.1) for a, b, cu in ((0, 3, [0, 3]), (3, 7, [0, 2, 4]))]
    np.testing.assert_allclose(whole, np.concatenate([p[0] for p in parts]), atol=1e-7)
    assert merge_metrics(p[1] for p in parts) == pytest.approx(told)
    better, worse, weight = ranked_pairs([1, 0, 1])
    assert sorted(zip(better, worse, weight)) == [(0, 2, 0.5), (1, 0, 1.0), (1, 2, 1.0), (2, 0, 0.5)]
    assert one([1.0, 1.0, 0.0], [0, 0, 1])[1]["loss"] == pytest.approx((math.log(2) + 2 * -float(log_sigmoid(1.0))) / 3)


def test_centring_pulls_the_mean_to_nought_and_not_the_order():
    scores = GOLDEN + 5
    for _ in range(300):
        scores = scores - 0.5 * one(scores, [0, 1, 2, 3], center=0.05)[0]
    assert abs(scores.mean()) < 0.05 and (np.diff(scores) < 0).all()


def test_what_cannot_be_ranked():
    for bad in (dict(scores=[1.0], ranks=[0], cu_lists=[0, 1]), dict(scores=[1.0, 2.0], ranks=[0], cu_lists=[0, 2]), dict(scores=[1.0, 2.0], ranks=[0, 1], cu_lists=[0, 1])):
        with pytest.raises(ValueError):
            ranking_loss(total=1, **bad)
    with pytest.raises(ValueError, match="hinge"):
        one(GOLDEN, [0, 1, 2, 3], loss="hinge")


# ---- DPO -----------------------------------------------------------------------------------------------------------

CU = np.array([0, 3, 5, 9, 12])
MASK = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0])  # the last two: an unused tail
RNG = np.random.default_rng(2)
LOGPS, REFERENCE = -RNG.uniform(0.1, 3, 14), -RNG.uniform(0.1, 3, 14)


def dpo(logprobs, **more):
    mean = more.get("loss_type") == "ipo"
    return dpo_loss(logprobs, MASK, CU, sequence_logps(REFERENCE, MASK, CU, mean), 2, **more)


def test_golden_pair_and_the_start():
    d, told = dpo_loss([-1.2, -2.0], [1, 1], [0, 1, 2], [-1.5, -1.7], 1, beta=0.1)
    assert told["loss"] == pytest.approx(0.663597, abs=1e-6)
    assert (told["rewards/chosen"], told["rewards/rejected"], told["rewards/accuracies"]) == (pytest.approx(0.03), pytest.approx(-0.03), 1.0)
    d, told = dpo_loss(LOGPS, MASK, CU, sequence_logps(LOGPS, MASK, CU), 2, beta=0.1)
    assert told["loss"] == pytest.approx(math.log(2), abs=1e-12) and told["rewards/accuracies"] == 0.5
    sign = np.array([1, 1, 1, -1, -1, 1, 1, 1, 1, -1, -1, -1, 0, 0])
    np.testing.assert_allclose(d, -0.1 / 2 * sign * MASK / 2, atol=1e-8)  # -(beta/2) (grad chosen - grad rejected), averaged over 2 pairs
    assert dpo_loss(LOGPS, MASK, CU, sequence_logps(LOGPS, MASK, CU, True), 2, loss_type="ipo")[1]["loss"] == pytest.approx(25.0)


@pytest.mark.parametrize("more", [{}, {"beta": 0.7, "label_smoothing": 0.2}, {"loss_type": "ipo", "beta": 0.4}, {"rpo_alpha": 0.5}, {"loss_type": "ipo", "rpo_alpha": 1.0}])
def test_derivative_by_logprobs_is_its_finite_difference(more):
    d, _ = dpo(LOGPS, **more)
    for i in range(14):
        step = np.eye(14)[i] * 1e-6
        assert d[i] == pytest.approx((dpo(LOGPS + step, **more)[1]["loss"] - dpo(LOGPS - step, **more)[1]["loss"]) / 2e-6, abs=2e-6)
        assert MASK[i] or d[i] == 0


def test_a_swapped_pair_negates_its_margin():
    swapped = np.concatenate([np.arange(3, 5), np.arange(0, 3), np.arange(9, 12), np.arange(5, 9)])
    cu = np.cumsum([0, 2, 3, 3, 4])
    a = dpo(LOGPS)[1]
    b = dpo_loss(LOGPS[swapped], MASK[swapped], cu, sequence_logps(REFERENCE[swapped], MASK[swapped], cu), 2)[1]
    assert b["rewards/margins"] == pytest.approx(-a["rewards/margins"]) and b["rewards/chosen"] == pytest.approx(a["rewards/rejected"])


def test_pairs_may_be_cut_into_micro_batches():
    d, told = dpo(LOGPS, rpo_alpha=0.1)
    parts = []
    for p in (0, 1):
        begin, end = CU[2 * p], CU[2 * p + 2]
        cu = CU[2 * p : 2 * p + 3] - begin
        parts.append(dpo_loss(LOGPS[begin:end], MASK[begin:end], cu, sequence_logps(REFERENCE[begin:end], MASK[begin:end], cu), 2, rpo_alpha=0.1))
    np.testing.assert_allclose(d[:12], np.concatenate([p[0] for p in parts]), atol=1e-8)
    assert merge_metrics(p[1] for p in parts) == pytest.approx(told)


def test_the_optimum_of_a_bandit_is_the_tilted_reference():
    """Preferences drawn by Bradley-Terry from rewards r: DPO's minimum is pi ~ ref exp(r / beta)."""
    reward, reference, beta = np.array([1.0, 0.2, -0.5]), np.log([0.2, 0.5, 0.3]), 0.5
    theta = reference.copy()
    pairs = list(itertools.permutations(range(3), 2))
    for _ in range(4000):
        logp = theta - np.logaddexp.reduce(theta)
        gradient = np.zeros(3)
        for i, j in pairs:
            d, _ = dpo_loss([logp[i], logp[j]], [1, 1], [0, 1, 2], [reference[i], reference[j]], 1, beta=beta)
            share = 1 / (1 + math.exp(reward[j] - reward[i]))
            gradient[i] += share * d[0]
            gradient[j] += share * d[1]
        theta -= 2.0 * (gradient - np.exp(logp) * gradient.sum())
    want = np.exp(reference + reward / beta)
    np.testing.assert_allclose(np.exp(theta - np.logaddexp.reduce(theta)), want / want.sum(), atol=2e-3)


def test_odd_sequences_and_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="pairs"):
        dpo_loss(LOGPS[:3], MASK[:3], [0, 3], [0.0], 1)
    with pytest.raises(ValueError, match="hinge"):
        dpo(LOGPS, loss_type="hinge")
