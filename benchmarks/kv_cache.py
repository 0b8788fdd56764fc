"""Keys and values kept in float32, bfloat16 and int8: what it costs in log-probs, and what it saves: python benchmarks/kv_cache.py --model M --text T.

First the log-probs of a text's tokens given those before them (--tokens at a time), every token attending to keys and values as stored,
against float32: mean and largest absolute difference, the change of the mean (nats a token), and how often the likeliest token is another.
Then writing after prompts of --depth tokens, in turns: CPU-seconds of the process a token, the median of --rounds, and how many times
faster than with float32. One JSON line a case.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from pathlib import Path

import numpy as np

import freedive
from freedive.inference import Engine, Params

KEPT = ("float32", "bfloat16", "int8")


def read(path: Path, least: int) -> str:
    """Texts of a JSONL file with a field "text", or a plain file; at least so many characters of it"""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    parts: list[str] = []
    with opened as lines:
        for line in lines:
            parts.append(json.loads(line)["text"] if ".jsonl" in path.name else line)
            if sum(map(len, parts)) >= least:
                break
    return "\n".join(parts)


def scored(engine: Engine, pieces: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs of the tokens, and the likeliest token at each place"""
    outs = engine.generate(pieces, max_new_tokens=1, temperature=0, prompt_logprobs=1)
    logprobs = [p for o in outs for p in (o.prompt_logprobs or [])[1:]]
    best = [next(iter(t)) for o in outs for t in (o.prompt_top_logprobs or [])[1:] if t]
    return np.array(logprobs, np.float64), np.array(best)


def seconds_a_token(engine: Engine, depth: int, new: int, seed: int) -> float:
    ids = np.random.Generator(np.random.Philox(key=[seed, 5])).integers(0, 256, depth).tolist()
    request = engine.submit(ids, Params(new + 1, 0.0))
    while not engine.so_far(request):
        engine.step()
    began = time.process_time()
    while engine.busy:
        engine.step()
    return (time.process_time() - began) / (len(engine.so_far(request)) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, help="a text, or JSONL (.gz) of texts; none: speed only")
    parser.add_argument("--tokens", type=int, default=1024, help="of one piece of the text")
    parser.add_argument("--pieces", type=int, default=4)
    parser.add_argument("--depth", type=int, nargs="*", default=[128, 1024, 4096])
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    c = parser.parse_args()
    lm = freedive.load(c.model, threads=c.threads, max_tokens=1024, max_seqs=16, dtype=c.dtype)
    tokens = min(c.tokens, lm.model.config.max_positions - 8)
    engines = {kept: Engine(lm.model, lm.tokenizer, kv_cache_dtype=kept) for kept in KEPT}
    about = {"model": Path(c.model).name, "dtype": lm.model.dtype}
    if c.text is not None:
        ids = lm.tokenizer.encode(read(c.text, tokens * c.pieces * 8))
        pieces = [[lm.tokenizer.bos_id, *ids[i * tokens : (i + 1) * tokens]] for i in range(c.pieces)]
        exact, likeliest = scored(engines["float32"], pieces)
        for kept in KEPT[1:]:
            got, best = scored(engines[kept], pieces)
            change = np.abs(got - exact)
            print(json.dumps({"case": "logprobs", **about, "kept": kept, "bytes_per_token": engines[kept].stats.cache_bytes_per_token,
                              "float32_bytes_per_token": engines["float32"].stats.cache_bytes_per_token, "tokens": len(exact),
                              "nats": round(-exact.mean(), 5), "nats_change": round(exact.mean() - got.mean(), 6),
                              "mean_abs": round(change.mean(), 6), "p99": round(float(np.quantile(change, 0.99)), 5), "max": round(change.max(), 4),
                              "other_likeliest": round(float((best != likeliest).mean()), 5)}), flush=True)  # fmt: skip
    for depth in c.depth:
        if depth + c.new + 2 > lm.model.config.max_positions:
            continue
        times: dict[str, list[float]] = {kept: [] for kept in KEPT}
        for turn in range(c.rounds):
            for kept in KEPT:
                times[kept].append(seconds_a_token(engines[kept], depth, c.new, turn))
        median = {kept: statistics.median(t) for kept, t in times.items()}
        print(json.dumps({"case": f"decode@{depth}", **about, "threads": c.threads, "cpu_ms_a_token": {k: round(1000 * m, 2) for k, m in median.items()},
                          "least": {k: round(1000 * min(t), 2) for k, t in times.items()},
                          "ratio": {k: round(median["float32"] / median[k], 3) for k in KEPT[1:]}}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
