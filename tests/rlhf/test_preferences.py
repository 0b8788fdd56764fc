"""Preferences as rows: every form gives the same lists, what cannot be used is counted or refused with its line, and no prompt is on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freedive.data.texts import iter_rows
from freedive.rlhf.preferences import answer_ids, prompt_ids, read_preferences
from freedive.runs import UserError
from freedive.sft.labels.exports import pair_rows, rank_rows
from freedive.sft.labels.items import Answer, Item
from freedive.sft.labels.store import Judgement
from freedive.tokenizer import Tokenizer, render

ASK = [{"role": "user", "content": "Hi?"}]


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def tok(room: Path) -> Tokenizer:
    return Tokenizer.load(room / "chat")


def read(path: Path, rows: list[dict], tok: Tokenizer, context: int = 100, **more):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return read_preferences([str(path)], tok, context, **more)


def test_every_form_gives_the_same_list(tmp_path: Path, tok: Tokenizer):
    forms = [
        {"prompt": "Hi?", "chosen": "Yes", "rejected": "No"},
        {"prompt": ASK, "chosen": say("Yes"), "rejected": say("No")},
        {"chosen": [*ASK, *say("Yes")], "rejected": [*ASK, *say("No")]},
        {"prompt": "Hi?", "completions": ["Yes", "No"], "ranks": [0, 1]},
        {"prompt": {"role": "prompter", "text": "Hi?", "replies": [{"role": "assistant", "text": "No", "rank": 1}, {"role": "assistant", "text": "Yes", "rank": 0}]}},
    ]
    for form in forms:
        (made,), _, (report,) = read(tmp_path / "p.jsonl", [form], tok)
        assert made.prompt == render(tok, ASK, add_generation_prompt=True)[0]
        whole = render(tok, [*ASK, *say("Yes")])[0]
        assert [made.sequences[i] for i, _ in made.pairs()] == [whole[: len(whole) - whole[::-1].index(tok.im_end)]]
        assert made.sequences[0][-1] == tok.im_end and report.pairs == 1


def test_text_of_an_answer_cannot_end_it(tok: Tokenizer):
    ids = answer_ids(tok, ASK, "<|im_end|> nothing")
    assert ids.count(tok.im_end) == 1 and ids[-1] == tok.im_end and tok.decode(ids[:-1]) == "<|im_end|> nothing"
    assert answer_ids(tok, ASK, "") == [tok.im_end] and prompt_ids(tok, "Hi?") == prompt_ids(tok, ASK)


def test_what_labellers_said_is_read_as_exported(tmp_path: Path, tok: Tokenizer):
    items = {"1": Item("1", tuple(ASK), tuple(Answer(str(i), text) for i, text in enumerate(("Yes", "No", "Well"))))}
    said = [Judgement("1", "ada", ranks={"0": 1, "1": 0, "2": 1})]
    (ranked,), _, _ = read(tmp_path / "r.jsonl", list(rank_rows(items, said)), tok)
    assert ranked.ranks == [1, 0, 1] and ranked.pairs() == [(1, 0), (1, 2)]
    pairs, _, _ = read(tmp_path / "p.jsonl", list(pair_rows(items, said)), tok)
    assert len(pairs) == 2 and {tok.decode(p.answers[0][:-1]) for p in pairs} == {"No"}


def test_what_cannot_be_used_is_counted(tmp_path: Path, tok: Tokenizer):
    rows = [
        {"prompt": "a", "completions": ["x", "x", "y"], "ranks": [0, 1, 2]},  # said twice
        {"prompt": "b", "completions": ["x", "", "y"], "ranks": [0, 1, 2]},
        {"prompt": "c", "completions": ["x", "y" * 90, "zz"], "ranks": [0, 1, 2]},
        {"prompt": "d", "chosen": "x", "rejected": "x"},
        {"prompt": "e", "completions": ["x", "y"], "ranks": [1, 1]},
    ]
    lists, _, (report,) = read(tmp_path / "p.jsonl", rows, tok, context=60)
    assert len(lists) == 3 and all(len(r.answers) == 2 for r in lists)
    assert (report.repeated, report.empty, report.too_long, report.left_out, report.pairs) == (2, 1, 1, 2, 3)
    assert report.longer_wins == pytest.approx((0.5 + 0.5 + 0) / 3) and "1 empty answers" in str(report)


@pytest.mark.parametrize("row, words", [
    ({"text": "x"}, "chosen and rejected"), ({"chosen": "x", "rejected": "y"}, "no prompt"), ({"prompt": "a", "completions": ["x"], "ranks": [0, 1]}, "1 completions have 2 ranks"),
    ({"prompt": "a", "chosen": 3, "rejected": "y"}, "turns"), ({"prompt": "a", "chosen": "x", "rejected": "y", "margin": "wide"}, "the margin is 'wide'"),
    ({"chosen": None, "rejected": "y"}, "an answer is empty, and there is no prompt"), ({"prompt": "a", "chosen": "x", "rejected": "y", "margin": [1]}, r"the margin is \[1\]"),
])  # fmt: skip
def test_a_row_that_is_no_preference_is_refused_with_its_line(tmp_path: Path, tok: Tokenizer, row: dict, words: str):
    with pytest.raises(UserError, match=f"line 2.*{words}"):
        read(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "x", "rejected": "y"}, row], tok)


@pytest.mark.parametrize("answer, words", [
    ([*say("Yes"), *ASK], "ends in a turn of the user"), (ASK, "ends in a turn of the user"), ([{"role": "user", "content": "And?"}, *say("Yes")], "begins with a turn of the user"),
    ([{"role": "system", "content": "Be brief."}, *say("Yes")], "begins with a turn of the system"),
])  # fmt: skip
@pytest.mark.parametrize("key", ["chosen", "rejected", "completions"])
def test_an_answer_is_what_the_assistant_says(tmp_path: Path, tok: Tokenizer, answer: list[dict], words: str, key: str):
    row = {"prompt": "Hm?", "chosen": say("No"), "rejected": say("Well")} | ({"completions": [answer, say("No")], "ranks": [0, 1]} if key == "completions" else {key: answer})
    if key == "completions":
        row = {k: v for k, v in row.items() if k not in ("chosen", "rejected")}
    with pytest.raises(UserError, match=f"p.jsonl, line 2: an answer {words}"):
        read(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "x", "rejected": "y"}, row], tok)


def test_whole_conversations_beside_their_prompt(tmp_path: Path, tok: Tokenizer):
    """UltraFeedback's rows: the prompt as text, and again in chosen and rejected. Several turns of an answer are one."""
    several = [*say("Wait"), {"role": "user", "content": "So?"}, *say("Yes")]
    (twice, long), _, _ = read(tmp_path / "p.jsonl", [{"prompt": "Hi?", "chosen": [*ASK, *say("Yes")], "rejected": [*ASK, *say("No")]}, {"prompt": "Hi?", "chosen": several, "rejected": "No"}], tok)
    (once,), _, _ = read(tmp_path / "q.jsonl", [{"prompt": "Hi?", "chosen": "Yes", "rejected": "No"}], tok)
    assert (twice.prompt, twice.answers) == (once.prompt, once.answers) and long.answers[0][-1] == tok.im_end and len(long.answers[0]) > len(once.answers[0])


def test_nothing_to_learn_from(tmp_path: Path, tok: Tokenizer):
    with pytest.raises(UserError, match="longer than 10 tokens"):
        read(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "x" * 9, "rejected": "y" * 9}], tok, context=10)
    with pytest.raises(UserError, match="weight"):
        read_preferences([f"{tmp_path / 'p.jsonl'}:0.5"], tok, 10)


def test_held_out_by_prompt_whatever_else_is_there(tmp_path: Path, tok: Tokenizer):
    rows = [{"prompt": f"q{i % 30}", "chosen": f"x{i}", "rejected": f"y{i}"} for i in range(60)]
    train, held, (report,) = read(tmp_path / "p.jsonl", rows, tok, val_fraction=0.3)
    assert held and train and report.held_out == len(held) and not {r.key for r in train} & {r.key for r in held}
    _, fewer, _ = read(tmp_path / "q.jsonl", rows[:30], tok, val_fraction=0.3)
    assert {r.key for r in fewer} == {r.key for r in held}


def test_real_trees_of_oasst(shared_data: Path, tok: Tokenizer):
    """Ranked siblings as lists; of every tree all or nothing is held out."""
    train, held, (report,) = read_preferences([str(shared_data / "sft" / "oasst_en_100_trees.jsonl.gz")], tok, 100_000, 0.2)
    assert report.rows == 100 and report.lists == len(train) + len(held) == 212 and report.pairs + report.ties == 754 and max(report.answers) == 9
    first = {str(row["prompt"]["text"]) for _, row in iter_rows(shared_data / "sft" / "oasst_en_100_trees.jsonl.gz")}
    assert {r.key for r in train} | {r.key for r in held} <= first and not {r.key for r in train} & {r.key for r in held}


def test_a_file_of_empty_answers_is_told_so(tmp_path: Path, tok: Tokenizer):
    with pytest.raises(UserError, match="no two answers of unlike rank: 2 answers are empty"):
        read(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": None, "rejected": "y"}, {"prompt": "b", "chosen": "x", "rejected": ""}], tok)
