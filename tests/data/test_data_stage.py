"""The stage: counts add up, damage is counted and survived, the same bytes for any number of workers and after a kill."""

import dataclasses
import gzip
import json
import random
from pathlib import Path

import pytest

from freedive.data import DataConfig, iter_documents, print_waterfall, run
from freedive.data import stage as stage_module
from freedive.data.extract import extract
from freedive.data.read import Record, read_records
from freedive.data.shard_files import ShardWriter
from freedive.runs import UserError, folder_hash
from freedive.tasks.warc import write_warc

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"development data not found in {SHARED}")
NOUNS = "river bridge garden window market teacher winter candle letter mountain kitchen soldier orchard harbour".split()
VERBS = "saw found followed painted remembered crossed described opened watched carried forgot measured".split()


def story(seed: int, sentences: int = 12) -> str:
    draw = random.Random(seed)
    return " ".join(
        f"The {draw.choice(NOUNS)} of the {draw.choice(NOUNS)} {draw.choice(VERBS)} "
        f"a {draw.choice(NOUNS)} and then {draw.choice(VERBS)} it."
        for _ in range(sentences)
    )


def page(text: str) -> bytes:
    head = "<html><head><title>t</title></head><body><nav><a href='/'>Home</a></nav>"
    return f"{head}<article><p>{text}</p></article></body></html>".encode()


def adds_up(folder: Path) -> dict:
    result = json.loads((folder / "waterfall.json").read_text())
    documents, size = result["documents_in"], result["bytes_in"]
    for step in result["steps"]:
        assert (step["documents_in"], step["bytes_in"]) == (documents, size)
        documents -= sum(count["documents"] for count in step["removed"].values())
        size -= sum(count["bytes"] for count in step["removed"].values()) + step["bytes_trimmed"]
        assert (step["documents_out"], step["bytes_out"]) == (documents, size)
    written = [d["text"] for split in ("train", "val") if any(folder.glob(f"{split}-*")) for d in iter_documents(folder, split)]
    assert (
        (result["documents_out"], result["bytes_out"])
        == (documents, size)
        == (len(written), sum(len(t.encode()) for t in written))
    )
    return result


def reasons(result: dict) -> dict:
    return {f"{step['step']}/{rule}": count["documents"] for step in result["steps"] for rule, count in step["removed"].items()}


@pytest.fixture
def mixed(tmp_path):
    """A folder with every kind of input and every kind of damage."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_warc(folder / "a.warc.gz", [(f"https://a.example/{i}", page(story(i))) for i in range(40)])
    whole = (folder / "a.warc.gz").read_bytes()
    (folder / "cut.warc.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "broken.warc.gz").write_bytes(b"this is no gzip" * 20)
    plain = gzip.decompress(whole)
    (folder / "plain.warc").write_bytes(plain[: plain.index(b"WARC/1.0", 3000)])
    (folder / "page.html").write_bytes(page(story(100)))
    (folder / "latin.html").write_bytes(
        b'<html><head><meta charset="iso-8859-1"></head><body><p>'
        + ("caf\u00e9 " + story(101)).encode("latin-1")
        + b"</p></body></html>"
    )
    (folder / "note.txt").write_text(story(102))
    (folder / "latin.txt").write_bytes(b"\xe9" + story(103).encode())
    (folder / "binary.txt").write_bytes(b"\0\xff" * 50)
    (folder / "empty.md").write_text("")
    rows = [{"text": story(i)} for i in range(200, 260)] + [
        {"html": page(story(300)).decode()},
        {"text": story(200)},
        {"body": 1},
        {"text": "\ud800 " + story(301)},
    ]
    lines = [json.dumps(row) for row in rows] + ["{", "[" * 50_000, "", json.dumps({"text": "x" * 300_000})]
    with gzip.open(folder / "rows.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 500)[:-20])
    return folder


def test_damage_is_counted_and_the_run_goes_on(mixed, tmp_path, capsys):
    out = run(DataConfig((mixed,), tmp_path / "out", max_record_bytes=200_000))
    found = reasons(adds_up(out))
    for reason in (
        "read/truncated_file",
        "read/bad_json",
        "read/no_text_field",
        "read/too_large",
        "read/empty",
        "extract/bad_encoding",
        "extract/binary",
    ):
        assert found.get(reason), (reason, found)
    assert found["read/too_large"] == 1 and found["read/bad_json"] == 2
    assert (
        found["exact_dedup/exact_duplicate"] >= 1 + 10
    )  # the repeated row; the pages that plain.warc and cut.warc.gz share with a.warc.gz
    texts = [d["text"] for split in ("train", "val") for d in iter_documents(out, split)]
    assert any(text.startswith("caf\u00e9 ") for text in texts) and story(102) in texts and story(300) in texts
    assert not any("Home" in text for text in texts)
    samples = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert {sample["reason"] for sample in samples} == set(found)
    print_waterfall(out)
    assert "truncated_file" in capsys.readouterr().out


def test_the_bytes_do_not_depend_on_workers(mixed, tmp_path):
    one = run(DataConfig((mixed,), tmp_path / "one", workers=1))
    two = run(DataConfig((mixed,), tmp_path / "two", workers=2))
    assert folder_hash(one) == folder_hash(two)
    assert run(DataConfig((mixed,), tmp_path / "one", workers=2)) == one  # finished, and workers are no other setting
    with pytest.raises(UserError, match="preset"):
        run(DataConfig((mixed,), tmp_path / "one", preset="gopher"))


@pytest.mark.parametrize("settings", [{}, {"max_line_copies": 1}, {"val_fraction": 0.0}, {"shard_bytes": 20_000}])
def test_a_stopped_run_ends_with_the_same_bytes(mixed, tmp_path, monkeypatch, settings):
    monkeypatch.setattr(stage_module, "CHECKPOINT_BYTES", 1)
    monkeypatch.setattr(stage_module, "GROUP_BYTES", 1)
    config = DataConfig((mixed,), tmp_path / "whole", **settings)
    whole = folder_hash(run(config))
    config = dataclasses.replace(config, out=tmp_path / "stopped")
    original, left = ShardWriter.write, 0

    def write(self, split, line):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        original(self, split, line)

    monkeypatch.setattr(ShardWriter, "write", write)
    for steps in (5, 47, 60, 3):
        left = steps
        with pytest.raises(KeyboardInterrupt):
            run(config)
        assert not config.out.exists()
    left = 10**6
    assert folder_hash(run(config)) == whole
    adds_up(config.out)


def test_small_inputs_have_a_val_document_if_they_can(tmp_path):
    for count in (1, 2, 3, 10):
        file = tmp_path / f"{count}.jsonl"
        file.write_text("".join(json.dumps({"text": story(i)}) + "\n" for i in range(count)))
        out = run(DataConfig((file,), tmp_path / f"out{count}"))
        splits = {
            split: len(list(iter_documents(out, split))) if any(out.glob(f"{split}-*")) else 0 for split in ("train", "val")
        }
        assert splits["train"] + splits["val"] == count and splits["train"] >= 1 and (splits["val"] >= 1) == (count > 1)


def test_the_split_is_by_text_and_near_the_fraction(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps({"text": story(i)}) + "\n" for i in range(1500)))
    out = run(DataConfig((file,), tmp_path / "out", val_fraction=0.1))
    val = {d["id"] for d in iter_documents(out, "val")}
    assert 0.06 < len(val) / 1500 < 0.14 and not val & {d["id"] for d in iter_documents(out, "train")}


def test_what_cannot_be_an_input_is_a_user_error(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "german.txt").write_text("Am Morgen gehen die Kinder über die alte Brücke zur Schule und lachen dabei sehr laut.")
    (tmp_path / "folder").mkdir()
    for name in ("missing", "empty.txt", "folder", "german.txt"):
        with pytest.raises(UserError):
            run(DataConfig((tmp_path / name,), tmp_path / "out"))
        assert not (tmp_path / "out").exists()
    for settings in ({"val_fraction": 0.9}, {"workers": -1}, {"language_threshold": 2.0}):
        with pytest.raises(UserError):
            run(DataConfig((tmp_path / "german.txt",), tmp_path / "out", **settings))


def test_a_dry_run_writes_nothing(mixed, tmp_path, capsys):
    run(DataConfig((mixed,), tmp_path / "out", dry_run=True))
    assert "would read" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_random_damage_of_a_warc_never_raises(tmp_path):
    file = tmp_path / "x.warc.gz"
    write_warc(file, [(f"https://a.example/{i}", page(story(i, 3))) for i in range(6)])
    packed = file.read_bytes()
    plain = gzip.decompress(packed)
    draw = random.Random(0)
    for trial in range(150):
        name, data = ("x.warc.gz", bytearray(packed)) if trial % 2 else ("x.warc", bytearray(plain))
        for _ in range(draw.randint(1, 4)):
            kind, at = draw.randrange(3), draw.randrange(len(data))
            if kind == 0:
                data[at] = draw.randrange(256)
            elif kind == 1:
                del data[at : at + draw.randint(1, 300)]
            else:
                data[at:at] = draw.randbytes(draw.randint(1, 50))
        (tmp_path / name).write_bytes(data)
        for record in read_records(tmp_path / name, name, 10**6):
            extract(record)


@pytest.mark.parametrize(
    "html",
    ["", "<", "<p" * 50_000, "<div>" * 20_000 + "x", "\x00<p>a</p>", "<p>&#xd800;&#0;</p>", "<!--", "<table>" * 3000 + "<td>a"],
)
def test_odd_html_is_survived(html):
    text, reason = extract(Record("u", "s", html.encode(), html=True))
    assert (text is None) == bool(reason)


@needs_shared
def test_a_real_common_crawl_page_in_aragonese_is_not_english(tmp_path):
    file = SHARED / "html" / "whirlwind.warc.gz"
    out = run(DataConfig((file,), tmp_path / "out", languages=(), preset="none"))
    [document] = iter_documents(out)
    assert document["url"] == "https://an.wikipedia.org/wiki/Escopete" and "Escopete" in document["text"]
    with pytest.raises(UserError, match="no document was left"):
        run(DataConfig((file,), tmp_path / "english"))
    wet = run(DataConfig((SHARED / "html" / "whirlwind.warc.wet.gz",), tmp_path / "wet", languages=(), preset="none"))
    assert "Escopete" in next(iter_documents(wet))["text"]


@needs_shared
def test_real_documentation_pages_are_extracted(tmp_path):
    file = SHARED / "html" / "python311_docs_pairs.jsonl.gz"
    out = run(DataConfig((file,), tmp_path / "out", preset="none"))
    result = adds_up(out)
    assert result["documents_in"] == 46 and result["documents_out"] >= 44
    for document in iter_documents(out):
        assert "Created using" not in document["text"] and "<p>" not in document["text"][:2000]
