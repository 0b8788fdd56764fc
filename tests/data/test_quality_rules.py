"""Quality rules: each rule removes what it is for, good text passes, limits mean what they say."""

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.data import quality
from freedive.data.dedup import Seen, text_id
from freedive.data.language import Language, detect, language_filter
from freedive.data.pii import scrub


def first_reason(text, rules):
    for step, decide in (
        (rules.gopher_repetition, quality.gopher_repetition),
        (rules.gopher_quality, quality.gopher_quality),
        (rules.c4, quality.c4),
        (rules.fineweb, quality.fineweb),
    ):
        if step is not None:
            kept, reason = decide(text, step)
            if kept is None:
                return reason
            text = kept
    return ""


PROSE = (
    "The mill at the end of the lane has been closed for years, and nobody in the village remembers who owned it last.\n"
    "Some say that a family from the coast bought the land with money they had made by selling salt.\n"
    "Others believe the story of the clerk, which is longer and harder to follow, but has more weather in it.\n"
    "Every spring the children climb over the fence to look for the wheel that used to turn in the stream.\n"
    "They never find it, since it was carried off by a flood long before their parents were born."
)


@pytest.mark.parametrize("preset", list(quality.PRESETS))
def test_prose_passes_every_preset(preset):
    assert first_reason(PROSE, quality.PRESETS[preset]) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n\n".join(["The same words of the day and the night."] * 20), "dup_para_frac"),
        ("\n".join(["The same words of the day and the night."] * 20), "dup_line_frac"),
        (" ".join(["cheap watches"] * 100), "top_2_gram"),
        ("Too short to be of use to anybody.", "top_2_gram"),
        ("- " + PROSE.replace("\n", "\n- "), "too_many_bullets"),
        (PROSE.replace(".\n", "...\n"), "too_many_ellipsis_lines"),
        (PROSE.replace(" ", " #", 40), "too_many_hashes"),
        (PROSE.replace("The mill", "Lorem ipsum"), "lorem_ipsum"),
        (PROSE.replace("The mill", "{ mill"), "curly_bracket"),
    ],
)
def test_each_rule_has_something_to_remove(text, reason):
    assert first_reason(text, quality.PRESETS["fineweb"]) == reason


def test_fineweb_and_its_paper_differ_in_duplicated_lines():
    repeated = (
        PROSE
        + "\n"
        + PROSE.split("\n")[4]
        + "\nAnd that is all there is to tell about the old mill and the lane that goes to it."
    )
    share = len(PROSE.split("\n")[4]) / len(repeated.replace("\n", ""))
    rules = quality.FineWeb(max_dup_line_chars=share + 0.001)
    assert quality.fineweb(repeated, rules)[0] == repeated
    assert quality.fineweb(repeated, dataclasses.replace(rules, max_dup_line_chars=share - 0.001)) == (None, "dup_line_chars")
    assert quality.PRESETS["fineweb"].fineweb.max_dup_line_chars == 0.01
    assert quality.PRESETS["fineweb-paper"].fineweb.max_dup_line_chars == 0.1


def test_what_ends_a_sentence():
    """Unicode's Sentence_Terminal, as in datatrove: no colon, no quote, no ellipsis of one sign or of three words' end"""
    for end, passes in ((".", True), ("!", True), ("。", True), ("؟", True), (":", False), (";", False), ('."', False), ("…", False)):
        text = "\n".join(line[:-1] + end for line in PROSE.split("\n"))
        assert (quality.fineweb(text, quality.FineWeb())[1] == "") == passes, end
    spread = PROSE.replace("\n", "\n\n    ")
    assert quality.fineweb(spread, quality.FineWeb(max_newlines_per_word=0.05)) == (spread, "")  # blank lines and indentation do not count
    four = "One two three. Four five six! Seven, e.g. eight: nine? Ten \"eleven.\" Twelve thirteen"
    assert quality.c4(four, quality.C4())[0] == four and quality.c4(four[:-17], quality.C4()) == (None, "too_few_sentences")


def test_c4_keeps_the_other_lines():
    text = (
        PROSE.replace("closed for years", "closed for years[12]")
        + "\nPlease enable JavaScript to go on.\nOur cookie policy is here.\nMenu"
    )
    assert quality.c4(text, quality.C4())[0] == PROSE


@given(st.text(max_size=400))
def test_no_text_makes_a_rule_fail_with_an_exception(text):
    for rules in quality.PRESETS.values():
        assert isinstance(first_reason(text, rules), str)


def test_language():
    assert language_filter(PROSE, Language()) == (PROSE, "")
    german = "Am Morgen gehen die Kinder über die alte Brücke zur Schule und lachen dabei sehr laut."
    assert language_filter(german, Language()) == (None, "is_de")
    assert language_filter(german, Language(("de", "en")))[0] == german
    assert language_filter(german, Language(()))[0] == german
    assert language_filter(PROSE, Language(threshold=1.0))[0] is None or detect(PROSE)[1] > 1
    assert detect("")[1] <= 1.01


def test_personal_data():
    text = "Mail ann.lee+x@mail.example.co.uk or bob@b.example, "
    text += "from 8.8.8.8, 8.8.4.4, not 192.168.0.1, 10.0.0.1, 1.2.3.4.5 or 300.1.1.1; a@b stays."
    clean = scrub(text)
    assert "ann.lee" not in clean and "bob@" not in clean and "8.8.8.8" not in clean and "8.8.4.4" not in clean
    assert clean.count("email@example.com") == clean.count("firstname.lastname@example.org") == 1
    for kept in ("192.168.0.1", "10.0.0.1", "1.2.3.4.5", "300.1.1.1", "a@b stays"):
        assert kept in clean
    assert scrub(text) == clean and scrub(PROSE) == PROSE


@pytest.mark.parametrize(
    "word", ["a" * 200_000 + "@", "a." * 100_000 + "@", "a@" * 50_000, "1." * 100_000, "@" + "a." * 100_000 + "-"]
)
def test_scrubbing_long_words_takes_linear_time(word):
    start = time.process_time()
    scrub(word)
    assert time.process_time() - start < 5


def test_exact_duplicates_ignore_case_and_spaces():
    assert text_id("A  b\nc") == text_id("a b C") != text_id("a bc")


def test_shared_lines_can_be_trimmed():
    seen = Seen(max_line_copies=2)
    for i in range(3):
        text = seen.trim(f"Share this page\n\ntext {i}")
        assert ("Share" in text) == (i < 2) and f"text {i}" in text
        seen.add({"id": text_id(text), "text": text})
