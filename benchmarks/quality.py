"""Bits per byte after equal time: `freedive pretrain`'s default recipe beside nanochat's, same documents, same tokens, one evaluator.

    python benchmarks/quality.py --text ../shared/data/text/{children_stories,openstax,eltec_eng}.jsonl.gz --work WORK --minutes 10
    NANOCHAT=/path/to/nanochat FREEDIVE_TORCH_PYTHON=/its/python python benchmarks/quality.py ... --nanochat 10 20    # minutes for it

Documents are pieces of about a thousand characters, so that nanochat's loader, which crops every document to what its rows have room for,
loses little; pieces of every 50th text are held out. Ours trains a tokenizer on them; nanochat gets the same one. Both are scored on the same
rows: the begin-of-document token, then up to 256 tokens of a held-out piece; bits per byte of those tokens' bytes.

Time is that of training steps, without start and compilation: a few short runs say what a step takes, then the number of steps is chosen,
because both learning-rate schedules depend on it. One thread (the default) is timed in CPU-seconds, so that other programs on the machine
count little: M minutes of --cores 2 are 120 M CPU-seconds. nanochat runs its d4 settings (depth 4, heads of 64, rows of 256, batches of 4,096)
in the faster of compiled and not, float32 and bfloat16, found by the short runs; --lr scales all its learning rates.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import resource
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
MODES = {"compiled, bfloat16": ("0", "bfloat16"), "compiled, float32": ("0", "float32"), "float32": ("1", "float32"), "bfloat16": ("1", "bfloat16")}


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
    eager, dtype = MODES[mode]
    own = {"NANOCHAT_BASE_DIR": str(work / "nanochat"), "NANOCHAT_DTYPE": dtype, "TORCH_COMPILE_DISABLE": eager, "OMP_NUM_THREADS": str(threads),
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
    """CPU-seconds of a program and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(log, "w") as file:
        if subprocess.run(command, env=environment, cwd=folder, stdout=file, stderr=subprocess.STDOUT).returncode:
            sys.exit(f"{' '.join(command[:4])} ... failed; see {log}\n{log.read_text()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def step_time(run: Any, few: int = 6, more: int = 26) -> tuple[float, float]:
    """(CPU-seconds of start and end, of a step), from a short and a longer run; the first run of all is not counted: it compiles."""
    run(few)
    short, long = run(few), run(more)
    step = (long - short) / (more - few)
    return short - few * step, step


def say(**line: Any) -> None:
    print(json.dumps({"benchmark": "quality", **line}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="JSONL files with `text`")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is trained; prepared once")
    parser.add_argument("--minutes", type=float, nargs="*", default=[], help="of ours")
    parser.add_argument("--nanochat", type=float, nargs="*", default=[], help="minutes of nanochat")
    parser.add_argument("--cores", type=int, default=2, help="a minute is 60 CPU-seconds times this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--lr", type=float, nargs="*", default=[1.0], help="factors of nanochat's learning rates")
    parser.add_argument("--mode", choices=MODES, help="nanochat's, instead of the fastest")
    parser.add_argument("--set", nargs="*", default=[], help="name=value: settings of freedive pretrain, instead of its defaults")
    c = parser.parse_args()
    work = c.work.resolve()
    prepare(c.text, work, c.vocabulary)
    settings = dict(item.split("=", 1) for item in c.set)
    if c.minutes:
        start, step = step_time(lambda n: our_run(work, work / "ours-short", n, c.threads, settings))
    for minutes in c.minutes:
        steps = round(60 * c.cores * minutes / step)
        out = work / ("ours-" + "-".join([f"{minutes:g}", *c.set]).replace("=", "_"))
        began = time.time()
        seconds = our_run(work, out, steps, c.threads, settings)
        params = json.loads((out / "run.json").read_text())["metrics"]["parameters"]
        say(who="freedive", minutes=minutes, bits_per_byte=round(our_bits(work, out, c.threads), 4), steps=steps, step_seconds=round(step, 4), start_seconds=round(start, 1),
            cpu_minutes=round((seconds - start) / 60 / c.cores, 2), wall=round(time.time() - began), parameters=params, settings=settings)  # fmt: skip
    if not c.nanochat:
        return
    if not (work / "nanochat").is_dir():
        their_helper(work, "float32", c.threads, "prepare", str(work))
    found = {mode: step_time(lambda n, mode=mode: their_run(work, mode, c.threads, n, 1.0)) for mode in ([c.mode] if c.mode else MODES)}
    mode = min(found, key=lambda m: found[m][1])
    say(
        who="nanochat",
        step_seconds={m: round(s, 4) for m, (_, s) in found.items()},
        start_seconds={m: round(s, 1) for m, (s, _) in found.items()},
        mode=mode,
    )
    start, step = found[mode]
    for minutes in c.nanochat:
        for scale in c.lr:
            steps = round(60 * c.cores * minutes / step)
            began = time.time()
            seconds = their_run(work, mode, c.threads, steps, scale)
            say(who="nanochat", minutes=minutes, bits_per_byte=round(their_bits(work, mode, c.threads, steps), 4), lr_scale=scale, steps=steps,
                cpu_minutes=round((seconds - start) / 60 / c.cores, 2), wall=round(time.time() - began), mode=mode)  # fmt: skip


if __name__ == "__main__":
    main()
