"""`freedive data INPUT... --out DIR`: raw pages to clean text (talk 1.1).

Every input file is a job (`job`: read, URL, extract, language, quality, personal data), done by worker processes or by several
machines (`--rank`, `--ray`) into OUT.parts. Then `merge` does what must see all documents (duplicates, train and val) and writes OUT.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from freedive.runs import UserError, config_json, default_threads, human_bytes, option, progress, read_json, stage, write_json_atomic
from freedive.runs.config import differences, told

from .decontaminate import Decontamination
from .decontaminate import find as find_sets
from .decontaminate import notes as set_notes
from .edu import Edu
from .edu import find as find_edu
from .extract import Extractor
from .extract import prepare as prepare_extractor
from .job import Job
from .language import Language
from .language import find as find_language
from .merge import Merge, NothingLeft
from .pii import find_countries
from .process import Steps
from .quality import PRESETS, Rules
from .remote import be_patient
from .shard_files import check_format
from .sources import Source, is_remote, sources
from .supervise import Supervisor
from .urls import UrlRules
from .urls import find as find_urls
from .waterfall import print_waterfall

CHECKPOINT_BYTES = 64_000_000  # of shards between two checkpoints of the merge
SMALL_INPUT = 4_000_000  # bytes of input files below which a second worker process costs more than it brings
GROUP_BYTES = 1_000_000  # of small files that make a job together
TITLE = "data"


@dataclass(frozen=True)
class DataConfig:
    """From WARC, WET, HTML, text, parquet or JSONL files to a folder of clean documents, with a report of what was removed and why."""

    inputs: tuple[str | Path, ...] = option(
        help="files, folders or addresses (https:// s3:// hf://): .warc .wet .html .txt .md .jsonl .json .parquet, plain, .gz or .zst", positional=True
    )
    out: Path = option(Path("runs/data"), "folder to be made")
    preset: Literal["none", "basic", "gopher", "fineweb", "fineweb-paper"] = option("basic", "set of quality rules")
    url_filter: Literal["auto", "on", "off"] = option(
        "auto", "remove pages by their address; auto: with --url-lists, and with the fineweb presets if lists are found"
    )
    url_lists: Path | None = option(None, "folder or tar archive with domains, urls, banned_words ... (default: those of an installed datatrove)")
    extractor: Extractor = option(
        "resiliparse", "of the main text of HTML: the fast one, FineWeb's trafilatura, or plain: all the text, as in WET files"
    )
    languages: tuple[str, ...] = option(("en",), "languages to keep (ISO codes); none given: all")
    language_threshold: float = option(0.65, "smallest score of the language detector")
    language_model: Path | None = option(None, "fastText file such as lid.176.bin (default: the small lid.176.ftz, which is installed)", hash=False)
    decontaminate: tuple[str, ...] = option(
        (), "evaluation sets, FILE or NAME=FILE (JSONL, parquet, text): remove documents that share words with an item", hash=False
    )
    decontaminate_words: int = option(13, "so many in a row; items of 8 words and more match as a whole", hash=False)
    decontaminate_action: Literal["remove", "mark"] = option("remove", 'mark: keep such documents, with "contamination": [names]', hash=False)
    decontaminate_fields: tuple[str, ...] = option((), "fields of the sets' rows that count; none given: all texts in them", hash=False)
    edu_model: Path | None = option(None, "folder made by `freedive data edu-train`: score documents from 0 to 5 by it", hash=False)
    edu_column: str | None = option(None, "take the score from this field of JSONL and parquet rows, such as int_score", hash=False)
    edu_min: int | None = option(None, "remove documents whose score, rounded, is below; FineWeb-Edu has 3", hash=False)
    exact_dedup: bool = option(True, "keep the first of documents with the same text")
    near_dedup: Literal["auto", "on", "off"] = option("auto", "remove near-duplicates by MinHash; auto: with the fineweb presets")
    near_similarity: float = option(
        0.0, "and only those with at least this part of their 112 hashes equal (0.6: fewer false ones); 0: FineWeb's rule"
    )
    max_line_copies: int = option(0, "remove lines that this many earlier documents had; 0: leave lines alone")
    pii: bool = option(True, "replace e-mail addresses and public IPv4 addresses")
    phones: tuple[str, ...] = option(
        (), "replace telephone numbers too: +... from anywhere, and as they are written inside these countries (US GB ...)", hash=False
    )
    text_key: str | None = option(None, "field of JSONL and parquet rows that holds the text (default: text, html or content)")
    val_fraction: float = option(0.02, "part of the documents, by hash, that goes to the val shards")
    max_record_bytes: int = option(20_000_000, "larger pages, files and lines are left out")
    page_seconds: float = option(20.0, "CPU time after which a page is given up")
    network_seconds: float = option(120.0, "how long to try again when a server is busy or the network fails", hash=False)
    format: Literal["jsonl", "jsonl.zst", "parquet"] = option("jsonl", "of the shards")
    shard_bytes: int = option(256_000_000, "start a new shard after this many bytes of JSON")
    samples: int = option(5, "rejected texts to keep for each reason")
    decisions: bool = option(False, "also write decisions.jsonl: what became of every record")
    workers: int = option(0, "processes; 0: one per core for large inputs", hash=False)
    rank: int | None = option(None, "do only this rank's share of the files (0 to world - 1); run without it to merge", hash=False)
    world: int = option(1, "number of ranks", hash=False)
    ray: str | None = option(None, "do the files as Ray tasks: address of a cluster, or local", hash=False)
    dry_run: bool = option(False, "say what would be read, and stop")
    force: bool = option(False, "replace OUT if it was made with other settings")


@dataclass(frozen=True)
class _Identity:
    config: DataConfig
    rules: Rules
    remote: tuple[Source, ...] = ()  # local inputs count by content, these by size and version
    urls: UrlRules | None = None  # counts by the lists' content
    decontamination: Decontamination | None = None  # counts by the sets' content
    edu: Edu | None = None  # counts by the model's content
    language: Language | None = None  # counts by the model's content
    phones: tuple[str, ...] = ()


def run(config: DataConfig, rules: Rules | None = None) -> Path:
    """Runs the stage and returns its folder; `rules` replaces those of the preset. With `rank` set, only that rank's jobs.

    UserError: an input is missing or empty, a setting is out of range, or no document was left.
    """
    _check(config)
    config = dataclasses.replace(config, inputs=tuple(p if is_remote(p) else Path(p) for p in config.inputs))
    be_patient(config.network_seconds)
    files = sources(config.inputs)
    total = sum(max(file.size, 0) for file in files)
    unknown = sum(file.size < 0 for file in files)  # files of a list
    if total == 0 and all(file.size == 0 for file in files):
        raise UserError(f"the input is empty: {', '.join(map(str, config.inputs))}", hint="give files that hold text or pages")
    decontamination = find_sets(config.decontaminate, config.decontaminate_words, config.decontaminate_action, config.decontaminate_fields)
    edu = find_edu(config.edu_model, config.edu_column, config.edu_min)
    language = find_language(config.languages, config.language_threshold, config.language_model)
    phones = find_countries(config.phones)
    check_format(config.format)
    if config.dry_run:
        print(f"would read {len(files)} file(s), {_amount(total, unknown)}, and write {config.out} (preset {config.preset})")
        return config.out
    rules = rules or PRESETS[config.preset]
    near = config.near_dedup == "on" or config.near_dedup == "auto" and config.preset.startswith("fineweb")
    urls, why_not = find_urls(config.url_filter, config.url_lists, config.preset)
    prepare_extractor(config.extractor)
    steps = Steps(language, rules, config.pii, config.text_key, config.max_record_bytes, near, urls, config.extractor, decontamination, edu, phones)
    jobs = _jobs(config, steps, files)
    workers = config.workers or (1 if total < SMALL_INPUT and not unknown else default_threads())
    identity = _Identity(config, rules, tuple(file for file in files if file.remote), urls, decontamination, edu, language, phones)
    if config.rank is not None:
        return _run_rank(config, identity, jobs, workers)
    if config.world > 1 and (left := sum(not job.done() for job in jobs)) and not progress.quiet:
        print(f"{left} of {len(jobs)} files are left by the {config.world} ranks: they are done here")
    local = [path for path in config.inputs if not is_remote(path)]
    with stage(TITLE, identity, out=config.out, inputs={"inputs": local} if local else {}, force=config.force) as artefact:
        if not artefact.done:
            for note in [why_not] * bool(why_not) + (set_notes(decontamination) if decontamination else []):
                if not progress.quiet:
                    print(f"note: {note}")
            _prepare(config, jobs)
            _do(config, jobs, workers)
            try:
                Merge(artefact, config, jobs, _recipe(config, steps), CHECKPOINT_BYTES).run(near)
            except NothingLeft:  # with anything else the jobs' results stay: they may be days of work
                shutil.rmtree(_parts(config), ignore_errors=True)
                raise
    shutil.rmtree(_parts(config), ignore_errors=True)
    if not progress.quiet:
        print_waterfall(artefact.out)
    return artefact.out


def _run_rank(config: DataConfig, identity: _Identity, jobs: list[Job], workers: int) -> Path:
    """The jobs of one rank; files count round, so that ranks get about the same."""
    made = config.out / "run.json"
    if made.is_file():
        local = {"inputs": [path for path in config.inputs if not is_remote(path)]}
        wrong = differences(read_json(made)["config"], config_json(identity, local))
        if wrong:
            raise UserError(f"{config.out} was made with other settings: {told(wrong)}", hint="choose another --out")
        print(f"{config.out} is finished already: nothing to do")
        return config.out
    _prepare(config, jobs)
    mine = jobs[config.rank :: config.world]
    _do(config, mine, workers)
    left = sum(not job.done() for job in jobs)
    then = f"{left} of {len(jobs)} files are left to other ranks" if left else "all files are done: run the same command without --rank to merge"
    print(f"rank {config.rank} of {config.world}: {len(mine)} file(s) done; {then}")
    return config.out


def _do(config: DataConfig, jobs: list[Job], workers: int) -> None:
    if config.ray is not None:
        from .ray import run_jobs

        run_jobs(jobs, config.ray, config.page_seconds)
        return
    with progress.bar(len(jobs), TITLE) as bar:
        done = len(jobs) - sum(not job.done() for job in jobs)
        bar.advance(done)
        shown = 0

        def show(finished: int, kept: int) -> None:
            nonlocal shown
            bar.advance(finished - shown, text=f"{kept:,} documents kept")
            shown = finished

        Supervisor(workers, config.page_seconds, show).run(jobs)


def _jobs(config: DataConfig, steps: Steps, files: list[Source]) -> list[Job]:
    recipe = _hash({"steps": steps, "page_seconds": config.page_seconds})
    folder = str(_parts(config))
    jobs: list[Job] = []
    seen: collections.Counter[str] = collections.Counter()  # files may be named twice
    for index, group in enumerate(_groups(files)):
        job = Job(index, group, folder, steps, recipe, config.samples, config.decisions, network_seconds=config.network_seconds)
        jobs.append(dataclasses.replace(job, again=seen[job.name]))
        seen[job.name] += 1
    return jobs


def _amount(size: int, unknown: int) -> str:
    return human_bytes(size) if not unknown else f"{unknown:,} of them of unknown size" + (f", the others {human_bytes(size)}" if size else "")


def _groups(files: list[Source]) -> list[tuple[Source, ...]]:
    """Neighbouring small files together, so that a folder of a million pages is not a million jobs."""
    groups: list[list[Source]] = []
    room = 0
    for file in files:
        if 0 <= file.size <= room and groups:
            groups[-1].append(file)
            room -= file.size
        else:
            groups.append([file])
            room = GROUP_BYTES - file.size if file.size >= 0 else 0
    return [tuple(group) for group in groups]


def _parts(config: DataConfig) -> Path:
    out = Path(config.out).resolve()
    return out.with_name(out.name + ".parts")


def _prepare(config: DataConfig, jobs: list[Job]) -> None:
    """The folder of the jobs' results; UserError if it holds those of other settings, unless --force."""
    folder = _parts(config)
    mine = config_json(jobs[0].steps)
    known = folder / "steps.json"
    if folder.is_dir() and known.is_file():
        wrong = differences(read_json(known), mine)
        if wrong and not config.force:
            restart = "add --force to start over, choose another --out, or go on with the old settings"
            raise UserError(f"{folder} was made with other settings: {told(wrong)}", hint=restart)
        if wrong:
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(known, mine)


def _recipe(config: DataConfig, steps: Steps) -> str:
    """One hash over everything that decides about a document."""
    names = ("exact_dedup", "near_similarity", "max_line_copies", "page_seconds")
    return _hash({"steps": steps, **{name: getattr(config, name) for name in names}})


def _hash(settings: dict[str, Any]) -> str:
    plain = {name: config_json(value) if dataclasses.is_dataclass(value) else value for name, value in settings.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _check(config: DataConfig) -> None:
    if config.decontaminate_action == "mark" and not config.decontaminate:
        raise UserError("--decontaminate-action mark needs sets to compare with", hint="--decontaminate FILE...")
    if not config.inputs:
        raise UserError("no input was given", hint="freedive data FILE_OR_FOLDER... --out DIR")
    for name, value, low, high in (
        ("val-fraction", config.val_fraction, 0, 0.5),
        ("language-threshold", config.language_threshold, 0, 1),
        ("near-similarity", config.near_similarity, 0, 1),
        ("max-record-bytes", config.max_record_bytes, 1, 2**31),
        ("page-seconds", config.page_seconds, 0.01, 86_400),
        ("network-seconds", config.network_seconds, 0, 86_400),
        ("shard-bytes", config.shard_bytes, 1, 2**63),
        ("workers", config.workers, 0, 1024),
        ("samples", config.samples, 0, 100_000),
        ("max-line-copies", config.max_line_copies, 0, 2**31),
        ("world", config.world, 1, 1_000_000),
        ("rank", config.rank or 0, 0, config.world - 1),
    ):
        if not low <= value <= high:
            raise UserError(f"--{name} is {value}", hint=f"allowed: {low} to {high}")
