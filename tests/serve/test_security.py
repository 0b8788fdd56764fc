"""Who may ask, and how much: each wrong request is a clear 4xx in OpenAI's form, and the server lives."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'freedive[serve]'")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install openai")

from serve_cases import leaks, make_lm, run_with  # noqa: E402
from serve_http import LARGE, Served  # noqa: E402

from freedive.inference import Params  # noqa: E402
from freedive.serve.protocol import Limited  # noqa: E402
from freedive.serve.security import Limits, limits_for  # noqa: E402
from freedive.serve.sse import Answer  # noqa: E402

ASK = {"prompt": "x", "max_tokens": 2}


def refused(answer, status, code):
    error = answer.json()["error"]
    assert answer.status_code == status and error["code"] == code and set(error) == {"message", "type", "param", "code"} and error["message"], answer.text
    return error["message"]


def raw(port, text, wait=5.0):
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as s:
        s.sendall(text.encode())
        s.shutdown(socket.SHUT_WR)
        parts = []
        while part := s.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


def test_names_this_server_does_not_have_are_refused(served):
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "localhost@evil.example", ""):
        answer = served.http.get("/v1/models", headers={"Host": host})
        assert answer.status_code in (400, 403) and answer.json()["error"]["type"] in ("permission_error", "invalid_request_error"), host
    for host in ("localhost", "LOCALHOST:1", f"127.0.0.1:{served.port}", "[::1]:80"):
        assert served.http.get("/v1/models", headers={"Host": host}).status_code == 200
    assert "400" in raw(served.port, "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").splitlines()[0]


def test_foreign_pages_are_refused(served):
    for origin in ("http://evil.example", "null", f"http://evil.example:{served.port}", "http://127.0.0.1:1", f"https://127.0.0.1.evil:{served.port}"):
        refused(served.http.post("/v1/completions", json=ASK, headers={"Origin": origin}), 403, "origin_not_allowed")
        refused(served.http.get("/v1/models", headers={"Origin": origin}), 403, "origin_not_allowed")
    assert served.http.post("/v1/completions", json=ASK, headers={"Origin": served.url}).status_code == 200
    answer = served.http.options("/v1/completions", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"})
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_a_body_must_be_json(served):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        refused(served.http.post("/v1/completions", content=json.dumps(ASK), headers={"Content-Type": kind}), 415, "unsupported_media_type")
    for body, code in ((b"{", "invalid_json"), (b"", "invalid_value"), (b"[]", "invalid_value"), (b"null", "invalid_value"), (b'{"prompt": NaN}', "invalid_value")):
        refused(served.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"}), 400, code)
    for body in (b"\xff\xfe", b'{"seed": ' + b"9" * 10_000 + b"}", b"[" * 500_000, b'{"temperature": 1e999}', b'{"prompt": "x", "seed": 1.5}'):
        answer = served.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["message"], body[:20]


def test_half_characters_and_odd_ids_are_answered(served):
    body = b'{"prompt": "a\\ud800b", "max_tokens": 3, "echo": true, "logprobs": 1, "user": "\\udfff"}'
    answer = served.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"]
    body = b'{"model": "\\ud800", "prompt": "x"}'
    refused(served.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"}), 400, "invalid_value")
    for prompt in ([-1], [10**6], [2**31], [10**30], [True], [1.5], [[1], "x"], [[]], [], {"a": 1}, 5):
        assert served.http.post("/v1/completions", json={"prompt": prompt}).status_code == 400, prompt
    assert served.http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400


def test_a_body_too_large_or_too_slow():
    with Served(limits=Limits(body_bytes=2000, body_seconds=0.3)) as s:
        message = refused(s.http.post("/v1/completions", json=ASK | {"prompt": "x" * 3000}), 413, "body_too_large")
        assert "2,000 bytes" in message

        def chunks():
            for _ in range(50):
                yield b" " * 100

        try:  # of no stated length: it is cut off as soon as it is too much
            answer = s.http.post("/v1/completions", content=chunks(), headers={"Content-Type": "application/json"})
            refused(answer, 413, "body_too_large")
        except httpx.TransportError:
            pass  # the answer came while the body was still being sent, and the connection was closed
        with socket.create_connection(("127.0.0.1", s.port), timeout=10) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
            began = time.monotonic()
            assert b" 408 " in slow.recv(4096).split(b"\r\n")[0] and time.monotonic() - began < 5
        for _ in range(5):  # begun and left
            with socket.create_connection(("127.0.0.1", s.port)) as gone:
                gone.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert s.http.post("/v1/completions", json=ASK).status_code == 200


def test_the_key_is_asked_for_everywhere_but_health():
    with Served(limits=Limits(api_key="s3cret")) as s:
        assert s.http.get("/health").status_code == 200
        paths = [("GET", p) for p in ("/v1/models", "/metrics", "/openapi.json", "/", "/nothing", "/tokenizer_info", "/health/x", "//health")]
        for method, path in [*paths, ("POST", "/v1/completions"), ("POST", "/tokenize"), ("OPTIONS", "/v1/models")]:
            answer = s.http.request(method, s.url + path)
            refused(answer, 401, "invalid_api_key")
            assert "www-authenticate" in answer.headers
            refused(s.http.request(method, s.url + path, headers={"Authorization": "Bearer wrong"}), 401, "invalid_api_key")
        for header in ("Bearer s3cret", "bearer s3cret", "Basic YW55OnMzY3JldA=="):
            assert s.http.get("/v1/models", headers={"Authorization": header}).status_code == 200
        for header in ("Basic !!", "Basic", "s3cret", "Bearer", "Bearer s3cre", "Bearer \xff"):
            assert s.http.get("/v1/models", headers={"Authorization": header.encode("latin-1")}).status_code == 401


def test_an_allowed_page_may_ask_and_says_the_key_only_when_it_does():
    with Served(limits=Limits(api_key="k", origins=("https://a.example",))) as s:
        asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        answer = s.http.options("/v1/completions", headers=asks)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://a.example"
        answer = s.http.post("/v1/completions", json=ASK, headers={"Origin": "https://a.example", "Authorization": "Bearer k"})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://a.example"
        assert s.http.post("/v1/completions", json=ASK, headers={"Origin": "https://a.example"}).status_code == 401
        assert s.http.options("/v1/completions", headers=asks | {"Origin": "https://b.example"}).status_code == 403


def test_unknown_paths_and_methods(served):
    refused(served.http.get("/v1/nothing"), 404, "not_found")
    refused(served.http.get("/v1/completions"), 405, "method_not_allowed")
    refused(served.http.delete("/v1/models"), 405, "method_not_allowed")


def test_a_full_queue_says_when_to_come_again():
    with Served(max_queue=0) as s:
        with httpx.Client(base_url=s.url, timeout=60) as other:
            with other.stream("POST", "/v1/completions", json={"prompt": ["a"] * 64, "max_tokens": 2000, "stream": True, "ignore_eos": True}) as running:
                assert running.status_code == 200
                answer = s.http.post("/v1/completions", json=ASK)
                refused(answer, 429, "queue_full")
                assert int(answer.headers["retry-after"]) >= 1
        for _ in range(300):
            if s.http.post("/v1/completions", json=ASK).status_code == 200:
                break
            time.sleep(0.01)
        else:
            pytest.fail("the rows were not freed")
        leaks(s.service)


def test_a_client_that_leaves_before_its_answer_frees_the_row(served):
    for stream in (False, True):
        with socket.create_connection(("127.0.0.1", served.port)) as s:
            body = json.dumps({"prompt": "x", "max_tokens": 900, "ignore_eos": True, "stream": stream})
            s.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            while not served.service.engine.busy:
                time.sleep(0.001)
        began = time.monotonic()
        while served.service.engine.busy or served.service.open_choices:
            time.sleep(0.001)
            assert time.monotonic() - began < 2
        leaks(served.service)


def test_a_client_that_leaves_before_the_first_piece_frees_the_row_too():
    async def body(service):
        stream = await service.open([1], Params(900, 1.0))

        async def pieces():
            async for event in stream:
                yield event.text.encode()

        async def send(message):
            raise OSError("gone")

        async def receive():
            await asyncio.sleep(3600)

        with pytest.raises(BaseException):  # noqa: B017
            await Answer(stream, pieces())({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
        assert service.open_choices == 0

    run_with(make_lm(LARGE), body)


def test_a_deadline_is_told_as_one():
    with Served(deadline=0.15) as s:
        told = s.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2000, "ignore_eos": True}).json()
        assert told["choices"][0]["finish_reason"] == "length" and 0 < told["usage"]["completion_tokens"] < 2000
    with Served(deadline=1e-6) as s:  # over before it was begun
        for path, asked in (("/v1/completions", ASK), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9})):
            answer = s.http.post(path, json=asked)
            assert refused(answer, 503, "deadline") and "retry-after" in answer.headers
            with s.http.stream("POST", path, json=asked | {"stream": True}) as answer:
                last = [line for line in answer.iter_lines() if line][-1]
            assert json.loads(last[6:])["error"]["code"] == "deadline"


def test_metrics_count_what_happened(served):
    def value(name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in served.http.get("/metrics").text.splitlines() if line.startswith(name))

    before, tokens = value('freedive_http_requests_total{route="/v1/completions",status="200"}'), value("freedive_completion_tokens_total")
    served.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 7, "ignore_eos": True})
    assert value('freedive_http_requests_total{route="/v1/completions",status="200"}') == before + 1
    assert value("freedive_completion_tokens_total") == tokens + 7 and value("freedive_up") == 1
    assert value("freedive_cache_blocks_used") == 0 and value("freedive_sequences_running") == 0
    assert served.http.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_limits_follow_the_address_that_is_listened_on():
    local, wide = limits_for("127.0.0.1"), limits_for("0.0.0.0", hosts=["Dive.Example"], origins=["https://A.example/"])
    assert not local.any_address and wide.any_address and "dive.example" in wide.hosts and wide.origins == ("https://a.example",)


@pytest.mark.parametrize("kind", ["httptools", "h11"])
def test_headers_too_slow_or_too_large(kind: str):
    module = pytest.importorskip(f"uvicorn.protocols.http.{kind}_impl", reason=f"{kind} is not installed")
    reader = getattr(module, {"httptools": "HttpToolsProtocol", "h11": "H11Protocol"}[kind])
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Served(http=type("Quick", (Limited, reader), {"seconds": 0.5, "most": 4000})) as s:

        def said(*pieces: bytes, pause: float = 0.0) -> bytes:
            with socket.create_connection(("127.0.0.1", s.port), timeout=10) as c:
                parts = []
                try:
                    for piece in pieces:
                        c.sendall(piece)
                        time.sleep(pause)
                    while part := c.recv(65536):
                        parts.append(part)
                except ConnectionError:
                    pass
                return b"".join(parts)

        began = time.monotonic()
        assert said() == b""  # nothing is said: closed without a word
        told = said(whole[:20])
        assert told.startswith(b"HTTP/1.1 408 ") and b'"code":"request_timeout"' in told
        assert said(*(whole[i : i + 1] for i in range(20)), pause=0.1) in (b"", told)  # however busily; who goes on sending may not see the answer
        told = said(whole, whole[:20], pause=0.2)
        assert told.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in told  # the second request of a connection too
        assert time.monotonic() - began < 8
        for endless in (b"GET /" + b"a" * 6000, b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 1000):
            told = said(endless)
            assert b" 431 " in told.split(b"\r\n")[0] or kind == "h11" and b" 400 " in told.split(b"\r\n")[0]
        for size in (3000, 5000, 70_000, 300_000, 900_000, 2_000_000):  # bodies are none, however they are cut
            body = json.dumps({"prompt": "x" * size, "max_tokens": 1})
            for _ in range(3):
                refused(s.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"}), *((400, "context_length_exceeded") if size < 2**20 else (413, "body_too_large")))
        with socket.create_connection(("127.0.0.1", s.port), timeout=10) as c:  # a request that is answered slowly is not headers
            body = json.dumps({"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True}).encode()
            c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
            for i in range(0, len(body), 20):  # nor is its body
                c.sendall(body[i : i + 20])
                time.sleep(0.15)
            parts = []
            while part := c.recv(65536):
                parts.append(part)
        assert b"".join(parts).startswith(b"HTTP/1.1 200 ") and b"data: [DONE]" in b"".join(parts)


@pytest.mark.slow
def test_64_clients_that_leave_at_random_lose_nothing_and_leak_nothing():
    """Each request either was left by its client, or has all its tokens, the same as ever."""
    import random

    expected: dict[int, str] = {}
    lost: list[str] = []
    counts = {"whole": 0, "left": 0}
    with Served(max_queue=64) as s:

        async def client(number):
            rng = random.Random(number)
            async with httpx.AsyncClient(base_url=s.url, timeout=60) as http:
                for _ in range(8):
                    seed = rng.randrange(40)
                    asked = {"prompt": f"{seed} " * (seed + 1), "seed": seed, "max_tokens": 30, "temperature": 0.9, "ignore_eos": True, "stream": rng.random() < 0.7}
                    leaves = rng.random() < 0.3
                    try:
                        if asked["stream"]:
                            text, done = "", False
                            async with http.stream("POST", "/v1/completions", json=asked) as answer:
                                if answer.status_code != 200:
                                    lost.append(f"{answer.status_code}")
                                    continue
                                stays = rng.randrange(8)
                                async for line in answer.aiter_lines():
                                    if line == "data: [DONE]":
                                        done = True
                                    elif line.startswith("data: "):
                                        text += "".join(c["text"] for c in json.loads(line[6:])["choices"])
                                        stays -= 1
                                    if leaves and stays < 0:
                                        break
                            if leaves and not done:
                                counts["left"] += 1
                                continue
                        else:
                            work = asyncio.ensure_future(http.post("/v1/completions", json=asked))
                            if leaves:
                                await asyncio.sleep(rng.random() * 0.05)
                                if not work.done():
                                    work.cancel()
                                    await asyncio.gather(work, return_exceptions=True)
                                    counts["left"] += 1
                                    continue
                            answer = await work
                            if answer.status_code != 200:
                                lost.append(f"{answer.status_code}")
                                continue
                            text, done = answer.json()["choices"][0]["text"], True
                    except httpx.TransportError as error:
                        lost.append(repr(error))
                        continue
                    if not done or expected.setdefault(seed, text) != text:
                        lost.append(f"{seed}: {text!r}")
                    counts["whole"] += 1

        async def everybody():
            await asyncio.gather(*(client(i) for i in range(64)))

        thread = threading.Thread(target=lambda: asyncio.run(everybody()))
        thread.start()
        thread.join(300)
        assert not thread.is_alive() and not lost, lost[:5]
        assert sum(counts.values()) == 64 * 8 and counts["left"] > 10, counts
        for _ in range(500):
            if not s.service.engine.busy and not s.service.open_choices:
                break
            time.sleep(0.01)
        assert s.service.open_choices == 0
        leaks(s.service)
        print(counts)
