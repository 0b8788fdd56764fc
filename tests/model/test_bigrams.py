"""A table of pairs of tokens beside the embedding (DecoderConfig.bigram_rows). That it computes and trains right: every test of this folder that goes
over CONFIGS; that decoding gives the same bits: tests/inference.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_cases import CONFIGS, make_batch, make_model, same_bits

from freedive import ops
from freedive.model import Batch, Model, from_depth, load_pretrained, save_pretrained
from freedive.model.config import check_exportable, from_hf, to_hf
from freedive.runs import UserError

CONFIG = CONFIGS["bigrams"]


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=60), st.integers(2, 2**31 - 1))
def test_a_row_is_a_function_of_two_tokens(tokens: list[int], rows: int):
    pairs = ops.bigram_ids(np.array(tokens, np.int32), np.array([0, len(tokens)], np.int32), rows)
    assert pairs[0] == 0 and (pairs[1:] >= 1).all() and (pairs < rows).all()
    for n in range(1, len(tokens)):
        assert ops.bigram_ids(np.array(tokens[n - 1 : n + 1], np.int32), np.array([0, 2], np.int32), rows)[1] == pairs[n]


def test_pairs_are_spread_over_the_rows():
    """Of all pairs of 256 tokens no row of 4,096 has more than four times its share"""
    tokens = np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1).reshape(-1).astype(np.int32)
    pairs = ops.bigram_ids(tokens, np.arange(0, len(tokens) + 1, 2, dtype=np.int32), 4097)[1::2]
    assert np.bincount(pairs, minlength=4097)[1:].max() <= 4 * 16


def test_a_new_model_begins_as_one_without():
    plain = Model(CONFIG.replace(bigram_rows=0), max_tokens=256, max_seqs=16, threads=1).init(3)
    model, batch = Model(CONFIG, max_tokens=256, max_seqs=16, threads=1).init(3), make_batch(CONFIG)
    assert same_bits(plain.score(batch).logprobs, model.score(batch).logprobs)


def test_only_the_two_last_tokens_reach_the_embedding():
    model = make_model(CONFIG)
    for name, view in model.parameters.items():
        if name.startswith("layers."):
            view[...] = 0.0  # nothing else moves the residual stream
    model.score(Batch.next_token([[5, 6, 7], [1, 6, 7], [6, 7]]))
    hidden = model.last_hidden()
    assert same_bits(hidden[2], hidden[5]) and same_bits(hidden[2], hidden[7])
    assert not np.array_equal(hidden[1], hidden[4]) and not np.array_equal(hidden[1], hidden[6])


def test_saved_and_read_again(tmp_path: Path):
    model = make_model(CONFIG)
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path, max_tokens=256, max_seqs=16, threads=1)
    assert again.config == CONFIG and same_bits(again.state()["parameters"], model.state()["parameters"])
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["model_type"] == "freedive"  # so that no other program takes it for a model it knows
    for wrong in ({"freedive": None}, {"freedive": {"family": "gpt2", "bigram_rows": 9}}, {"freedive": {"family": "qwen3"}}):
        with pytest.raises(UserError, match="family or bigram_rows"):
            from_hf(told | wrong)


def test_what_cannot_be():
    with pytest.raises(UserError, match="freedive's own"):
        check_exportable(CONFIG)
    check_exportable(from_depth(2, 64))
    for rows in (1, -3, 2**31):
        with pytest.raises(UserError, match="bigram_rows"):
            CONFIG.replace(bigram_rows=rows)
    with pytest.raises(UserError, match="needs position = rope"):
        CONFIGS["gpt2"].replace(bigram_rows=100)
    with pytest.raises(UserError, match="bigram_rows"):
        from_hf(to_hf(CONFIG) | {"freedive": {"family": "qwen3", "bigram_rows": 10**12}})
    tokens, cu = np.arange(4, dtype=np.int32), np.array([0, 2, 4], np.int32)
    with pytest.raises(ValueError, match="rows is 1"):
        ops.bigram_ids(tokens, cu, 1)
    with pytest.raises(ValueError, match="not in the rows"):
        ops.bigram_ids(tokens, cu, 9, prefixes=np.array([[0, 0], [0, 3]], np.int32))
    with pytest.raises(ValueError, match="together"):
        ops.bigram_ids(tokens, cu, 9, seen=np.zeros((2, 32), np.int32))
