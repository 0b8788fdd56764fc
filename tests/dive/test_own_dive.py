"""A dive on a user's own files: only the stages there is input for, and what cannot work is said before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from freedive.dive.stage import DiveConfig, list_of_steps, run
from freedive.dive.tiers import TIERS
from freedive.runs import UserError


def rows(path: Path, items: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in items))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    sums = [(a, b) for a in range(12) for b in range(8)]
    ask = lambda a, b: f"How much is {a} plus {b}?"
    return {
        "pages": rows(tmp_path / "pages.jsonl", [{"text": text} for text in list(topics.values())[:60]]),
        "chats": rows(tmp_path / "chats.jsonl", [{"prompt": ask(a, b), "completion": str(a + b)} for a, b in sums]),
        "problems": rows(tmp_path / "problems.jsonl", [{"prompt": ask(a, b), "answer": str(a + b)} for a, b in sums]),
        "questions": rows(tmp_path / "questions.jsonl", [{"prompt": "Which word begins a function?", "answer": "def"}]),
    }


def names(**given) -> list[str]:
    return [s.name for s in list_of_steps(DiveConfig(**given), TIERS["smoke"])]


def test_stages_follow_what_is_given(files, tmp_path):
    pages = (files["pages"],)
    assert names(pages=pages) == ["sources", "data", "tokenizer", "pretrain"]
    assert names(pages=pages, questions=files["questions"])[-1] == "eval-base"
    assert names(pages=pages, chats=files["chats"])[-1] == "sft"
    full = names(pages=pages, chats=files["chats"], problems=files["problems"])
    assert full == ["sources"] + names(tier="smoke")[1:]


@pytest.mark.parametrize(
    "given, said",
    [({"chats": 1}, "needs --pages"), ({"pages": 1, "problems": 1}, "needs --chats"), ({"threads": 0}, "threads"), ({"rl_lr": -1.0}, "rl_lr")],
)
def test_what_cannot_work_is_said_first(files, tmp_path, given, said):
    out = tmp_path / "dive"
    given = {k: v if k in ("threads", "rl_lr") else (files[k],) if k == "pages" else files[k] for k, v in given.items()}
    with pytest.raises(UserError, match=said):
        run(DiveConfig(tier="smoke", out=out, **given))
    with pytest.raises(UserError, match="does not exist"):
        run(DiveConfig(tier="smoke", out=out, pages=(files["pages"],), chats=tmp_path / "none.jsonl"))
    assert not out.exists()


@pytest.mark.parametrize("text, said", [(None, "does not exist"), (b"", "empty"), (b"ab\x00\x01" * 99, "binary"), (b"caf\xe9 " * 99, "bad_encoding")])
def test_pages_that_are_no_text_leave_nothing(tmp_path, text, said):
    if text is not None:
        (tmp_path / "p.txt").write_bytes(text)
    with pytest.raises(UserError, match=said):
        run(DiveConfig(tier="smoke", out=tmp_path / "dive", pages=(tmp_path / "p.txt",), quiet=True))
    assert not (tmp_path / "dive").exists()


def test_the_practice_takes_a_learning_rate_of_its_own(tmp_path, capsys):
    run(DiveConfig(tier="smoke", out=tmp_path / "dive", rl_lr=0.00123, dry_run=True))
    said = capsys.readouterr().out
    assert said.count("--lr 0.00123") == 1 and "freedive rl" in said[: said.index("--lr 0.00123")].splitlines()[-1]
    assert not (tmp_path / "dive").exists()


@pytest.mark.slow
def test_from_own_pages_to_practice(files, tmp_path):
    out = tmp_path / "dive"
    run(
        DiveConfig(
            tier="smoke", out=out, pages=(files["pages"],), chats=files["chats"], problems=files["problems"], questions=files["questions"], quiet=True
        )
    )
    held_out = [json.loads(line) for line in (out / "sources/rl_eval.jsonl").read_text().splitlines()]
    practice = [json.loads(line) for line in (out / "sources/rl_train.jsonl").read_text().splitlines()]
    assert len(held_out) == 9 and len(practice) == 87 and not [r for r in held_out if r in practice]
    dive = json.loads((out / "dive.json").read_text())
    assert dive["source"] == "own" and "rl" in dive["stages"]
    report = (out / "report.html").read_text()
    assert "town of" not in report and "Ablehill" not in report
