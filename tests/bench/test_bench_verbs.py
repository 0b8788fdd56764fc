"""`freedive bench ops|train` on small settings: one JSON line a case, with its limit; bad input is told."""

from __future__ import annotations

import json

import pytest

from freedive.cli import main


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_ops(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "ops", "--only", "adamw", "rmsnorm", "--threads", "2", "--megabytes", "1", "--repetitions", "2"]) == 0
    found = lines(capsys)
    assert [row["case"] for row in found] == ["rmsnorm_forward", "rmsnorm_backward", "adamw"]
    assert all(row["value"] > 0 and row["limit"] > 0 and row["ratio"] > 0 and row["threads"] == 2 for row in found)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_train(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch, optimizer: str):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["bench", "train", "--only", "4x128", "--threads", "1", "--steps", "1", "--optimizer", optimizer]) == 0
    (row,) = lines(capsys)
    assert row["case"] == "4x128" and row["unit"] == "tokens/s" and 0 < row["ratio"]
    assert row["optimizer"] == optimizer and row["limit"] > 0


@pytest.mark.parametrize("arguments, said", [
    (["ops", "--only", "nonsense"], "no case holds nonsense"),
    (["ops", "--threads", "0"], "threads"),
    (["ops", "--dtype", "int4"], "int4"),
    (["train", "--only", "gpt5"], "no case 'gpt5'"),
    (["train", "--optimizer", "sgd"], "sgd"),
    (["train", "--threads", "0"], "threads"),
])  # fmt: skip
def test_bad_input(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err
