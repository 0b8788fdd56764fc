"""The demonstrations of chapter 4: their demonstrators, their figures, and their part of the page."""

import json
import re
from types import SimpleNamespace

import pytest
from html_page import Page

from freedive.dive.demos import practice
from freedive.dive.demos.discovery import Calculator, OutOfOrder
from freedive.dive.demos.practice import Answers, equal_compute, points, powers_of_four, share_of, than, times
from freedive.dive.demos.practice_page import ANSWERS, RUNS, _words
from freedive.dive.demos.practice_page import practice as page_of
from freedive.dive.demos.room import shown
from freedive.eval.match import matches
from freedive.rl.environments import find_environment, tools_of
from freedive.tasks import demonstrators
from freedive.tasks.arithmetic import split_of, worked
from freedive.tokenizer import byte_tokenizer, check_mask, render

MAKERS = (demonstrators.sum_problems, demonstrators.product_problems, demonstrators.carry_problems)


@pytest.mark.parametrize("make", MAKERS)
def test_problems_to_practise_and_held_out_ones_are_apart(make):
    of = {split: {tuple(sorted(row["meta"]["numbers"])) for row in make(3, 300, split)} for split in ("train", "held_out")}
    assert of["train"] and of["held_out"] and not of["train"] & of["held_out"]
    assert all(split_of(numbers) == split for split, found in of.items() for numbers in found)
    assert list(make(3, 5, "train")) == list(make(3, 9, "train"))[:5] and list(make(3, 5, "train")) != list(make(4, 5, "train"))


def test_a_demonstrator_is_as_skilled_as_it_is_said_to_be():
    tok = byte_tokenizer()
    for rows, style, share in (
        (demonstrators.mostly_at_once(0, 2000, 0.1), "steps", 0.1),
        (demonstrators.seldom_python(0, 2000, 0.05), "python", 0.05),
        (demonstrators.forgetful(0, 2000, 0.4), "right", 0.4),
    ):
        found = [row for row in rows if row["meta"]["style"] != "told"]
        assert sum(row["meta"]["style"] == style for row in found) / len(found) == pytest.approx(share, abs=0.03)
        for row in found[:50]:
            check_mask(tok, *render(tok, row["messages"]))
            right = matches(row["messages"][-1]["content"], row["answer"], "number")
            assert right == (row["meta"]["style"] != "forgotten") and row["meta"]["split"] == "train"


def test_demonstrators_of_two_kinds_answer_the_same_problems():
    seeded, unseeded = (list(demonstrators.mostly_at_once(1, 200, p)) for p in (0.1, 0.0))
    assert [row["prompt"] for row in seeded] == [row["prompt"] for row in unseeded]
    assert {row["meta"]["style"] for row in unseeded} == {"direct"}


def test_forgetting_to_carry_is_worked_out_in_the_same_form_and_is_wrong():
    assert demonstrators.forgetting((347, 285)) == "7+5+0=12, 4+8+0=12, 3+2+0=05. Answer 522"
    for row in demonstrators.carry_problems(2, 200, "train"):
        wrong, right = (f(row["meta"]["numbers"]) for f in (demonstrators.forgetting, worked))
        assert re.sub(r"\d", "d", wrong.partition(". ")[0]) == re.sub(r"\d", "d", right.partition(". ")[0])
        assert not matches(wrong, row["answer"], "number") and matches(right, row["answer"], "number")


def test_figures_of_differences_and_ratios():
    before, after = [0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]
    gained = points("p", after, before, ">= 0.3")
    assert gained.share == 0.5 and gained.interval_95[0] <= 0.5 <= gained.interval_95[1] and gained.met and shown(gained.share, gained.unit) == "+50.0 points"
    grown = times("t", [30.0, 50.0], [10.0, 10.0], ">= 1.5")
    assert grown.share == 4.0 and grown.interval_95 == [3.0, 5.0] and shown(grown.share, grown.unit) == "x 4.00"
    above = than("a", after, 0.4)
    assert above.share == pytest.approx(0.35) and above.interval_95[0] < 0.35 < above.interval_95[1]
    assert share_of("s", [0.25, 0.75]).share == 0.5 and powers_of_four(16) == [1, 4, 16] and powers_of_four(3) == [1]


def test_answers_count_per_problem():
    made = Answers([{"right": [1, 0, 0, 0], "length": [2, 4, 4, 2], "called": [0, 0, 0, 1], "meta": {"level": "hard"}}, {"right": [1, 1], "length": [1, 1], "called": [0, 0], "meta": {}}])
    assert made.pass_at(1) == [0.25, 1.0] and made.pass_at(2) == [0.5, 1.0]
    assert made.of("hard").mean("length") == [3.0] and made.of("hard").mean("called") == [0.25] and not made.of("easy").rows


def test_equal_compute_is_measured_once(tmp_path):
    for name, lines in (("rl", [{"step": 1, "cpu_seconds": 3.0}, {"step": 2, "cpu_seconds": 4.0}]), ("sft", [{"step": 10, "cpu_seconds": 1.0}, {"step": 20, "cpu_seconds": 1.0}])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / name / "weights").write_text(name)
    room = SimpleNamespace(out=tmp_path, seed=0)
    first = equal_compute(room, "compute", tmp_path / "rl", tmp_path / "sft")
    assert first == {"steps": 70, "rl_cpu_seconds": 7.0, "sft_cpu_seconds_per_step": 0.1}
    (tmp_path / "rl" / "timings.jsonl").write_text('{"step": 1, "cpu_seconds": 900.0}\n')
    assert equal_compute(room, "compute", tmp_path / "rl", tmp_path / "sft") == first


def test_the_tool_and_the_one_that_is_out_of_order():
    for kind in (Calculator, OutOfOrder):
        environment = find_environment(f"{kind.__module__}:{kind.__name__}")()
        assert list(tools_of(environment)) == ["python"] and environment.reset(prompt="x") is None
    assert OutOfOrder().python("2*3").startswith("error")


def test_the_page_shows_curves_and_the_same_problem_over_time(tmp_path):
    assert page_of(tmp_path, "rlvr") == "" and page_of(tmp_path, "sums") == ""
    for folder, _ in RUNS["rlvr"]:
        (tmp_path / folder).mkdir()
        log = [{"step": s, "eval/pass@1": s / 10, "completions/mean_length": 5.0 + s, "entropy": 0.5, "grad_norm": 1.0, "frac_reward_zero_std": 0.5} for s in range(1, 9)]
        (tmp_path / folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        said = [{"step": s, "prompt": [{"role": "user", "content": "1+2?"}], "text": f"said at {s}", "length": 3, "reward": float(s > 2)} for s in range(9)]
        (tmp_path / folder / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    for folder, _ in ANSWERS["rlvr"]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "answers.jsonl").write_text(json.dumps({"right": [1, 0, 0, 0]}) + "\n")
    html = page_of(tmp_path, "rlvr")
    Page(html)  # balanced
    assert html.count("<svg") == 5 and "said at 0" in html and "said at 8" in html and "paid by a coin" in html and "pass@k" in html


def test_a_call_is_shown_with_what_was_said_before_it_and_what_came_back():
    call = {"role": "assistant", "content": "so ", "tool_calls": [{"function": {"name": "python", "arguments": {"code": "2*3"}}}]}
    said = [call, {"role": "tool", "name": "python", "content": "6"}, {"role": "assistant", "content": "six"}]
    assert _words({"messages": said, "text": "so six"}) == "so [2*3 → 6] six" and _words({"text": "six"}) == "six"


def test_runs_shown_are_those_that_arms_make():
    from pathlib import Path

    code = "".join(path.read_text() for path in Path(practice.__file__).parent.glob("*.py") if path.name != "practice_page.py")
    for arm, runs in RUNS.items():
        assert f'"{arm}": Arm(' in code
        for folder, _ in runs:
            assert folder.split("-")[0] in code
