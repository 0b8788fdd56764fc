"""Bits per byte: a closed form, every token once, and no difference between packed and unpacked."""

from __future__ import annotations

import numpy as np
import pytest

from freedive.model import Batch, DecoderConfig, Model
from freedive.tokenizer import byte_tokenizer
from freedive.train.evaluate import held_out_loss

TOKENIZER = byte_tokenizer()
TEXTS = ["", "a", "Ünïcode 你好 🙂", "word " * 60, "b" * 33, "to be or not to be"]


def make_model(uniform: bool = False, **capacity: int) -> Model:
    model = Model(DecoderConfig(TOKENIZER.vocab_size, 2, 2, 1, 32, 16, 48, 64), **({"max_tokens": 256, "threads": 1, "trainable": False} | capacity))
    model.init(3)
    if uniform:
        model.parameters["embed_tokens.weight"][...] = 0
    return model


def documents() -> tuple[list[np.ndarray], int, int]:
    ids = [np.asarray(TOKENIZER.encode(t), np.int32) for t in TEXTS]
    targets = sum(len(d) + 1 for d in ids if len(d))  # a document's end is predicted too
    return ids, targets, sum(len(t.encode()) for t in TEXTS)


@pytest.mark.parametrize("context", [1, 7, 32, 64])
def test_a_uniform_model_needs_log_v_for_every_token(context):
    ids, tokens, n_bytes = documents()
    found = held_out_loss(make_model(uniform=True), ids, context, TOKENIZER.bos_id, n_bytes)
    assert found["val_loss"] == pytest.approx(np.log(TOKENIZER.vocab_size), rel=1e-6)
    assert found["val_bits_per_byte"] == pytest.approx(np.log2(TOKENIZER.vocab_size) * tokens / n_bytes, rel=1e-6)


def test_packed_is_unpacked_and_each_window_stands_alone():
    ids, tokens, n_bytes = documents()
    model, context = make_model(), 24
    total = 0.0
    for d in ids:
        whole = [TOKENIZER.bos_id, *d.tolist(), TOKENIZER.bos_id] if len(d) else []
        for a in range(0, len(whole) - 1, context):
            window = whole[a : a + context + 1]
            total -= float(model.score(Batch.pack([(window[:-1], window[1:])])).logprobs.sum(dtype=np.float64))
    for capacity in (dict(max_tokens=24), dict(max_tokens=50), dict(max_seqs=1), dict(max_tokens=2048)):
        found = held_out_loss(make_model(**capacity), ids, context, TOKENIZER.bos_id, n_bytes)
        assert found["val_loss"] == pytest.approx(total / tokens, rel=1e-12), capacity
