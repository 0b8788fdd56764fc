"""What must hold of every member of the policy-loss family, whatever its numbers."""

import dataclasses

import numpy as np
import pytest

from freedive.objectives import PRESETS, PolicySpec, Totals, advantages, count, merge_metrics, policy_loss

LENGTHS = (3, 1, 0, 6, 4)
CU = np.concatenate([[0], np.cumsum(LENGTHS)])
N, S = sum(LENGTHS), len(LENGTHS)

SPECS = {name: dataclasses.replace(spec, max_completion_length=6) for name, spec in PRESETS.items()}
SPECS |= {
    "token_advantages": PolicySpec(aggregation="token"),
    "entropy": PolicySpec(aggregation="grpo", entropy_coef=0.1),
    "dual": PolicySpec(aggregation="sum", delta=1.5, epsilon_high=0.3),
    "k1": PolicySpec(aggregation="token", beta=0.3, kl="k1"),
    "k2": PolicySpec(aggregation="token", beta=0.3, kl="k2"),
    "k3_is": PolicySpec(aggregation="grpo", beta=0.3, kl="k3_is"),
    "tis": PolicySpec(aggregation="token", beta=0.3, correction="token_truncate", correction_low=0.9, correction_high=1.1),
    "mis": PolicySpec(aggregation="grpo", correction="token_mask", correction_low=0.9, correction_high=1.1),
    "gspo_tis": PolicySpec(aggregation="grpo", ratio="sequence", correction="sequence_truncate", correction_high=1.0),
}
SPECS["gspo_wide"] = dataclasses.replace(SPECS["gspo"], epsilon=0.1, epsilon_high=0.1)


def batch(name="", seed=0, noise=0.3):
    """Keyword arguments of policy_loss; log-probs wide enough apart that every branch of the clip is taken"""
    r = np.random.Generator(np.random.Philox(key=[seed, 11]))
    logprobs = -r.exponential(size=N)
    mask = (r.random(N) < 0.8).astype(np.uint8)
    mask[3] = 1
    return {
        "logprobs": logprobs,
        "behaviour_logprobs": logprobs + noise * r.normal(size=N),
        "advantages": r.normal(size=N if name == "token_advantages" else S),
        "mask": mask,
        "reference_logprobs": logprobs + 0.5 * r.normal(size=N),
        "sampler_logprobs": logprobs + 0.3 * r.normal(size=N),
        "entropy": r.random(N),
    }


def run(spec, arguments, cu=CU, totals=None):
    return policy_loss(cu_seqlens=cu, spec=spec, totals=totals or count(arguments["mask"], cu), **arguments)


def select(arguments, rows, sequences):
    """The same batch with other rows, in another order"""
    per_sequence = len(arguments["advantages"]) == S
    return {k: v[sequences] if k == "advantages" and per_sequence else v[rows] for k, v in arguments.items()}


def rows_of(sequences):
    return np.concatenate([np.arange(CU[s], CU[s + 1]) for s in sequences]).astype(int)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "cispo"])
def test_derivatives_are_finite_differences_of_the_loss(name):
    spec, arguments = SPECS[name], batch(name)
    dlogprobs, dentropy, _ = run(spec, arguments)
    step = 1e-6
    for key, got in (("logprobs", dlogprobs), ("entropy", dentropy if dentropy is not None else np.zeros(N))):
        for t in range(N):
            values = []
            for sign in (1, -1):
                moved = arguments[key].copy()
                moved[t] += sign * step
                values.append(run(spec, arguments | {key: moved})[2]["loss"])
            assert got[t] == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-8), (key, t)


def test_cispo_derivative_with_the_ratio_frozen():
    """-min(r, max) A is the slope of -frozen A l"""
    spec, arguments = dataclasses.replace(SPECS["cispo"], is_clip_max=1.1), batch()
    dlogprobs, _, metrics = run(spec, arguments)
    A = np.repeat(arguments["advantages"], LENGTHS)
    frozen = np.minimum(np.exp(arguments["logprobs"] - arguments["behaviour_logprobs"]), 1.1)
    mask = arguments["mask"] != 0
    np.testing.assert_allclose(dlogprobs, np.where(mask, -frozen * A / mask.sum(), 0), rtol=1e-6)
    assert metrics["clip_ratio/high_mean"] > 0


@pytest.mark.parametrize("name", SPECS)
def test_untrained_tokens_get_nothing_and_leak_nothing(name):
    arguments = batch(name)
    dlogprobs, dentropy, metrics = run(SPECS[name], arguments)
    out = arguments["mask"] == 0
    assert (dlogprobs[out] == 0).all() and dlogprobs.dtype == np.float32 and dlogprobs.shape == (N,)
    for key in ("logprobs", "behaviour_logprobs", "reference_logprobs", "sampler_logprobs", "entropy"):
        arguments[key] = np.where(out, np.nan, arguments[key])
    again = run(SPECS[name], arguments)
    np.testing.assert_array_equal(dlogprobs, again[0])
    assert metrics == again[2] and all(np.isfinite(value) for value in metrics.values())
    assert (dentropy is None) == (SPECS[name].entropy_coef == 0)


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_clipped_tokens_get_no_gradient(name):
    spec = dataclasses.replace(SPECS[name], beta=0.0)
    arguments = batch() | {"advantages": np.ones(S)}
    arguments["behaviour_logprobs"] = arguments["logprobs"] - 1
    dlogprobs, _, metrics = run(spec, arguments)
    assert (dlogprobs == 0).all() and metrics["clip_ratio/region_mean"] == 1


@pytest.mark.parametrize("name", SPECS)
def test_no_advantage_no_gradient(name):
    spec = dataclasses.replace(SPECS[name], beta=0.0)
    arguments = batch() | {"advantages": np.repeat(advantages([[0.1] * S], "grpo"), 1)}
    dlogprobs, _, _ = run(spec, arguments)
    assert (dlogprobs == 0).all()


@pytest.mark.parametrize("name", SPECS)
def test_order_of_sequences_does_not_matter(name):
    arguments = batch(name)
    order = [4, 2, 0, 3, 1]
    rows = rows_of(order)
    cu = np.concatenate([[0], np.cumsum([LENGTHS[s] for s in order])])
    a, b = run(SPECS[name], arguments), run(SPECS[name], select(arguments, rows, order), cu)
    np.testing.assert_array_equal(a[0][rows], b[0])
    assert a[2] == pytest.approx(b[2], rel=1e-12)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("cuts", [([0, 1, 2, 3], [4]), ([0], [1], [2], [3], [4]), ([3, 1], [2, 4, 0])])
def test_micro_batches_change_nothing(name, cuts):
    arguments = batch(name)
    totals = count(arguments["mask"], CU)
    whole = run(SPECS[name], arguments)
    parts, got, counted = [], np.zeros(N, np.float32), Totals(0, 0)
    for sequences in cuts:
        rows = rows_of(sequences)
        cu = np.concatenate([[0], np.cumsum([LENGTHS[s] for s in sequences])])
        part = select(arguments, rows, sequences)
        dlogprobs, _, metrics = run(SPECS[name], part, cu, totals)
        got[rows] = dlogprobs
        parts.append(metrics)
        counted = counted + count(part["mask"], cu)
    assert counted == totals
    np.testing.assert_array_equal(got, whole[0])
    assert merge_metrics(parts) == pytest.approx(whole[2], rel=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_an_unused_tail_changes_nothing(name):
    arguments = batch(name)
    whole = run(SPECS[name], arguments)
    longer = {
        k: v if k == "advantages" and len(v) == S else np.append(v, np.full(7, 1 if k == "mask" else np.nan))
        for k, v in arguments.items()
    }
    got = run(SPECS[name], longer)
    np.testing.assert_array_equal(got[0][:N], whole[0])
    assert (got[0][N:] == 0).all() and got[2] == whole[2]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "r1"])
def test_on_policy_it_is_reinforce(name):
    """At ratio 1 all of them are the score function with a baseline, up to the aggregation"""
    arguments = batch(noise=0.0)
    spec = dataclasses.replace(SPECS[name], beta=0.0)
    reinforce = dataclasses.replace(spec, loss="reinforce", ratio="token")
    np.testing.assert_allclose(run(spec, arguments)[0], run(reinforce, arguments)[0], rtol=1e-6)


def test_a_sequence_without_trained_tokens_does_not_count():
    mask = np.array([1, 1, 0, 0, 1])
    assert count(mask, [0, 2, 4, 4, 5]) == Totals(sequences=2, tokens=3)


def test_nothing_trained_is_no_error():
    zeros = np.zeros(3)
    dlogprobs, _, metrics = policy_loss(zeros, zeros, [1.0], zeros, [0, 3], PolicySpec(aggregation="token"), Totals(0, 0))
    assert (dlogprobs == 0).all() and metrics["loss"] == 0
    dlogprobs, _, _ = policy_loss([], [], [], [], [0], PolicySpec(aggregation="token"), Totals(0, 0))
    assert dlogprobs.shape == (0,)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"logprobs": np.zeros(2)}, "logprobs must have the mask's shape"),
        ({"advantages": np.zeros(3)}, "one per sequence"),
        ({"cu_seqlens": [0, 9]}, "at least cu_seqlens"),
        ({"cu_seqlens": [1, 4]}, "begin with 0"),
        ({"cu_seqlens": [0, 3, 2]}, "not decrease"),
        ({"totals": Totals(0, 0)}, "whole step"),
        ({"spec": PolicySpec(beta=0.1, aggregation="token")}, "needs reference_logprobs"),
        ({"spec": PolicySpec(correction="token_mask", aggregation="token")}, "needs sampler_logprobs"),
        ({"spec": PolicySpec(aggregation="dr_grpo")}, "max_completion_length"),
    ],
)
def test_bad_arguments(change, message):
    good = {
        "logprobs": np.zeros(4),
        "behaviour_logprobs": np.zeros(4),
        "advantages": np.ones(1),
        "mask": np.ones(4),
        "cu_seqlens": [0, 4],
        "spec": PolicySpec(aggregation="token"),
        "totals": Totals(1, 4),
    }
    policy_loss(**good)
    with pytest.raises(ValueError, match=message):
        policy_loss(**(good | change))


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "ppo"},
        {"aggregation": "mean"},
        {"kl": "k4"},
        {"delta": 0.5},
        {"epsilon": -1},
        {"ratio": "sequence", "loss": "cispo"},
    ],
)
def test_bad_specs(fields):
    with pytest.raises(ValueError):
        PolicySpec(**fields)
