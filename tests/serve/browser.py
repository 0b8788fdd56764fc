"""What the browser tests stand on: a server in a process of its own, another endpoint with lines to say, and a page that watches itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = "/usr/bin/chromium"


class Server:
    """`freedive serve MODEL`, on a port that was free."""

    def __init__(self, model: Path, folder: Path, *arguments: str) -> None:
        self.model, self.folder, self.arguments = model, folder, arguments
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def words(self) -> list[str]:
        return ["serve", str(self.model), "--port", str(self.port), "--conversations", str(self.folder)]

    def start(self) -> None:
        command = [sys.executable, "-m", "freedive", *self.words(), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=None, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        for _ in range(240):
            try:
                urllib.request.urlopen(self.base + "/health", timeout=1).read()
                return
            except OSError:
                assert self.process.poll() is None, "the server ended"
                time.sleep(0.25)
        raise AssertionError("the server did not start")

    def kill(self, how: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(20)


class LabelServer(Server):
    """`freedive label PROMPTS`, on a port that was free; `model` is the file of prompts, `folder` the folder of labels."""

    def words(self) -> list[str]:
        return ["label", str(self.model), "--port", str(self.port), "--out", str(self.folder)]


class Elsewhere(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that says what it was told to, by the last word of the question."""

    lines: dict[str, list[dict[str, Any]]] = {}
    asked: list[tuple[dict[str, str], dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(({name.lower(): value for name, value in self.headers.items()}, body))
        deltas = self.lines.get(body["messages"][-1]["content"].split()[-1])
        if deltas is None:
            told = json.dumps({"error": {"message": "no such model <b>here</b>"}}).encode()
            self.send_response(404)
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.end_headers()
        for delta in deltas:
            self._say({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            time.sleep(0.02)
        self._say({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._say({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _say(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def elsewhere() -> Iterator[str]:
    """Its address, as clients take it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()


class Watch:
    """What a page must not do: speak to others, fail, or complain."""

    def __init__(self, page: Any, base: str) -> None:
        self.problems: list[str] = []
        ours = (base, base.replace("http", "ws", 1), "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(ours) else self.problems.append(f"request: {r.url}"))
        page.on("websocket", lambda w: None if w.url.startswith(ours) else self.problems.append(f"websocket: {w.url}"))
        page.on("console", lambda m: self.problems.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self.problems.append(f"error: {e}"))
        page.on("dialog", lambda d: (self.problems.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("response", lambda r: self.problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
