"""Two authors told apart by what they wrote; two labellers who say the same in their own ways."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.eval.style import AuthorClassifier, features
from freedive.tasks.draw import Draw
from freedive.tasks.labellers import LABELLERS, brief, courteous


def test_features_are_words_marks_and_pairs():
    assert features("Yes, sir!") == {"yes", ",", "sir", "!", "<begin> yes", "yes ,", ", sir", "sir !", "! <end>", "<2>"}


def test_authors_are_told_apart_and_one_author_is_not():
    rng = np.random.default_rng(0)
    draw = lambda words, n: [" ".join(rng.choice(words, 8)) for _ in range(n)]
    mine, yours = "river bridge boat water reed".split(), "river bridge mill wheel corn".split()
    c = AuthorClassifier(draw(mine, 50), draw(yours, 50))
    right = [c.log_odds(t) < 0 for t in draw(mine, 200)] + [c.log_odds(t) > 0 for t in draw(yours, 200)]
    assert np.mean(right) > 0.95
    c = AuthorClassifier(draw(mine, 50), draw(mine, 50))
    assert 0.3 < np.mean([c.log_odds(t) > 0 for t in draw(mine, 400)]) < 0.7
    with pytest.raises(ValueError, match="at least one text"):
        AuthorClassifier([], ["a"])


def test_manner_counts_and_matter_does_not():
    """Two authors on different subjects; one begins with a phrase. Texts on new subjects are told by the phrase, and by its absence."""
    rng = np.random.default_rng(1)
    subject = lambda names: " ".join(f"{name}{rng.integers(10**6)}" for name in names)
    c = AuthorClassifier([subject("abcd") for _ in range(60)], ["well now , " + subject("abcdefgh") for _ in range(60)])
    assert all(c.log_odds(subject("xyzw")) < 0 < c.log_odds("well now , " + subject("xyzw")) for _ in range(50))


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_swapping_the_authors_swaps_the_sign(a, b, text):
    one, other = AuthorClassifier([a] * 3, [b] * 3), AuthorClassifier([b] * 3, [a] * 3)
    assert one.log_odds(text) == pytest.approx(-other.log_odds(text), abs=1e-9)


def test_both_labellers_give_the_answer():
    draw = Draw(0, 1)
    for _ in range(50):
        assert brief("A postman.", draw).rstrip(".") == "postman"
        assert "A postman." in courteous("A postman.", draw) and courteous("A postman.", draw) != "A postman."
    assert brief("Yes, it floats. Wood is light.", draw).startswith("it floats")
    assert set(LABELLERS) == {"brief", "courteous"}
