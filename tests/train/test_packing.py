"""Best-fit packing: nothing lost, nothing twice, bins full; who shares a batch changes no gradient; weighted sets keep their share."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.model import Batch, DecoderConfig, Model
from freedive.objectives import sft_weights
from freedive.runs import UserError
from freedive.train import Blend, PackedLoader, Rows
from freedive.train.loader import Example
from freedive.train.packing import best_fit

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=300)


def rows(lengths: list[int], seed: int = 1) -> list[Example]:
    """Conversations of random ids, a part of them learned; the first id names the row."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 6]))
    out = []
    for n in lengths:
        ids = rng.integers(0, 60, n + 1)
        out.append(Rows.from_masked(ids.tolist(), (rng.random(n + 1) < 0.5).astype(int).tolist()))
    return out


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(64, 200), st.integers(1, 9))
def test_every_sequence_is_in_one_bin_that_holds_it(lengths: list[int], capacity: int, most: int):
    bins = best_fit(lengths, capacity, most)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(len(b) <= most and sum(lengths[i] for i in b) <= capacity for b in bins)
    if most >= len(lengths):  # two bins that would go into one are never both left
        sizes = sorted(sum(lengths[i] for i in b) for b in bins)
        assert len(bins) < 2 or len(bins) > 64 or sizes[0] + sizes[1] > capacity


def test_bins_are_full():
    rng = np.random.default_rng(0)
    lengths = np.minimum(1024, rng.lognormal(5.0, 0.8, 4000).astype(int) + 8).tolist()  # as conversations are: many short, few long
    bins = best_fit(lengths, 2048, 512)
    assert sum(lengths) / (len(bins) * 2048) > 0.99


def test_a_sequence_too_long_is_told():
    with pytest.raises(ValueError, match="65 tokens"):
        best_fit([3, 65], 64, 4)
    with pytest.raises(UserError, match="longer than a micro-batch"):
        PackedLoader(Rows(rows([70, 3])), 64, 64, 8, 0)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=12), st.integers(0, 5))
def test_packed_gradients_are_those_of_each_conversation_alone(lengths: list[int], seed: int):
    """Forward bits are equal; sums over sequences are the same numbers added in another order, so gradients agree to rounding."""
    config = DecoderConfig(60, 2, 4, 2, 32, 8, 48, 64)
    model = Model(config, max_tokens=512, max_seqs=16, threads=1).init(3)
    examples = rows(lengths, seed)
    total = float(sum(w.sum() for _, _, w in examples)) or 1.0

    def run(batches: list[list[Example]]) -> tuple[list[np.ndarray], np.ndarray]:
        model.zero_grad()
        said = []
        for part in batches:
            weights = np.concatenate([w for _, _, w in part])
            out = model.forward_backward(Batch.pack([(i, t) for i, t, _ in part]), sft_weights(weights, total))
            said += np.split(out.logprobs, np.cumsum([len(i) for i, _, _ in part])[:-1])
        return said, np.concatenate([g.ravel() for g in model.gradients.values()])

    alone, one_by_one = run([[e] for e in examples])
    together, packed = run([examples])
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert np.linalg.norm(packed - one_by_one) <= 1e-6 * np.linalg.norm(one_by_one)


def test_epochs_are_whole_and_a_resumed_loader_goes_on():
    examples = rows(np.random.default_rng(2).integers(1, 60, 90).tolist())
    source = Rows(examples)

    def seen(loader: PackedLoader, steps: int) -> list[bytes]:
        return [m.batch.tokens.tobytes() for _ in range(steps) for m in loader.next_step()]

    loader = PackedLoader(source, 256, 128, 16, 7)
    assert loader.per_step == 2 and 0.9 < loader.fill <= 1
    counts: Counter[int] = Counter()
    for _ in range(len(loader.bins)):
        counts.update(len(i) for i in [loader.bins[loader.cursor]])
        loader.cursor += 1
    assert sum(len(b) for b in loader.bins) == len(examples)
    first = PackedLoader(source, 256, 128, 16, 7)
    whole = seen(first, 60)
    again = PackedLoader(source, 256, 128, 16, 7)
    start = seen(again, 31)
    other = PackedLoader(source, 256, 128, 16, 7)
    other.load_state(again.state())
    assert start + seen(other, 29) == whole and first.epoch > 1


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 9), (5, 5)])
def test_weighted_sets_have_their_share_and_repeat_nothing_early(weights: tuple[float, float]):
    parts = [rows([10] * 40, 1), rows([5] * 400, 2)]
    blend, seen = Blend(parts, weights, 3), Counter[int]()
    names = {id(r): (n, i) for n, part in enumerate(parts) for i, r in enumerate(part)}
    tokens = [0, 0]
    for epoch in range(4):
        assert blend.begin_epoch(epoch) == sum(blend.counts)
        for i in range(sum(blend.counts)):
            row = blend.get(i)
            seen[id(row)] += 1
            tokens[names[id(row)][0]] += len(row[0])
    assert abs(tokens[0] / sum(tokens) - weights[0] / sum(weights)) < 0.01
    for part in parts:
        times = [seen[id(r)] for r in part]
        assert max(times) - min(times) <= 1
