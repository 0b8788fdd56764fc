"""benchmarks/gpu without a GPU: the whole program on tiny sizes, its tables of floors and of rungs, and what happens when a side is lost."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freedive import ops

ROOT = Path(__file__).resolve().parents[2]
GPU = ROOT / "benchmarks" / "gpu"
sys.path[:0] = [str(GPU), str(GPU.parent)]
import cases  # noqa: E402
import check  # noqa: E402
import ladder  # noqa: E402
import sides  # noqa: E402
import summary  # noqa: E402

DEVICE = "cuda-emu" if "cuda-emu" in ops.devices() else "cpu"
FIELDS = {"bench", "case", "kind", "op", "sizes", "device", "versions", "variant", "default", "seconds", "value", "unit", "limit", "share", "ratio", "ratio_to", "peers", "clocks"}


def run(*arguments: str, **environment: str) -> tuple[list[dict[str, Any]], str]:
    done = subprocess.run([sys.executable, str(GPU), "--dry-run", "--device", DEVICE, "--rounds", "1", *arguments], capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if k != "FREEDIVE_TORCH_PYTHON"} | environment)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stdout


def test_ours_alone(tmp_path: Path):
    """Every kind of op; each variant was right before it was timed"""
    rows, out = run("--only", "forward 124M qkv", "weight 124M qkv", "swiglu_forward 124M up", "attention_backward B2", "attention_cached S", "quantized_matmul Q8", "rmsnorm_backward",
                    "head_forward_backward 124M", "adamw ladder", "--out", str(tmp_path / "results.json"))  # fmt: skip
    timed = [row for row in rows if "variant" in row]
    assert {row["kind"] for row in timed} == {"product", "activated", "attention", "cached", "quantized", "memory", "head"}
    for row in timed:
        assert FIELDS <= row.keys() and row["dry_run"] is True and row["seconds"]["median"] > 0 and row["value"] > 0
        assert 0 <= row["error"] <= (1e-4 if row["kind"] == "memory" else 0.02)
    assert {row["variant"] for row in timed if row["case"] == "adamw ladder"} == set(ops.variants("adamw", DEVICE))
    assert sum(row["default"] for row in timed if row["case"] == "rmsnorm_backward") == 1
    assert "dry run" in out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rows"] == rows and results["about"]["freedive"]["variants"]["adamw"] == ops.ladder("adamw", DEVICE)
    shown = subprocess.run([sys.executable, str(GPU), "--ladder", str(tmp_path / "results.json")], capture_output=True, text=True, check=True).stdout
    assert "no measurements" in shown and any("| adamw | naive |" in line and " us, " in line for line in shown.splitlines())


@pytest.mark.slow
def test_beside_torch():
    python = os.environ.get("FREEDIVE_TORCH_PYTHON")
    if python is None and importlib.util.find_spec("torch") is None:
        pytest.skip("no torch: FREEDIVE_TORCH_PYTHON names a Python that has it")
    rows, _ = run("--only", "input 124M qkv", "attention_backward B2", "rmsnorm_backward", "swiglu_forward", "adamw", "head_forward_backward 124M", "train", "decode",
                  FREEDIVE_TORCH_PYTHON=python or sys.executable)  # fmt: skip
    by_kind = {row["kind"]: row for row in rows if row.get("ratio") is not None}
    assert by_kind.keys() >= {"product", "attention", "memory", "head", "train", "train memory", "start-up", "decode"}
    for row in by_kind.values():
        assert row["ratio"] > 0 and row["ratio_to"] in row["peers"] and row["versions"]["torch"]["torch"]
    assert all("cudnn" in row["failed"] for row in rows if row["kind"] == "attention" and not row["ladder"])  # there is none on the CPU: told, not hidden


def test_cases_have_names_of_their_own_and_ops_that_are():
    for sizes in (cases.FULL, cases.TINY):
        every = cases.all_cases(sizes)
        names = [(case.name, case.peers) for case in every]
        assert len(set(names)) == len(names)
        assert all(case.op in ops.schemas() or case.kind in ("train", "decode") for case in every)


@pytest.mark.parametrize("damage", [0.0, 0.5])
def test_a_wrong_result_is_seen(damage: float):
    x = np.ones((40, 8), np.float32)
    out = ops.gelu_forward(x)
    out[-1, -1] += damage
    error = check.error_of("gelu_forward", {"x": x}, {"out": out}, {"out": np.full_like(out, np.nan)})
    assert error < 1e-5 if damage == 0 else error > 0.02


def row(case: str, ratio: float, **more: Any) -> dict[str, Any]:
    return {"case": case, "kind": "product", "op": "matmul_forward", "ladder": False, "variant": "sm90", "default": False, "ratio": ratio, "share": None, "peers": {}} | more


def test_floors_and_aims():
    found = {v["figure"]: v for v in summary.verdicts([row("a", 0.8), row("b", 1.0), row("c", 5.0, ladder=True), row("a", 0.6, variant="sm80")])}
    sm90, sm80 = found["products, sm90, of cuBLASLt or cuBLAS"], found["products, sm80, of cuBLASLt or cuBLAS"]
    assert (sm90["value"], sm90["rows"], sm90["verdict"]) == (pytest.approx(0.894, abs=1e-3), 2, "floor")
    assert (sm80["value"], sm80["verdict"]) == (0.6, "aim")
    assert found["AdamW, of torch fused"]["verdict"] == "not measured" and "not measured" in summary.table(list(found.values()), False)


def test_what_is_expected_is_told_and_what_is_measured_stands_apart():
    measured = {"rows": [row("x", 1.0, ladder=True, variant=v, seconds={"median": s}, value=5, unit="GB/s") for v, s in (("naive", 4e-6), ("sm80", 1e-6))], "date": "2030-01-01", "gpu": "GPU X"}
    variants = {"matmul_forward": ["naive", "tiled", "sm80"]}
    lines = ladder.table(measured, variants).splitlines()
    cells = {line.split("|")[2].strip(): [c.strip() for c in line.split("|")[3:-1]] for line in lines if line.startswith("| matmul")}
    assert cells["naive"][1:4] == ["4 us, 5 GB/s", "", ""] and cells["tiled"][1:4] == ["", "", ""] and cells["sm80"][1:4] == ["1 us, 5 GB/s", "4.00", "4.00"]
    assert all(texts[0] for texts in cells.values())
    empty = [[c.strip() for c in line.split("|")[4:-1]] for line in ladder.table(None, variants).splitlines() if line.startswith("| matmul")]
    assert len(empty) == 3 and not any(any(texts) for texts in empty)


def test_a_row_is_found_by_the_words_that_fit_best():
    rows = ladder.expectations("| variant | x | y |\n|---|---|---|\n| naive, all ops | | first |\n| fast, attention_forward, _backward | | A |\n| fast, faster, matmul and heads | | B |\n\n| fast, rope | | no |\n")
    of = lambda op, variant: ladder.expected(rows, op, variant)
    assert of("rope", "naive") == "first" and of("attention_backward", "fast") == "A" and of("matmul_backward_input", "fast") == of("head_forward", "faster") == "B"
    assert of("rope", "fast") is None and of("matmul_forward", "slow") is None


@pytest.mark.skipif(DEVICE != "cuda-emu", reason="the CUDA kernels are not built here: csrc/emulation/README.md")
def test_every_variant_says_what_it_should_buy():
    rows = ladder.expectations(ladder.README.read_text())
    lacks = [f"{op} {variant}" for op in ops.schemas() for variant in ops.variants(op, "cuda-emu") if not ladder.expected(rows, op, variant)]
    assert not lacks, f"csrc/cuda/README.md's table of variants has no row for {', '.join(lacks)}"


def test_a_side_that_is_lost_is_told_and_begun_again(tmp_path: Path):
    script = tmp_path / "side.py"
    script.write_text("import sys, json\nfor line in sys.stdin:\n  r = json.loads(line)\n  if r['do'] == 'die': print('the last words', file=sys.stderr); sys.exit(3)\n"
                      "  import time; time.sleep(r.get('sleep', 0)); print(json.dumps({'did': r['do']}), flush=True)\n")  # fmt: skip
    side = sides.Side(sys.executable, str(script), {})
    assert side.ask(do="this") == {"did": "this"}
    with pytest.raises(sides.Lost, match="the last words"):
        side.ask(do="die")
    with pytest.raises(sides.Lost, match="took more than"):
        side.ask(0.2, do="sleep", sleep=60)
    assert side.ask(do="again") == {"did": "again"}
    side.stop()


def test_a_text_that_no_case_holds():
    done = subprocess.run([sys.executable, str(GPU), "--dry-run", "--only", "softmax"], capture_output=True, text=True)
    assert done.returncode != 0 and "softmax" in done.stderr and "Traceback" not in done.stderr
