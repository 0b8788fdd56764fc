"""Training: equal to the readable trainer, independent of order, and never a silently wrong count."""

import json
import random

import pytest
from tokenizer_corpus import corpus

from freedive.reference import bpe
from freedive.runs import UserError
from freedive.tokenizer import DEFAULT_SPECIALS, QWEN2_PATTERN, known, train_tokenizer


def test_equal_to_the_readable_trainer():
    text = corpus(3000)
    tok = train_tokenizer([text], 500, special_tokens=())
    assert tok.tokens == bpe.train([text], 500, QWEN2_PATTERN)
    for sentence in (text[:500], "unseen words: Zyzzyva, 12345\n\n  and emoji 🙃"):
        assert tok.encode(sentence) == bpe.encode(sentence, tok.tokens, QWEN2_PATTERN)


def test_order_of_texts_and_repetition_do_not_matter():
    texts = [corpus(300), "aaaa aaaaa\n\n", "你好 你好世界", "12 123 1234"]
    first = train_tokenizer(texts, 400)
    for seed in range(5):
        shuffled = texts[:]
        random.Random(seed).shuffle(shuffled)
        assert train_tokenizer(shuffled, 400) == first


def test_merges_never_cross_the_pattern(tok):
    assert not any(token[1:].count(b" ") and token.strip() for token in tok.tokens)
    assert all(len(token) == 1 for token in tok.tokens if token.isdigit()), "every digit is a token of its own"


def test_vocabulary_too_small_says_the_minimum():
    minimum = 256 + len(DEFAULT_SPECIALS)
    with pytest.raises(UserError, match=f"minimum is {minimum}"):
        train_tokenizer(["text"], minimum - 1)
    assert len(train_tokenizer(["text"], minimum).tokens) == 256


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ""])
def test_empty_corpus(texts):
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(texts, 300)


def test_text_too_short_gives_a_smaller_vocabulary_and_says_so():
    with pytest.warns(UserWarning, match="only 2 merges"):
        tok = train_tokenizer(["abc"], 5000)
    assert tok.vocab_size == 256 + 2 + len(DEFAULT_SPECIALS) and tok.vocab_mask.all()


def test_pattern_that_does_not_parse():
    with pytest.raises(UserError, match="regular expression"):
        train_tokenizer(["text"], 300, pattern="(")


def test_special_tokens_are_checked():
    with pytest.raises(UserError, match="twice"):
        train_tokenizer(["text"], 300, special_tokens=("<|a|>", "<|a|>"))
    with pytest.raises(UserError, match="list of names"):
        train_tokenizer(["text"], 300, special_tokens="<|a|>")


def test_one_string_is_one_document():
    assert train_tokenizer("the cat the cat", 270).tokens == train_tokenizer(["the cat the cat"], 270).tokens


def test_lone_surrogates_are_no_reason_to_fail():
    assert train_tokenizer(["a\ud800b"], 270).encode("\ud800")


def test_max_chars_cuts_and_says_so():
    with pytest.warns(UserWarning, match="max_chars is 11"):
        tok = train_tokenizer(["abab abab", "cdcdcdcd"], 272, max_chars=11)
    assert tok.tokens == train_tokenizer(["abab abab", "cd"], 272).tokens


def test_stops_before_a_pair_count_can_overflow():
    # 39 pairs of spaces a document; the third would make 117
    with pytest.warns(UserWarning, match="over 100 times"):
        tok = train_tokenizer([" " * 40] * 10, 270, max_pair_count=100)
    assert tok.tokens == train_tokenizer([" " * 40] * 2, 270).tokens
    with pytest.raises(UserError, match="too large .* over 10 times"):
        train_tokenizer([" " * 40], 270, max_pair_count=10)


def test_the_guard_lets_common_text_through_unchanged():
    """Documents of many sizes: nothing is cut while the true maximum is within the limit."""
    texts = ["ab" * n for n in (1, 10, 1000, 100_000)] * 3
    most = sum(text.count("ab") for text in texts)
    tok = train_tokenizer(texts, 280, max_pair_count=most, special_tokens=())
    assert tok.tokens == train_tokenizer(texts, 280, special_tokens=()).tokens


@pytest.mark.slow
def test_against_the_published_course_reference(shared_data):
    """Stanford CS336's corpus. Its 243 merges are the readable trainer's with its tie rule, in order and all; with rustbpe's tie rule
    the readable trainer gives what the product gives, in order and all. So the two differ by how ties are broken only.
    """
    folder = shared_data / "tok" / "cs336_bpe"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    gpt2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    text = (folder / "corpus.en").read_text(encoding="utf-8")
    byte_of = known.byte_of_character()
    lines = (folder / "train-bpe-reference-merges.txt").read_text(encoding="utf-8").splitlines()
    published = [bytes(byte_of[c] for c in "".join(line.split(" "))) for line in lines]
    assert list(bpe.train([text], 256 + 243, gpt2, ties="larger bytes"))[256:] == published
    words = json.loads((folder / "train-bpe-reference-vocab.json").read_text(encoding="utf-8"))
    vocabulary = {bytes(byte_of[c] for c in word) for word in words if word != "<|endoftext|>"}
    assert vocabulary == set(published) | {bytes((b,)) for b in range(256)}
    ours = train_tokenizer([text], 256 + 243, gpt2, special_tokens=())
    assert ours.tokens == bpe.train([text], 256 + 243, gpt2)
    assert len(set(ours.tokens) & vocabulary) >= 256 + 0.98 * 243
