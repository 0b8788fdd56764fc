"""Bits per byte after equal time: `freedive pretrain` beside nanochat, same documents, same tokens, one evaluator.

    python benchmarks/quality.py --text ../shared/data/text/{children_stories,openstax,eltec_eng}.jsonl.gz --work WORK --minutes 10 --set preset=pairs optimizer=muon
    NANOCHAT=/path/to/nanochat FREEDIVE_TORCH_PYTHON=/its/python python benchmarks/quality.py ... --nanochat 10 20    # minutes for it

Documents are pieces of about a thousand characters, so that nanochat's loader, which crops every document to what its rows have room for,
loses little; pieces of every 50th text are held out. Ours trains a tokenizer on them; nanochat gets the same one. Both are scored on the same
rows: the begin-of-document token, then up to 256 tokens of a held-out piece; bits per byte of those tokens' bytes.

Time is that of training steps, without start and compilation: short runs, both sides in turns, say what a step takes on a quiet machine; they are kept
in WORK/steps.json, and the number of steps follows from them, because both learning-rate schedules depend on it. So a long run may share the
machine: its quality depends on its steps alone. nanochat runs its d4 settings (depth 4, heads of 64, rows of 256, batches of 4,096)
compiled, in the faster of float32 and bfloat16; --lr scales all its learning rates.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
CONTEXT = 256
PIECE = 1000  # characters
NANOCHAT = ["--device-type=cpu", "--depth=4", "--head-dim=64", "--window-pattern=L", "--max-seq-len=256", "--device-batch-size=16",
            "--total-batch-size=4096", "--eval-every=-1", "--core-metric-every=-1", "--sample-every=-1", "--save-every=-1"]  # fmt: skip
RATES = {"embedding-lr": 0.3, "unembedding-lr": 0.008, "matrix-lr": 0.02, "scalar-lr": 0.5}  # its defaults
MODES = ["bfloat16", "float32"]  # compiled: its optimizer asks torch for whole graphs, so it does not run without


def pieces(text: str) -> list[str]:
    """Sentences and lines together until PIECE characters are reached."""
    out, size = [[]], 0  # type: ignore[var-annotated]
    for part in re.split(r"(?<=[.!?]\s)|(?<=\n)", text):
        out[-1].append(part)
        size += len(part)
        if size >= PIECE:
            out.append([])
            size = 0
    return [joined for joined in ("".join(part).strip() for part in out) if len(joined) > 40]


def prepare(texts: list[Path], work: Path, vocabulary: int) -> None:
    """train.jsonl, the tokenizer for both sides and the held-out rows."""
    from freedive.tokenizer import train_tokenizer

    made_of = json.dumps({"texts": [t.name for t in texts], "vocabulary": vocabulary})
    if (work / "rows.npz").is_file():
        if (work / "made_of.json").read_text() != made_of:
            sys.exit(f"{work} was prepared from other texts, or with another vocabulary: give another --work")
        return
    work.mkdir(parents=True, exist_ok=True)
    train, held = [], []
    for path in texts:
        with gzip.open(path, "rt", encoding="utf-8") as rows:
            for k, row in enumerate(rows):
                (held if k % 50 == 7 else train).extend(pieces(json.loads(row)["text"]))
    rng = np.random.default_rng(0)
    train = [train[i] for i in rng.permutation(len(train))]
    held = [held[i] for i in rng.permutation(len(held))[:1000]]
    with open(work / "train.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in train)
    tok = train_tokenizer(train[: len(train) // 4], vocabulary)
    tok.save(work / "tokenizer")
    ids = [tok.encode(text)[:CONTEXT] for text in held]
    sizes = sum(len(tok.decode_bytes([i])) for row in ids for i in row)
    rows = np.full((len(ids), CONTEXT), -1, np.int32)
    for row, found in zip(rows, ids, strict=True):
        row[: len(found)] = found
    (work / "made_of.json").write_text(made_of)
    np.savez(work / "rows.npz", rows=rows, bytes=sizes)
    (work / "ranks.json").write_text(
        json.dumps({"pattern": tok.pattern, "ranks": [token.hex() for token, _ in sorted(tok.tokens.items(), key=lambda t: t[1])]})
    )
    shards = [
        sys.executable,
        "-m",
        "freedive",
        "data",
        "shards",
        str(work / "train.jsonl"),
        "--tokenizer",
        str(work / "tokenizer"),
        "--out",
        str(work / "shards"),
    ]
    subprocess.run(shards, check=True)
    print(
        f"{len(train):,} pieces to train on, {len(ids):,} held out: {int((rows >= 0).sum()):,} tokens, {sizes:,} bytes; vocabulary {tok.vocab_size}"
    )


# ---- ours ------------------------------------------------------------------------------------------------------------------------------------


def our_run(work: Path, out: Path, steps: int, threads: int, settings: dict[str, Any]) -> float:
    """CPU-seconds of a run of `freedive pretrain`, in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "freedive", "pretrain", "--data", str(work / "shards"), "--out", str(out),
               "--steps", str(steps), "--eval-every", "0", "--samples", "0", "--dtype", "auto", "--threads", str(threads)]  # fmt: skip
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", *([value] if value else [])]  # a flag has no value
    return timed(command, dict(os.environ), work / "ours.log")


def our_bits(work: Path, out: Path, threads: int) -> float:
    from freedive.inference import load_model, load_tokenizer
    from freedive.model import Batch

    tok = load_tokenizer(out)
    model = load_model(out, tok, max_tokens=4096, max_seqs=64, threads=threads)
    held = np.load(work / "rows.npz")
    nats = 0.0
    rows = [np.concatenate([[tok.bos_id], row[row >= 0]]).astype(np.int32) for row in held["rows"]]
    for at in range(0, len(rows), 15):
        nats -= float(model.score(Batch.pack([(row[:-1], row[1:]) for row in rows[at : at + 15]])).logprobs.sum(dtype=np.float64))
    return nats / np.log(2) / int(held["bytes"])


# ---- nanochat --------------------------------------------------------------------------------------------------------------------------------


def their_environment(work: Path, mode: str, threads: int) -> dict[str, str]:
    own = {"NANOCHAT_BASE_DIR": str(work / "nanochat"), "NANOCHAT_DTYPE": mode, "OMP_NUM_THREADS": str(threads),
           "PYTHONPATH": os.environ["NANOCHAT"], "MALLOC_TRIM_THRESHOLD_": "20000000000", "MALLOC_MMAP_MAX_": "0", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # fmt: skip
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | own


def their_helper(work: Path, mode: str, threads: int, *what: str) -> str:
    return subprocess.run([os.environ["FREEDIVE_TORCH_PYTHON"], str(HERE / "nanochat_worker.py"), *what], env=their_environment(work, mode, threads),
                          cwd=os.environ["NANOCHAT"], check=True, stdout=subprocess.PIPE, text=True).stdout  # fmt: skip


def their_run(work: Path, mode: str, threads: int, steps: int, scale: float) -> float:
    command = [os.environ["FREEDIVE_TORCH_PYTHON"], "-m", "scripts.base_train", *NANOCHAT, f"--num-iterations={steps}", f"--model-tag=t{steps}",
               *(f"--{name}={value * scale}" for name, value in RATES.items())]  # fmt: skip
    return timed(command, their_environment(work, mode, threads), work / "nanochat.log", os.environ["NANOCHAT"])


def their_bits(work: Path, mode: str, threads: int, steps: int) -> float:
    answer = their_helper(work, mode, threads, "score", str(work / "rows.npz"), f"t{steps}", str(steps))
    return json.loads(answer.splitlines()[-1])["nats"] / np.log(2) / int(np.load(work / "rows.npz")["bytes"])


# ---- time ------------------------------------------------------------------------------------------------------------------------------------


def timed(command: list[str], environment: dict[str, str], log: Path, folder: str | None = None) -> float:
    """Seconds of a program."""
    began = time.perf_counter()
    with open(log, "w") as file:
        if subprocess.run(command, env=environment, cwd=folder, stdout=file, stderr=subprocess.STDOUT).returncode:
            sys.exit(f"{' '.join(command[:4])} ... failed; see {log}\n{log.read_text()[-2000:]}")
    return time.perf_counter() - began


def step_seconds(work: Path, runs: dict[str, Any], rounds: int, few: int = 10) -> dict[str, dict[str, Any]]:
    """What a step of each takes: medians of `rounds` turns of a short and a longer run, whose difference has no start in it. Before the first, a run that compiles."""
    kept = work / "steps.json"
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    new = [name for name in runs if name not in known]
    found: dict[str, list[float]] = {name: [] for name in new}
    for name in new:
        runs[name](few)
    for _ in range(rounds if new else 0):
        for name in new:
            more = 50 if name.startswith("nanochat") else 150
            short, long = runs[name](few), runs[name](more)
            found[name].append((long - short) / (more - few))
    for name, each in found.items():
        known[name] = {"step_seconds": round(float(np.median(each)), 5), "least": round(min(each), 5), "most": round(max(each), 5)}
    kept.write_text(json.dumps(known, indent=1))
    return {name: known[name] for name in runs}


def say(**line: Any) -> None:
    print(json.dumps({"benchmark": "quality", **line}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="JSONL files with `text`")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is trained; prepared once")
    parser.add_argument("--minutes", type=float, nargs="*", default=[], help="of ours")
    parser.add_argument("--nanochat", type=float, nargs="*", default=[], help="minutes of nanochat")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run-threads", type=int, help="threads of the long runs, where they are not to be those that were timed")
    parser.add_argument("--time-only", action="store_true", help="only the short runs")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the short runs")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--lr", type=float, nargs="*", default=[1.0], help="factors of nanochat's learning rates")
    parser.add_argument("--mode", choices=MODES, help="nanochat's, instead of the fastest")
    parser.add_argument("--set", nargs="*", default=[], help="name=value: settings of freedive pretrain, instead of its defaults")
    c = parser.parse_args()
    work = c.work.resolve()
    prepare(c.text, work, c.vocabulary)
    settings = dict((item.split("=", 1) + [""])[:2] for item in c.set)
    ours = " ".join(["freedive", *c.set, f"threads={c.threads}"])
    modes = {f"nanochat, {mode}, threads={c.threads}": mode for mode in ([c.mode] if c.mode else MODES)} if c.nanochat else {}
    if modes and not (work / "nanochat").is_dir():
        their_helper(work, "float32", c.threads, "prepare", str(work))
    runs: dict[str, Any] = {ours: lambda n: our_run(work, work / "ours-short", n, c.threads, settings)} if c.minutes else {}
    runs |= {name: lambda n, mode=mode: their_run(work, mode, c.threads, n, 1.0) for name, mode in modes.items()}
    steps_of = step_seconds(work, runs, c.rounds)
    for name, found in steps_of.items():
        say(who=name, **found)
    if c.time_only:
        return
    threads = c.run_threads or c.threads
    for minutes in c.minutes:
        steps = round(60 * minutes / steps_of[ours]["step_seconds"])
        out = work / ("ours-" + "-".join([f"{minutes:g}", *c.set]).replace("=", "_"))
        wall = our_run(work, out, steps, threads, settings)
        params = json.loads((out / "run.json").read_text())["metrics"]["parameters"]
        say(who="freedive", minutes=minutes, bits_per_byte=round(our_bits(work, out, threads), 4), steps=steps, wall_minutes=round(wall / 60, 2), parameters=params, settings=settings)  # fmt: skip
    if not modes:
        return
    best = min(modes, key=lambda name: steps_of[name]["step_seconds"])
    for minutes in c.nanochat:
        for scale in c.lr:
            steps = round(60 * minutes / steps_of[best]["step_seconds"])
            wall = their_run(work, modes[best], threads, steps, scale)
            bits = their_bits(work, modes[best], threads, steps)
            say(who="nanochat", minutes=minutes, bits_per_byte=round(bits, 4), lr_scale=scale, steps=steps, wall_minutes=round(wall / 60, 2), mode=modes[best])  # fmt: skip


if __name__ == "__main__":
    main()
