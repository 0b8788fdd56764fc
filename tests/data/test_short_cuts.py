"""What the rules skip or count in C++ changes nothing: the same as the plain way, on texts dense in what matters."""

import random
import re
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive import _core
from freedive.data import extract, pii, process, quality, words
from freedive.data.language import _model, detect

SOME = st.lists(
    st.sampled_from(["a", "b", "ab", "ba", "abab", "1", "11", "été", "中", "the", "of", "_", "#", "…", "a_b", "½", "longer_than_sixteen_bytes"]),
    max_size=60,
)


def plain_top(found, n):
    grams = [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]
    if not grams:
        return 0
    gram, count = Counter(grams).most_common(1)[0]  # of equals the first
    return len(gram) * count


def plain_repeated(found, n):
    seen, total, i = set(), 0, 0
    while i + n <= len(found):
        gram = "".join(found[i : i + n])
        if gram in seen:
            total += len(gram)
            i += n
        else:
            seen.add(gram)
            i += 1
    return total


@given(SOME)
@settings(deadline=None, max_examples=500)
def test_repetition(chunks):
    text = " ".join(chunks)
    found, grams = words.words_of(text), words.split(text).repetition()
    for n in range(1, 12):
        assert grams.top(n) == plain_top(found, n)
        assert grams.repeated(n) == plain_repeated(found, n)


def test_repetition_of_longer_texts_without_many_repeats():
    draw = random.Random(3)
    for size in (50, 500, 5000):
        text = " ".join(draw.choices([f"{draw.choice(['w', 'é', 'word'])}{k}" for k in range(40)], k=size))
        found, grams = words.words_of(text), words.split(text).repetition()
        assert [grams.top(n) for n in range(1, 11)] == [plain_top(found, n) for n in range(1, 11)]
        assert [grams.repeated(n) for n in range(1, 11)] == [plain_repeated(found, n) for n in range(1, 11)]


@given(st.one_of(st.text(), SOME.map(" ".join)))
@settings(deadline=None)
def test_word_counts(text):
    found = words.words_of(text)
    real = [word for word in found if len(word) > 1 or word.isalnum()]
    counts = words.counts(text, ["the", "of", "ab"])
    assert (counts.all, counts.real, counts.real_characters) == (len(found), len(real), sum(map(len, real)))
    assert counts.alphabetic == sum(any(map(str.isalpha, word)) for word in found)
    assert counts.wanted == len({"the", "of", "ab"} & set(found))


def test_a_character_counts_as_python_says():
    for point in [*range(0x3000), *range(0x3000, 0x110000, 37)]:
        if 0xD800 <= point < 0xE000 or chr(point).isspace():
            continue
        counts = words.counts(chr(point))
        if counts.all == 1:
            assert (counts.real, counts.alphabetic) == (chr(point).isalnum(), chr(point).isalpha()), hex(point)


@given(st.one_of(st.text(), st.lists(st.sampled_from(["One", "two.", "etc.", "Mr.", "three!", "?!", "...", '."', ")", "—", "。", "4.5"])).map(" ".join)))
@settings(deadline=None)
def test_sentences_are_counted_as_the_rule_says(text):
    """A sentence begins at the first word, and at a word that is no punctuation after one that ends a sentence"""
    found = words.words_of(text)
    starts, ended = {0} if found else set(), False
    for i, word in enumerate(found):
        if word in words.SENTENCE_END:
            ended = True
        elif ended and not all(unicodedata.category(c).startswith("P") for c in word):
            starts.add(i)
            ended = False
    assert words.sentences(text) == len(starts)


@given(st.text(alphabet="a@b.1- \n\té,", max_size=60))
@settings(deadline=None, max_examples=1000)
def test_addresses_are_looked_for_where_an_at_sign_is(text):
    assert pii._near_at(text, lambda m: f"<{m.group()}>") == pii._EMAIL.sub(lambda m: f"<{m.group()}>", text)


@given(st.text(alphabet="0123.9 a", max_size=40))
def test_no_address_without_four_numbers(text):
    assert pii._DOTTED.search(text) or not pii._IPV4.search(text)


@given(st.text(alphabet="a\t \x1f\u00a0é", max_size=20))
def test_table_cells(line):
    if "\t" in line:
        assert extract._cells(line) == re.sub(r"\s*\t\s*", " | ", line.strip())


@given(st.text(alphabet=st.sampled_from("ab\r\n\t\x00\x7f\x80\x9f\u00a0é中"), max_size=30).map(lambda s: s + "x" * 200))
def test_controls(text):
    clean, _ = process._without_controls(text)
    assert clean is None or clean == process._CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


@given(
    st.lists(
        st.sampled_from(
            [
                "One two three. Four!",
                "",
                "java[1]script is on here.",
                "[edit]",
                "JavaScript is needed here",
                "{ a b c",
                "Use cookies [2] now ok",
                "a b",
            ]
        )
    )
)
def test_c4_phrases(lines):
    """Phrases are found though the page is asked for them first, and where a citation stood inside."""
    text = "\n".join(lines)
    kept, _ = quality.c4(text, quality.C4(min_sentences=None, drop_curly_bracket=False))
    cut = [quality._CITATION.sub("", line) for line in lines if not line.strip() or len(line.split()) >= 3]
    wanted = [line for line in cut if "javascript" not in line.lower() and "use cookies" not in line.lower()]
    result = "".join(wanted)
    assert (kept or "").replace("\n", "") == result


@pytest.mark.parametrize("text", ["", "a", "\n\n\n", "a\n\n\nb\n\nc\n\n\n\nd\ne", "  a \n\n \n\n b"])
def test_paragraphs_and_lines(text):
    """A limit of 0 for duplicates: what counts as one is seen in the decision."""
    paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text.strip())
    double = len(set(paragraphs)) < len(paragraphs), len(set(lines)) < len(lines)
    assert (quality.gopher_repetition(text, quality.GopherRepetition(0, None, None, None, (), ()))[0] is None) == double[0]
    assert (quality.gopher_repetition(text, quality.GopherRepetition(None, None, 0, None, (), ()))[0] is None) == double[1]


@given(st.lists(st.sampled_from(["the", "house", "haus", "maison", "дом", "</s>", "__label__en", "\n", "x" * 40]), min_size=1, max_size=30))
@settings(deadline=None)
def test_language_does_not_depend_on_earlier_texts(chunks):
    text = " ".join(chunks)
    detect(text[::-1])
    used = detect(text)
    _model.cache_clear()
    assert detect(text) == used == detect(text.replace("\n", " "))


TAG = re.compile(
    rb"<(/?)(div|span|section|article|main|a|b|i|u|s|em|strong|small|big|font|center|table|ul|ol|dl|blockquote|form|code|pre|nav)\b", re.I
)
PARTS = "< </ a b B div DIV > blockquote blockquotes _ / é span <b> </b> <i nav1 <font </pre>".split()


@given(st.one_of(st.binary(max_size=40), st.lists(st.sampled_from([*PARTS, " "]), max_size=30).map(lambda parts: "".join(parts).encode())))
@settings(deadline=None, max_examples=1000)
def test_depth_of_a_page(html):
    depth = deepest = 0
    for tag in TAG.finditer(html):
        depth = max(0, depth - 1) if tag.group(1) else depth + 1
        deepest = max(deepest, depth)
    assert _core.html_depth(html) == deepest
