"""freedive generate, bench and export from the command line: what they print, and that what cannot be is a sentence and exit code 2."""

from __future__ import annotations

import io
import json
import re

import pytest

from freedive.cli import main
from freedive.inference import load


def said(capsys) -> tuple[str, str]:
    told = capsys.readouterr()
    return told.out, told.err


def test_generate_continues_and_tells_in_json(capsys, monkeypatch, model_folder, tmp_path):
    base = ["generate", str(model_folder), "--max-new-tokens", "12", "--threads", "1"]
    assert main([*base, "--prompt", "Once"]) == 0
    text = said(capsys)[0]
    wanted = load(model_folder, threads=1).generate("Once", max_new_tokens=12, temperature=0)
    assert text.rstrip("\n") == "".join(c for c in wanted if c in "\n\t" or c.isprintable() or ord(c) > 159)
    monkeypatch.setattr("sys.stdin", io.StringIO("Once\n"))
    assert main(base) == 0 and said(capsys)[0] == text
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert main([*base, "--file", str(tmp_path / "p.jsonl"), "--n", "2", "--temperature", "1", "--jsonl", "--logprobs", "2", "--seed", "5"]) == 0
    rows = [json.loads(line) for line in said(capsys)[0].splitlines()]
    assert [r["prompt"] for r in rows] == ["a", "a", "b", "b"] and len({r["text"] for r in rows}) == 4
    assert all(len(r["ids"]) == len(r["logprobs"]) == len(r["top_logprobs"]) and len(r["top_logprobs"][0]) == 2 for r in rows)
    assert main([*base, "--chat", "--prompt", "Hello", "--stop", "a", "--repetition-penalty", "1.2"]) == 0


def test_generate_keeps_to_an_expression(capsys, model_folder, tmp_path):
    pytest.importorskip("llguidance", reason="the package llguidance is not installed")
    base = ["generate", str(model_folder), "--max-new-tokens", "30", "--prompt", "x", "--temperature", "1", "--jsonl"]
    assert main([*base, "--regex", "[0-9]{3}-[a-c]{2}"]) == 0
    assert re.fullmatch("[0-9]{3}-[a-c]{2}", json.loads(said(capsys)[0])["text"])
    (tmp_path / "s.json").write_text('{"enum": ["yes", "no"]}')
    assert main([*base, "--json-schema", str(tmp_path / "s.json")]) == 0
    assert json.loads(said(capsys)[0])["text"] in ('"yes"', '"no"')


def test_bench_prints_llama_benchs_columns(capsys, model_folder):
    assert main(["bench", str(model_folder), "--pp", "40", "--tg", "6", "--parallel", "1", "3", "--repetitions", "2", "--threads", "1", "--jsonl"]) == 0
    rows = [json.loads(line) for line in said(capsys)[0].splitlines()]
    assert [r["test"] for r in rows] == ["pp40", "tg6", "tg6x3"] and [(r["n_prompt"], r["n_gen"]) for r in rows] == [(40, 0), (0, 6), (0, 6)]
    assert all(len(r["samples_ts"]) == 2 and r["avg_ts"] > 0 and r["n_threads"] == 1 for r in rows)
    assert main(["bench", str(model_folder), "--pp", "8", "--tg", "4", "--repetitions", "1"]) == 0
    assert "| pp8" in said(capsys)[0].replace("       pp8", " pp8")


def test_verbs_take_what_keys_and_values_are_kept_in(capsys, model_folder):
    base = ["bench", str(model_folder), "--pp", "8", "--tg", "4", "--repetitions", "1", "--threads", "1"]
    assert main([*base, "--kv-cache-dtype", "int8", "--depth", "0", "40", "--jsonl"]) == 0
    rows = [json.loads(line) for line in said(capsys)[0].splitlines()]
    assert [r["test"] for r in rows] == ["pp8", "tg4", "tg4@d40"] and {r["type_k"] for r in rows} == {"int8"} and rows[2]["n_depth"] == 40
    assert main(base) == 0
    assert re.search(r"keys and values: float32, .+ a token", said(capsys)[0])
    exact = ["generate", str(model_folder), "--prompt", "Once", "--max-new-tokens", "12", "--jsonl", "--logprobs", "0"]
    told = {}
    for kept in ("float32", "bfloat16", "int8"):
        assert main([*exact, "--kv-cache-dtype", kept]) == 0
        told[kept] = said(capsys)[0]
    assert len(set(told.values())) == 3
    assert main(["chat", str(model_folder), "--prompt", "Hello", "--kv-cache-dtype", "int8", "--max-new-tokens", "4"]) == 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["generate", "MODEL", "--prompt", "x", "--top-p", "0"], "top_p"), (["generate", "MODEL", "--prompt", "x", "--n", "0"], "n is 0"),
        (["generate", "MODEL", "--prompt", "x", "--repetition-penalty", "-1"], "repetition_penalty"), (["generate", "MODEL", "--prompt", "x" * 500], "tokens"),
        (["generate", "MODEL", "--file", "nothing.jsonl"], "nothing.jsonl"), (["generate", "MODEL", "--prompt", "x", "--json-schema", "nothing.json"], "nothing.json"),
        (["generate", "nothing.gguf", "--prompt", "x"], "nothing.gguf"), (["bench", "MODEL", "--pp", "0"], "pp"), (["bench", "MODEL", "--pp", "100000"], "positions"),
        (["export", "MODEL", "--out", "x", "--to", "onnx"], "onnx"), (["export", "MODEL", "--out", "x", "--type", "q2_k"], "q2_k"),
        (["export", "MODEL", "--out", "x", "--to", "hf", "--type", "q8_0"], "q8_0"), (["export", "MODEL", "--out", "MODEL", "--to", "hf"], "is there already"),
        (["export", "MODEL", "--out", "MODEL", "--to", "hf", "--force"], "the model itself"), (["export", "nothing", "--out", "x"], "nothing"),
        (["chat", "MODEL", "--model", "MODEL"], "two models"), (["chat", "MODEL", "--tools", "shell", "--prompt", "x"], "shell"),
        (["chat", "MODEL", "--min-p", "2", "--prompt", "x"], "min_p"), (["chat", "MODEL", "--kv-cache-dtype", "int4", "--prompt", "x"], "kv_cache_dtype is 'int4'"),
        (["bench", "MODEL", "--depth", "-1"], "depth holds -1"),
    ],
    ids=lambda a: " ".join(a)[:60] if isinstance(a, list) else None,
)  # fmt: skip
def test_what_cannot_be_is_said(capsys, monkeypatch, tmp_path, model_folder, arguments, what):
    monkeypatch.chdir(tmp_path)
    assert main([str(model_folder) if a == "MODEL" else a for a in arguments]) == 2
    assert what in said(capsys)[1]
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_an_export_that_cannot_be_written_leaves_nothing(capsys, tmp_path, model_folder, monkeypatch):
    from freedive.model import gguf_write

    def failing(kind, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_write, "quantize", failing)
    assert main(["export", str(model_folder), "--out", str(tmp_path / "m.gguf")]) == 2
    assert not list(tmp_path.iterdir())


def test_export_replaces_exports_only(capsys, model_folder, tmp_path, monkeypatch):
    """--force once deleted whatever the folder held."""
    out = tmp_path / "hf"
    command = ["export", str(model_folder), "--to", "hf", "--out", str(out)]
    assert main(command) == 0 and main([*command, "--force"]) == 0
    before = sorted(p.name for p in out.iterdir())
    (out / "precious.docx").write_text("mine")
    assert main([*command, "--force"]) == 2 and "no exported model" in said(capsys)[1] and (out / "precious.docx").is_file()
    (out / "precious.docx").unlink()
    (out / "sub").mkdir()
    assert main([*command, "--force"]) == 2 and (out / "sub").is_dir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    assert main([*command[:-1], str(tmp_path / "notes"), "--force"]) == 2 and (tmp_path / "notes" / "a.txt").is_file()
    assert main([*command[:-1], str(model_folder.parent), "--force"]) == 2 and model_folder.is_dir()
    (out / "sub").rmdir()
    monkeypatch.chdir(out)
    assert main([*command[:-1], ".", "--force"]) == 0 and sorted(p.name for p in out.iterdir()) == before


def test_search_finds_what_data_held_out(tmp_path):
    from freedive.data import DataConfig
    from freedive.data import run as run_data
    from freedive.inference import BM25

    (tmp_path / "texts").mkdir()
    for word in ("harbour", "candle", "orchard", "winter", "bridge", "river", "market"):
        (tmp_path / "texts" / f"{word}.txt").write_text(f"The {word} was seen by everybody in the town that year. " * 3)
    data = run_data(DataConfig((tmp_path / "texts",), tmp_path / "data", preset="none", languages=(), val_fraction=0.3))
    assert all(BM25.of(data).search(word, 1) for word in ("harbour", "candle", "orchard", "winter", "bridge", "river", "market"))
