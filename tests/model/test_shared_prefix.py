"""Batches in which sequences share their first rows, against the batch that repeats them: outputs to the bit, gradients but for their order of summation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import CONFIGS, generator, gradients, make_model, relative, same_bits

from freedive.model import Batch, DecoderConfig, LoRA, Model, init_adapter
from freedive.reference.decoder import Decoder

every_config = pytest.mark.parametrize("name", CONFIGS)
FIELDS = ("logprobs", "entropy", "lse")
TREE = (
    (12, 0, 0),
    (3, 0, 9),
    (7, 0, 12),
    (5, 0, 0),
    (1, 3, 4),
    (4, 0, 1),
    (6, 0, 0),
)  # own rows, of whom, how many: a whole sequence too, and one nobody shares


def both(config: DecoderConfig, tree: tuple[tuple[int, int, int], ...] = TREE, seed: int = 2) -> tuple[Batch, Batch, np.ndarray]:
    """The batch that shares, the one that repeats, and where the rows of the first stand in the second."""
    rng = generator(seed)
    shared, whole, rows, at = [], [], [], 0
    for own, parent, before in tree:
        ids = (
            np.concatenate([whole[parent][0][:before], rng.integers(0, config.vocab_size, own)])
            if before
            else rng.integers(0, config.vocab_size, own)
        )
        targets = np.full(len(ids), -1)
        targets[before:] = np.where(rng.random(own) < 0.2, -1, rng.integers(0, config.vocab_size, own))
        shared.append((ids[before:], targets[before:]))
        whole.append((ids, targets))
        rows.append(at + before + np.arange(own))
        at += len(ids)
    return Batch.pack(shared, [(parent, before) for _, parent, before in tree]), Batch.pack(whole), np.concatenate(rows)


def check(model: Model, shared: Batch, whole: Batch, rows: np.ndarray, tolerance: float) -> None:
    want = model.forward(whole, 0.8)
    d = generator(4).standard_normal((3, whole.n_tokens)).astype(np.float32)
    d[:, np.setdiff1d(np.arange(whole.n_tokens), rows)] = 0  # what is repeated has no say of its own
    model.zero_grad()
    model.backward(*d)
    wanted = gradients(model)
    got = model.forward(shared, 0.8)
    model.zero_grad()
    model.backward(*np.ascontiguousarray(d[:, rows]))
    for field in FIELDS:
        assert same_bits(getattr(got, field), getattr(want, field)[rows]), field
    size = np.sqrt(sum(np.linalg.norm(g) ** 2 for g in wanted.values()))
    for key, g in gradients(model).items():
        c = model.config
        zero = key.endswith("k_proj.bias") and c.position == "learned" and not c.qk_norm  # what is left of it is rounding, see test_model_reference
        assert np.linalg.norm(g - wanted[key]) < tolerance * (size if zero else max(np.linalg.norm(wanted[key]), 1e-3 * size)), key  # a lone token's q and k: 0, and rounding
    assert same_bits(model.score(shared, 0.8).logprobs, got.logprobs)


@every_config
@pytest.mark.parametrize(
    "dtype, tolerance", [("float32", 2e-5), ("bfloat16", 3e-2)]
)  # bfloat16 rounds what goes into the products, sums of shared rows among it
def test_sharing_is_repeating(name: str, dtype: str, tolerance: float):
    check(make_model(CONFIGS[name], dtype=dtype), *both(CONFIGS[name]), tolerance)


@pytest.mark.parametrize("capacity, seqs", [(38, 7), (60, 7), (256, 16)])  # one piece for nearly every sequence; two; one
def test_pieces_change_nothing(capacity: int, seqs: int):
    config = CONFIGS["llama_gqa"]
    shared, _, _ = both(config)
    d = generator(4).standard_normal(shared.n_tokens).astype(np.float32)
    told = []
    for model in (make_model(config, max_tokens=capacity, max_seqs=seqs), make_model(config)):
        out = model.forward_backward(shared, d)
        told.append((out.logprobs, gradients(model)))
    assert same_bits(told[0][0], told[1][0])
    assert all(same_bits(g, told[1][1][key]) for key, g in told[0][1].items())


def test_threads_change_nothing():
    config, told = CONFIGS["qwen3_tied"], []
    for threads in (1, 3):
        model, (shared, _, _) = make_model(config, threads=threads), both(config)
        out = model.forward_backward(shared, generator(4).standard_normal(shared.n_tokens).astype(np.float32))
        told.append((out.logprobs, gradients(model)))
    assert same_bits(told[0][0], told[1][0]) and all(same_bits(g, told[1][1][key]) for key, g in told[0][1].items())


def test_an_adapter_learns_the_same():
    config = CONFIGS["llama_gqa"]
    model = make_model(config, lora=LoRA(4, 8.0))
    init_adapter(model, 0)
    for view in model.adapter.values():
        view[...] = generator(9).standard_normal(view.shape).astype(np.float32) * 0.1
    model.touch()
    check(model, *both(config), 2e-5)


@every_config
def test_outputs_and_gradients_of_the_reference(name: str):
    config = CONFIGS[name]
    model, (shared, _, _) = make_model(config), both(config)
    reference = Decoder(config, model.parameters)
    d = generator(4).standard_normal(shared.n_tokens).astype(np.float32)
    out, want = model.forward_backward(shared, d), reference.forward(shared)
    assert relative(out.logprobs, want.logprobs) < 1e-5
    expected = reference.backward(d)
    size = np.sqrt(sum(np.linalg.norm(g) ** 2 for g in expected.values()))
    for key, wanted in expected.items():
        zero = key.endswith("k_proj.bias") and np.linalg.norm(wanted) < 1e-9 * size
        assert np.linalg.norm(model.gradients[key] - wanted) < 2e-5 * (size if zero else np.linalg.norm(wanted)), key


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_tree(data: st.DataObject):
    tree: list[tuple[int, int, int]] = []
    for number in range(data.draw(st.integers(1, 8))):
        roots = [i for i, t in enumerate(tree) if t[2] == 0]
        parent = data.draw(st.sampled_from(roots)) if roots else 0
        before = data.draw(st.integers(0, tree[parent][0])) if number else 0
        tree.append((data.draw(st.integers(1, 40)), parent, before))
    config = CONFIGS["learned_qk_norm"]
    tree = [(min(own, config.max_positions - before), parent, before) for own, parent, before in tree if before < config.max_positions]
    model = make_model(config, max_tokens=512)
    check(model, *both(config, tuple(tree)), 5e-5)


def test_bad_prefixes_are_refused():
    config = CONFIGS["gpt2"]
    model = make_model(config)
    two = [([1, 2, 3], [2, 3, -1]), ([4, 5], [5, -1])]
    wrong = (
        ([(0, 0), (1, 1)], "earlier"),
        ([(0, 0), (2, 1)], "earlier"),
        ([(0, 0), (0, 4)], "whole"),
        ([(0, 0), (0, -1)], "beyond|number of rows"),
        ([(0, 1), (0, 1)], "earlier"),
    )
    for prefixes, words in wrong:
        with pytest.raises(ValueError, match=words):
            model.score(Batch.pack(two, prefixes))
    with pytest.raises(ValueError, match="whole"):  # of one that has a prefix itself
        model.score(Batch.pack([*two, ([6], [-1])], [(0, 0), (0, 1), (1, 1)]))
    with pytest.raises(ValueError, match="2 sequences and 1 prefixes"):
        Batch.pack(two, [(0, 0)])
    assert Batch.pack(two, [(0, 0), (0, 2)]).positions.tolist() == [0, 1, 2, 2, 3]
