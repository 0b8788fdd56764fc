"""s3:// and hf://: the same documents as from the same files on disk. Servers that stand in for the real ones; no network is needed.

S3 is a server of moto (pip install "moto[server]"; with s3fs of the extra [data]); the Hugging Face hub one of a few lines below, which speaks what
huggingface_hub asks for. Each runs the command in a process of its own, as these libraries read their endpoint when they are imported.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from data_pages import documents, page, story

from freedive.data import DataConfig, run
from freedive.tasks.warc import write_warc


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A WARC file, rows and a table, as one folder."""
    folder = tmp_path_factory.mktemp("files")
    write_warc(folder / "a.warc.gz", [(f"https://a.example/{i}", page(story(i))) for i in range(12)])
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": story(100 + i), "url": f"https://b.example/{i}"}) + "\n" for i in range(5)))
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    parquet.write_table(pyarrow.table({"text": [story(200 + i) for i in range(5)], "score": [1.5] * 5}), folder / "c.parquet")
    return folder


def freedive(url: str, out: Path, **environment: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-m", "freedive", "data", url, "--out", str(out), "--workers", "2"]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, **environment}, capture_output=True, text=True, timeout=300)


def same_as_on_disk(files: Path, out: Path, tmp_path: Path) -> None:
    local = documents(run(DataConfig((files,), tmp_path / "local")))
    found = documents(out)
    assert len(found) == 22 and sorted(d["text"] for d in found) == sorted(d["text"] for d in local)
    assert {Path(d["source"]).name for d in found} == {"a.warc.gz", "b.jsonl", "c.parquet"}


def test_s3(files, tmp_path):
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra [data])")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "*"}
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    try:
        endpoint = "http://{}:{}".format(*moto.get_host_and_port())
        secret = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=endpoint, **secret)
        client.create_bucket(Bucket="crawl")
        for file in files.iterdir():
            client.put_object(Bucket="crawl", Key=f"pages/{file.name}", Body=file.read_bytes())
        done = freedive("s3://crawl/pages/", tmp_path / "out", AWS_ENDPOINT_URL=endpoint, **keys)
        assert done.returncode == 0, done.stderr
        same_as_on_disk(files, tmp_path / "out", tmp_path)
        for url in ("s3://crawl/nothing/", "s3://no-such-bucket/pages/a.warc.gz"):
            done = freedive(url, tmp_path / "none", AWS_ENDPOINT_URL=endpoint, **keys)
            assert done.returncode == 2 and done.stderr.startswith("freedive:") and "Traceback" not in done.stderr, done.stderr
            assert not (tmp_path / "none").exists()
    finally:
        moto.stop()


COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDER = {"type": "directory", "path": "data", "oid": "data"}


class Hub(http.server.BaseHTTPRequestHandler):
    """datasets/owner/name with the files of `folder` under data/."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def entries(self) -> list[dict]:
        return [{"type": "file", "path": f"data/{f.name}", "size": f.stat().st_size, "oid": f.name} for f in sorted(self.folder.iterdir())]

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = json.loads(asked)["paths"] if asked.startswith("{") else [unquote(part.partition("=")[2]) for part in asked.split("&") if "paths" in part]
        self.send(json.dumps([entry for entry in [FOLDER, *self.entries()] if entry["path"] in wanted]).encode(), Content_Type="application/json")

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if not path.startswith(("/api/datasets/owner/name", "/datasets/owner/name")):
            self.send(b'{"error": "Repository not found"}', 404, X_Error_Code="RepoNotFound", Content_Type="application/json")
        elif "/tree/" in path:
            found = self.entries() if path.endswith("/data") else [FOLDER]
            self.send(json.dumps(found).encode(), Content_Type="application/json")
        elif path.startswith("/api/"):
            siblings = [{"rfilename": entry["path"]} for entry in self.entries()]
            told = {"_id": "1", "id": "owner/name", "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0}
            self.send(json.dumps(told).encode(), Content_Type="application/json")
        else:
            data = (self.folder / Path(path).name).read_bytes()
            about = {"ETag": f'"{Path(path).name}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            if wanted := self.headers.get("Range"):
                first, last = wanted.removeprefix("bytes=").split("-")
                part = data[int(first) : int(last or len(data)) + 1]
                self.send(part, 206, Content_Range=f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}", **about)
            else:
                self.send(data, **about)

    do_HEAD = do_GET


def test_hf(files, tmp_path):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra [data])")
    Hub.folder = files
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        done = freedive("hf://datasets/owner/name/data", tmp_path / "out", **place)
        assert done.returncode == 0, done.stderr
        same_as_on_disk(files, tmp_path / "out", tmp_path)
        done = freedive("hf://datasets/owner/other/data", tmp_path / "none", **place)
        assert done.returncode == 2 and done.stderr.startswith("freedive:") and "Traceback" not in done.stderr, done.stderr
        server.shutdown()
