"""Sixteen chats at once: our engine beside llama.cpp's own `llama-server -np 16`, the same GGUF file, turn by turn in one run.

    FREEDIVE_LLAMA_SERVER=/path/to/llama-server python benchmarks/llama_server.py --file model.gguf --prompts gsm8k_train.jsonl.gz --field question

Each turn asks both for the same new questions, as the same token ids in the model's chat form, and for --new tokens each at temperature 0, ends ignored, so
that both do the same work; turns differ, so nothing is found in a cache. llama-server (built outside of the checkout, with its own tuning for
this processor) is asked over HTTP by as many clients as there are chats; ours is the engine in one process, without HTTP. What the server's HTTP
costs it is some milliseconds a turn. Both are measured from the first question to the last token: tokens per second of wall time, and per CPU-second of
all threads (the figure to read where other programs run). One JSON line for each number of threads: medians, least and most of the turns, ratio
ours / theirs. `same_start`: chats whose first 16 ids are the same on both sides (quantised activations round differently).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

OURS = """
import json, sys, time
import freedive
from freedive.tokenizer import render
arguments = json.loads(sys.argv[1])
lm = freedive.load(**arguments)
for line in sys.stdin:
    work = json.loads(line)
    if "questions" in work:
        ids = [render(lm.tokenizer, [{"role": "user", "content": q}], add_generation_prompt=True)[0] for q in work["questions"]]
        print(json.dumps(ids), flush=True)
        continue
    wall, cpu = time.perf_counter(), time.process_time()
    outs = lm.engine.generate(work["prompts"], max_new_tokens=work["new"], temperature=0)
    print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, [o.ids for o in outs]]), flush=True)
"""


class Ours:
    def __init__(self, arguments: dict[str, Any]):
        self.process = subprocess.Popen([sys.executable, "-c", OURS, json.dumps(arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, work: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def chats(self, prompts: list[list[int]], new: int) -> tuple[float, float, list[list[int]]]:
        wall, cpu, ids = self.ask({"prompts": prompts, "new": new})
        return wall, cpu, ids

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Theirs:
    """llama-server with a slot for every chat."""

    def __init__(self, binary: str, file: str, chats: int, room: int, threads: int, more: list[str]):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [binary, "-m", file, "-np", str(chats), "-c", str(chats * room), "-t", str(threads), "-tb", str(threads), "--host", "127.0.0.1",
                   "--port", str(self.port), "--threads-http", str(chats), *more]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            if self.process.poll() is not None:
                sys.exit(f"llama-server ended by itself: {' '.join(command)}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).read()
                return
            except OSError:
                time.sleep(0.1)
        sys.exit("llama-server is not ready after a minute")

    def one(self, prompt: list[int], new: int) -> list[int]:
        asked = {"prompt": prompt, "n_predict": new, "temperature": 0.0, "cache_prompt": False, "ignore_eos": True, "return_tokens": True, "stream": False}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            told = json.load(answer)
        assert told["tokens_predicted"] == new and told["tokens_evaluated"] == len(prompt), told
        return told["tokens"]

    def chats(self, prompts: list[list[int]], new: int) -> tuple[float, float, list[list[int]]]:
        with ThreadPoolExecutor(len(prompts)) as clients:
            wall, cpu = time.perf_counter(), self.cpu()
            ids = list(clients.map(lambda p: self.one(p, new), prompts))
            return time.perf_counter() - wall, self.cpu() - cpu, ids

    def cpu(self) -> float:
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def read(path: Path, field: str, count: int) -> list[str]:
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as lines:
        return [json.loads(line)[field] for _, line in zip(range(count), lines, strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL (.gz) of questions")
    parser.add_argument("--field", default="question")
    parser.add_argument("--chats", type=int, default=16)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--load", type=json.loads, default={}, help='JSON: more arguments of freedive.load, e.g. {"dtype": "bfloat16"}')
    parser.add_argument("--server", nargs="*", default=[], help="more arguments of llama-server, without their leading dashes' first: fa=off")
    c = parser.parse_args()
    binary = os.environ.get("FREEDIVE_LLAMA_SERVER")
    if not binary:
        sys.exit("FREEDIVE_LLAMA_SERVER names no llama-server")
    questions = read(c.prompts, c.field, c.chats * (c.rounds + 1))
    more = [word for pair in c.server for word in (f"-{pair.split('=')[0]}", *pair.split("=")[1:])]
    for threads in c.threads:
        ours = Ours({"path": c.file, "threads": threads, "max_tokens": 512, "max_seqs": c.chats} | c.load)
        prompts = ours.ask({"questions": questions})
        theirs = Theirs(binary, c.file, c.chats, max(map(len, prompts)) + c.new + 16, threads, more)
        found: dict[str, list[tuple[float, float, list[list[int]]]]] = {"ours": [], "llama-server": []}
        try:
            for turn in range(c.rounds + 1):
                batch = prompts[turn * c.chats : (turn + 1) * c.chats]
                for name, side in (("ours", ours), ("llama-server", theirs)):
                    result = side.chats(batch, c.new)
                    if turn:  # the first warms up
                        found[name].append(result)
        finally:
            ours.close()
            theirs.close()
        tokens = c.chats * c.new
        line: dict[str, Any] = {"case": f"{c.chats} chats", "file": os.path.basename(c.file), "threads": threads, "load": c.load, "new": c.new,
                                "prompt_tokens": sum(map(len, prompts[c.chats :])) // (c.rounds * c.chats)}  # fmt: skip
        for which, name in ((0, "tokens_per_second"), (1, "tokens_per_cpu_second")):
            speeds = {side: [tokens / turn[which] for turn in turns] for side, turns in found.items()}
            middle = {side: statistics.median(s) for side, s in speeds.items()}
            line[name] = {side: {"median": round(middle[side], 1), "least": round(min(s), 1), "most": round(max(s), 1)} for side, s in speeds.items()}
            line["ratio" if which == 0 else "ratio_cpu"] = round(middle["ours"] / middle["llama-server"], 3)
        pairs = [(a, b) for mine, its in zip(found["ours"], found["llama-server"]) for a, b in zip(mine[2], its[2])]
        line["same_start"] = round(sum(a[:16] == b[:16] for a, b in pairs) / len(pairs), 3)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
