"""`freedive eval` on a tiny model whose greedy answers are known beforehand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freedive.eval.stage import EvalConfig, run
from freedive.eval.statistics import wilson
from freedive.inference import load
from freedive.model import DecoderConfig, Model, save_pretrained
from freedive.runs import UserError, folder_hash, read_json
from freedive.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Model(DecoderConfig(TOKENIZER.vocab_size, 2, 2, 1, 32, 16, 48, 96), threads=1, trainable=False).init(3)
    model.parameters["embed_tokens.weight"][...] *= 10
    out = tmp_path_factory.mktemp("model") / "sft"
    save_pretrained(model, out)
    TOKENIZER.save(out / "tokenizer")
    return out


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def evaluate(tmp_path: Path, folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    data = write(tmp_path / "rows.jsonl", rows)
    out = run(EvalConfig(**({"model": folder, "data": data, "out": tmp_path / "out", "threads": 1, "max_new_tokens": 6} | settings)))
    return read_json(out / "eval.json"), [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def always(reply: str, row: dict[str, Any]) -> bool:
    return True


def test_accuracy_by_group(tmp_path, folder):
    lm = load(folder, threads=1)
    questions = [f"question {i}" for i in range(10)]
    truth = [lm.chat(q, max_new_tokens=6, temperature=0.0) for q in questions]
    rows = [{"prompt": q if i % 2 else [{"role": "user", "content": q}], "answer": t if i < 7 else t + "x", "meta": {"check": "exact", "kind": "ab"[i // 5]}}
            for i, (q, t) in enumerate(zip(questions, truth))]  # fmt: skip
    found, answers = evaluate(tmp_path, folder, rows, group_by=["kind"])
    assert found["questions"] == 10 and found["accuracy"] == 0.7
    assert found["accuracy_95"] == pytest.approx([0.3968, 0.8922], abs=1e-3)
    assert [found["groups"][f"kind={k}"]["accuracy"] for k in "ab"] == [1.0, 0.4]
    assert [a["replies"] for a in answers] == [[t] for t in truth]
    assert [a["right"] for a in answers] == [[i < 7] for i in range(10)]
    metrics = read_json(tmp_path / "out" / "run.json")["metrics"]
    assert metrics["accuracy"] == 0.7


def test_a_prompt_may_be_called_a_question(tmp_path, folder):
    rows = [{"question": f"q{i}", "answer": "e"} for i in range(3)]
    assert evaluate(tmp_path, folder, rows)[1] == evaluate(tmp_path, folder, [{"prompt": r["question"], "answer": "e"} for r in rows], out=tmp_path / "prompts")[1]


def test_samples_are_reproducible_and_give_pass_at_k(tmp_path, folder):
    rows = [{"prompt": f"q{i}", "answer": "e"} for i in range(5)]
    settings = dict(samples=4, temperature=1.0, seed=3)
    found, answers = evaluate(tmp_path, folder, rows, **settings)
    evaluate(tmp_path, folder, rows, out=tmp_path / "again", **settings)
    assert folder_hash(tmp_path / "out") == folder_hash(tmp_path / "again")
    assert len({r for a in answers for r in a["replies"]}) > 10
    assert found["pass_at"]["1"] == pytest.approx(found["accuracy"]) and found["pass_at"]["4"] == np.mean([any(a["right"]) for a in answers])
    _, few = evaluate(tmp_path, folder, rows[:2], out=tmp_path / "few", **settings)
    assert [a["replies"] for a in few] == [a["replies"] for a in answers[:2]]


def test_a_checker_of_ones_own_and_a_base_model(tmp_path, folder):
    found, answers = evaluate(tmp_path, folder, [{"prompt": "Once", "answer": "x"}], checker=f"{__name__}:always", base=True)
    assert found["accuracy"] == 1.0
    assert answers[0]["replies"] == [load(folder, threads=1).generate("Once", max_new_tokens=6, temperature=0.0)]


def test_a_checker_in_a_file_is_an_input_of_the_run(tmp_path, folder):
    mine, row = tmp_path / "mine.py", {"prompt": "q", "answer": "x"}
    mine.write_text("def check(reply, row):\n    return row['answer'] == 'x'\n")
    found, _ = evaluate(tmp_path, folder, [row], checker=f"{mine}:check")
    assert found["accuracy"] == 1.0
    mine.write_text("def check(reply, row):\n    return False\n")
    with pytest.raises(UserError, match="checker_file"):  # another function: not the same evaluation
        evaluate(tmp_path, folder, [row], checker=f"{mine}:check")
    mine.write_text("def check(reply, row):\n    return 1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        evaluate(tmp_path, folder, [row], checker=f"{mine}:check", out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_questions_without_the_key_are_a_group_of_their_own(tmp_path, folder):
    rows = [{"prompt": f"q{i}", "answer": "a", "meta": meta} for i, meta in enumerate([{"kind": "a"}, {}, {"kind": "a", "level": 2}])]
    found, _ = evaluate(tmp_path, folder, rows, group_by=["kind", "level"])
    assert {name: group["n"] for name, group in found["groups"].items()} == {
        "kind=a": 2, "kind=(none)": 1, "level=2": 1, "level=(none)": 2, "a/2": 1, "a/(none)": 1, "(none)/(none)": 1,
    }  # fmt: skip
    with pytest.raises(UserError, match="'knid'") as caught:
        evaluate(tmp_path, folder, rows, group_by=["knid"], out=tmp_path / "other")
    assert "kind, level" in caught.value.hint


def test_a_dry_run_loads_everything_and_writes_nothing(tmp_path, folder, capsys):
    rows = [{"prompt": "q", "answer": "a"}] * 3
    good = dict(model=folder, data=write(tmp_path / "q.jsonl", rows), out=tmp_path / "out", dry_run=True, threads=1)
    run(EvalConfig(**good))
    assert "3 questions" in capsys.readouterr().out
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"junk")
    for changes, says in (
        ({"model": tmp_path / "nobody"}, "nobody"), ({"model": broken}, "cannot be read"), ({"data": tmp_path / "none.jsonl"}, "none.jsonl"),
        ({"text": tmp_path / "none.txt"}, "none.txt"), ({"checker": "nowhere.py:f"}, "nowhere.py"), ({"threads": -1}, "threads is -1"),
        ({"data": write(tmp_path / "long.jsonl", [{"prompt": "q" * 200, "answer": "a"}])}, "long.jsonl, line 1.*positions"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            run(EvalConfig(**(good | changes)))
    assert not list(tmp_path.glob("out*"))


def test_text_alone(tmp_path, folder):
    (tmp_path / "t.txt").write_text("Some text, a little longer than the context of this model is. " * 4)
    out = run(EvalConfig(model=folder, text=tmp_path / "t.txt", out=tmp_path / "out", threads=1))
    found = read_json(out / "eval.json")
    n = (tmp_path / "t.txt").stat().st_size  # one token a byte, and the end of the document
    assert found["val_bits_per_byte"] == pytest.approx(found["val_loss"] / np.log(2) * (n + 1) / n)
    with pytest.raises(UserError, match="context is 97"):
        run(EvalConfig(model=folder, text=tmp_path / "t.txt", out=tmp_path / "other", context=97, threads=1))


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        ({"prompt": "q"}, {}, "answer"),
        ({"prompt": "q", "answer": "a", "meta": 3}, {}, "meta"),
        ({"prompt": "q", "answer": "a", "meta": {"check": "nearly"}}, {}, "nearly"),
        ({"prompt": "q" * 200, "answer": "a"}, {}, "positions"),
        ({"prompt": [{"role": "nobody", "content": "q"}], "answer": "a"}, {}, "nobody"),
        ({"prompt": "q", "answer": "a"}, {"samples": 2}, "samples"),
        ({"prompt": "q", "answer": "a"}, {"samples": 0}, "samples"),
        ({"prompt": "q", "answer": "a"}, {"checker": "no.such:thing"}, "no.such cannot be imported"),
        ({"prompt": "q", "answer": "a"}, {"data": None}, "--text"),
    ],
)
def test_bad_input_is_said_and_leaves_no_artefact(tmp_path, folder, row, settings, said):
    with pytest.raises(UserError, match=said):
        evaluate(tmp_path, folder, [row], **settings)
    assert not (tmp_path / "out").exists()


def test_wilson():
    assert wilson(0, 0) == [0.0, 1.0]
    assert wilson(0, 20)[0] == 0.0 and wilson(20, 20)[1] == pytest.approx(1.0)
    assert wilson(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-3)
