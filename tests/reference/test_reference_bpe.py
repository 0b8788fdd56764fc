"""The BPE oracle: known merges, and rustbpe and tiktoken when they are installed."""

import numpy as np
import pytest

from freedive.reference import bpe

PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
TEXTS = [
    "the cat sat on the mat, the rat ate the hat; that is that.\n",
    "aaaa aaaaa aaaaaa abab ababab 2024 1999\n\n  def f(x):\n    return x + 1\n",
    "Ünïcödé żółw 你好 你好世界 🙂🙂\n",
]


def test_most_frequent_pair_first_and_ties_to_the_smallest():
    assert list(bpe.train(["abab cd"], 259, r"\S+| "))[256:] == [b"ab", b"cd", b"abab"]


def test_pieces_are_never_joined():
    assert all(b" " not in token[1:] for token in bpe.train(TEXTS, 400, r" ?\S+|\s"))


def test_stops_when_nothing_is_left():
    assert len(bpe.train(["ab"], 1000, r"\S+")) == 257


def test_too_small():
    with pytest.raises(ValueError, match="at least 256"):
        bpe.train(["ab"], 100, r"\S+")


def test_encode_round_trip():
    ranks = bpe.train(TEXTS, 320, PATTERN)
    names = {rank: token for token, rank in ranks.items()}
    for text in TEXTS:
        ids = bpe.encode(text, ranks, PATTERN)
        assert b"".join(names[i] for i in ids).decode() == text


def random_texts(seed):
    r = np.random.Generator(np.random.Philox(key=[seed, 9]))
    words = ["".join(r.choice(list("abcdé"), size=r.integers(1, 9))) for _ in range(80)]
    return [" ".join(r.choice(words, size=200)) for _ in range(5)]


@pytest.mark.parametrize("texts", [TEXTS, random_texts(0), random_texts(1)], ids=["prose", "random0", "random1"])
def test_same_as_rustbpe(texts):
    rustbpe = pytest.importorskip("rustbpe")
    theirs = rustbpe.Tokenizer()
    theirs.train_from_iterator(iter(texts), 330, pattern=PATTERN)
    assert {bytes(token): rank for token, rank in theirs.get_mergeable_ranks()} == bpe.train(texts, 330, PATTERN)


def test_encode_same_as_tiktoken():
    tiktoken = pytest.importorskip("tiktoken")
    ranks = bpe.train(TEXTS, 330, PATTERN)
    theirs = tiktoken.Encoding("test", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in TEXTS + random_texts(2):
        assert theirs.encode_ordinary(text) == bpe.encode(text, ranks, PATTERN)
