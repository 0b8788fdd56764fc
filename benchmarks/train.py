"""Training steps beside torch's, in turns: GPT-2's architecture at three sizes, and batches of conversations of unequal length.

    python benchmarks/train.py [--case gpt2_4x256 ...] [--threads 2] [--rounds 7]                # ours alone
    FREEDIVE_TORCH_PYTHON=/path/to/python python benchmarks/train.py                              # that Python has torch
    ... python benchmarks/train.py --case unequal --data conversations.jsonl.gz                   # OASST's trees, or rows with "turns"

A step is forward, backward and AdamW on both sides; ours also takes the gradient's norm and clips. torch runs in the best of eager/compile x
float32/autocast/bfloat16 weights, chosen once for each case (--choose-rounds steps of each; kept in ~/.cache/freedive/peers.json; a single mode
given is taken as it is), as installed and tuned: malloc told to keep memory and to use huge pages, the vocabulary padded to a multiple of 64. One JSON
line per case, peer and number of threads: tokens a second of both (median, least, most), `ratio` (the median of the rounds' ratios, each of two
neighbouring turns; `spread` has the least and the most), share of the measured peak (the highest probe between turns), peak memory of both processes,
and how many CPUs other programs kept busy meanwhile. One thread is timed in CPU-seconds, several by the wall clock. `ratio` is ours in bfloat16 where
this processor multiplies in it, else in float32; both are there. --quick: the two small cases, two rounds, to see that it works.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from side_by_side import CACHE, Others, Worker, best_mode, in_turns, ours, spread, torch, torch_python

from freedive.ops import fast_bf16

# layers, width, heads, vocabulary, positions; sequences x tokens
CASES: dict[str, tuple[dict[str, int], int, int]] = {
    "gpt2_4x256": (dict(layers=12, width=768, heads=12, vocabulary=50257, positions=1024), 4, 256),
    "gpt2_4x1024": (dict(layers=12, width=768, heads=12, vocabulary=50257, positions=1024), 4, 1024),
    "6x384_16x256": (dict(layers=6, width=384, heads=6, vocabulary=4096, positions=256), 16, 256),
    "4x128_32x128": (dict(layers=4, width=128, heads=4, vocabulary=512, positions=128), 32, 128),
}
SMALL = ["6x384_16x256", "4x128_32x128"]
MODES = ["float32", "float32_compile", "amp", "amp_compile", "bf16", "bf16_compile"]
DTYPES = ["bfloat16", "float32"] if fast_bf16() else ["float32"]


def train_flops(m: dict[str, int], tokens: int, pairs: float) -> float:
    """FLOPs of the products of forward and backward. pairs: query-key pairs attended, of all sequences."""
    matrices = 12 * m["layers"] * m["width"] ** 2 + m["vocabulary"] * m["width"]
    return 6.0 * tokens * matrices + 12.0 * m["layers"] * m["width"] * pairs


def steps_of(worker: Worker, seconds: float) -> int:
    """How many steps make a turn of about a second."""
    return max(1, min(50, round(1 / seconds)))


def rate(worker: Worker, n: int, tokens: int, memory: dict[str, int], name: str) -> float:
    """Tokens a second over one turn of n steps."""
    answer = worker.ask("work", n=n)
    memory[name] = answer["high_water"]
    return tokens * n / sum(answer["seconds"])


def compare(case: str, request: dict[str, Any], peers: dict[str, Callable[[], tuple[Worker, dict[str, Any], list[str]]]], tokens: int, flops: float,
            threads: int, options: argparse.Namespace) -> None:  # fmt: skip
    """Ours in every dtype and, one after the other, each peer. A peer is a function: a fresh worker, its request without `mode`, its modes."""
    for peer, start in peers.items() if torch_python() else {"none": None}.items():  # type: ignore[union-attr]
        workers: dict[str, Worker] = {}
        chosen, version = None, None
        if start is not None:

            def try_mode(mode: str) -> float:
                worker, theirs, _ = start()  # noqa: B023
                with worker:
                    worker.ask("make", mode=mode, **theirs)
                    return min(worker.ask("work", n=options.choose_rounds)["seconds"])

            worker, theirs, modes = start()
            chosen, _ = best_mode(f"{case} {peer} threads {threads}", options.modes or modes, try_mode)
            version = worker.ask("make", mode=chosen, **theirs)["version"]
            workers["torch"] = worker
        for dtype in DTYPES:
            workers[dtype] = ours(threads)
            workers[dtype].ask("make", mode=dtype, recompute=options.recompute, **request)
        turns = {name: steps_of(w, w.ask("work", n=1)["seconds"][0]) for name, w in workers.items()}
        memory: dict[str, int] = {}
        sides = {name: (lambda w=w, name=name: rate(w, turns[name], tokens, memory, name)) for name, w in workers.items()}
        peaks = {dtype: (lambda d=dtype: workers[d].ask("peak", dtype=d)["flops"]) for dtype in DTYPES}
        others = Others(workers.values())
        found = in_turns(sides | {f"peak {d}": p for d, p in peaks.items()}, options.rounds)
        busy = others.cpus()
        for worker in workers.values():
            worker.stop()
        peak = {d: max(found[f"peak {d}"]) for d in DTYPES}  # a probe that lost its core to another program finds less than there is
        per_token = flops / tokens
        line: dict[str, Any] = {"benchmark": "train", "case": case, "peer": peer, "threads": threads, "tokens": tokens}
        line |= {"recompute": options.recompute} if options.recompute != "none" else {}
        if "torch" in found:
            for dtype in DTYPES:
                ratios = [mine / theirs for mine, theirs in zip(found[dtype], found["torch"], strict=True)]
                line["ratio" if dtype == DTYPES[0] else f"ratio_{dtype}"] = round(statistics.median(ratios), 3)
                line["spread" if dtype == DTYPES[0] else f"spread_{dtype}"] = [round(min(ratios), 3), round(max(ratios), 3)]
            line |= {"torch": spread(found["torch"]), "mode": chosen, "version": version, "torch_peak_share": round(statistics.median(found["torch"]) * per_token / peak[DTYPES[0]], 3)}  # fmt: skip
        for dtype in DTYPES:
            line |= {f"ours_{dtype}": spread(found[dtype]), f"peak_share_{dtype}": round(statistics.median(found[dtype]) * per_token / peak[dtype], 3)}
        line |= {"peak_gflops": {d: round(p / 1e9, 1) for d, p in peak.items()}, "peak_memory_mb": {n: round(b / 1e6) for n, b in memory.items()}, "other_cpus": busy}
        if "torch" in memory:
            line["memory_ratio"] = round(memory[DTYPES[0]] / memory["torch"], 3)
        print(json.dumps(line), flush=True)


def fixed(case: str, threads: int, options: argparse.Namespace) -> None:
    model, B, T = CASES[case]
    request = {"kind": "train", "model": model, "vocabulary": model["vocabulary"], "batch": B, "length": T}
    padded = request | {"model": model | {"vocabulary": (model["vocabulary"] + 63) // 64 * 64}}
    peers = {"installed": lambda: (torch(threads, False), request, MODES), "tuned": lambda: (torch(threads, True), padded, MODES)}
    peers = {name: p for name, p in peers.items() if name in options.peer}
    compare(case, request, peers, B * T, train_flops(model, B * T, B * T * (T + 1) / 2), threads, options)


# ---- conversations of unequal length -----------------------------------------------------------------------------------------------------------


def texts_of(path: Path) -> Iterator[str]:
    """Every conversation of a JSONL file: threads from the root of an OASST tree to each leaf, or rows with "turns" or "messages"."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            row = json.loads(line)
            if "prompt" in row and isinstance(row["prompt"], dict):
                open_ = [(row["prompt"], "")]
                while open_:
                    node, before = open_.pop()
                    text = f"{before}{node['role']}: {node['text']}\n"
                    if node["replies"]:
                        open_ += [(reply, text) for reply in node["replies"]]
                    else:
                        yield text
            else:
                turns = row.get("turns") or row.get("messages") or []
                yield "".join(f"{t['role']}: {t.get('text') or t.get('content')}\n" for t in turns)


def unequal(threads: int, options: argparse.Namespace) -> None:
    """The 6 x 384 model on real conversations, a vocabulary of 4,096 learned from them, sequences of at most 1,024 tokens. Real tokens are counted."""
    from freedive.tokenizer import train_tokenizer

    if options.data is None:
        sys.exit("--case unequal needs --data: a JSONL file of conversations")
    texts = list(texts_of(options.data))
    random.Random(0).shuffle(texts)
    tokenizer = train_tokenizer(texts, 4096)
    sequences = [ids[:1025] for ids in map(tokenizer.encode, texts[: options.conversations]) if len(ids) > 1]
    model = CASES["6x384_16x256"][0] | {"positions": 1024}
    model["vocabulary"] = tokenizer.vocab_size
    tokens, pairs = sum(len(s) - 1 for s in sequences), sum((len(s) - 1) * len(s) / 2 for s in sequences)

    def flat(limit: int) -> list[list[list[int]]]:
        batches: list[list[list[int]]] = [[]]
        for s in sequences:
            if batches[-1] and sum(map(len, batches[-1])) + len(s) > limit:
                batches.append([])
            batches[-1].append(s)
        return batches

    def rectangles(order: list[list[int]], limit: int) -> list[list[list[int]]]:
        """As many as fit, padding counted, into `limit` tokens."""
        batches: list[list[list[int]]] = [[]]
        for s in order:
            if batches[-1] and max(len(x) for x in [*batches[-1], s]) * (len(batches[-1]) + 1) > limit:
                batches.append([])
            batches[-1].append(s)
        return batches

    request = {"kind": "unequal", "model": model}
    padded, bucketed = rectangles(sequences, 4096), rectangles(sorted(sequences, key=len), 4096)
    modes = ["amp", "amp_compile", "bf16", "float32"]
    peers = {f"{how}, {which}": (lambda batches=batches, tuned=tuned: (torch(threads, tuned), request | {"batches": batches}, modes))
             for which, tuned in (("installed", False), ("tuned", True)) if which in options.peer
             for how, batches in (("padded", padded), ("bucketed", bucketed))}  # fmt: skip
    print(json.dumps({"benchmark": "train", "case": "unequal: the batches", "conversations": len(sequences), "real_tokens": tokens, "longest": max(map(len, sequences)) - 1,
                      "median_length": statistics.median(map(len, sequences)), "steps": {"ours": len(flat(4096)), "padded": len(padded), "bucketed": len(bucketed)},
                      "tokens_with_padding": {n: sum(len(b) * (max(map(len, b)) - 1) for b in bs) for n, bs in (("padded", padded), ("bucketed", bucketed))}}), flush=True)  # fmt: skip
    compare("unequal", request | {"batches": flat(4096)}, peers, tokens, train_flops(model, tokens, pairs), threads, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=[*CASES, "unequal"], default=list(CASES))
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--choose-rounds", type=int, default=2, help="steps of each of torch's modes when the best is chosen")
    parser.add_argument("--peer", nargs="+", choices=["installed", "tuned"], default=["installed", "tuned"])
    parser.add_argument("--modes", nargs="+", choices=MODES, help="torch's modes to choose among (default: all)")
    parser.add_argument("--data", type=Path, help="conversations for the case `unequal`")
    parser.add_argument("--conversations", type=int, default=96)
    parser.add_argument("--recompute", choices=["none", "ffn", "block"], default="none", help="of ours: computed again for the backward pass, for less memory")
    parser.add_argument("--quick", action="store_true", help="the two small cases, two rounds")
    options = parser.parse_args()
    if options.quick:
        options.case, options.rounds, options.choose_rounds = [c for c in options.case if c in SMALL] or SMALL, 2, 1
    if torch_python():
        print(f"torch's best modes are kept in {CACHE}", file=sys.stderr)
    for threads in options.threads:
        for case in options.case:
            unequal(threads, options) if case == "unequal" else fixed(case, threads, options)


if __name__ == "__main__":
    main()
