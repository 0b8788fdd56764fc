"""Regurgitation: copies are counted as a search for the tokens would count them, and a model that knows its text by heart recites it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.cli import main
from freedive.data.token_shards import ShardsConfig
from freedive.data.token_shards import run as make_shards
from freedive.eval.recite import Corpus, Passage, ReciteConfig, beginnings, choose, count_copies, group_of, run, window_hashes
from freedive.pretrain.stage import PretrainConfig
from freedive.pretrain.stage import run as pretrain
from freedive.runs import UserError, folder_hash, read_json
from freedive.tokenizer import byte_tokenizer, char_tokenizer

ids_of = st.lists(st.integers(0, 3), max_size=40).map(lambda v: np.array(v, np.uint16))


@given(ids=ids_of, length=st.integers(1, 6))
def test_equal_windows_have_equal_hashes_wherever_they_stand(ids, length):
    hashes = window_hashes(ids, length)
    assert len(hashes) == max(0, len(ids) - length + 1)
    for i in range(len(hashes)):
        assert hashes[i] == window_hashes(ids[i : i + length], length)[0]
        for j in range(i):
            assert (hashes[i] == hashes[j]) == np.array_equal(ids[i : i + length], ids[j : j + length])


@given(documents=st.lists(ids_of, max_size=6), length=st.integers(1, 4))
def test_copies_are_what_a_search_finds(documents, length):
    passages = beginnings(documents, length)
    count_copies(documents, passages)
    for p in passages:
        found = [(n, i) for n, d in enumerate(documents) for i in range(len(d) - length + 1) if np.array_equal(d[i : i + length], p.ids)]
        assert p.copies == len(found) and p.places == found[:5]


def test_a_hash_that_lies_is_noticed(monkeypatch):
    from freedive.eval import recite

    monkeypatch.setattr(recite, "window_hashes", lambda ids, length: np.zeros(max(0, len(ids) - length + 1), np.uint64))
    documents = [np.array([1, 2, 1, 2, 3], np.uint16)]
    passages = [Passage(np.array([1, 2], np.uint16)), Passage(np.array([2, 3], np.uint16)), Passage(np.array([7, 7], np.uint16))]
    count_copies(documents, passages)
    assert [p.copies for p in passages] == [2, 1, 0]


def test_groups_are_powers_of_two():
    assert [group_of(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33)] == ["0", "1", "2", "3-4", "3-4", "5-8", "5-8", "9-16", "9-16", "17-32", "17-32", "33-64"]
    passages = [Passage(np.array([n], np.uint16), copies) for n, copies in enumerate([1] * 50 + [3] * 2 + [40])]
    assert [group_of(p.copies) for p in choose(passages, 5)] == ["1"] * 5 + ["3-4"] * 2 + ["33-64"]
    assert len(choose(passages, 0)) == 53


def sentences(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choice("abcdefgh ") for _ in range(60)) for _ in range(n)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """(model, data, the repeated texts): four texts 60 times each among others that occur once, read until it knows them."""
    folder = tmp_path_factory.mktemp("recite")
    repeated = sentences(4, 1)
    rows = [{"text": t, "url": f"https://a.example/{i % 4}", "id": str(i)} for i, t in enumerate(repeated * 60 + sentences(60, 2))]
    random.Random(0).shuffle(rows)
    data = folder / "data"
    data.mkdir()
    held = [{"text": t, "url": "held", "id": "h"} for t in sentences(8, 3)]
    for split, part in (("train", rows), ("val", held)):
        (data / f"{split}-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    config = PretrainConfig(data=data, out=folder / "base", tokenizer="bytes", depth=2, d_model=64, n_head=2, n_kv_head=2, head_dim=32, context=64,
                            batch_tokens=1024, optimizer="adamw", steps=300, lr=4e-3, samples=0, threads=2)  # fmt: skip
    pretrain(config)
    return folder / "base", data, repeated


def measure(trained: tuple[Path, Path, list[str]], out: Path, **settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    model, data, _ = trained
    run(ReciteConfig(**({"model": model, "data": data, "out": out, "prompt_tokens": 12, "tokens": 16, "threads": 1} | settings)))
    return read_json(out / "recite.json"), [json.loads(line) for line in (out / "recited.jsonl").read_text().splitlines()]


def test_what_was_read_often_is_recited_and_its_page_named(trained, tmp_path, capsys):
    result, rows = measure(trained, tmp_path / "out")
    groups = {g["copies"]: g for g in result["groups"]}
    assert list(groups) == ["0", "1", "33-64"] and result["documents"] == 300
    assert groups["33-64"]["recited"] == groups["33-64"]["asked"] == 4, "read 60 times each pass, and known"
    assert groups["0"]["recited"] == groups["1"]["recited"] == 0 and groups["0"]["asked"] == 8 and groups["1"]["asked"] == 60
    for row in rows:
        assert (row["matched"] == 16) == row["recited"] == (row["said"] == row["wanted"])
        if row["recited"]:
            text = row["prompt"] + row["said"]
            number = next(i for i, t in enumerate(trained[2]) if t.startswith(text))
            assert row["copies"] == 60 and {p["url"] for p in row["pages"]} == {f"https://a.example/{number}"}
    assert "60 copies, first in https://a.example/" in capsys.readouterr().out


def test_from_token_shards_the_same(trained, tmp_path):
    model, data, _ = trained
    make_shards(ShardsConfig(data=data, tokenizer=str(model / "tokenizer"), out=tmp_path / "shards", shard_tokens=3000, threads=1))
    tok = byte_tokenizer()
    plain, mapped = Corpus(data, tok, 1), Corpus(tmp_path / "shards", tok, 1)
    assert len(mapped.shards.files["train"]) > 2
    for split in ("train", "val"):
        assert [a.tolist() for a in plain.ids[split]] == [a.tolist() for a in mapped.ids[split]]
    assert [plain.source(i) for i in range(300)] == [{k: v for k, v in mapped.source(i).items()} for i in range(300)]
    assert measure(trained, tmp_path / "a")[0] == measure((model, tmp_path / "shards", []), tmp_path / "b")[0]


def test_interrupted_and_resumed_gives_the_same_folder(trained, tmp_path, monkeypatch):
    from freedive.eval import recite

    measure(trained, tmp_path / "whole")
    monkeypatch.setattr(recite, "BATCH", 7)
    real, calls = recite.Artefact.checkpoint, []

    def stop(self, *rest):
        real(self, *rest)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(recite.Artefact, "checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(trained, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    measure(trained, tmp_path / "cut")
    assert folder_hash(tmp_path / "cut") == folder_hash(tmp_path / "whole")


def test_bad_input(trained, tmp_path, capsys):
    model, data, _ = trained
    (tmp_path / "short.txt").write_text("abc")
    char_tokenizer("abcdefgh ").save(tmp_path / "tok")
    make_shards(ShardsConfig(data=data, tokenizer=str(tmp_path / "tok"), out=tmp_path / "shards", threads=1))
    for arguments, what in (
        (["--data", "/no/such"], "no/such"),
        (["--data", str(data), "--tokens", "99999"], "context of"),
        (["--data", str(data), "--prompt-tokens", "0"], "prompt_tokens"),
        (["--data", str(tmp_path / "short.txt")], "no document"),
        (["--data", str(tmp_path / "shards"), "--tokens", "8"], "another tokenizer"),
    ):
        assert main(["recite", str(model), "--out", str(tmp_path / "out"), *(["--prompt-tokens", "8"] if "--prompt-tokens" not in arguments else []), *arguments]) == 2
        assert what in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(UserError):
        run(ReciteConfig(model=tmp_path / "nothing", data=data, out=tmp_path / "out"))
    assert main(["recite", str(model), "--data", str(data), "--prompt-tokens", "8", "--tokens", "8", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out").exists()
