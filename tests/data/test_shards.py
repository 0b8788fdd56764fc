"""Token shards: what is read is what was written, every token knows its page, and training sees the same windows."""

import dataclasses
import json

import numpy as np
import pytest
from data_pages import page, story
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.data import DataConfig, iter_documents, run
from freedive.data import token_shards as module
from freedive.data.token_shards import ShardsConfig, TokenShards
from freedive.pretrain.corpus import load_corpus
from freedive.runs import UserError, folder_hash
from freedive.tasks.warc import write_warc
from freedive.tokenizer import Tokenizer, byte_tokenizer
from freedive.train import Documents


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_warc(folder / "x.warc.gz", [(f"https://a.example/{i}", page(story(i, 3 + i % 9))) for i in range(60)])
    byte_tokenizer().save(folder / "bytes")
    return run(DataConfig((folder / "x.warc.gz",), folder / "data", preset="none", val_fraction=0.2))


@pytest.fixture(scope="module")
def made(clean):
    config = ShardsConfig(clean, str(clean.parent / "bytes"), clean.parent / "tokens", shard_tokens=6000)
    return module.run(config)


def test_every_token_leads_to_its_document(clean, made):
    shards = TokenShards(made)
    tok = shards.tokenizer()
    assert shards.recipe == json.loads((clean / "waterfall.json").read_text())["recipe"]
    for split in ("train", "val"):
        documents = list(iter_documents(clean, split))
        assert [tok.decode(ids.tolist()) for ids in shards.documents(split)] == [d["text"] for d in documents]
        assert sum(file.bytes for file in shards.files[split]) == sum(len(d["text"].encode()) for d in documents)
        position = 0
        for file in shards.files[split]:
            edges = np.flatnonzero(file.ids == shards.edge)
            assert np.array_equal(edges, file.starts)
            for place in (0, 1, int(file.starts[1]) - 1, int(file.starts[1]), len(file.ids) - 2, len(file.ids) - 1):
                found = shards.find(position + place, split)
                document = documents[found["document"]]
                assert {key: found[key] for key in ("url", "id", "record")} == {key: document[key] for key in ("url", "id", "record")}
                assert found["record"].startswith("urn:uuid:")
                if 0 < found["at"] < found["length"]:
                    assert tok.decode([int(file.ids[place])]) == document["text"][found["at"] - 1]
            position += len(file.ids)
        with pytest.raises(UserError, match="no token"):
            shards.find(position, split)
        with pytest.raises(UserError):
            shards.find(-1, split)
    assert len(shards.files["train"]) > 2


def test_training_sees_the_same_windows(clean, made):
    corpus, tok = load_corpus(made, "bpe", 0, 0.1, 16)
    text, _ = load_corpus(clean, str(clean.parent / "bytes"), 0, 0.1, 16)
    assert corpus.val_bytes == text.val_bytes and all(np.array_equal(a, b) for a, b in zip(corpus.val, text.val, strict=True))
    mapped, plain = corpus.documents(16, tok.bos_id, 5), Documents(text.train, 16, tok.bos_id, 5)
    assert mapped.n_targets == plain.n_targets
    for epoch in range(2):
        count = mapped.begin_epoch(epoch)
        assert count == plain.begin_epoch(epoch)
        for i in range(0, count, 7):
            for a, b in zip(mapped.get(i), plain.get(i), strict=True):
                assert np.array_equal(a, b) and a.dtype == b.dtype
    with pytest.raises(UserError, match="own tokenizer"):
        load_corpus(made, "gpt2", 0, 0.1, 16)
    with pytest.raises(UserError, match="edges|begin and end"):
        corpus.documents(16, None, 5)


def test_a_stopped_run_ends_with_the_same_bytes(clean, made, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(module, "CHECKPOINT_TOKENS", 700)
    config = ShardsConfig(clean, str(clean.parent / "bytes"), tmp_path / "out", shard_tokens=6000)
    original, left = module._Shards._document, 0

    def document(self, *rest):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        original(self, *rest)

    monkeypatch.setattr(module._Shards, "_document", document)
    for steps in (3, 20, 31, 2):
        left = steps
        with pytest.raises(KeyboardInterrupt):
            module.run(config)
        assert not config.out.exists()
    left = 10**6
    assert folder_hash(module.run(config)) == folder_hash(made)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8), st.integers(1, 60))
@settings(deadline=None, max_examples=30)
def test_any_text_comes_back(tmp_path_factory, texts, shard_tokens):
    folder = tmp_path_factory.mktemp("any")
    (folder / "x.jsonl").write_text("".join(json.dumps({"text": t.replace("\0", "") or "a"}) + "\n" for t in texts), "utf-8")
    byte_tokenizer().save(folder / "bytes")
    wanted = [d["text"] for d in iter_documents(folder / "x.jsonl")]
    out = module.run(ShardsConfig(folder / "x.jsonl", str(folder / "bytes"), folder / "out", shard_tokens=shard_tokens))
    tok = Tokenizer.load(folder / "bytes")
    assert [tok.decode(ids.tolist()) for ids in TokenShards(out).documents("train")] == wanted


def test_damaged_shards_are_told(made, tmp_path):
    import shutil

    for name, change in (
        ("train-00000.bin", lambda d: d[:-2]),
        ("train-00000.index", lambda d: d[:8] + b"\xff" * 8 + d[16:]),
        ("shards.json", lambda d: d.replace(b"freedive-shards-1", b"freedive-shards-9")),
        ("shards.json", lambda d: d.replace(b'"train-00000"', b'"../x"')),
        ("shards.json", lambda d: d[:40]),
        ("shards.json", lambda d: b"[]"),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(made, copy)
        (copy / name).write_bytes(change((copy / name).read_bytes()))
        with pytest.raises(UserError):
            TokenShards(copy)
        shutil.rmtree(copy)


def test_bad_settings(clean, tmp_path):
    for change in ({"tokenizer": ""}, {"tokenizer": "no-such-one"}, {"shard_tokens": 0}, {"data": tmp_path / "no"}):
        config = dataclasses.replace(ShardsConfig(clean, str(clean.parent / "bytes"), tmp_path / "out"), **change)
        with pytest.raises(UserError):
            module.run(config)
        assert not config.out.exists()


def test_the_page_of_a_token_is_printed(made, capsys):
    module.run(ShardsConfig(made, position=700))
    told = capsys.readouterr().out
    assert "https://a.example/" in told and "urn:uuid:" in told and "of document" in told
