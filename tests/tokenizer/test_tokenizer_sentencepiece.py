"""SentencePiece's BPE: the heap joins what the plain rule joins, any text comes back, and the package tokenizers agrees on our export."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, save_hf
from freedive.tokenizer.sentencepiece import BYTE, SentencePiece

BYTES = [f"<0x{b:02X}>" for b in range(256)]
WORDS = ["▁t", "he", "▁a", "in", "▁the", "▁▁", "re", "▁b", "ing", "▁there", "aa", "aaa", "▁th", "the", "▁", "a", "b", "e", "g", "h", "i", "n", "r", "t", "é"]


def make(words: list[str] = WORDS, **more) -> SentencePiece:
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *words]
    return SentencePiece(pieces, [0.0] * 259 + [-float(i) for i in range(len(words))], [2, 3, 3] + [BYTE] * 256 + [1] * len(words), **more)


def plain(tok: SentencePiece, text: str) -> list[int]:
    """The rule as it is written: always the best pair, leftmost on ties."""
    parts = list(" " + text if tok.add_prefix else text) if text else []
    while True:
        found = [(-tok.scores[tok._ids[a + b]], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in tok._ids]
        if not found:
            return [i for p in parts for i in ([tok._ids[p]] if p in tok._ids else [tok._bytes[b] for b in p.encode()])]
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


texts = st.text("  the re ing aab é你🙂\n", max_size=40)


@settings(max_examples=300, deadline=None)
@given(texts, st.booleans())
def test_the_heap_joins_what_the_plain_rule_joins(text, across):
    tok = make(WORDS + (["a▁t"] if across else []))  # with a piece that reaches over a space, words cannot be taken one by one
    assert tok._by_word is not across
    ids = tok.encode(text)
    assert ids == plain(tok, text)
    assert tok.decode(ids) == (" " + text if text else "") and tok.decode([1, *ids]) == "<s>" + text


def test_specials_are_never_the_result_of_text(tmp_path):
    tok = make()
    assert not {0, 1, 2} & set(tok.encode("<s></s><unk>")) and tok.stop_ids == (1, 2) and tok.document_ids("a")[0] == 1
    tok.save(tmp_path)
    assert Tokenizer.load(tmp_path) == tok != make(add_prefix=False)


def test_stories_tokenizer_in_the_package_tokenizers(tmp_path, shared_data):
    library = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    file = shared_data / "models" / "stories260K" / "tok512.bin"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    tok = Tokenizer.load(file)
    save_hf(tok, tmp_path)
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("Once upon a time, there was a little girl.", "naïve 你好  two  spaces\n12", " leading", "trailing  ", "a", "", "Tom's dog\n\nran."):
        assert theirs.encode(text, add_special_tokens=False).ids == tok.encode(text) == Tokenizer.load(tmp_path).encode(text)
        assert theirs.encode(text).ids == tok.document_ids(text)


@pytest.mark.parametrize(
    ("change", "what"),
    [(dict(words=["a", ""]), "empty"), (dict(bos="<x>"), "no special piece"), (dict(eos=("<y>",)), "no special piece")],
)  # fmt: skip
def test_a_table_that_cannot_be(change, what):
    with pytest.raises(UserError, match=what):
        make(**change)


def test_bytes_are_all_there():
    with pytest.raises(UserError, match="256 of the 256"):
        SentencePiece(["<unk>", "<s>", "</s>", "a"], [0.0] * 4, [2, 3, 3, 1])


@pytest.mark.parametrize(("scores", "types"), [(1e400, 1), (10**400, 1), (0.0, float("inf")), (0.0, "x")])
def test_numbers_that_are_none(scores, types):
    """Found by dev/fuzz.sh"""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "a"]
    try:
        SentencePiece(pieces, [0.0] * 259 + [scores], [2, 3, 3] + [BYTE] * 256 + [types])
    except UserError as error:
        assert "not a number" in str(error)
    else:
        assert scores == float("inf")  # a score as good as any
