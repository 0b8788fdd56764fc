"""The compiled words are what the rules written as regular expressions give, on made-up pieces and on real text."""

import gzip
import json
import random
import sys
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from words_reference import pieces

from freedive.data import words

SHARED = Path(__file__).parents[3] / "shared" / "data" / "text"
UNITS = "km² km/h m/s mbar hPa µg in kg % + км/ч кПа US$ C$ € ₿ °F. °C. 's ’S'".split()


def same_version(character: str) -> bool:
    """Is it of the same category in regex's version of Unicode as in Python's?"""
    return bool(regex.fullmatch(rf"\p{{{unicodedata.category(character)}}}", character))


CHARACTERS = st.one_of(
    st.sampled_from("abzXDoOVvsS.,;:()\"'’3_0-–—~=+$€£%°©🙂¿·…#*@/?éßñЖяδ中ا٣½№™²|§<>^&"),
    st.characters(exclude_categories=["Cs", "Cn", "Zs", "Zl", "Zp", "Cc"]).filter(same_version),
)
STEMS = st.one_of(
    st.sampled_from(sorted(words.CONTRACTIONS)),
    st.sampled_from(UNITS),
    st.from_regex(r"[A-Za-z_]{1,8}", fullmatch=True),
    st.from_regex(r"[0-9]{1,4}", fullmatch=True),
    st.sampled_from(["a.b.co", "http://", "x@", "1.2.3.4", ":80", "/a?b#c", "www.a-b.org", "...", "--", "---", "……", "——", "U.S.", ".org"]),
    st.text(CHARACTERS, max_size=8),
)


@given(st.lists(STEMS, min_size=1, max_size=5))
@settings(deadline=None, max_examples=2000)
@example(["(", "etc", "."])
@example(["don", ")"])
@example(["a" * 998, "..."])
@example(["a." * 40, "b" * 64])
def test_compiled_words_are_those_of_the_rules(stems):
    text = "".join(stems)
    assert words.words_of(text) == [word for chunk in text.split() for word in pieces(chunk)]


def test_many_made_up_pieces():
    """Dense in the marks that interact; hypothesis looks for few and simple cases, this for many."""
    draw = random.Random(5)
    letters = "abcXYZ019.,:;!?'’\"()-–—/=+$€£%°©→🙂¿·…_&#*~^°km²éßñЖяδ中한ا٣½№™@US"
    chunks = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(30_000)]
    assert words.words_of(" ".join(chunks)) == [word for chunk in chunks for word in pieces(chunk)]


def test_every_contraction_between_marks():
    chunks = [before + word + after for word in words.CONTRACTIONS for before in ("", "(", "-", "a.") for after in ("", ".", "),", "'s", "-b")]
    assert words.words_of(" ".join(chunks)) == [word for chunk in chunks for word in pieces(chunk)]


@pytest.mark.parametrize("name", ["openstax", "children_stories"])
def test_real_text(name):
    found = sorted(SHARED.glob(f"{name}*.jsonl.gz"))
    if not found:
        pytest.skip(f"{name} is not in {SHARED}")
    with gzip.open(found[0], "rt") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(150), lines)]
    for text in texts:
        assert words.words_of(text) == [word for chunk in text.split() for word in pieces(chunk)]


def test_flags_of_every_assigned_code_point_are_those_of_the_rules():
    """Each character alone, and where a lower-case or upper-case letter makes a difference."""
    chunks = []
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        if 0xD800 <= point < 0xE000 or character.isspace() or unicodedata.category(character) in ("Cn", "Co"):
            continue
        if point >= 0x3400 and point % 61 or not same_version(character):  # of the long runs of letters, some
            continue
        chunks += [f"a{character}b", f"{character}.", f"{character}.A", f"a.{character}", f"1{character}", f"{character}//x.org"]
    assert words.words_of(" ".join(chunks)) == [word for chunk in chunks for word in pieces(chunk)]
