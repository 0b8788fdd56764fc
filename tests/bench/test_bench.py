"""`freedive bench ops` and `freedive bench train`: lines of JSON with the limit beside the value, and one sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freedive import cli
from freedive.bench import ops as bench_ops
from freedive.bench import train as bench_train
from freedive.model import preset
from freedive.runs.peak import cache_file, machine_peak, seen

FIELDS = {"bench", "case", "tier", "threads", "dtype", "value", "min", "max", "unit", "limit", "ratio"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    assert cli.main(["bench", *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row.keys() >= FIELDS for row in rows)
    for row in rows:
        assert 0 < row["min"] <= row["value"] <= row["max"] and row["limit"] > 0 and row["ratio"] > 0
    return rows


@pytest.mark.parametrize("threads", ["1", "2"])
def test_ops_bound_by_memory(capsys: pytest.CaptureFixture[str], threads: str):
    rows = lines(capsys, "ops", "--only", "rope", "adamw", "muon", "--megabytes", "1", "--repetitions", "1", "--threads", threads)
    assert {r["case"] for r in rows} == {"rope", "adamw", "muon_momentum", "muon_update"}
    assert all(r["unit"] == "GB/s" and r["threads"] == int(threads) and r["dtype"] == "float32" for r in rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_measured_in_the_dtype_asked_for(capsys: pytest.CaptureFixture[str], dtype: str):
    rows = lines(capsys, "ops", "--only", "matmul_forward projection", "--megabytes", "1", "--repetitions", "1", "--dtype", dtype, "--threads", "1")
    assert [(r["case"], r["dtype"], r["unit"]) for r in rows] == [("matmul_forward projection", dtype, "GFLOP/s")]


def test_the_table_of_the_readme(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["bench", "ops", "--table", "--only", "rope", "swiglu_forward", "--megabytes", "1", "--repetitions", "1", "--threads", "1"]) == 0
    first, blank, *table = capsys.readouterr().out.splitlines()
    assert "1 thread," in first and not blank and {row.count("|") for row in table} == {6}
    rows = {cells[1]: cells for row in table[2:] if (cells := [cell.strip() for cell in row.split("|")])}
    assert set(rows) == {"rope", "swiglu_forward"} and rows["rope"][5] == ""  # rope has one variant
    assert rows["swiglu_forward"][2].endswith("GB/s") and float(rows["swiglu_forward"][5]) > 0


def test_every_case_is_an_op_of_this_machine():
    """Names are unique, and arguments fit the op's schema: one call of the memory cases, small, would raise."""
    cases = list(bench_ops.memory_cases(1))
    assert len({c.name for c in cases}) == len(cases)
    for case in cases:
        case.run(1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_train_steps(capsys: pytest.CaptureFixture[str], optimizer: str):
    rows = lines(capsys, "train", "--only", "4x128", "--steps", "1", "--threads", "1", "2", "--optimizer", optimizer, "--dtype", "float32")
    assert [(r["case"], r["threads"], r["optimizer"], r["tokens"]) for r in rows] == [("4x128", 1, optimizer, 4096), ("4x128", 2, optimizer, 4096)]
    assert cache_file().exists()  # the peak was kept


def test_the_limit_of_gpt2_is_its_products():
    """6 FLOPs a weight of its matrices, the head's among them, and the causal half of attention's."""
    config, B, T = bench_train.CASES["gpt2"]
    assert config == preset("gpt2")
    products = 6 * (12 * 12 * 768**2 + 50257 * 768)
    assert config.train_flops(B * T, B * T, T) / (B * T) == pytest.approx(products, rel=0.05)
    assert config.train_flops(B * T, B * T, T) / (B * T) > products


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["ops", "--only", "softmax"], "softmax"),
        (["ops", "--threads", "0"], "threads"),
        (["ops", "--dtype", "int3"], "int3"),
        (["train", "--only", "7x900"], "7x900"),
        (["train", "--optimizer", "sgd"], "sgd"),
        (["train", "--threads", "0"], "threads"),
        (["train", "--steps", "0"], "steps"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str):
    assert cli.main(["bench", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["ops", "train"])
def test_help_shows_an_example(capsys: pytest.CaptureFixture[str], verb: str):
    assert cli.main(["bench", verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"freedive bench {verb}" in out and "--dtype" in out and "--threads" in out


def test_the_peak_is_probed_once_and_only_rises():
    first = machine_peak(1)
    assert first > 1e9 and machine_peak(1) == first
    assert seen(1, "float32", first * 2) == first * 2 == machine_peak(1)
    assert seen(1, "float32", first) == first * 2 == machine_peak(1)


def test_a_damaged_peak_cache_is_done_without():
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text("{")
    assert machine_peak(1) > 1e9
