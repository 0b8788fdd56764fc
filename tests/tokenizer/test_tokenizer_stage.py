"""`freedive tokenizer`: its artefact, what it prints, and bad input."""

import gzip
import json

import pytest
from tokenizer_corpus import corpus

from freedive.runs import UserError, folder_hash
from freedive.tokenizer import Tokenizer
from freedive.tokenizer.stage import TokenizerConfig, hold_out, run


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(corpus(3000), encoding="utf-8")
    return path


def test_from_a_text_file(book, tmp_path, capsys):
    out = run(TokenizerConfig(text=book, vocab_size=500, out=tmp_path / "tok"))
    tok = Tokenizer.load(out)
    said = capsys.readouterr().out
    assert tok.vocab_size == 500 and "500 ids" in said and "bytes per token" in said and "|" in said
    metrics = json.loads((out / "run.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["vocab_size"] == 500 and 1.5 < metrics["bytes_per_token"] < 6
    assert {p.name for p in out.iterdir()} >= {"tokenizer.json", "ranks.tiktoken", "run.json"}


def test_two_runs_are_equal_and_a_third_has_nothing_to_do(book, tmp_path, capsys):
    first, second = (run(TokenizerConfig(text=book, vocab_size=400, out=tmp_path / name)) for name in ("a", "b"))
    assert folder_hash(first) == folder_hash(second)
    run(TokenizerConfig(text=book, vocab_size=400, out=tmp_path / "a"))
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(UserError, match="vocab_size"):
        run(TokenizerConfig(text=book, vocab_size=401, out=tmp_path / "a"))


def test_from_a_data_artefact_with_its_own_held_out_part(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, text in {"train-00000": corpus(2000), "val-00000": "held out only: ЖЖЖЖ ЖЖЖЖ"}.items():
        (folder / f"{name}.jsonl").write_text(
            json.dumps({"text": text, "id": "1", "url": "", "source": ""}) + "\n", encoding="utf-8"
        )
    out = run(TokenizerConfig(data=folder, vocab_size=400, out=tmp_path / "tok"))
    assert not any("ЖЖ".encode() in token for token in Tokenizer.load(out).tokens)
    metrics = json.loads((out / "run.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["held_out_bytes"] == len("held out only: ЖЖЖЖ ЖЖЖЖ".encode())
    # characters have to cover the held-out part too
    tok = Tokenizer.load(run(TokenizerConfig(data=folder, kind="chars", out=tmp_path / "chars")))
    assert tok.decode(tok.encode("ЖЖ")) == "ЖЖ"


def test_from_a_folder_of_compressed_jsonl(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    with gzip.open(folder / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"document {n} " + corpus(50)}) + "\n" for n in range(60))
    assert Tokenizer.load(run(TokenizerConfig(text=folder, vocab_size=300, out=tmp_path / "tok"))).vocab_size == 300


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_other_kinds(book, tmp_path, kind):
    tok = Tokenizer.load(run(TokenizerConfig(text=book, kind=kind, out=tmp_path / "tok")))
    text = book.read_text(encoding="utf-8")
    assert tok.kind == kind and tok.decode(tok.encode(text)) == text


def test_bytes_need_no_text(tmp_path):
    assert Tokenizer.load(run(TokenizerConfig(kind="bytes", out=tmp_path / "tok"))).vocab_size == 268


def test_a_short_text_is_said(tmp_path, capsys):
    path = tmp_path / "short.txt"
    path.write_text("abc", encoding="utf-8")
    tok = Tokenizer.load(run(TokenizerConfig(text=path, out=tmp_path / "tok")))
    assert tok.vocab_size == 270 and "note: 3 characters give only 2 merges" in capsys.readouterr().out


def test_dry_run_writes_nothing(book, tmp_path, capsys):
    run(TokenizerConfig(text=book, out=tmp_path / "tok", dry_run=True))
    assert "would learn 4,096 ids" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["book.txt"]
    with pytest.raises(UserError, match="minimum"):
        run(TokenizerConfig(text=book, out=tmp_path / "tok", vocab_size=10, dry_run=True))


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"  \n", "empty"), (b"\x00\x01\x02" * 50, "binary"), (b"abc \xff\xfe", "UTF-8")]
)
def test_bad_files_leave_nothing_behind(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    for kind in ("bpe", "bytes", "chars"):
        with pytest.raises(UserError, match=message):
            run(TokenizerConfig(text=path, kind=kind, out=tmp_path / "tok"))
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


def test_wrong_settings(book, tmp_path):
    out = tmp_path / "tok"
    for config, message in [
        (TokenizerConfig(out=out), "nothing to learn from"),
        (TokenizerConfig(out=out, text=book, data=book), "both"),
        (TokenizerConfig(out=out, text=tmp_path / "nowhere"), "nowhere"),
        (TokenizerConfig(out=out, text=book, vocab_size=100), "minimum"),
        (TokenizerConfig(out=out, text=book, pattern="("), "regular expression"),
    ]:
        with pytest.raises(UserError, match=message):
            run(config)
        assert not out.exists()


def test_holding_out_loses_nothing():
    for count in (1, 5, 19, 20, 100):
        texts = [f"{n:04d}" * 10 for n in range(count)]
        held: list[str] = []
        kept = list(hold_out(texts, held, seed=3))
        assert sorted("".join(kept + held)) == sorted("".join(texts)) and sum(map(len, held)) > 0
        assert len(held) == (count if count < 20 else count // 20)
