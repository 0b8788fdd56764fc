"""What a step trains on is a function of the seed and the step: nothing twice, nothing left out, and a resumed run sees the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from freedive.runs import UserError
from freedive.train import Documents, MicroBatch, Mixture, Rows, SequenceLoader, learning_rate

CONTEXT = 16


def documents(lengths: tuple[int, ...] = (5, 40, 1, 100, 16, 17, 33)) -> list[np.ndarray]:
    """Every token of every document has an id of its own."""
    at = np.cumsum([0, *lengths]) + 1
    return [np.arange(a, b, dtype=np.int32) for a, b in zip(at[:-1], at[1:])]


def make(seed: int = 3, batch: int = 64, micro: int = 32, max_seqs: int = 8, bos: int | None = 0, **kwargs: Any) -> SequenceLoader:
    return SequenceLoader(Documents(documents(**kwargs), CONTEXT, bos, seed), batch, micro, max_seqs, seed)


def flat(step: list[MicroBatch]) -> list[bytes]:
    return [a.tobytes() for m in step for a in (m.batch.tokens, m.batch.targets, m.batch.positions, m.batch.cu_seqlens, m.weights)]


@pytest.mark.parametrize("bos", [0, None])
def test_every_token_is_predicted_once_an_epoch(bos: int | None):
    source = Documents(documents(), CONTEXT, bos, seed=3)
    texts = [d for d in documents() if len(d) > (bos is None)]
    for epoch in range(4):
        predicted: Counter[int] = Counter()
        for i in range(source.begin_epoch(epoch)):
            ids, targets, weights = source.get(i)
            assert len(ids) == len(targets) == len(weights) <= CONTEXT and (weights == 1).all()
            assert (ids[1:] == targets[:-1]).all()
            predicted.update(targets.tolist())
        wanted = Counter([i for d in texts for i in (d if bos is not None else d[1:]).tolist()])
        if bos is not None:
            wanted[bos] = len(texts)  # each document's end
        assert predicted == wanted and sum(predicted.values()) == source.n_targets


def test_windows_are_cut_elsewhere_in_each_epoch():
    source = Documents(documents(), CONTEXT, 0, seed=3)

    def cuts(epoch: int) -> set[tuple[int, int]]:
        return {(int(i[0]), len(i)) for i, _, _ in (source.get(k) for k in range(source.begin_epoch(epoch)))}

    assert cuts(0) == cuts(0) and len({frozenset(cuts(e)) for e in range(5)}) == 5


def test_the_loader_delivers_whole_epochs():
    loader, seen, epoch = make(), [], 0
    while loader.epoch < 3:
        epoch = loader.epoch
        for m in loader.next_step():
            seen += m.batch.targets.tolist()
    counts = Counter(seen)
    assert {counts[i] for d in documents() for i in d.tolist()} <= {3, 4} and epoch == 2  # a step may reach into the next epoch


def test_capacities_are_kept():
    loader = make(max_seqs=3)
    for _ in range(50):
        step = loader.next_step()
        assert 64 - CONTEXT < sum(m.batch.n_tokens for m in step) <= 64
        for m in step:
            assert m.batch.n_tokens <= 32 and m.batch.n_seqs <= 3 and len(m.weights) == m.batch.n_tokens
            for a, b in zip(m.batch.cu_seqlens, m.batch.cu_seqlens[1:]):
                assert (m.batch.positions[a:b] == np.arange(b - a)).all()


def test_order_depends_on_the_seed_only():
    first, again, other = ([flat(loader.next_step()) for _ in range(20)] for loader in (make(3), make(3), make(4)))
    assert first == again and first != other


def test_what_a_step_holds_does_not_depend_on_micro_batches():
    tokens = lambda step: np.concatenate([m.batch.tokens for m in step]).tobytes()
    small, large = make(micro=16), make(micro=64)
    assert [tokens(small.next_step()) for _ in range(20)] == [tokens(large.next_step()) for _ in range(20)]


@pytest.mark.parametrize("after", [0, 1, 4, 5, 11])
def test_a_resumed_loader_goes_on_with_the_same_batches(after: int):
    loader = make()
    for _ in range(after):
        loader.next_step()
    state = loader.state()
    expected = [flat(loader.next_step()) for _ in range(15)]
    resumed = make()
    resumed.next_step()
    resumed.load_state(state)
    assert [flat(resumed.next_step()) for _ in range(15)] == expected


def test_rows_shift_the_mask_to_the_predicting_position():
    ids, targets, weights = Rows.from_masked([10, 11, 12, 13, 14], [0, 0, 1, 1, 0])
    assert ids.tolist() == [10, 11, 12, 13] and targets.tolist() == [-1, 12, 13, -1] and weights.tolist() == [0, 1, 1, 0]


def test_nothing_to_train_on():
    for call in (lambda: Rows([]), lambda: Documents([], 8, 0, 0), lambda: Documents([np.array([3], np.int32)], 8, None, 0)):
        with pytest.raises(UserError):
            call()


def test_a_row_longer_than_a_micro_batch():
    row = Rows.from_masked(list(range(50)), [1] * 50)
    with pytest.raises(UserError, match="49 tokens is longer than a micro-batch of 32"):
        SequenceLoader(Rows([row]), 64, 32, 8, 0).next_step()


def test_schedule_rises_then_falls_to_the_end():
    rates = [learning_rate(s, 100, 2.0, 10, 0.1) for s in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == 2.0 and rates[-1] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True) and max(rates) == 2.0
    assert learning_rate(0, 1, 1.0, 0) == 0.0 and learning_rate(99, 100, 1.0, 0) == pytest.approx(0.0)
    assert all(0 <= learning_rate(s, 5, 1.0, 9) <= 1 for s in range(5))  # a warm-up longer than the run


def test_a_mixture_has_every_row_and_its_share_of_text():
    rows = [Rows.from_masked([200 + i] * (3 + i % 5), [0, 1, 1, 1, 1, 1, 1][: 3 + i % 5]) for i in range(40)]
    row_tokens = sum(len(r[0]) for r in rows)
    for share in (0.0, 0.25, 0.5, 0.9):
        source = Mixture(rows, Documents(documents(), CONTEXT, 0, 3), share, 3)
        epochs = []
        for epoch in (0, 1, 0):
            examples = [source.get(i) for i in range(source.begin_epoch(epoch))]
            assert all(a is b for a, b in zip(examples, rows))
            text = examples[len(rows) :]
            tokens = sum(len(ids) for ids, _, _ in text)
            assert 0 <= tokens - share / (1 - share) * row_tokens < CONTEXT + 1
            assert all((weights == 1).all() for _, _, weights in text)
            epochs.append([ids.tobytes() for ids, _, _ in text])
        assert epochs[0] == epochs[2] and (share == 0 or epochs[0] != epochs[1])
