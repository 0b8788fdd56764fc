"""Bulk encoding beside tiktoken's own batch call, in turns on the same documents; speed is MB of UTF-8 per CPU-second of the process.

    python benchmarks/tokenizer.py --text ../shared/data/text/openstax.jsonl.gz

CPU-seconds (all threads) and not wall-clock, so that a busy machine changes little. "shards" is the whole of `freedive data shards`:
reading JSON Lines, encoding, writing .bin, index and sources. gigatoken is measured if it is installed and passes the golden texts.
The last line holds the lowest ratio to tiktoken of the encoding cases.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from freedive.data.texts import iter_texts
from freedive.data.token_shards import ShardsConfig, run
from freedive.tokenizer import encode_documents, get
from freedive.tokenizer.accelerate import accelerated


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("../shared/data/text/openstax.jsonl.gz"))
    parser.add_argument("--megabytes", type=float, default=12)
    parser.add_argument("--document", type=int, default=4000, help="characters of a document")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    text = ""
    for piece in iter_texts(arguments.text):
        text += piece
        if len(text) >= arguments.megabytes * 1e6:
            break
    documents = [text[i : i + arguments.document] for i in range(0, int(arguments.megabytes * 1e6), arguments.document)]
    size = sum(len(d.encode()) for d in documents)
    lowest = float("inf")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "text.jsonl"
        source.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents), encoding="utf-8")
        for name in ("cl100k_base", "o200k_base"):
            tok = get(name)
            tiktoken = tok._encoding
            shards = ShardsConfig(data=source, tokenizer=name, out=Path(folder) / "shards", threads=1)
            cases: dict[str, Callable[[], object]] = {
                "tiktoken, 1 thread": lambda: tiktoken.encode_ordinary_batch(documents, num_threads=1),
                "freedive, 1 thread": lambda: encode_documents(tok, documents, 1),
                "tiktoken, 2 threads": lambda: tiktoken.encode_ordinary_batch(documents, num_threads=2),
                "freedive, 2 threads": lambda: encode_documents(tok, documents, 2),
                "freedive shards, 1 thread": lambda: run(shards),
            }
            if accelerated(tok) is not None:
                cases["freedive with gigatoken, 1 thread"] = lambda: encode_documents(tok, documents, 1, fast=True)
            seconds: dict[str, list[float]] = {case: [] for case in cases}
            for _ in range(arguments.rounds):
                for case, work in cases.items():
                    seconds[case].append(cpu_seconds(work))
                    shutil.rmtree(shards.out, ignore_errors=True)
            peers = {t: statistics.median(seconds[f"tiktoken, {t}"]) for t in ("1 thread", "2 threads")}
            for case, all_seconds in seconds.items():
                middle = statistics.median(all_seconds)
                ratio = peers[case.split(", ")[1]] / middle
                if case.startswith("freedive, "):
                    lowest = min(lowest, ratio)
                row = {"benchmark": "tokenizer", "encoding": name, "case": case, "megabytes_per_cpu_second": round(size / middle / 1e6, 2)}
                print(json.dumps({**row, "slowest": round(size / max(all_seconds) / 1e6, 2), "times_tiktoken": round(ratio, 3)}), flush=True)
    print(json.dumps({"benchmark": "tokenizer", "case": "encoding, lowest ratio to tiktoken", "times_tiktoken": round(lowest, 3)}))


if __name__ == "__main__":
    main()
