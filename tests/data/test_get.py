"""Downloads from a hub that stands in for the real one: hashes, resume, clear errors. No network is needed."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

PARQUET = {f"sample/10BT/00{i}_00000.parquet": bytes([65 + i]) * 300_000 for i in range(4)}
FILES = {**PARQUET, "README.md": b"# about", "data/other.parquet": b"x" * 10}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    cut: int | None = None  # close the connection after so many bytes, once
    lie = False
    ranges: list = []

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        path = self.path.partition("?")[0]
        if path.startswith("/api/datasets/HuggingFaceFW/fineweb-edu"):
            siblings = [
                {
                    "rfilename": name,
                    "size": len(data),
                    "blobId": "0" * 40,
                    **({"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}} if name.endswith("t") else {}),
                }
                for name, data in FILES.items()
            ]
            data = json.dumps({"_id": "1", "id": "HuggingFaceFW/fineweb-edu", "sha": COMMIT, "siblings": siblings, "private": False}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data if body else b"")
            return
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in FILES:
            self.send_error(404)
            return
        data = FILES[name]
        if Hub.lie:
            data = data[:-1] + b"?"
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            Hub.ranges.append(start)
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(FILES[name]).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            if Hub.cut is not None:
                self.wfile.write(data[start : start + Hub.cut])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(data[start:])


@pytest.fixture
def hub():
    Hub.cut, Hub.lie, Hub.ranges = None, False, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def get(hub, folder: Path, *arguments):
    """The command, in a process of its own: huggingface_hub reads its endpoint when it is imported."""
    environment = {
        "PYTHONPATH": ":".join(p for p in sys.path if p),
        "HF_ENDPOINT": hub,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-m", "freedive", "data", "get", *arguments, "--out", str(folder / "out")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_shards_are_fetched_checked_and_not_fetched_twice(hub, tmp_path):
    done = get(hub, tmp_path, "fineweb-edu", "--shards", "2")
    assert done.returncode == 0, done.stderr
    for name in sorted(PARQUET)[:2]:
        assert (tmp_path / "out" / name).read_bytes() == FILES[name]
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == ["000_00000.parquet", "001_00000.parquet", "get.json"]
    told = json.loads((tmp_path / "out" / "get.json").read_text())
    assert told["commit"] == COMMIT and told["files"][0]["sha256"] == hashlib.sha256(FILES[sorted(PARQUET)[0]]).hexdigest()
    Hub.lie = True  # nothing is asked for again
    assert get(hub, tmp_path, "fineweb-edu", "--shards", "2").returncode == 0
    assert "4 of 4 files" in get(hub, tmp_path, "fineweb-edu", "--shards", "0", "--dry-run").stdout


def test_a_wrong_hash_is_an_error_and_leaves_nothing(hub, tmp_path):
    Hub.lie = True
    done = get(hub, tmp_path, "fineweb-edu")
    assert done.returncode == 2 and "SHA-256" in done.stderr
    assert not (tmp_path / "out" / "sample/10BT/000_00000.parquet").exists() and not (tmp_path / "out" / "get.json").exists()


def test_a_cut_download_goes_on(hub, tmp_path):
    Hub.cut = 100_000
    done = get(hub, tmp_path, "fineweb-edu")
    assert done.returncode == 2 and "goes on where it stopped" in done.stderr
    Hub.cut = None
    assert get(hub, tmp_path, "fineweb-edu").returncode == 0
    assert (tmp_path / "out" / "sample/10BT/000_00000.parquet").read_bytes() == FILES["sample/10BT/000_00000.parquet"]
    assert Hub.ranges == [100_000]


def test_what_is_not_there_is_a_user_error(hub, tmp_path):
    for arguments in (["no-such"], ["owner/none"], ["fineweb-edu", "--folder", "nowhere"], ["fineweb-edu", "--shards", "-1"]):
        done = get(hub, tmp_path, *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.startswith("freedive:"), done.stderr
    assert get("http://127.0.0.1:9", tmp_path, "fineweb-edu").returncode == 2
