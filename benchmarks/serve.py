"""`freedive serve` under load, over HTTP: time to first token and tokens per second, alone or beside llama.cpp's llama-server, turn by turn.

    FREEDIVE_LLAMA_SERVER=/path/to/llama-server python benchmarks/serve.py --file model.gguf --prompts mmlu_val.jsonl.gz --field q --serve="--dtype int8"
    python benchmarks/serve.py --file model.gguf --prompts mmlu_val.jsonl.gz --field q --soak 60

Without --soak: each turn asks one server after the other for the same new questions (as the same token ids, in the model's chat form), --clients at
once, streamed, --new tokens each at temperature 0, ends ignored, so that both do the same work; turns differ, so that nothing is found in a cache. Both
sides are asked over loopback by the same small client in this process. Time to first token is from sending to the first event. Medians of the turns; p50
and p99 are of all requests. Per CPU-second: of the server's process alone. Without FREEDIVE_LLAMA_SERVER ours is measured alone.

With --soak SECONDS: 64 clients (or --clients) on ours alone, a third of which leave in the middle of an answer; every answer that was not left must be whole,
and afterwards /metrics must show no sequence and no cache block held. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from llama_server import read


class Server:
    """A server process that is ready, and the CPU time it took."""

    def __init__(self, command: list[str], port: int):
        self.port, self.process = port, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1200):
            if self.process.poll() is not None:
                sys.exit(f"this ended by itself: {' '.join(command)}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                return
            except OSError:
                time.sleep(0.05)
        sys.exit(f"this is not ready after a minute: {' '.join(command)}")

    def cpu(self) -> float:
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def peak_megabytes(self) -> float:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def get(self, path: str) -> bytes:
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30).read()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def post(port: int, path: str, body: Any) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


async def events(port: int, path: str, body: Any) -> AsyncIterator[Any]:
    """The events of a streamed answer; RuntimeError for one that is none. As little of HTTP as it takes: the client shares the cores."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        raw = json.dumps(body).encode()
        writer.write(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError((status + await reader.read()).decode()[:500])
        while line := await reader.readline():
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                yield json.loads(line[6:])
            elif line.startswith(b"data: [DONE]"):
                yield None
    finally:
        writer.close()


async def timed(server: Server, ours: bool, prompt: list[int], new: int) -> tuple[float, int]:
    """(seconds to the first event, tokens)."""
    began, first, tokens = time.perf_counter(), 0.0, 0
    if ours:
        path, body = "/v1/completions", {"prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    else:
        path, body = "/completion", {"prompt": prompt, "n_predict": new, "temperature": 0.0, "cache_prompt": False, "ignore_eos": True, "stream": True}
    async for event in events(server.port, path, body):
        first = first or time.perf_counter() - began
        if event is not None:
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens) if ours else event.get("tokens_predicted", tokens)
    return first, tokens


async def turn(server: Server, ours: bool, prompts: list[list[int]], new: int) -> tuple[float, float, list[float]]:
    """(wall seconds, CPU-seconds of the server, seconds to first token of each) of all prompts at once."""
    wall, cpu = time.perf_counter(), server.cpu()
    told = await asyncio.gather(*(timed(server, ours, p, new) for p in prompts))
    assert all(tokens == new for _, tokens in told), told
    return time.perf_counter() - wall, server.cpu() - cpu, [first for first, _ in told]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def milliseconds(values: list[float]) -> dict[str, float]:
    return {"p50": round(1000 * percentile(values, 0.5), 1), "p99": round(1000 * percentile(values, 0.99), 1)}


async def soak(server: Server, questions: list[str], clients: int, seconds: float, new: int) -> bool:
    """Clients that leave at random. Prints a line; False if anything was lost or left behind."""
    until, counts, firsts, lost = time.monotonic() + seconds, {"whole": 0, "left": 0, "tokens": 0, "told to come again": 0}, [], []
    began, cpu = time.perf_counter(), server.cpu()

    async def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            most = rng.randint(1, new)
            body = {"messages": [{"role": "user", "content": rng.choice(questions)}], "max_tokens": most, "stream": True, "ignore_eos": True,
                    "stream_options": {"include_usage": True}}  # fmt: skip
            leaves = rng.randint(0, most) if rng.random() < 1 / 3 else None
            sent, seen, done, tokens, left = time.perf_counter(), 0, False, 0, False
            try:
                answer = events(server.port, "/v1/chat/completions", body)
                async for event in answer:
                    if event is None:
                        done = True
                    elif "error" in event:
                        raise RuntimeError(str(event))
                    else:
                        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                        seen += 1
                        if seen == 2:  # the first only names the role
                            firsts.append(time.perf_counter() - sent)
                        if leaves is not None and seen > leaves + 1 and not done:
                            left = True
                            break
                await answer.aclose()
            except (OSError, RuntimeError) as error:
                if " 429 " in str(error):
                    counts["told to come again"] += 1
                    await asyncio.sleep(0.5)
                else:
                    lost.append(str(error)[:200])
                continue
            if left:
                counts["left"] += 1
            elif done and tokens == most:
                counts["whole"] += 1
                counts["tokens"] += tokens
            else:
                lost.append(f"{tokens} of {most} tokens, done: {done}")

    await asyncio.gather(*(client(i) for i in range(clients)))
    wall, used = time.perf_counter() - began, server.cpu() - cpu
    held = {}
    for _ in range(100):  # the last that were left are given up within a step
        held = {name: float(value) for name, value in re.findall(r"^(freedive_(?:sequences_running|sequences_waiting|cache_blocks_used)) (\S+)", server.get("/metrics").decode(), re.M)}
        if not any(held.values()):
            break
        await asyncio.sleep(0.05)
    print(json.dumps({"case": "soak", "clients": clients, "seconds": round(wall, 1)} | counts | {"lost": len(lost), "held afterwards": held,
                      "time_to_first_token_ms": milliseconds(firsts), "tokens_per_second_of_whole_answers": round(counts["tokens"] / wall, 1),
                      "cpu_seconds": round(used, 1), "peak_megabytes": round(server.peak_megabytes())}), flush=True)  # fmt: skip
    if lost:
        print("\n".join(lost[:10]), file=sys.stderr)
    return not lost and len(held) == 3 and not any(held.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL (.gz) of questions")
    parser.add_argument("--field", default="question")
    parser.add_argument("--clients", type=int, default=None, help="at once (16; with --soak 64)")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--soak", type=float, default=0, help="seconds")
    parser.add_argument("--serve", default="", help="more arguments of freedive serve")
    c = parser.parse_args()
    clients = c.clients or (64 if c.soak else 16)
    port = free_port()
    ours = Server([sys.executable, "-m", "freedive", "serve", c.file, "--port", str(port), "--no-pages", "--threads", str(c.threads), *c.serve.split()], port)
    binary, sides = os.environ.get("FREEDIVE_LLAMA_SERVER"), {"ours": ours}
    try:
        if c.soak:
            ok = asyncio.run(soak(ours, read(c.prompts, c.field, 500), clients, c.soak, c.new))
            sys.exit(0 if ok else 1)
        questions = read(c.prompts, c.field, clients * (c.rounds + 1))
        prompts = [post(port, "/apply-template", {"messages": [{"role": "user", "content": q}]})["tokens"] for q in questions]
        if binary:
            room, other = max(map(len, prompts)) + c.new + 16, free_port()
            command = [binary, "-m", c.file, "-np", str(clients), "-c", str(clients * room), "-t", str(c.threads), "-tb", str(c.threads), "--host", "127.0.0.1",
                       "--port", str(other), "--threads-http", str(clients)]  # fmt: skip
            sides["llama-server"] = Server(command, other)
        found: dict[str, list[tuple[float, float, list[float]]]] = {name: [] for name in sides}
        for number in range(c.rounds + 1):
            for name, side in sides.items():
                result = asyncio.run(turn(side, name == "ours", prompts[number * clients : (number + 1) * clients], c.new))
                if number:  # the first warms up
                    found[name].append(result)
        tokens = clients * c.new
        line: dict[str, Any] = {"case": f"{clients} streams", "file": os.path.basename(c.file), "threads": c.threads, "serve": c.serve, "new": c.new,
                                "prompt_tokens": sum(map(len, prompts[clients:])) // (c.rounds * clients), "load": round(os.getloadavg()[0], 1)}  # fmt: skip
        for name, turns in found.items():
            line[name] = {
                "tokens_per_second": round(statistics.median(tokens / wall for wall, _, _ in turns), 1),
                "tokens_per_cpu_second": round(statistics.median(tokens / cpu for _, cpu, _ in turns), 1),
                "time_to_first_token_ms": milliseconds([first for *_, firsts in turns for first in firsts]),
                "peak_megabytes": round(sides[name].peak_megabytes()),
            }
        if binary:
            for name in ("tokens_per_second", "tokens_per_cpu_second"):
                line[f"ratio_{name}"] = round(line["ours"][name] / line["llama-server"][name], 3)
            for name in ("p50", "p99"):
                line[f"ratio_first_{name}"] = round(line["llama-server"]["time_to_first_token_ms"][name] / line["ours"]["time_to_first_token_ms"][name], 3)
        print(json.dumps(line), flush=True)
    finally:
        for side in sides.values():
            side.close()


if __name__ == "__main__":
    main()
