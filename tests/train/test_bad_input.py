"""Input that cannot be used: a UserError that says what, and nothing left where the result would have been."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from train_cases import chat_file, pretrain_config, problem_file, rl_config, sft_config, text_file

from freedive.pretrain import stage as pretrain
from freedive.rl import stage as rl
from freedive.runs import UserError
from freedive.sft import stage as sft


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    return pretrain.run(pretrain_config(text_file(folder), folder / "base", steps=1, samples=0))


def refuse(run: Any, config: Any, says: str) -> UserError:
    with pytest.raises(UserError, match=says) as caught:
        run(config)
    assert not config.out.exists()
    return caught.value


BAD_BYTES = {
    "empty": (b"", "empty"),
    "spaces": (b" \n\n ", "empty|no document"),
    "binary": (b"abc\x00\x01\x02" * 50, "binary"),
    "not_utf8": (b"caf\xe9 " * 200, "not UTF-8.*0xe9 at offset 3"),
}


@pytest.mark.parametrize("name", BAD_BYTES)
@pytest.mark.parametrize("folder", [False, True])
def test_pretrain_on_a_file_that_is_no_text(tmp_path: Path, name: str, folder: bool):
    raw, says = BAD_BYTES[name]
    (tmp_path / "texts").mkdir()
    path = tmp_path / "texts" / "a.txt"
    path.write_bytes(raw)
    refuse(pretrain.run, pretrain_config(path.parent if folder else path, tmp_path / "out"), says)


@pytest.mark.parametrize("packed, says", [(gzip.compress, "gzip-compressed"), (lambda raw: b"WARC/1.0\r\n" + raw, "web archive")])
def test_pretrain_on_what_the_data_stage_reads(tmp_path: Path, packed: Any, says: str):
    (tmp_path / "a.txt").write_bytes(packed(b"some text " * 100))
    error = refuse(pretrain.run, pretrain_config(tmp_path / "a.txt", tmp_path / "out"), says)
    assert "freedive data" in error.hint


def test_a_small_text_is_a_note_and_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder):
    (tmp_path / "a.txt").write_text("A short text which gives but few merges, again and again. " * 30)
    pretrain.run(pretrain_config(tmp_path / "a.txt", tmp_path / "out", tokenizer="bpe", vocab_size=2000, context=8, batch_tokens=32, micro_tokens=32, steps=1))
    assert "note: " in capsys.readouterr().out and not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_pretrain_needs_one_input(tmp_path: Path):
    text = text_file(tmp_path)
    refuse(pretrain.run, pretrain_config(tmp_path / "nowhere.txt", tmp_path / "out"), "does not exist|no such")
    refuse(pretrain.run, pretrain_config(text, tmp_path / "out", data=tmp_path), "either --data or --text")
    refuse(pretrain.run, pretrain_config(None, tmp_path / "out"), "either --data or --text")  # type: ignore[arg-type]


def test_pretrain_on_too_little_text(tmp_path: Path):
    (tmp_path / "a.txt").write_text("A short text, of about sixty tokens when it is read as bytes.")
    error = refuse(pretrain.run, pretrain_config(tmp_path / "a.txt", tmp_path / "out", batch_tokens=4096, micro_tokens=4096), "training tokens")
    assert "more text" in error.hint
    refuse(pretrain.run, pretrain_config(tmp_path / "a.txt", tmp_path / "out2", context=64, micro_tokens=64), "training tokens")


@pytest.mark.parametrize("changes, says", [
    ({"tokenizer": "bpe", "vocab_size": 100}, "256|vocab"), ({"tokenizer": "gpt9"}, "gpt9"), ({"preset": "gpt9"}, "gpt9"),
    ({"depth": 0}, "depth is 0"),
    ({"context": 1}, "context is 1, it must be at least 2"), ({"batch_tokens": 16}, "batch_tokens is 16, less than one context of 32"),
    ({"micro_tokens": 16}, "micro_tokens is 16, less than"), ({"d_model": 33, "head_dim": 7}, "must be even"), ({"device": "abacus"}, "abacus"),
    ({"dtype": "float64"}, "float64"), ({"dtype": "int8"}, "int8 is for inference"), ({"recompute": "all"}, "recompute is 'all'"),
])  # fmt: skip
def test_pretrain_with_settings_that_cannot_be(tmp_path: Path, changes: dict[str, Any], says: str):
    for dry_run in (True, False):
        refuse(pretrain.run, pretrain_config(text_file(tmp_path), tmp_path / "out", dry_run=dry_run, **changes), says)


def test_pretrain_says_what_would_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("freedive.model.model.available_memory", lambda: 10_000_000)
    error = refuse(pretrain.run, pretrain_config(text_file(tmp_path), tmp_path / "out", depth=6), "of memory .* are available")
    assert "smaller model" in error.hint or "would fit" in error.hint


ROWS = {
    "empty": ("", "no conversation"),
    "not_json": ("hello\n", "line 1 is no JSON"),
    "other_keys": ('{"text": "x"}\n', "line 1.*'messages'"),
    "no_assistant": ('{"messages": [{"role": "user", "content": "hi"}]}\n', "line 1"),
    "no_content": ('{"messages": [{"role": "user"}]}\n', "content"),
    "messages_no_list": ('{"messages": "hi"}\n', "messages"),
    "all_too_long": (
        json.dumps({"messages": [{"role": "user", "content": "a" * 500}, {"role": "assistant", "content": "b"}]}) + "\n",
        "longer than 128",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_sft_on_bad_rows(base: Path, tmp_path: Path, name: str):
    text, says = ROWS[name]
    (tmp_path / "rows.jsonl").write_text(text)
    refuse(sft.run, sft_config(base, tmp_path / "rows.jsonl", tmp_path / "out"), says)


@pytest.mark.parametrize("raw", [b"\xff\xfe{", b"\x00\x01"])
def test_sft_on_bytes_that_are_no_text(base: Path, tmp_path: Path, raw: bytes):
    (tmp_path / "rows.jsonl").write_bytes(raw)
    refuse(sft.run, sft_config(base, tmp_path / "rows.jsonl", tmp_path / "out"), "UTF-8|binary")


def test_sft_and_rl_on_what_is_not_there(base: Path, tmp_path: Path):
    refuse(sft.run, sft_config(base, tmp_path / "nowhere.jsonl", tmp_path / "out"), "nowhere.jsonl")
    refuse(sft.run, sft_config(tmp_path / "nobody", chat_file(tmp_path), tmp_path / "out"), "nobody")
    refuse(rl.run, rl_config(base, tmp_path / "nowhere.jsonl", tmp_path / "out"), "nowhere.jsonl")
    refuse(rl.run, rl_config(tmp_path / "nobody", problem_file(tmp_path), tmp_path / "out"), "nobody")
    refuse(sft.run, sft_config(tmp_path, chat_file(tmp_path), tmp_path / "out"), "holds no config.json")


def test_a_truncated_model(base: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    raw = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    refuse(sft.run, sft_config(broken, chat_file(tmp_path), tmp_path / "out"), "model.safetensors cannot be read")


@pytest.mark.parametrize("changes, says", [
    ({"reward": "charm"}, "charm"), ({"reward": "nowhere.py:f"}, "nowhere.py"), ({"algorithm": "ppo9"}, "ppo9"),
    ({"num_generations": 1}, "num_generations is 1"),
    ({"max_completion_length": 9999}, "made for 256"), ({"reward": "no_such_module:f"}, "no_such_module"), ({"reward": "json:g"}, "'g'"),
])  # fmt: skip
def test_rl_with_settings_that_cannot_be(base: Path, tmp_path: Path, changes: dict[str, Any], says: str):
    refuse(rl.run, rl_config(base, problem_file(tmp_path), tmp_path / "out", **changes), says)


@pytest.mark.parametrize("run, make", [(sft.run, sft_config), (rl.run, rl_config)])
def test_a_dry_run_loads_everything_and_writes_nothing(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Any, make: Any):
    data = chat_file(tmp_path) if run is sft.run else problem_file(tmp_path)
    run(make(base, data, tmp_path / "out", dry_run=True))
    assert "steps" in capsys.readouterr().out
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    (broken / "model.safetensors").write_bytes(b"junk")
    refuse(run, make(broken, data, tmp_path / "out", dry_run=True), "cannot be read")
    refuse(run, make(tmp_path / "nobody", data, tmp_path / "out", dry_run=True), "nobody")
    refuse(run, make(base, tmp_path / "none.jsonl", tmp_path / "out", dry_run=True), "none.jsonl")
    assert not list(tmp_path.glob("out*"))


def test_a_dry_run_of_rl_finds_the_reward(base: Path, tmp_path: Path):
    for reward, says in (("charm", "charm"), ("nowhere.py:f", "nowhere.py")):
        refuse(rl.run, rl_config(base, problem_file(tmp_path), tmp_path / "out", dry_run=True, reward=reward), says)


def test_sft_on_conversations_longer_than_the_model(base: Path, tmp_path: Path):
    chats = chat_file(tmp_path)  # one of them has 1,200 characters; the model was made for 256 tokens
    refuse(sft.run, sft_config(base, chats, tmp_path / "out", context=4096, batch_tokens=4096), "made for 256")


@pytest.mark.parametrize("text, says", [("", "no problem"), ('{"answer": "4"}\n', "line 1.*'prompt'"), ("[]\n", "line 1 is no JSON")])
def test_rl_on_bad_rows(base: Path, tmp_path: Path, text: str, says: str):
    (tmp_path / "p.jsonl").write_text(text)
    refuse(rl.run, rl_config(base, tmp_path / "p.jsonl", tmp_path / "out"), says)
