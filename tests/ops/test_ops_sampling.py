"""head_sample draws from the distribution the reference computes: supports, frequencies, ties, seeds."""

import numpy as np
import pytest
from op_cases import hows, normal

from freedive import ops
from freedive.reference import ops as reference

HOWS = hows("head_sample")
SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 100},
    {"top_p": 0.5},
    {"top_p": 0.9, "temperature": 1.5},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 6, "min_p": 0.15, "top_p": 0.8},
]


def rng(seed):
    return np.random.Generator(np.random.Philox(key=[seed, 8]))


def one_row(seed, V=12, C=5):
    r = rng(seed)
    return normal(r, 1, C), normal(r, V, C)


def draw(x, weight, n, how, seed=0, **settings):
    """n draws for the one row x, by counter"""
    return ops.head_sample(np.repeat(x, n, axis=0), weight, seeds=seed, counters=np.arange(n), **how, **settings)[0]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_frequencies(how, settings):
    """Chi-square against the exact probabilities. Seeds are fixed, so this either always passes or always fails"""
    n = 4000 if how["device"] == "cpu" else 250  # an emulated draw takes milliseconds
    for seed in (0, 1):
        x, weight = one_row(seed)
        mask = np.ones(12, np.uint8)
        mask[seed] = 0
        logits = np.where(mask == 0, -np.inf, reference.f64(weight) @ reference.f64(x[0]))
        p = reference.sampling_probabilities(logits, **({"temperature": 1.0} | settings))
        counts = np.bincount(draw(x, weight, n, how, vocab_mask=mask, **settings), minlength=12)
        assert (counts[p == 0] == 0).all(), "drew what was cut off"
        support = p > 0
        chi2 = ((counts - n * p)[support] ** 2 / (n * p[support])).sum()
        freedom = support.sum() - 1
        assert chi2 <= freedom + 5 * np.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("how", HOWS)
def test_supports_of_a_large_vocabulary(how):
    """Many rows, settings differing by row: every draw lies in the support NumPy computes"""
    r = rng(3)
    S, C, V = 200, 16, 700
    x, weight = normal(r, S, C), normal(r, V, C)
    top_k, top_p = r.choice([0, 1, 5, 50], size=S), r.choice([0.2, 0.7, 1.0], size=S)
    min_p, temperature = r.choice([0, 0.05, 0.5], size=S), r.choice([0.0, 0.5, 1.0, 2.0], size=S)
    tokens, _ = ops.head_sample(x, weight, temperature, top_k, top_p, min_p, seeds=np.arange(S), **how)
    logits = reference.f64(x) @ reference.f64(weight).T
    for s in range(S):
        # A hair of slack in the cuts: float32 logits may land on the other side of one
        p = reference.sampling_probabilities(
            logits[s], temperature[s], int(top_k[s]), min(1.0, top_p[s] + 1e-5), min_p[s] * (1 - 1e-5)
        )
        assert p[tokens[s]] > 0


@pytest.mark.parametrize("how", HOWS)
def test_ties_go_to_the_smallest_id(how):
    weight = np.zeros((40, 3), np.float32)
    weight[[7, 20, 33]] = 1
    x = np.ones((5, 3), np.float32)
    assert (ops.head_sample(x, weight, 0.0, **how)[0] == 7).all()
    assert set(draw(x[:1], weight, 300, how, top_k=2)) == {7, 20}
    mask = np.ones(40, np.uint8)
    mask[7] = 0
    assert (ops.head_sample(x, weight, 0.0, vocab_mask=mask, **how)[0] == 20).all()


@pytest.mark.parametrize("how", HOWS)
def test_seed_and_counter_decide(how):
    x, weight = one_row(5, V=200)
    first, again, other = draw(x, weight, 200, how), draw(x, weight, 200, how), draw(x, weight, 200, how, seed=2**63)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert len(set(first)) > 10


def test_variants_draw_the_same_tokens():
    x, weight = one_row(6, V=300)
    for settings in SETTINGS:
        draws = [draw(x, weight, 300, {"variant": variant}, **settings) for variant in ops.variants("head_sample")]
        for other in draws[1:]:
            np.testing.assert_array_equal(draws[0], other)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("top_k, top_p, min_p", [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1), (3, 0.9, 0.1)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_give_id_0(how: dict, top_k: int, top_p: float, min_p: float, bad: float):
    """Weights that have diverged: an id of the vocabulary and a log-prob that tells, not memory nobody wrote."""
    V, S = 37, 3
    weight = np.full((V, 4), bad, np.float32)
    out = {"tokens": np.full(S, -1, np.int32), "logprobs": np.zeros(S, np.float32)}
    ops.call("head_sample", **out, x=np.ones((S, 4), np.float32), weight=weight, temperature=np.array([0, 1, 0.5], np.float32),
             top_k=np.full(S, top_k, np.int32), top_p=np.full(S, top_p, np.float32), min_p=np.full(S, min_p, np.float32),
             seeds=np.arange(S, dtype=np.uint64), counters=np.zeros(S, np.uint64), **how)  # fmt: skip
    assert ((out["tokens"] >= 0) & (out["tokens"] < V)).all()
    assert np.isnan(out["logprobs"][1:]).all()
