"""`generate_crawl`: the whole fixture of the dive in one folder: raw pages, the truth about them, and the tasks.

crawl/crawl-00000.warc.gz …   raw pages in random order (copies after their originals)
truth.jsonl                   {"url", "kind", "expected"} for each page
tasks/*.jsonl                 sft_train, sft_eval, rl_train, rl_eval, quiz, letters_eval
town.json                     people and facts
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freedive.runs import json_line, write_atomic, write_json_atomic

from . import arithmetic, letters, pages, town
from .draw import Draw
from .warc import write_warc

ORDER_STREAM, SFT_ORDER_STREAM = 31, 32


@dataclass(frozen=True)
class Scale:
    """How much of everything; bytes are of text, before HTML."""

    known: int
    rare: int
    unseen: int
    mentions: int  # of each known fact
    sum_bytes: int
    letter_bytes: int
    docs_bytes: int
    junk: int  # pages of each kind of junk
    digits: int  # of the numbers to add
    sft_sums: int
    p_worked: float
    sft_letters: int
    rl_train: int
    rl_eval: int
    letter_eval: int
    files: int


SCALES = {
    "smoke": Scale(24, 12, 12, 46, 24_000, 6_000, 40_000, 8, 2, 400, 0.3, 60, 200, 64, 20, 2),
    "demo": Scale(120, 100, 100, 80, 400_000, 100_000, 500_000, 60, 3, 1500, 0.4, 400, 8000, 2000, 100, 4),
}


@dataclass(frozen=True)
class Crawl:
    """Where things are."""

    folder: Path
    pages: Path  # input of `freedive data`
    truth: Path
    sft_train: Path
    sft_eval: Path
    rl_train: Path
    rl_eval: Path
    quiz: Path
    letters_eval: Path


def crawl_paths(folder: Path) -> Crawl:
    """The files that `generate_crawl` writes into `folder`."""
    tasks = {
        name: folder / "tasks" / f"{name}.jsonl"
        for name in ("sft_train", "sft_eval", "rl_train", "rl_eval", "quiz", "letters_eval")
    }
    return Crawl(folder=folder, pages=folder / "crawl", truth=folder / "truth.jsonl", **tasks)


def make_scaled_town(seed: int, scale: Scale) -> town.Town:
    return town.make_town(seed, scale.known, scale.rare, scale.unseen)


def crawl_pages(seed: int, scale: Scale) -> list[pages.Page]:
    """All pages in crawl order: a random one, except that copies come in the last part, after their originals."""
    draw = Draw(seed, ORDER_STREAM)
    good = [
        *pages.town_pages(make_scaled_town(seed, scale), scale.mentions),
        *pages.sum_pages(seed, scale.sum_bytes, scale.digits),
        *pages.letter_pages(seed, scale.letter_bytes),
        *pages.python_pages(seed, scale.docs_bytes),
    ]
    originals = [page for page in good if page.expected == "keep"]
    junk = list(pages.junk_pages(make_scaled_town(seed, scale), originals, scale.junk))
    copied = [page.kind in ("duplicate", "near_duplicate") for page in junk]
    first = good + [page for page, copy in zip(junk, copied, strict=True) if not copy]
    return draw.shuffled(first) + [page for page, copy in zip(junk, copied, strict=True) if copy]


def generate_crawl(folder: str | Path, seed: int = 0, scale: str | Scale = "demo") -> Crawl:
    """Writes the fixture; the same seed and scale give the same bytes (except for the Python documentation of another Python)."""
    size = SCALES[scale] if isinstance(scale, str) else scale
    paths = crawl_paths(Path(folder))
    people = make_scaled_town(seed, size)
    paths.pages.mkdir(parents=True, exist_ok=True)
    paths.quiz.parent.mkdir(exist_ok=True)
    everything = crawl_pages(seed, size)
    per_file = -(-len(everything) // size.files)
    for index in range(size.files):
        part = everything[index * per_file : (index + 1) * per_file]
        write_warc(paths.pages / f"crawl-{index:05d}.warc.gz", ((page.url, page.html) for page in part))
    _write_rows(paths.truth, ({"url": page.url, "kind": page.kind, "expected": page.expected} for page in everything))
    for path, rows in task_rows(seed, size, people).items():
        _write_rows(getattr(paths, path), rows)
    write_json_atomic(paths.folder / "town.json", {"seed": seed, "people": [asdict(person) for person in people.people]})
    return paths


def task_rows(seed: int, scale: Scale, people: town.Town) -> dict[str, Iterable[dict[str, Any]]]:
    """The rows of each task file, by the name of its field in `Crawl`."""
    sft = [
        *town.sft_rows(people),
        *town.small_talk_rows(),
        *arithmetic.sft_rows(seed, scale.sft_sums, scale.p_worked, scale.digits),
        *letters.sft_rows(seed, scale.sft_letters),
    ]
    return {
        "sft_train": Draw(seed, SFT_ORDER_STREAM).shuffled(sft),
        "sft_eval": town.question_rows(people),
        "rl_train": arithmetic.rl_rows(seed, scale.rl_train, "train", scale.digits),
        "rl_eval": arithmetic.rl_rows(seed, scale.rl_eval, "held_out", scale.digits),
        "quiz": (row for known in ("known", "rare", "unseen") for row in town.question_rows(people, known)),
        "letters_eval": letters.question_rows(seed, scale.letter_eval),
    }


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_atomic(path, (json_line(row) for row in rows))
