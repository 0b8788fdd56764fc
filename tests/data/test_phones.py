"""Telephone numbers in texts: found where people write them, left alone where digits are something else."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.data import DataConfig
from freedive.data import run as run_data
from freedive.data.pii import PHONES, find_countries, scrub, scrub_phones
from freedive.runs import UserError

phonenumbers = pytest.importorskip("phonenumbers", reason="telephone numbers need phonenumbers (extra [data])")
DATA = Path(os.environ.get("FREEDIVE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
COUNTRIES = ("US", "GB", "DE", "FR", "JP", "BR", "IN")
OTHER_DIGITS = (
    "ISBN 978-0-306-40615-7, card 4111 1111 1111 1111, order 6502530000, 2023-11-28 10:00:00, pi 3.14159265358979, "
    "1,234,567,890 people, https://journal.example/162/3859/1243.full, 192.168.100.200, pages 2024-2025, 100 200 300, version 3.11.2"
)


def test_what_is_no_telephone_number_stays():
    assert scrub_phones(OTHER_DIGITS, COUNTRIES[:1]) == OTHER_DIGITS
    assert scrub_phones("no digits at all", ("US",)) == "no digits at all"


def test_national_forms_count_inside_the_countries_given():
    text = "Call (650) 253-0000 or +44 20 7946 0958, in Berlin 030 901820."
    assert scrub_phones(text, ("US",)) == f"Call {PHONES[0]} or {PHONES[1]}, in Berlin 030 901820."
    assert scrub_phones(text, ("DE",)) == f"Call (650) 253-0000 or {PHONES[0]}, in Berlin {PHONES[1]}."
    assert scrub_phones(text, ("US", "DE")) == scrub_phones(text, ("DE", "US")) == f"Call {PHONES[0]} or {PHONES[1]}, in Berlin {PHONES[2]}."


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(COUNTRIES), st.integers(0, 2), st.sampled_from(["ring ", "Tel.: ", "at "])), min_size=1, max_size=6))
def test_example_numbers_of_countries_in_every_form_go_and_the_rest_stays(numbers):
    """Forms: E.164's digits, international, national."""
    written = []
    for country, form, before in numbers:
        number = phonenumbers.example_number(country)
        shown = phonenumbers.format_number(number, form)
        written.append(f"{before}{shown}.")
    clean = scrub_phones(f"{OTHER_DIGITS}\n" + "\n".join(written), COUNTRIES)
    assert clean.splitlines()[0] == OTHER_DIGITS
    expected = [f"{before}{PHONES[i % len(PHONES)]}." for i, (_, _, before) in enumerate(numbers)]
    assert clean.splitlines()[1:] == expected
    assert scrub_phones(clean, COUNTRIES) == clean


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("0123456789+-(). ax\n/"), max_size=300))
def test_any_text_loses_nothing_but_what_was_found(text):
    clean = scrub_phones(text, ("US",))
    rest = clean
    for phone in PHONES:
        rest = rest.replace(phone, "\0")
    at = 0
    for piece in rest.split("\0"):  # what is between numbers stands in the text, in order
        at = text.index(piece, at) + len(piece)


@pytest.mark.slow
def test_dialogues_of_sgd_lose_the_numbers_that_their_services_returned(capsys):
    path = DATA / "sft" / "sgd_train.jsonl.gz"
    if not path.is_file():
        pytest.skip("the dialogues of SGD are not there")
    said, left, abroad, abroad_left, others, turns = 0, 0, 0, 0, 0, 0
    with gzip.open(path, "rt", encoding="utf-8") as rows:
        for row in rows:
            known: set[str] = set()
            for turn in json.loads(row)["turns"]:
                for result in turn.get("result", []):
                    known |= {value for slot, value in result.items() if "phone" in slot}
                text, turns = turn["text"], turns + 1
                clean = scrub_phones(text, ("US",))
                here = [number for number in known if number in text]
                american = [number for number in here if re.fullmatch(r"[0-9]{3}-[0-9]{3}-[0-9]{4}", number)]
                said += len(american)
                left += sum(number in clean for number in american)
                abroad_left += sum(number in clean for number in here if number not in american)
                abroad += len(here) - len(american)
                others += not here and clean != text
    with capsys.disabled():
        print(
            f"\nSGD: {said - left} of {said} numbers in American form replaced and {abroad - abroad_left} of {abroad} others; "
            f"{others} of {turns} turns changed that hold none a service returned"
        )
    assert said > 500 and left <= 0.01 * said and others <= 0.001 * turns


@pytest.mark.slow
def test_textbooks_have_hardly_any(capsys):
    path = DATA / "text" / "openstax.jsonl.gz"
    if not path.is_file():
        pytest.skip("OpenStax is not there")
    changed = chars = 0
    with gzip.open(path, "rt", encoding="utf-8") as rows:
        for row in rows:
            text = json.loads(row)["text"]
            chars += len(text)
            changed += sum(a != b for a, b in zip(text.split("\n"), scrub_phones(text, ("US",)).split("\n"), strict=True))
    with capsys.disabled():
        print(f"\nOpenStax: {changed} lines changed in {chars:,} characters")
    assert changed <= chars / 1e6


def test_the_stage_replaces_them_when_asked(tmp_path):
    text = "The library of Palo Alto answers questions. Ring (650) 253-0000 in the morning.\n" * 2
    (tmp_path / "page.txt").write_text(text)
    for phones, there in (((), True), (("US",), False)):
        out = run_data(
            DataConfig(
                inputs=(tmp_path / "page.txt",), out=tmp_path / f"out{len(phones)}", preset="none", languages=(), phones=phones, val_fraction=0.0
            )
        )
        rows = "".join(path.read_text() for path in out.glob("*.jsonl"))
        assert ("253-0000" in rows) == there and (PHONES[0] in rows) != there
    with pytest.raises(UserError, match="no such country"):
        run_data(DataConfig(inputs=(tmp_path / "page.txt",), out=tmp_path / "bad", phones=("XX",)))
    assert not (tmp_path / "bad").exists()


def test_countries_are_named_in_any_order_and_case():
    assert find_countries(("us,gb",)) == find_countries(("GB", "US", "US")) == ("GB", "US") and find_countries(()) == ()
    with pytest.raises(UserError, match="no such country"):
        find_countries(("U",))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 255), min_size=4, max_size=4), min_size=1, max_size=5))
def test_addresses_are_no_telephone_numbers(quads):
    """Neither as they are nor replaced by others; and a number beside one is still found."""
    countries = ("BR", "CA", "CN", "IN", "MX", "PL", "US")
    text = " and ".join(".".join(map(str, quad)) for quad in quads)
    assert scrub_phones(text, countries) == text and scrub_phones(scrub(text), countries) == scrub(text)
    assert scrub_phones(f"{text} +44 20 7946 0958", countries) == f"{text} {PHONES[0]}"


def test_paths_and_book_numbers_stay():
    for text in ("www.x.com/650-253-0000", "doi 10.1000/650-253-0000", "ISBN 0 306 40615 2", "ISBN-13: 978-0-306-40615-7"):
        assert scrub_phones(text, ("US", "DE", "FR")) == text
    assert scrub_phones("Tel./Fax: 650-253-0000", ("US",)) == f"Tel./Fax: {PHONES[0]}"
