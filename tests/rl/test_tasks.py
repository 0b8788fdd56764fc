"""Built-in problems: their own answers are right, wrong ones are wrong, and practice never meets what is held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.rl.tasks import TASKS, check, held_out, task_rows
from freedive.rl.tasks.extract import answer_of
from freedive.rl.tasks.numbers import check_countdown, value_of
from freedive.runs import UserError


@pytest.mark.parametrize("name", TASKS)
def test_problems_check_themselves(name: str):
    assert len(task_rows(name, 0, 2000, "train")) == 2000 and len(task_rows(name, 0, 200, "held_out")) == 200  # what `freedive rl` asks for
    train, held = task_rows(name, 0, 60, "train"), task_rows(name, 0, 30, "held_out")
    assert len({r["prompt"] for r in train}) == 60 and not {r["prompt"] for r in train} & {r["prompt"] for r in held}
    assert train == task_rows(name, 0, 60, "train") and train != task_rows(name, 1, 60, "train")
    json.dumps(train)
    for row in train:
        right = solution(row) if name == "countdown" else row["answer"]
        for reply in (right, f"Answer: {right}", f"Let me think.\nAnswer: {right}.", f"<answer>{right}</answer>", f"so \\boxed{{{right}}}"):
            assert check(reply, row) == 1, (reply, row)
        for reply in ("", "Answer:", "Answer: perhaps", "Answer: 123456789", "x" * 5000, "((((" * 200, "1" * 5000):
            assert check(reply, row) == 0, (reply, row)


def solution(row) -> str:
    """Some expression of the row's numbers in the order drawn, found by trying."""
    import itertools

    numbers = row["meta"]["numbers"]
    for order in itertools.permutations(numbers):
        for operations in itertools.product("+-*/", repeat=len(numbers) - 1):
            text = str(order[0])
            for op, n in zip(operations, order[1:]):
                text = f"({text} {op} {n})"
            if value_of(text) == row["meta"]["target"]:
                return text
    raise AssertionError(f"no solution: {row}")


def test_countdown_takes_every_expression_of_the_numbers_and_no_other():
    row = {"answer": "10", "meta": {"task": "countdown", "numbers": [2, 3, 5], "target": 10}}
    assert check_countdown("2 + 3 + 5 = 10", row) == 1 and check_countdown("(2+3)+5", row) == 1
    for wrong in ("5 * 2 * (3 - 2)", "2 + 3 * 5", "10", "2 + 3 + 5 + 0", "23 - 5 - 8", "__import__('os')", "2**3 + 5", "2+3+5)"):
        assert check_countdown(wrong, row) == 0


@given(st.text(max_size=80))
def test_no_reply_breaks_a_checker(reply: str):
    answer_of(reply)
    for name in TASKS:
        assert 0 <= check(reply, {"prompt": "", "answer": "3", "meta": {"task": name, "numbers": [1, 2], "target": 3}}) <= 1


@pytest.mark.parametrize("spec, says", [
    ("chess", "no task 'chess'"), ("countdown:size=3", "no setting 'size=3'"), ("countdown:numbers=x", "whole number"), ("parity:length=2", "only"),
    ("gsm8k", "needs a file"), ("arithmetic:terms=1", "terms"),
])  # fmt: skip
def test_bad_tasks(spec: str, says: str):
    with pytest.raises(UserError, match=says):
        task_rows(spec, 0, 50, "train")


def test_gsm8k(tmp_path: Path):
    rows = [{"question": f"What is {i}+1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(40)]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    train, held = task_rows(f"gsm8k:{tmp_path}/g.jsonl", 0, 40, "train"), task_rows(f"gsm8k:{tmp_path}/g.jsonl", 0, 40, "held_out")
    assert len(train) + len(held) == 40 and all(held_out(r["prompt"]) for r in held)
    assert check(f"so #### {train[0]['answer']}", train[0]) == 1 and check("#### -1", train[0]) == 0


def test_reasoning_gym():
    pytest.importorskip("reasoning_gym", reason="the extra [rl] is not installed")
    spec = "reasoning_gym:chain_sum,min_terms=2,max_terms=3"
    train, held = task_rows(spec, 0, 600, "train"), task_rows(spec, 0, 100, "held_out")
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in held}
    assert all(check(f"Answer: {r['answer']}", r) == 1 and check("Answer: 1234567", r) == 0 for r in train[:50])
    with pytest.raises(UserError, match="cannot make"):
        task_rows("reasoning_gym:no_such_family", 0, 5, "train")
    with pytest.raises(UserError, match="cannot make"):
        task_rows("reasoning_gym:chain_sum,nonsense=1", 0, 5, "train")
