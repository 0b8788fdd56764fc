"""Damaged input: each damage is counted under its reason, nothing raises, and what is not damaged is there."""

import base64
import gzip
import hashlib
import io
import json
import zlib

import pytest
from data_pages import adds_up, documents, page, reasons, story
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freedive.data import DataConfig, run
from freedive.data.extract import extract
from freedive.data.language import Language
from freedive.data.process import Steps, process
from freedive.data.quality import PRESETS
from freedive.data.read import read_records

URL = "https://a.example/{}"
STEPS = Steps(Language(()), PRESETS["basic"], True)
quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def record(number: int, block: bytes | None = None, header: str = "", length: int | None = None, digest: bool = False, http: str = "") -> bytes:
    if block is None:
        block = page(story(number, 6))
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + http.encode() + b"\r\n" + block
    lines = ["WARC/1.0", "WARC-Type: response", f"WARC-Target-URI: {URL.format(number)}", f"WARC-Record-ID: <urn:uuid:{number}>"]
    if digest:
        lines.append("WARC-Block-Digest: sha1:" + base64.b32encode(hashlib.sha1(block).digest()).decode())
    lines += [header] if header else []
    lines += ["Content-Type: application/http; msgtype=response", f"Content-Length: {len(block) if length is None else length}", "", ""]
    return "\r\n".join(lines).encode() + block + b"\r\n\r\n"


def read(tmp_path, data: bytes, name: str = "x.warc.gz", max_bytes: int = 10**6):
    file = tmp_path / name
    file.write_bytes(data)
    return list(read_records(file, name, max_bytes))


def urls(records) -> list[str]:
    return [r.url for r in records if not r.reason]


def packed(records: list[bytes], kind: str) -> list[bytes]:
    if kind == ".gz":
        return [gzip.compress(r, mtime=0) for r in records]
    if kind == ".zst":
        zstandard = pytest.importorskip("zstandard")
        return [zstandard.compress(r) for r in records]
    return records


@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize("length", [-5, 0, 10, 300, 5000, 10**9, 10**30])
def test_a_wrong_length_costs_its_record_only(tmp_path, kind, digest, length):
    parts = packed([record(0, digest=digest), record(1, digest=digest, length=length), *(record(i, digest=digest) for i in (2, 3))], kind)
    found = read(tmp_path, b"".join(parts), "x.warc" + kind)
    assert urls(found) == [URL.format(i) for i in (0, 2, 3)]
    assert any(r.reason in ("wrong_length", "wrong_digest", "broken_record", "too_large", "not_html") for r in found)


@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
def test_a_wrong_digest_is_told(tmp_path, kind):
    good = [record(i, digest=True) for i in range(3)]
    good[1] = good[1].replace(b"The ", b"Tha ", 1)
    found = read(tmp_path, b"".join(packed(good, kind)), "x.warc" + kind)
    assert [r.reason for r in found] == ["", "wrong_digest", ""]


@given(st.data())
@quick
def test_damage_in_one_member_leaves_the_others(tmp_path, data):
    count = data.draw(st.integers(2, 6))
    parts = packed([record(i, digest=data.draw(st.booleans())) for i in range(count)], ".gz")
    hurt = data.draw(st.integers(0, count - 1))
    member = bytearray(parts[hurt])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(member) - 1))
        kind = data.draw(st.sampled_from(["set", "delete", "insert"]))
        if kind == "set":
            member[at] = data.draw(st.integers(0, 255))
        elif kind == "delete":
            del member[at : at + data.draw(st.integers(1, 200))]
        else:
            member[at:at] = data.draw(st.binary(min_size=1, max_size=50))
        member = member or bytearray(b"x")
    parts[hurt] = bytes(member)
    found = read(tmp_path, b"".join(parts))
    there = urls(found)
    for i in range(count):
        assert i == hurt or URL.format(i) in there, (i, hurt, [(r.url, r.reason) for r in found])
    assert len(there) == len(set(there))
    assert len(found) >= count
    for r in found:
        result = process(r, STEPS)
        assert (result.removed is None) == bool(result.text.strip()) or result.removed


@pytest.mark.parametrize("kind", ["", ".gz", ".zst"])
def test_damage_after_damage(tmp_path, kind):
    parts = packed([record(0), record(1, length=40), record(2), record(3, length=4000), record(4), record(5, length=7), record(6)], kind)
    found = read(tmp_path, b"".join(parts), "x.warc" + kind)
    assert urls(found) == [URL.format(i) for i in (0, 2, 4, 6)]
    assert [r.reason for r in found if r.reason] == ["wrong_length"] * 3


@given(st.data())
@quick
def test_a_cut_file_is_told(tmp_path, data):
    kind = data.draw(st.sampled_from(["", ".gz"]))
    whole = b"".join(packed([record(i) for i in range(4)], kind))
    cut = data.draw(st.integers(1, len(whole) - 5))
    found = read(tmp_path, whole[:cut], "x.warc" + kind)
    ends = set()
    at = 0
    for part in packed([record(i) for i in range(4)], kind):
        at += len(part)
        ends |= {at} if kind else {at, at - 1, at - 2, at - 3, at - 4}
    assert cut in ends or found[-1].reason == "truncated_file", "a cut-off end must not go unnoticed"
    assert urls(found) == [URL.format(i) for i in range(len(urls(found)))]


@pytest.mark.parametrize("kind", [".gz", ".zst"])
@pytest.mark.parametrize("count", [2, 9, 400])
def test_a_cut_file_of_one_member_is_told(tmp_path, kind, count):
    whole = packed([b"".join(record(i) for i in range(count))], kind)[0]
    for keep in (0.3, 0.6, 0.99):
        found = read(tmp_path, whole[: int(keep * len(whole))], "x.warc" + kind)
        good, bad = urls(found), [r.reason for r in found if r.reason]
        assert good == [URL.format(i) for i in range(len(good))] and "truncated_file" in bad
        assert set(bad) <= {"truncated_file", "rest_of_file", "not_html"}  # the last one without the end of its header


@given(st.binary(max_size=3000), st.sampled_from([".warc", ".warc.gz", ".jsonl", ".jsonl.gz", ".html", ".txt", ".html.gz", ".parquet"]))
@quick
def test_any_bytes_are_some_records(tmp_path, data, suffix):
    for content in (data, gzip.compress(data)) if suffix.endswith(".gz") else (data,):
        found = read(tmp_path, content, "x" + suffix)
        assert found, "a file without records is one too"
        for r in found:
            text, reason = extract(r) if not r.reason else (None, r.reason)
            assert (text is None) == bool(reason)


@given(st.binary(max_size=2000), st.sampled_from(["utf-8", "shift_jis", "utf-16", "windows-1252", "nonsense", "utf-7", ""]))
@quick
def test_pages_that_claim_any_charset(tmp_path, body, charset):
    data = gzip.compress(record(0, b"<html><body><p>" + body, http=""))
    data = gzip.compress(gzip.decompress(data).replace(b"text/html", b"text/html; charset=" + charset.encode(), 1))
    for r in read(tmp_path, data):
        result = process(r, STEPS)
        assert result.text == result.text.encode("utf-8").decode("utf-8")


def test_compressed_bodies_and_bombs(tmp_path):
    body = page(story(1))
    bomb = zlib.compress(b"<html>" + b" " * 5_000_000)
    found = read(
        tmp_path,
        b"".join(
            packed(
                [
                    record(0, gzip.compress(body), http="Content-Encoding: gzip\r\n"),
                    record(1, bomb, http="Content-Encoding: deflate\r\n"),
                    record(2, b"\1\2\3", http="Content-Encoding: gzip\r\n"),
                    record(3, b"x", http="Content-Encoding: br\r\n"),
                    record(4, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), http="Transfer-Encoding: chunked\r\n"),
                    record(5, gzip.compress(body)[:-9], http="Content-Encoding: gzip\r\n"),
                    record(6, b" " * 2_000_000),
                ],
                ".gz",
            )
        ),
    )
    assert [r.reason for r in found] == ["", "zip_bomb", "bad_content_encoding", "bad_content_encoding", "", "bad_content_encoding", "too_large"]
    assert found[0].data == body == found[4].data


@pytest.mark.parametrize("kind", [".gz", ".zst"])
def test_bombs_of_whole_files(tmp_path, kind):
    line = b'{"text": "' + b" " * 3_000_000
    bomb = packed([b'{"text": "a"}\n' + line * 50], kind)[0]
    found = read(tmp_path, bomb, "x.jsonl" + kind, max_bytes=10**6)
    assert [r.reason for r in found] == ["", "zip_bomb"]
    assert [r.reason for r in read(tmp_path, packed([b" " * 3_000_000], kind)[0], "x.html" + kind, max_bytes=10**6)] == ["zip_bomb"]


def test_everything_bad_in_one_folder(tmp_path):
    """Each is counted under its reason, the run goes on, nothing is dropped."""
    folder = tmp_path / "in"
    folder.mkdir()
    good = [record(i, page(story(i))) for i in range(3)]
    (folder / "a.warc.gz").write_bytes(b"".join(packed(good, ".gz"))[:-40])
    (folder / "b.warc").write_bytes(record(10, length=40) + record(11))
    (folder / "c.warc").write_bytes(record(12, digest=True).replace(b"river", b"rover").replace(b"the ", b"tha "))
    (folder / "d.html").write_bytes(b'<meta charset="utf-16"><p>' + story(20).encode("latin-1") + b" caf\xe9 na\xefve")
    (folder / "e.txt").write_bytes(b"word " * 20_000_000)  # 100 MB in one line
    with open(folder / "f.jsonl", "wb") as file:
        file.write(b'{"text": "' + b"word " * 5_000_000 + b'"}\n' + json.dumps({"text": story(21)}).encode() + b"\n")
    (folder / "g.html.gz").write_bytes(gzip.compress(b"<p>" * 8_000_000))
    (folder / "h.warc.gz").write_bytes(b"")
    (folder / "i.html").write_bytes(b"<div>" * 100_000 + story(22).encode() + b"</div>" * 100_000)
    (folder / "j.txt").write_bytes(story(23).encode() + b"\x00\x01\x02")
    (folder / "k.html").write_bytes(page(story(24) + " bell\x07 and \x1b[31m escape \x0b"))
    (folder / "l.warc").write_bytes(b"WARC/1.0\r\n")
    (folder / "m.jsonl.gz").write_bytes(gzip.compress(b"\n"))
    out = run(DataConfig((folder,), tmp_path / "out", decisions=True, val_fraction=0))
    found = reasons(adds_up(out))
    read_as = {"truncated_file": 2, "wrong_length": 1, "wrong_digest": 1, "too_large": 2, "zip_bomb": 1, "empty": 1, "no_records": 1}
    assert found == {**{f"read/{reason}": count for reason, count in read_as.items()}, "extract/too_deep": 1, "extract/binary": 1}
    kept = {d["source"] for d in documents(out)}
    assert {"a.warc.gz", "b.warc", "d.html", "f.jsonl", "k.html"} <= kept
    text = next(d["text"] for d in documents(out) if d["source"] == "k.html")
    assert not any(ord(c) < 32 and c not in "\n\t" for c in text)
    decisions = [json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines()]
    assert {row["source"] for row in decisions} == {file.name for file in folder.iterdir()}
    assert len(decisions) == json.loads((out / "waterfall.json").read_text())["documents_in"]


def test_parquet_rows_and_damage(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": [story(1), "", None], "url": ["https://x.example", "", None], "score": [2.5, 1.0, None], "n": [[1], [2], [3]]})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    found = read(tmp_path, buffer.getvalue(), "x.parquet")
    assert [r.reason for r in found] == ["", "empty", "no_text_field"]
    assert found[0].url == "https://x.example" and found[0].meta["score"] == 2.5
    for damaged in (buffer.getvalue()[:-10], buffer.getvalue()[10:], b"PAR1"):
        assert all(r.reason for r in read(tmp_path, damaged, "x.parquet"))


def test_the_text_field_can_be_named(tmp_path):
    rows = tmp_path / "x.jsonl"
    rows.write_text(json.dumps({"text": "short", "body": "long", "metadata": {"url": "https://y.example"}}))
    [named] = read_records(rows, "x", 100, "body")
    assert named.data == b"long" and named.url == "https://y.example" and next(read_records(rows, "x", 100)).data == b"short"
