"""Reading text: the order, the fields, and a clear error for everything that is no text."""

import gzip
import json

import pytest

from freedive.data.texts import is_artefact, iter_documents, iter_texts
from freedive.runs import UserError


def test_a_folder_is_read_in_sorted_order_without_hidden_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.md").write_text("third")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("fourth")
    (tmp_path / "a.zip").write_bytes(b"\x00\xff")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "empty.py").write_text("")
    with gzip.open(tmp_path / "a2.jsonl.gz", "wt") as file:
        file.write('{"text": "second", "url": "https://a.example"}\n\n')
    documents = list(iter_documents(tmp_path))
    assert [d["text"] for d in documents] == ["first", "second", "third", "fourth"]
    assert documents[1] == {"text": "second", "id": "a2.jsonl.gz:1", "url": "https://a.example", "source": "a2.jsonl.gz"}


def test_an_artefact_has_splits_and_train_is_the_default(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}-00000.jsonl").write_text(json.dumps({"text": split, "id": "1", "url": "", "source": "s"}) + "\n")
    (tmp_path / "rejected.jsonl").write_text('{"text": "rubbish"}\n')
    assert is_artefact(tmp_path)
    assert list(iter_texts(tmp_path)) == list(iter_texts(tmp_path, "train")) == ["train"]
    assert list(iter_texts(tmp_path, "val")) == ["val"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "empty"),
        ("blank.txt", b" \n", "empty"),
        ("binary.txt", b"abc\0def", "offset 3"),
        ("latin.txt", "na\u00efve".encode("latin-1"), "0xef at offset 2"),
        ("bom.txt", b"\xef\xbb\xbfab\xff", "0xff at offset 5"),
        ("latin.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "offset 24"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "line 2"),
        ("list.jsonl", b"[1]\n", "line 1"),
        ("deep.jsonl", b"[" * 100_000 + b"\n", "line 1"),
        ("other.jsonl", b'{"body": "a"}\n', '"text"'),
        ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000)[:40], "truncated"),
        ("fake.jsonl.gz", b'{"text": "a"}\n', "to its end"),
    ],
)
def test_bad_files_are_named_with_the_place(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        list(iter_texts(tmp_path / name))
    assert message in str(error.value) and name in str(error.value)


def test_missing_paths_splits_and_folders_without_text(tmp_path):
    for path, split in ((tmp_path / "no", None), (tmp_path, None), (tmp_path, "test")):
        with pytest.raises(UserError):
            list(iter_texts(path, split))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match="no train/val split"):
        list(iter_texts(tmp_path / "a.txt", "val"))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert list(iter_texts(tmp_path)) == ["hello"]
