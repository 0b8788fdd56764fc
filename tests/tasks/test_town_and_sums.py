"""Tasks: splits don't overlap, every demonstrated answer passes its own checker, guessing does not pay."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.runs import UserError
from freedive.tasks import arithmetic, check, check_gsm8k, gsm8k, letters, town
from freedive.tasks import town_text as text
from freedive.tasks.draw import Draw


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_the_town(seed):
    fernwick = town.make_town(seed)
    names = [person.name for person in fernwick.people]
    assert len(names) >= 300 and len(set(names)) == len(names)
    assert [len(fernwick.of(known)) for known in ("known", "rare", "unseen")] == [120, 100, 100]
    assert len({name.split()[0] for name in names}) <= 30  # shared first names
    lasts = [person.name.split()[1] for person in fernwick.of("known")]
    assert len(lasts) - len(set(lasts)) == 12  # and some shared last names
    assert not set(lasts) & {person.name.split()[1] for person in fernwick.of("unseen")}
    assert len(town.ATTRIBUTES) == 6 and town.majority_share(fernwick) <= 0.15
    assert town.make_town(seed) == fernwick != town.make_town(seed + 1)
    assert sum(person.in_sft for person in fernwick.people) == 72 and all(
        person.known == "known" for person in fernwick.people if person.in_sft
    )


def test_templates_are_many_distinct_and_held_out_ones_are_held_out():
    for attribute in town.ATTRIBUTES:
        sentences, train, held = text.SENTENCES[attribute], text.TRAIN_QUESTIONS[attribute], text.HELD_OUT_QUESTIONS[attribute]
        assert len(set(sentences)) >= 12 and len(set(train)) >= 6 and len(set(held)) >= 3
        assert not set(held) & {*train, *text.QUIZ[attribute]}
        assert all("{n}" in s and "{v}" in s for s in sentences) and all(
            "{n}" in q for q in (*train, *held, *text.QUIZ[attribute])
        )
        assert len(text.VALUES[attribute]) == len({v for v in text.VALUES[attribute]}) >= 12


def test_rows_and_checker():
    fernwick = town.make_town(3, 24, 12, 12)
    trained = {row["meta"]["person"] for row in town.sft_rows(fernwick)}
    rows = list(town.question_rows(fernwick))
    for row in rows:
        assert (row["meta"]["split"] == "held_template") == (row["meta"]["person"] in trained)
        assert check(town.answer(row["answer"]), row) and check(f"It is {row['answer']}", row)
        wrong = [v for v in text.VALUES[row["meta"]["attribute"]] if v != row["answer"]]
        assert not any(check(town.answer(v), row) for v in wrong)
        assert not check(f"{row['answer']} or {wrong[0]}", row) and not check("", row)
    assert {row["meta"]["split"] for row in rows} == {"held_template", "held_person"}
    for row in town.sft_rows(fernwick):
        question, reply = (message["content"] for message in row["messages"])
        assert row["meta"]["person"] in question and check(
            reply,
            {
                "answer": next(p for p in fernwick.people if p.name == row["meta"]["person"]).facts[row["meta"]["attribute"]],
                **row,
            },
        )


@given(st.lists(st.integers(0, 9999), min_size=2, max_size=5))
def test_worked_answers_are_right_at_every_step(numbers):
    reply = arithmetic.worked(numbers)
    assert arithmetic.extract(reply) == str(sum(numbers)) == arithmetic.extract(arithmetic.direct(numbers))
    written = ""
    for left, right in re.findall(r"([\d+]+)=(\d+)", reply):
        assert sum(map(int, left.split("+"))) == int(right)
        written = right[-1] + written
    assert str(int(right[:-1] + written)) == str(sum(numbers))


def test_the_worked_form_is_the_documented_one():
    assert arithmetic.worked((347, 285)) == "7+5+0=12, 4+8+1=13, 3+2+1=06. Answer 632"
    assert arithmetic.is_worked(arithmetic.worked((1, 2))) and not arithmetic.is_worked(arithmetic.direct((1, 2)))


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("=85", True),
        ("= 85", True),
        ("Answer 85", True),
        ("=13. Answer 85", True),
        ("85", False),
        ("=085", False),
        ("=85 =86", False),
        ("=851", False),
        ("", False),
    ],
)
def test_only_the_last_number_counts(reply, right):
    assert arithmetic.check(reply, "85") is right
    assert (
        arithmetic.reward(["p", "p"], [reply, [{"role": "assistant", "content": reply}]], None, answer=["85", "85"], other=[1, 2])
        == [float(right)] * 2
    )


def test_training_and_held_out_problems_are_disjoint():
    train, held = list(arithmetic.rl_rows(0, 4000, "train")), list(arithmetic.rl_rows(0, 2000, "held_out"))
    sft = list(arithmetic.sft_rows(0, 2000))

    def keys(rows):
        return {tuple(sorted(row["meta"]["numbers"])) for row in rows}

    assert len(keys(held)) == 2000 and len(keys(train)) == 4000
    assert not keys(held) & (keys(train) | keys(sft))
    assert arithmetic.split_of((12, 34)) == arithmetic.split_of((34, 12))
    assert 0.25 < sum(row["meta"]["style"] == "worked" for row in sft) / len(sft) < 0.35
    assert not any(row["meta"]["style"] == "worked" for row in arithmetic.sft_rows(0, 200, p_worked=0))
    for row in train + held:
        assert (
            row["answer"] == str(sum(row["meta"]["numbers"]))
            and arithmetic.expression(row["meta"]["numbers"]) in row["prompt"][0]["content"]
        )
    with pytest.raises(ValueError, match="different problems"):
        list(arithmetic.rl_rows(0, 2000, "held_out", digits=1))


def test_letters():
    assert letters.counted("strawberry", "r") == "s-t-r-a-w-b-e-r-r-y. Answer 3"
    rows = list(letters.question_rows(0, 100))
    assert not {row["meta"]["word"] for row in rows} & {row["meta"]["word"] for row in letters.sft_rows(0, 500)}
    assert len(set(letters.WORDS)) == len(letters.WORDS)
    for row in rows:
        word = row["meta"]["word"]
        assert check(f"{letters.spelled(word)}. Answer {row['answer']}" if row["meta"]["task"] == "count" else row["answer"], row)
        assert not check("Answer 99", row)


def test_gsm8k(tmp_path):
    (tmp_path / "g.jsonl").write_text('{"question": "How many?", "answer": "2*500=<<2*500=1000>>1000\\n#### 1,000"}\n')
    [row] = gsm8k(tmp_path / "g.jsonl")
    assert row["prompt"] == "How many?" and row["answer"] == "1000"
    for reply, right in (
        ("so #### 1000", True),
        ("#### 1,000.0", True),
        ("It is 12, no, 1000.", True),
        ("#### 100", False),
        ("none", False),
    ):
        assert check_gsm8k(reply, row["answer"]) is right and check(reply, row) is right
    (tmp_path / "bad.jsonl").write_text('{"question": "How many?", "answer": "5"}\n')
    with pytest.raises(UserError, match="line 1"):
        list(gsm8k(tmp_path / "bad.jsonl"))


def test_draws_are_the_same_everywhere():
    draw = Draw(0, 1)
    assert [draw.below(1000) for _ in range(5)] == [327, 688, 832, 524, 962]  # raw Philox words, which NumPy keeps stable
    assert sorted(draw.shuffled(range(50))) == list(range(50))
    assert 2500 < sum(draw.chance(0.3) for _ in range(10_000)) < 3500
