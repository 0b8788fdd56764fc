"""Properties of every kind of tokenizer: what goes in comes out, and no text gives a special token."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.runs import UserError
from freedive.tokenizer import DEFAULT_SPECIALS, Tokenizer, byte_tokenizer, char_tokenizer, encode_documents
from freedive.tokenizer.colour import segments, to_ansi, to_html

ANY_TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=80)
# text that tries: pieces of special tokens between ordinary characters
HOSTILE = st.lists(st.one_of(st.sampled_from([*DEFAULT_SPECIALS, "<|", "|>", "im_end", "\n"]), ANY_TEXT), max_size=8).map("".join)


@pytest.fixture(scope="module", params=["bpe", "bytes"])
def either(request, tok):
    return tok if request.param == "bpe" else byte_tokenizer()


@given(text=HOSTILE)
def test_round_trip_and_no_special_token(either, text):
    ids = either.encode(text)
    assert either.decode(ids) == text
    assert not either.special_ids.intersection(ids)


@given(data=st.data())
def test_streaming_equals_decoding(tok, data):
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size - 1), max_size=60))
    stream = tok.stream_decoder()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == tok.decode(ids)


@given(text=ANY_TEXT)
def test_streaming_gives_whole_characters_only(text):
    tok = byte_tokenizer()  # the hardest case: every character of two bytes or more is split
    stream = tok.stream_decoder()
    pieces = [stream.push(i) for i in tok.encode(text)]
    assert stream.flush() == ""
    assert [piece for piece in pieces if piece] == list(text)


@given(data=st.data())
def test_coloured_segments_are_the_text_and_the_ids(tok, data):
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size - 1), max_size=40))
    found = list(segments(tok, ids))
    assert "".join(text for text, _ in found) == tok.decode(ids)
    assert [i for _, members in found for i in members] == ids


def test_lone_surrogates_become_replacement_characters(tok):
    for each in (tok, byte_tokenizer(), char_tokenizer("a�")):
        assert each.decode(each.encode("a\ud800a")) == "a�a"
        assert each.decode(each.encode_array("a\ud800a")) == "a�a"


def test_colours_escape_and_show_what_is_invisible(tok):
    page = to_html(tok, [tok.im_start, *tok.encode('<script>"x"\n')])
    assert "<script>" not in page and "&lt;" in page and "↵" in page and f"id {tok.im_start}" in page
    assert "border-bottom" not in page and "border-bottom" in to_html(tok, [65], [1])
    assert "\x1b[2J" not in to_ansi(tok, tok.encode("a\x1b[2Jb\n")) and to_ansi(tok, tok.encode("a")).endswith("\x1b[0m")


def test_batches_equal_single_texts_for_any_number_of_threads(tok):
    texts = ["", "the cat", "naïve 你好 <|im_end|>"] * 50
    for each in (tok, byte_tokenizer()):
        expected = [each.encode(text) for text in texts]
        for threads in (1, 2, None):
            arrays = encode_documents(each, iter(texts), threads)
            assert [a.tolist() for a in arrays] == expected
            assert {a.dtype for a in arrays} == {np.dtype(np.uint16)}


def test_large_vocabularies_are_uint32_and_holes_are_masked():
    tok = Tokenizer("bpe", {bytes((b,)): b for b in range(256)}, {"<|endoftext|>": 70_000}, ".+")
    assert tok.vocab_size == 70_001 and tok.encode_array("ab").dtype == np.uint32
    assert tok.vocab_mask.sum() == 257 and tok.vocab_mask[70_000] == 1 and tok.vocab_mask[256] == 0
    for wrong in (256, 70_001, -1):
        with pytest.raises(UserError, match=str(wrong)):
            tok.decode([wrong])


def test_characters():
    tok = char_tokenizer("banana", special_tokens=())
    assert (tok.vocab_size, tok.encode("nab"), tok.decode([2, 1, 0])) == (3, [2, 0, 1], "nba")
    with pytest.raises(UserError, match="'x'"):
        tok.encode("x")
    with pytest.raises(UserError, match="no special token"):
        _ = tok.bos_id


def test_special_ids_and_pickling(tok):
    assert [tok.special(name) for name in DEFAULT_SPECIALS] == list(range(600 - len(DEFAULT_SPECIALS), 600))
    assert tok.decode([tok.bos_id, tok.im_start, tok.im_sep, tok.im_end]) == "<|endoftext|><|im_start|><|im_sep|><|im_end|>"
    again = pickle.loads(pickle.dumps(tok))
    assert again == tok and again.encode("the cat") == tok.encode("the cat")


@pytest.mark.parametrize(
    ("tokens", "specials", "message"),
    [
        ({}, {}, "at least one"),
        ({b"a": 0}, {}, "255 of the 256"),
        ({bytes((b,)): b for b in range(256)}, {"<|x|>": 5}, "id 5 stands for two"),
        ({bytes((b,)): b for b in range(256)}, {"<|x|>": -1}, "-1"),
        ({bytes((b,)): b for b in range(256)}, {"<|x|>": 10**12}, "1000000000000"),
        ({bytes((b,)): b for b in range(256)}, {"": 256}, "empty"),
    ],
)
def test_tables_that_can_not_work(tokens, specials, message):
    with pytest.raises(UserError, match=message):
        Tokenizer("bpe", tokens, specials, ".+")


def test_wrong_arguments(tok):
    with pytest.raises(UserError, match="bytes"):
        tok.encode(b"bytes")
    with pytest.raises(UserError, match="regular expression"):
        Tokenizer("bpe", tok.tokens, {}, "(")


def test_importing_does_not_load_tiktoken():
    code = "import sys, freedive.tokenizer; print('tiktoken' in sys.modules, 'rustbpe' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
