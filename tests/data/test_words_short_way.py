"""The short way for common pieces gives what peeling gives."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from freedive.data import words

STEMS = st.one_of(
    st.sampled_from(sorted(words.CONTRACTIONS)), st.from_regex(r"[A-Za-z_]{1,8}", fullmatch=True), st.text("abzXDoOVv.,;:()\"'3_", max_size=6)
)
MARKS = st.sampled_from(["", *"([\"'.,;:!?)]"])


@given(MARKS, STEMS, MARKS)
@settings(deadline=None, max_examples=500)
@example("(", "etc", ".")
@example("", "don", ")")
def test_short_and_long_way_agree(before, stem, after):
    chunk = before + stem + after
    if chunk and not chunk.isspace():
        assert words.pieces(chunk) == words._joined(words._peeled(chunk, words.CONTRACTIONS))
