"""Bulk encoding: the same arrays whatever the threads, and an accelerator that is used only if it gives our ids."""

import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.tokenizer import accelerate, byte_tokenizer, encode_documents, train_tokenizer
from freedive.tokenizer.accelerate import golden_texts


@given(texts=st.lists(st.text(max_size=30), max_size=12), threads=st.integers(1, 4), chunk=st.sampled_from([1, 20, 1 << 18]))
def test_threads_and_chunks_change_nothing(tok, texts, threads, chunk):
    from freedive.tokenizer import tokenizer

    before, tokenizer._CHUNK_CHARS = tokenizer._CHUNK_CHARS, chunk
    try:
        arrays = encode_documents(tok, iter(texts), threads)
    finally:
        tokenizer._CHUNK_CHARS = before
    assert [a.tolist() for a in arrays] == [tok.encode(t) for t in texts] and all(a.dtype == np.uint16 for a in arrays)


class FakeArray(list):
    pass


@pytest.fixture
def gigatoken(monkeypatch, tok):
    """The accelerator's two packages, replaced by ones that encode through tiktoken, with a fault if one is set."""
    fault = types.SimpleNamespace(text=None, load=None)

    class Fake:
        @classmethod
        def from_json(cls, data):
            if fault.load:
                raise ValueError(fault.load)
            assert '"added_tokens": []' in data
            return cls()

        def encode_batch(self, texts, parallel):
            return FakeArray([999] if t == fault.text else tok.encode(t) for t in texts)

    awkward = types.SimpleNamespace(
        flatten=lambda a: [i for ids in a for i in ids], num=lambda a: [len(ids) for ids in a], to_numpy=lambda a: np.asarray(a, np.uint32)
    )
    monkeypatch.setitem(sys.modules, "awkward", awkward)
    monkeypatch.setitem(sys.modules, "gigatoken", types.SimpleNamespace(Tokenizer=Fake))
    accelerate._accelerated.cache_clear()
    yield fault
    accelerate._accelerated.cache_clear()


TEXTS = ["the cats", "", "你好\ud800", "<|endoftext|> x"]


def test_used_after_it_passed(gigatoken, tok, capsys):
    arrays = encode_documents(tok, TEXTS, 2, fast=True)
    assert [a.tolist() for a in arrays] == [tok.encode(t) for t in TEXTS] and all(a.dtype == tok.dtype for a in arrays)
    assert encode_documents(tok, [], 2, fast=True) == [] and capsys.readouterr().err == ""


def test_one_wrong_golden_text_and_it_is_not_used(gigatoken, tok, capsys):
    for text in golden_texts(tok)[::50]:
        gigatoken.text = text
        accelerate._accelerated.cache_clear()
        assert [a.tolist() for a in encode_documents(tok, [*TEXTS, text], 1, fast=True)] == [tok.encode(t) for t in [*TEXTS, text]]
        assert "gives other ids" in capsys.readouterr().err


def test_absent_or_unable_is_said(gigatoken, tok, monkeypatch, capsys):
    gigatoken.load = "no such pretokenizer"
    encode_documents(tok, TEXTS, 1, fast=True)
    assert "cannot read this vocabulary (no such" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    accelerate._accelerated.cache_clear()
    encode_documents(tok, TEXTS, 1, fast=True)
    assert "not installed" in capsys.readouterr().err
    assert [a.tolist() for a in encode_documents(byte_tokenizer(), ["ab"], 1, fast=True)] == [[97, 98]]


def test_the_real_one_if_it_is_here(capsys):
    pytest.importorskip("gigatoken", reason="the package gigatoken is not installed")
    tok = train_tokenizer(["the cats and the dogs " * 50], 300)
    accelerate._accelerated.cache_clear()
    assert [a.tolist() for a in encode_documents(tok, TEXTS, 1, fast=True)] == [tok.encode(t) for t in TEXTS]


def test_golden_texts_hold_the_names_of_special_tokens(tok):
    texts = golden_texts(tok)
    assert texts == golden_texts(tok) and all(any(name in t for t in texts) for name in tok.special_tokens)
