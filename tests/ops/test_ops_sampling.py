"""head_sample draws from the distribution the reference computes: supports, frequencies, ties, seeds."""

import numpy as np
import pytest
from op_case import hows, normal

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


def uniforms(seed, counters):
    """uniform(seed, STREAM_SAMPLE, counter) of csrc/core/rng.h: Philox4x32-10 (Salmon et al., SC'11), in Python's own integers"""
    out = []
    for counter in map(int, counters):
        c, k, low = [counter & 0xFFFFFFFF, counter >> 32, 2, 0], [seed & 0xFFFFFFFF, seed >> 32], 0xFFFFFFFF
        for _ in range(10):
            p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(q >> 32) ^ c[1] ^ k[0], q & low, (p >> 32) ^ c[3] ^ k[1], p & low]
            k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
        out.append((c[0] >> 8) / 2**24)
    return np.array(out)


def check_each_draw(tokens, p, u, best_first):
    """Every token is where the cumulative sum of p, over ids or from the best on, passes its uniform number; a number on a border may fall either way"""
    order = np.lexsort((np.arange(len(p)), -p)) if best_first else np.arange(len(p))
    borders = np.cumsum(p[order])
    clear = np.abs(u[:, None] - borders[None, :-1]).min(1) > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(tokens[clear], order[np.minimum(np.searchsorted(borders, u, side="right"), len(p) - 1)][clear])


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_each_draw_is_its_uniform_number_turned_into_an_id(how, settings):
    """Not in the mean over many draws but every one. The CPU sums from the best candidate on where it has sorted them, over ids else; other devices over ids"""
    n, V = (1000, 300) if how["device"] == "cpu" else (40, 300)
    x, weight = one_row(7, V=V)
    mask = (rng(9).random(V) < 0.8).astype(np.uint8)
    logits = np.where(mask == 0, -np.inf, reference.f64(weight) @ reference.f64(x[0]))
    p = reference.sampling_probabilities(logits, **({"temperature": 1.0} | settings))
    cut = settings.get("top_k", 0) > 0 or settings.get("top_p", 1) < 1 or settings.get("min_p", 0) > 0
    for seed in (0, 2**40 + 3):
        tokens = draw(x, weight, n, how, seed=seed, vocab_mask=mask, **settings)
        check_each_draw(tokens, p, uniforms(seed, np.arange(n)), best_first=cut and how["device"] == "cpu")


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
