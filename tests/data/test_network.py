"""Servers that are busy, files that are gone, lists with a wrong line: what passes is waited for, what does not is counted or told. No network."""

from __future__ import annotations

import dataclasses
import gzip
import http.server
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from data_pages import adds_up, documents, page, reasons, story

from freedive.data import DataConfig, remote, run
from freedive.data import sources as sources_module
from freedive.data import stage as stage_module
from freedive.runs import UserError, folder_hash
from freedive.tasks.warc import write_warc

needs_http = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("fsspec", "aiohttp")), reason="fsspec or aiohttp is not installed (extra [data])"
)
pytestmark = needs_http


class Moody(http.server.BaseHTTPRequestHandler):
    """Files of a dict, by parts; `answers[path]` is a list of statuses to give first, the last one for ever if it is negative."""

    files: dict[str, bytes]
    answers: dict[str, list[int]]
    seen: Counter[str]
    headers_too: dict[str, str]
    chunked = False
    ranges = True
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = urlsplit(self.path).path
        self.seen[path] += 1
        moods = self.answers.get(path, [])
        status = moods[0] if moods and moods[0] < 0 else moods.pop(0) if moods else 200 if path in self.files else 404
        data = self.files.get(path, b"")
        if abs(status) != 200:
            self.reply(abs(status), b"no", **self.headers_too)
        elif self.chunked:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
        elif self.ranges and (wanted := self.headers.get("Range")):
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
            part = data[first : last + 1]
            self.reply(206, part, Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        else:
            self.reply(200, data)

    def reply(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_GET


@pytest.fixture
def server(tmp_path):
    """(address, handler) of four files of three pages."""
    files = {}
    for i in range(4):
        write_warc(tmp_path / f"{i}.warc.gz", [(f"https://a.example/{i}/{k}", page(story(10 * i + k))) for k in range(3)])
        files[f"/{i}.warc.gz"] = (tmp_path / f"{i}.warc.gz").read_bytes()
    handler = type("Here", (Moody,), {"files": files, "answers": {}, "seen": Counter(), "headers_too": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as there:
        threading.Thread(target=there.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{there.server_port}", handler
        there.shutdown()


def paths_list(folder: Path, lines: list[str]) -> Path:
    file = folder / "warc.paths"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_server_that_is_busy_is_waited_for(server, tmp_path):
    url, here = server
    here.answers.update({"/1.warc.gz": [503] * 4 + [200, 429, 502], "/2.warc.gz": [503, 503]})
    listed = paths_list(tmp_path, [f"{url}/{i}.warc.gz" for i in range(4)])
    began = time.monotonic()
    out = run(DataConfig((listed,), tmp_path / "out", workers=2))
    assert len(documents(out)) == 12 and not reasons(adds_up(out))
    assert time.monotonic() - began > remote.FIRST_WAIT  # and not three tries in 20 ms


def test_waits_grow_have_chance_in_them_and_end(monkeypatch):
    now, waits = [0.0], []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(remote.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(remote.time, "sleep", sleep)
    monkeypatch.setattr(remote, "patience", 120.0)

    def fail():
        raise TimeoutError("too slow")

    with pytest.raises(remote.RemoteError, match=r"https://x.example/a could not be read: too slow \(tried \d+ times\)") as error:
        remote.patiently(fail, "https://x.example/a")
    assert error.value.tried and sum(waits) == pytest.approx(120.0)
    assert all(0.5 * low <= wait <= 1.5 * low for wait, low in zip(waits[:-1], [0.5, 1, 2, 4, 8, 16, 30, 30, 30], strict=False))
    first = waits[:3]
    waits.clear()
    now[0] = 0.0
    with pytest.raises(remote.RemoteError):
        remote.patiently(fail, "https://x.example/a")
    assert waits[:3] != first

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.patiently(stopped, "https://x.example/a")


def test_the_server_says_how_long_to_wait(server, monkeypatch):
    url, here = server
    here.answers["/0.warc.gz"] = [503, 503]  # HEAD and GET
    here.headers_too = {"Retry-After": "7"}
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    assert remote.open_remote(f"{url}/0.warc.gz").read(2) == b"\x1f\x8b"
    assert waits == [7.0]


def test_a_server_that_stays_busy_ends_the_run_with_its_status_and_the_rest_is_done(server, tmp_path):
    url, here = server
    here.answers["/1.warc.gz"] = [-503]
    listed = paths_list(tmp_path, [f"{url}/{i}.warc.gz" for i in range(4)])
    config = DataConfig((listed,), tmp_path / "out", workers=1, network_seconds=0.5)
    with pytest.raises(UserError, match=r"1.warc.gz could not be read: the server says 503 Service Unavailable") as error:
        run(config)
    assert str(error.value).count(url) == 1 and "network-seconds" in (error.value.hint or "")
    here.answers.clear()
    before = Counter(here.seen)
    assert len(documents(run(config))) == 12
    assert {path for path in here.seen if here.seen[path] > before[path]} == {"/1.warc.gz"}  # the others were done


def test_a_network_that_is_gone_ends_the_run_soon(server, tmp_path):
    url, here = server
    for i in range(4):
        here.answers[f"/{i}.warc.gz"] = [-502]
    listed = paths_list(tmp_path, [f"{url}/{i}.warc.gz" for i in range(4)])
    with pytest.raises(UserError, match="502 Bad Gateway"):
        run(DataConfig((listed,), tmp_path / "out", workers=1, network_seconds=0.3))
    assert len(here.seen) == 2  # not each file in turn, for as long again


@pytest.mark.parametrize("listed", [False, True])
def test_ctrl_c_ends_a_wait(server, tmp_path, listed):
    url, here = server
    here.answers["/0.warc.gz"] = [-503]
    given = str(paths_list(tmp_path, [f"{url}/0.warc.gz"])) if listed else f"{url}/0.warc.gz"
    command = [sys.executable, "-m", "freedive", "data", given, "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    end = time.monotonic() + 60
    while here.seen["/0.warc.gz"] < 6 and time.monotonic() < end:  # the third try: the next wait is of 2 seconds and more
        time.sleep(0.05)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in told and time.monotonic() - began < 20, told
    assert not (tmp_path / "out").exists()
    if not listed:
        assert "503 Service Unavailable; trying again in" in told


def test_files_that_are_gone_are_counted(server, tmp_path):
    url, here = server
    here.answers["/2.warc.gz"] = [-403]
    listed = paths_list(tmp_path, [f"{url}/{name}.warc.gz" for name in ("0", "gone", "1", "2", "lost", "3")])
    out = run(DataConfig((listed,), tmp_path / "out", workers=2))
    assert len(documents(out)) == 9 and reasons(adds_up(out)) == {"read/not_found": 2, "read/forbidden": 1}
    with pytest.raises(UserError, match="2 read/not_found") as error:
        run(DataConfig((paths_list(tmp_path, [f"{url}/gone.warc.gz", f"{url}/lost.warc.gz"]),), tmp_path / "none"))
    assert "not on their server" in (error.value.hint or "")


def test_a_list_that_loses_a_line_keeps_what_is_done(server, tmp_path, monkeypatch):
    url, here = server
    names = [f"{url}/{i}.warc.gz" for i in range(4)]
    config = DataConfig((paths_list(tmp_path, names),), tmp_path / "out", world=2)
    for rank in (0, 1):
        run(dataclasses.replace(config, rank=rank))
    before = Counter(here.seen)
    paths_list(tmp_path, [names[3], names[0], names[2]])
    out = run(config)
    assert here.seen == before
    whole = run(DataConfig((tmp_path / "warc.paths",), tmp_path / "whole"))
    assert folder_hash(out) == folder_hash(whole) and len(documents(out)) == 9


def test_a_stopped_run_goes_on_after_its_list_lost_a_line(server, tmp_path):
    url, here = server
    here.answers["/1.warc.gz"] = [-500]
    names = [f"{url}/{i}.warc.gz" for i in range(4)]
    config = DataConfig((paths_list(tmp_path, names),), tmp_path / "out", workers=1, network_seconds=0.3)
    with pytest.raises(UserError, match="500"):
        run(config)
    before = Counter(here.seen)
    paths_list(tmp_path, names[:1] + names[2:])
    assert len(documents(run(config))) == 9 and here.seen == before


def test_a_file_that_is_named_twice_is_two_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_module, "GROUP_BYTES", 1)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": story(i)}) + "\n" for i in range(5)))
    (tmp_path / "sub").mkdir()
    out = run(DataConfig((rows, rows, tmp_path / "sub" / ".." / "rows.jsonl"), tmp_path / "out", workers=2))
    assert reasons(adds_up(out)) == {"exact_dedup/exact_duplicate": 10} and len(documents(out)) == 5


def test_a_list_takes_addresses_files_beside_it_and_paths_of_common_crawl_only(tmp_path):
    (tmp_path / "a b.txt").write_text(story(1))
    crawl = "crawl-data/CC-MAIN-2024-18/segments/1/warc/x.warc.gz"
    listed = paths_list(tmp_path, ["a b.txt", crawl, "s3://bucket/x.warc.gz", "", "https://x.example/y.warc.gz"])
    found = [source.path for source in sources_module.sources((listed,))]
    assert found == [str(tmp_path / "a b.txt"), "https://data.commoncrawl.org/" + crawl, "s3://bucket/x.warc.gz", "https://x.example/y.warc.gz"]
    with gzip.open(tmp_path / "more.paths.gz", "wt") as file:
        file.write("a b.txt\nmissing.jsonl\n")
    with pytest.raises(UserError, match=r"more.paths.gz, line 2: missing.jsonl is neither a file beside the list nor an address"):
        sources_module.sources((tmp_path / "more.paths.gz",))


def test_files_of_unknown_size_are_work_for_all_workers(server, tmp_path, monkeypatch, capsys):
    url, _ = server
    listed = paths_list(tmp_path, [f"{url}/{i}.warc.gz" for i in range(4)])
    asked = []
    original = stage_module.Supervisor
    monkeypatch.setattr(stage_module, "default_threads", lambda: 3)
    monkeypatch.setattr(stage_module, "Supervisor", lambda count, *rest: asked.append(count) or original(count, *rest))
    run(DataConfig((listed,), tmp_path / "out"))
    (tmp_path / "small.txt").write_text(story(1))
    run(DataConfig((tmp_path / "small.txt",), tmp_path / "small"))
    assert asked == [3, 1]
    run(DataConfig((listed,), tmp_path / "dry", dry_run=True))
    assert "4 file(s), 4 of them of unknown size" in capsys.readouterr().out


def test_an_address_by_itself_says_what_happened(server, tmp_path, monkeypatch):
    url, here = server
    here.answers.update({"/0.warc.gz": [-503], "/1.warc.gz": [-403]})
    wrong = {
        f"{url}/0.warc.gz": "0.warc.gz could not be read: the server says 503 Service Unavailable",
        f"{url}/1.warc.gz": "1.warc.gz may not be read: the server says 403 Forbidden",
        f"{url}/no.warc.gz": "no.warc.gz does not exist: the server says 404 Not Found",
        "http://127.0.0.1:9/x.warc.gz": "x.warc.gz could not be read: Cannot connect to host 127.0.0.1:9",
        "http://nowhere.invalid/x.warc.gz": "x.warc.gz could not be read: the address of nowhere.invalid is not found",
    }
    for address, told in wrong.items():
        with pytest.raises(UserError) as error:
            run(DataConfig((address,), tmp_path / "out", network_seconds=0.6))
        assert told in error.value.message and error.value.message.count(address) == 1, error.value.message
        assert not (tmp_path / "out").exists()
    here.answers.clear()
    here.answers["/0.warc.gz"] = [503, 503]
    assert len(documents(run(DataConfig((f"{url}/0.warc.gz",), tmp_path / "out")))) == 3


@pytest.mark.parametrize("kind", ["no sizes", "no parts"])
def test_a_server_that_gives_whole_files_only_is_read_from_front_to_back(server, tmp_path, monkeypatch, kind):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    url, here = server
    here.chunked, here.ranges = kind == "no sizes", False
    monkeypatch.setattr(remote, "BLOCK", 100)
    here.files["/rows.jsonl.gz"] = gzip.compress(b"".join(json.dumps({"text": story(i)}).encode() + b"\n" for i in range(50, 55)))
    parquet.write_table(pyarrow.table({"text": [story(i) for i in range(60, 64)]}), tmp_path / "table.parquet")
    here.files["/table.parquet"] = (tmp_path / "table.parquet").read_bytes()
    names = ("0.warc.gz", "1.warc.gz", "rows.jsonl.gz", "table.parquet")
    out = run(DataConfig(tuple(f"{url}/{name}" for name in names), tmp_path / "out"))
    assert len(documents(out)) == 15 and not reasons(adds_up(out))


def command(url: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HF_"))}
    paths = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-m", "freedive", "data", url, "--out", str(folder / "out"), "--network-seconds", "1"],
        env={**clean, "PYTHONPATH": paths, "HOME": str(folder), "NO_PROXY": "*", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def sentence(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2 and "Traceback" not in done.stderr and "bug" not in done.stderr, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_s3_without_credentials_is_a_sentence(tmp_path):
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra [data])")
    done = command("s3://commoncrawl/crawl-data/x.warc.gz", tmp_path, AWS_EC2_METADATA_DISABLED="true", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    sentence(done, "s3://commoncrawl/crawl-data/x.warc.gz", "credentials", "AWS_ACCESS_KEY_ID", "https://data.commoncrawl.org")


def test_hf_without_a_network_is_a_sentence(tmp_path):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra [data])")
    sentence(command("hf://datasets/owner/name/data", tmp_path, HF_ENDPOINT="http://127.0.0.1:9"), "hf://datasets/owner/name/data", "network")
