"""`freedive label` before its page: what is wrong with prompts, folders, models and flags is a sentence, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

pytest.importorskip("nicegui", reason="the page needs nicegui: pip install 'freedive[serve]'")

from freedive.cli import main  # noqa: E402
from freedive.sft.labels.importing import write  # noqa: E402
from freedive.sft.labels.items import make_item  # noqa: E402
from freedive.sft.labels.store import Labels, at_work  # noqa: E402


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "Q", "completions": ["a", "b"]}\n{"prompt": "P"}\n{"nothing": 1}\n')
    Path("alone.jsonl").write_text('{"prompt": "P"}\n')
    Path("half.jsonl").write_text('{"prompt": "P"\n')
    write(Path("begun"), [make_item([{"role": "user", "content": "Q"}], ["a", "b"])], [], seed=4, source={"name": "old.jsonl", "hash": "x"})
    write(Path("many"), [make_item([{"role": "user", "content": "Q"}], [str(n) for n in range(11)])], [])
    Path("mine").mkdir()
    Path("mine/file").write_text("x")
    Path("empty.md").write_text(" ")
    return tmp_path


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["none.jsonl"], "none.jsonl does not exist"),
        ([], "no prompts are named"),
        (["alone.jsonl"], "none of its 1 prompts has two answers"),
        (["half.jsonl"], "line 1 is no JSON object"),
        (["--out", "many"], "more than 9 answers"),
        (["prompts.jsonl", "--out", "mine"], "is not a folder of labels"),
        (["prompts.jsonl", "--out", "begun"], "judgements about other prompts (old.jsonl)"),
        (["--out", "begun", "--seed", "5"], "was begun with seed 4"),
        (["prompts.jsonl", "--labeller", "../ada"], "the labeller's name is '../ada'"),
        (["prompts.jsonl", "--guidelines", "empty.md"], "are empty"),
        (["prompts.jsonl", "--guidelines", "none.md"], "could not be read"),
        (["prompts.jsonl", "--answers", "10"], "at most 9 answers"),
        (["prompts.jsonl", "--answers", "0"], "answers is 0"),
        (["prompts.jsonl", "--port", "70000"], "ports to 65535"),
        (["prompts.jsonl", "--model", "none.gguf"], "no such model"),
        (["prompts.jsonl", "--endpoint", "file:///etc/passwd"], "is not the address of an endpoint"),
        (["prompts.jsonl", "--task", "guess"], "invalid choice"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(room: Path, arguments, told, capsys: pytest.CaptureFixture[str]):
    before = sorted(str(p) for p in room.rglob("*"))
    assert main(["label", "--port", "0", *arguments] if "--port" not in arguments else ["label", *arguments]) == 2
    assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert sorted(str(p) for p in room.rglob("*")) == before


def test_a_dry_run_says_what_there_is_and_writes_nothing(room: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["label", "prompts.jsonl", "--dry-run", "--port", "0", "--out", "new"]) == 0
    out = capsys.readouterr().out
    assert "prompts.jsonl: 1 prompts, 2 answers" in out and "1 prompts without two answers left out" in out and "line 3: a row needs 'messages'" in out
    assert main(["label", "prompts.jsonl", "--dry-run", "--port", "0", "--out", "new", "--task", "write"]) == 0
    assert "2 prompts, 2 answers" in capsys.readouterr().out and not Path("new").exists()


def test_a_port_or_a_labeller_that_is_taken(room: Path, capsys: pytest.CaptureFixture[str]):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        assert main(["label", "prompts.jsonl", "--port", str(s.getsockname()[1]), "--out", "new"]) == 2
    assert "cannot be listened on" in capsys.readouterr().err and not Path("new").exists()
    with at_work(Path("begun"), "ada"):
        assert main(["label", "--out", "begun", "--labeller", "ada", "--port", "0"]) == 2
    assert "is writing" in capsys.readouterr().err


def test_a_base_model_answers_nothing(room: Path, capsys: pytest.CaptureFixture[str]):
    from serve_cases import TOKENIZER, make_lm

    from freedive.inference.folder import save_model_folder

    save_model_folder(make_lm().model, TOKENIZER, Path("base"), TOKENIZER.bos_id)
    Path("base/run.json").write_text(json.dumps({"stage": "pretrain", "config": {}}))
    assert main(["label", "alone.jsonl", "--model", "base", "--port", "0", "--out", "new"]) == 2
    assert "is a base model" in capsys.readouterr().err and not Path("new").exists()


def test_more_answers_than_digits_are_cut(room: Path):
    from freedive.serve.label import fit

    item = fit(make_item([{"role": "user", "content": "Q"}], [str(i) for i in range(12)], list(range(12))[::-1]))
    assert len(item.answers) == 9 and item.ranks == {f"a{i}": 8 - i for i in range(9)}
    assert Labels(Path("begun")).seed == 4
