"""Right and wrong replies, by each check."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.eval.match import matches, normalise
from freedive.runs import UserError


@pytest.mark.parametrize(
    ("reply", "answer", "check", "right"),
    [
        ("The answer is 1,234.", "1234", "", True),
        ("5.0", "5", "", True),
        ("It is 41, not 42", "41", "", False),  # the last number counts
        ("7-5=2", "2", "", True),
        ("10-3", "-3", "", False),  # a minus between numbers is no sign
        ("10-3", "3", "", True),
        ("minus: -3", "-3", "", True),
        ("−3", "-3", "", True),
        ("9007199254740993", "9007199254740992", "", False),  # not compared as doubles
        ("no idea", "4", "", False),
        ("Her name is Ann Lee.", "ann lee", "", True),
        ("Annabel", "Ann", "", False),
        ("The baker", "baker", "exact", True),
        ("the old baker", "baker", "exact", False),
        ("the old baker!", "Baker", "contains", True),
        ("anything", "", "contains", False),
        ("3 and 4", "4", "number", True),
        ("Step 1: 2+2=4\n#### 4", "4", "last_answer", True),
        ("2+2=5. Answer 4", "4", "last_answer", True),
        ("So the answer is: Paris", "paris", "last_answer", True),
        ("first\nParis", "Paris", "last_answer", True),
        ("Paris\nRome", "Paris", "last_answer", False),
        ("", "Paris", "last_answer", False),
        ("He buys 5*2=10 apples.\nSo in total he has 12 apples.", "12", "gsm8k", True),
        ("5*2=10\n#### 12\nThat was 3 steps.", "12", "gsm8k", True),
        ("5*2=12 apples, 3 left", "12", "gsm8k", False),
        ("", "4", "", False),
        ("", "", "exact", True),
    ],
)  # fmt: skip
def test_replies(reply, answer, check, right):
    assert matches(reply, answer, check) is right


def test_an_unknown_check_is_an_error():
    with pytest.raises(UserError, match="nearly"):
        matches("a", "a", "nearly")


@given(st.text(), st.text(), st.sampled_from(["", "exact", "contains", "number", "last_answer"]))
def test_any_text_can_be_judged(reply, answer, check):
    assert matches(reply, answer, check) in (True, False)


@given(st.text())
def test_normalising_is_idempotent_and_a_text_is_itself(text):
    assert normalise(normalise(text)) == normalise(text)
    assert matches(text, text, "exact")


@given(st.integers(-10**20, 10**20), st.text(alphabet="abc .:!?", max_size=20))
def test_a_number_is_found_after_words(n, words):
    assert matches(f"{words} {n}", str(n)) and matches(f"{words} {n:,}.", str(n)) and not matches(f"{words} {n}", str(n + 1))
