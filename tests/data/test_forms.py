"""What a file is where its suffix does not say, .json in all its forms, and what is said of the files of a folder that are left out."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path

import pytest
from data_pages import adds_up, documents, page, reasons, story
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.data import DataConfig, run
from freedive.data import read as read_module
from freedive.data.read import read_records
from freedive.data.sniff import json_lines, sniff
from freedive.data.sources import Source, sources
from freedive.runs import UserError
from freedive.tasks.warc import write_warc

ROWS = [{"text": story(i), "url": f"https://a.example/{i}", "note": 'a "quote", [brackets] and \\ {'} for i in range(7)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def packed(data: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(data)
    if suffix.endswith(".zst"):
        return pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    return data


def texts(file: Path, max_bytes: int = 10**6) -> list[str]:
    return [record.reason or record.data.decode() for record in read_records(file, file.name, max_bytes)]


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".json.zst"])
@pytest.mark.parametrize("form", ["lines", "array", "pretty array", "one object", "pretty object", "lines with a mark", "one after another"])
def test_json_is_rows_in_whatever_form(tmp_path, suffix, form):
    text = {
        "lines": LINES,
        "array": json.dumps(ROWS),
        "pretty array": json.dumps(ROWS, indent=2),
        "one object": json.dumps(ROWS[0]),
        "pretty object": json.dumps(ROWS[0], indent=4),
        "lines with a mark": "\ufeff" + json.dumps(ROWS, indent=1),
        "one after another": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    }[form]
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(packed(text.encode(), suffix))
    wanted = [row["text"] for row in (ROWS[:1] if "object" in form else ROWS)]
    assert texts(file) == wanted
    file = file.rename(tmp_path / "named_otherwise")  # without a suffix: by its content
    assert texts(file) == wanted


def test_c4_as_it_is_published_is_rows_and_not_raw_json(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "c4-train.00000-of-01024.json.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "in" / "get.json").write_text('{"repository": "allenai/c4", "commit": "0", "files": []}')  # of `freedive data get`
    out = run(DataConfig((tmp_path / "in",), tmp_path / "out"))
    assert sorted(d["text"] for d in documents(out)) == sorted(row["text"] for row in ROWS) and not reasons(adds_up(out))
    assert {d["url"] for d in documents(out)} == {row["url"] for row in ROWS}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=6), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
@settings(deadline=None, max_examples=150)
def test_an_array_of_anything_is_its_members_for_any_block(values, indent, escaped, block):
    data = json.dumps(values, indent=indent, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    if b"\xed" in data and not escaped:
        return  # lone surrogates are no UTF-8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_module, "BLOCK", block)
        patch.setattr(read_module, "_row", lambda row, *_: row)
        found = list(read_module._values(io.BytesIO(data), "x", 10**6, None))
    assert found == values or not values and found[0].reason == "no_records"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"text": "a"}, {"text": "b"', "bad_json"),
        ('[{"text": "a"}, ', "truncated_file"),
        ('[{"text": "a"}, {bad}, {"text": "' + "c" * 200_000 + '"}]', "bad_json"),
        ('[{"text": "a"}] and more', "bad_json"),
        ('[{"text": "a"}, {"text": "' + "b" * 400_000 + '"}]', "too_large"),
        ('[{"text": "a"}, ' + "[" * 100_000, "bad_json"),
        ('[{"text": "a"}, 5]', "no_text_field"),
        ("[]", "no_records"),
    ],
)
def test_damage_of_an_array_is_a_record_with_a_reason(tmp_path, text, reason):
    file = tmp_path / "rows.json"
    file.write_text(text)
    assert texts(file, 300_000) == ["a"] * (text != "[]") + [reason]


def test_a_damaged_line_of_json_lines_costs_itself(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('{"text": "cut\n{"text": "a"}\n{\n{"text": "b"}\n')
    assert texts(file) == ["bad_json", "a", "bad_json", "b"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_file_without_a_known_suffix_is_read_as_what_it_looks_like(tmp_path, suffix):
    write_warc(tmp_path / "x.warc.gz", [(f"https://a.example/{i}", page(story(i))) for i in range(3)])
    warc = gzip.decompress((tmp_path / "x.warc.gz").read_bytes())
    for data, form in (
        (warc, ".warc"),
        (b"<!DOCTYPE html>\n" + page(story(1)), ".html"),
        (b"\xef\xbb\xbf  <HTML lang=en>" + page(story(1)), ".html"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "x">\n<html xmlns="y">' + page(story(1)), ".html"),
        (b"<!-- saved -->" + page(story(1)), ".html"),
        (LINES.encode(), ".json"),
        (json.dumps(ROWS, indent=1).encode(), ".json"),
        (story(1).encode(), ".txt"),
        (b"<abc> is no tag of HTML", ".txt"),
        (b"[1] a note {and} more", ".txt"),
        (story(1).encode("utf-16"), ".txt"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", None),
        (b"%PDF-1.7\nall of this is text", None),
    ):
        for name in ("page", "page.cgi"):
            file = tmp_path / (name + (suffix if name == "page.cgi" else ""))
            file.write_bytes(packed(data, suffix))
            found = sniff(Source(str(file), file.name, file.stat().st_size))
            assert (found.form if found else None) == (None if form is None else form + suffix), (data[:30], name)
            if found:
                assert (found.kind, found.compression) == (form, suffix)
    file.write_bytes(packed(b"<html><body><nav>Home</nav><article><p>" + story(1).encode() + b"</p></article></body></html>", suffix))
    out = run(DataConfig((file,), tmp_path / "out"))
    assert [d["text"] for d in documents(out)] == [story(1)]


def test_parquet_by_its_content(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "table")
    assert texts(tmp_path / "table") == ["a", "b"]


def test_sniffing_never_raises_but_for_damage(tmp_path):
    draw = random.Random(0)
    file = tmp_path / "x"
    for _ in range(300):
        start = draw.choice([b"", b"\x1f\x8b\x08", b"(\xb5/\xfd", b"WARC/1.0", b"<html>", b"[{", b'{"', b"PAR1"])
        file.write_bytes(start + draw.randbytes(draw.randint(1, 60)))
        for record in read_records(file, "x", 1000):
            assert record.reason or record.data
    for trial in range(300):
        json_lines(bytes(draw.choice(b'[{"}]:,\n 1a') for _ in range(trial % 40)))


def test_a_binary_file_is_counted_and_by_itself_refused(tmp_path):
    (tmp_path / "a.txt").write_text(story(1))
    (tmp_path / "b").write_bytes(b"\x7fELF\0\0\0")
    out = run(DataConfig((tmp_path / "a.txt", tmp_path / "b"), tmp_path / "out"))
    assert reasons(adds_up(out)) == {"read/binary_file": 1} and len(documents(out)) == 1
    with pytest.raises(UserError, match="1 read/binary_file") as error:
        run(DataConfig((tmp_path / "b",), tmp_path / "none"))
    assert "could not be read as text" in (error.value.hint or "")


def test_what_is_left_out_of_a_folder_is_told_in_one_line(tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text(story(1))
    for name in ["1.png", "2.PNG", "deep/3.png", "deep/data.csv", "deep/README", "get.json", "deep/run.json", ".hidden"]:
        (folder / name).write_text("x")
    assert [source.name for source in sources((folder,))] == ["a.txt"]
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(told) == 1 and "5 files left out: .png 3, .csv 1, without suffix 1" in told[0]
    sources((folder / "a.txt",))
    assert capsys.readouterr().err == ""
