"""`freedive dive`: the whole way from raw pages to a chatting, RL-trained assistant; nothing but the list of the stages.

Without input of your own the pages are an invented web (freedive.tasks); with `--pages` they are yours, and `--chats`, `--problems` and
`--questions` give what the later stages learn from. A stage for which there is nothing is left out.

Every stage writes OUT/<stage>/ and is skipped when that folder is finished, so a dive that was killed goes on where it was. What
took how long goes to OUT/timings.jsonl; OUT/dive.json holds only what is the same in every run with this tier and seed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from freedive.data import stage as data
from freedive.data.sources import is_remote
from freedive.data.stage import DataConfig
from freedive.data.texts import iter_rows
from freedive.eval import stage as evaluation
from freedive.eval.stage import EvalConfig
from freedive.pretrain import stage as pretrain
from freedive.pretrain.stage import PretrainConfig
from freedive.rl import stage as rl
from freedive.rl.stage import RLConfig
from freedive.runs import UserError, check_at_least, folder_hash, json_line, option, progress, read_json, stage, write_atomic, write_json_atomic
from freedive.sft import stage as sft
from freedive.sft.stage import SFTConfig
from freedive.tasks.crawl import crawl_paths, generate_crawl
from freedive.tokenizer import stage as tokenizer
from freedive.tokenizer.stage import TokenizerConfig

from .command import command_of
from .exam import exam_rows
from .machine import machine
from .report import write_report
from .tiers import TIERS, Tier

REWARD = "freedive.tasks.arithmetic:reward"
FIRST = ("crawl", "sources", "data")  # stages of seconds, which read the input


@dataclass(frozen=True)
class DiveConfig:
    """From raw pages to a chatting assistant, with a report."""

    tier: Literal["smoke", "demo"] = option("demo", "demo: ten minutes on 2 cores; smoke: one minute, to try everything")
    out: Path = option(Path("freedive-dive"), "folder to write")
    pages: tuple[Path, ...] = option((), "your own pages or text, whatever `freedive data` reads, in place of the invented web")
    chats: Path | None = option(None, "with --pages: your conversations for SFT, JSONL")
    problems: Path | None = option(None, 'with --chats: your problems for RL, JSONL: {"prompt": "...", "answer": "..."}')
    problems_eval: Path | None = option(None, "held-out problems (default: one in ten of --problems)")
    questions: Path | None = option(None, "with --pages: questions of the exams, in the form of --problems")
    rl_lr: float | None = option(
        None, "peak learning rate of the practice (default: the tier's); try twice and half when it learns slowly or collapses"
    )
    rl_dynamic_sampling: int = option(1, "draws of problems in a step of the practice, as `freedive rl --dynamic-sampling`; 4 where most problems are always or never solved")
    seed: int = option(0, "of everything random")
    threads: int | None = option(None, "CPU threads (default: all)")
    quiet: bool = option(False, "print nothing but errors")
    force: bool = option(False, "start over, replacing what --out holds")
    dry_run: bool = option(False, "list the stages and their settings, and stop")


@dataclass(frozen=True)
class CrawlConfig:
    """What the first stage depends on."""

    out: Path
    scale: str
    quiz_every: int
    quiz_every_base: int
    exam_sums: int
    seed: int
    force: bool


@dataclass(frozen=True)
class SourcesConfig:
    """A user's own files, where a later step needs a part of one."""

    out: Path
    problems: Path | None
    problems_eval: Path | None
    questions: Path | None
    exam_problems: int
    force: bool


@dataclass(frozen=True)
class Step:
    """One line of the list."""

    name: str  # its folder in OUT
    title: str  # section of the talk
    what: str  # what happens, for a reader
    config: Any
    run: Callable[[Any], object]
    result: Callable[[dict[str, Any]], str]  # the metrics of run.json as one line


def run(config: DiveConfig) -> Path:
    """Runs what is not finished yet; returns OUT. UserError: OUT holds a dive with other settings, or a stage's own errors."""
    _check(config)
    tier = TIERS[config.tier]
    steps = list_of_steps(config, tier if config.rl_lr is None else replace(tier, rl_lr=config.rl_lr))
    if config.dry_run:
        for step in steps:
            print(f"{step.title}: {step.what}\n  {command_of(step.config)}")
        return config.out
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out} is a file; --out must name a folder")
    fresh = not config.out.exists()
    config.out.mkdir(parents=True, exist_ok=True)
    with _quiet(config.quiet):
        _note(config.out, machine=machine(config.threads))
        for step in steps:
            try:
                _take(step, config)
            except UserError:
                if fresh and step.name in FIRST:  # input that cannot be used leaves nothing behind
                    shutil.rmtree(config.out)
                raise
        stages = {s.name: {"hash": folder_hash(config.out / s.name), "metrics": _metrics(config.out / s.name)} for s in steps}
        write_json_atomic(
            config.out / "dive.json", {"tier": config.tier, "seed": config.seed, "source": "own" if config.pages else "town", "stages": stages}
        )
        print("The report: what happened, in the order of the talk")
        report = write_report(config.out)
        models = [s.name for s in steps if s.name in ("pretrain", "sft", "rl")]
        or_others = f"or {', '.join(models[:-1])}: " if models[1:] else ""
        print(f"\nDone, {_clock(_total(config.out))} in all. What to do next:\n  open {report} in a browser\n"
              f"  freedive chat --model {config.out / models[-1]}      ({or_others}the same questions at each stage)\n"
              f"  freedive pretrain --text YOUR_FILE_OR_FOLDER --out my-model")  # fmt: skip
    return config.out


def list_of_steps(c: DiveConfig, t: Tier) -> list[Step]:
    """The dive: what feeds what. Each config names the folders of earlier steps."""
    at = c.out
    own = bool(c.pages)
    common: dict[str, Any] = {"seed": c.seed, "threads": c.threads, "force": c.force}
    web, mine = crawl_paths(at / "crawl"), at / "sources"
    pages = c.pages if own else (web.pages,)
    chats = c.chats if own else web.sft_train
    exam = mine / "exam.jsonl" if own else web.quiz.with_name("exam.jsonl")
    short_exam = exam if own else web.quiz.with_name("exam_base.jsonl")
    problems, held_out = (mine / "rl_train.jsonl", mine / "rl_eval.jsonl") if own else (web.rl_train, web.rl_eval)
    examined = not own or c.questions is not None or c.problems is not None
    ask = [] if own else ["What is 12+34?", "Spell strawberry."]

    def examine(model: str, questions: Path, out: str, limit: int = 0) -> Any:
        return EvalConfig(
            model=at / model, data=questions, out=at / out, max_new_tokens=t.exam_new_tokens, group_by=["class" if own else "kind"], limit=limit,
            checker="match" if own else "freedive.tasks:check", threads=c.threads, force=c.force,
        )  # fmt: skip

    first = Step(
        "sources", "1.0 Your own files", "problems and questions are laid out for practice and exams",
        SourcesConfig(mine, c.problems, c.problems_eval, c.questions, t.exam_sums, c.force),
        lay_out_sources,
        lambda m: f"{m['practice']:,} problems to practise, {m['held_out']:,} held out, {m['exam']:,} questions in the exam",
    ) if own else Step(
        "crawl", "1.1 The crawl", "a small web is invented: a town, sums, Python's documentation, and junk between them",
        CrawlConfig(at / "crawl", t.scale, t.quiz_every, t.quiz_every_base, t.exam_sums, c.seed, c.force),
        make_crawl,
        lambda m: f"{m['pages']:,} raw pages",
    )  # fmt: skip
    steps = [
        first,
        Step(
            "data", "1.1 The training data", "raw pages become clean text; what is junk, foreign or a copy goes",
            DataConfig(
                inputs=pages, out=at / "data", preset=t.quality, max_line_copies=t.max_line_copies,
                val_fraction=t.val_fraction, workers=c.threads or 0, force=c.force,
            ),
            data.run,
            lambda m: f"{m['documents_out']:,} of {m['documents_in']:,} pages are left, {m['bytes_out'] / 1e6:.2f} MB of text",
        ),
        Step(
            "tokenizer", "1.2 Tokenization", "the commonest pieces of words become the vocabulary",
            TokenizerConfig(data=at / "data", out=at / "tokenizer", vocab_size=t.vocab_size, **common),
            tokenizer.run,
            lambda m: f"{m['vocab_size']:,} tokens, {m.get('bytes_per_token', 0):.2f} bytes of text in each",
        ),
        Step(
            "pretrain", "1.3 The training process", "a random network learns to predict the next token of the pages",
            PretrainConfig(
                data=at / "data", tokenizer=str(at / "tokenizer"), out=at / "pretrain", depth=t.depth, context=t.context,
                epochs=t.pretrain_epochs, max_steps=t.max_pretrain_steps if own else None, batch_tokens=t.pretrain_batch,
                micro_tokens=t.pretrain_batch, optimizer="adamw", lr=t.pretrain_lr, eval_every=t.pretrain_eval_every,
                prompts=[] if own else ["def", "What is 12+34?"], **common,
            ),
            pretrain.run,
            lambda m: f"loss {m['val_loss']:.2f} on unseen pages, {m['val_bits_per_byte']:.2f} bits per byte",
        ),
        Step(
            "eval-base", "1.5 The base model", "it continues documents; asked a question, it goes on dreaming",
            examine("pretrain", short_exam, "eval-base", t.exam_base if own else 0), evaluation.run, exam_result,
        ),
        Step(
            "sft", "2 Post-training", "conversations turn the simulator of pages into an assistant",
            SFTConfig(
                model=at / "pretrain", data=[str(chats)] if chats else [], out=at / "sft", context=t.context, epochs=t.sft_epochs,
                batch_tokens=t.sft_batch, micro_tokens=t.sft_batch, lr=t.sft_lr, replay=at / "data", replay_fraction=t.sft_replay,
                samples=["Hello!", "Who are you?", *ask], **common,
            ),
            sft.run,
            lambda m: f"learned from {m['conversations']:,} conversations in {m['steps']:,} steps",
        ),
        Step(
            "eval-sft", "3 What it knows", "questions that were in no training set" if own else
            "questions that were in no training set, about things it read often, once and never",
            examine("sft", exam, "eval-sft"), evaluation.run, exam_result,
        ),
        Step(
            "rl", "4 Reinforcement learning", f"it practises {'problems' if own else 'sums'}; only whether the answer is right counts",
            RLConfig(
                model=at / "sft", data=problems, eval_data=held_out, out=at / "rl", reward=["answer" if own else REWARD], steps=t.rl_steps,
                prompts_per_step=t.rl_prompts, num_generations=t.rl_generations, max_completion_length=t.rl_new_tokens,
                lr=t.rl_lr, dynamic_sampling=None if c.rl_dynamic_sampling == 1 else c.rl_dynamic_sampling, eval_every=t.rl_eval_every, **common,
            ),
            rl.run,
            lambda m: f"right on {m['before/pass@1']:.0%} of new {'problems' if own else 'sums'} before, {m['after/pass@1']:.0%} after",
        ),
        Step(
            "eval-rl", "4 After practice", "the same exam again",
            examine("rl", exam, "eval-rl"), evaluation.run, exam_result,
        ),
    ]  # fmt: skip
    left_out = set() if examined else {"eval-base", "eval-sft", "eval-rl"}
    if own and c.chats is None:
        left_out |= {"sft", "eval-sft", "rl", "eval-rl"}
    if own and c.problems is None:
        left_out |= {"rl", "eval-rl"}
    return [step for step in steps if step.name not in left_out]


def lay_out_sources(c: SourcesConfig) -> Path:
    """A user's problems split into practice and held-out ones, and the exam: the questions, then some held-out problems."""
    inputs = {"problems": c.problems, "problems_eval": c.problems_eval, "questions": c.questions}
    with stage("sources", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if not artefact.done:
            practice = [row for _, row in iter_rows(c.problems)] if c.problems else []
            if c.problems_eval:
                held_out = [row for _, row in iter_rows(c.problems_eval)]
            else:
                held_out = practice[9::10]
                del practice[9::10]
            if c.problems and not (practice and held_out):
                raise UserError(f"{c.problems} holds too few problems to hold one in ten out", hint="give at least 10, or --problems-eval")
            questions = [row for _, row in iter_rows(c.questions)] if c.questions else []
            exam = [_in_class(r, "question") for r in questions] + [_in_class(r, "problem") for r in held_out[: c.exam_problems]]
            for name, rows in (("rl_train", practice), ("rl_eval", held_out), ("exam", exam)):
                write_atomic(artefact.work / f"{name}.jsonl", map(json_line, rows))
            artefact.summary(practice=len(practice), held_out=len(held_out), exam=len(exam))
    return c.out


def _in_class(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {**row, "meta": {"class": name, **meta}} if isinstance(meta := row.get("meta") or {}, dict) else row


def make_crawl(c: CrawlConfig) -> Path:
    """The invented web and its exams, as an artefact."""
    with stage("crawl", c, out=c.out, force=c.force) as artefact:
        if not artefact.done:
            web = generate_crawl(artefact.work, c.seed, c.scale)
            for name, every in (("exam", c.quiz_every), ("exam_base", c.quiz_every_base)):
                rows = exam_rows(web, c.seed, every, c.exam_sums)
                write_atomic(web.quiz.with_name(f"{name}.jsonl"), map(json_line, rows))
            artefact.summary(pages=sum(1 for _ in iter_rows(web.truth)))
    return c.out


def _check(c: DiveConfig) -> None:
    """UserError for what can be said before anything is written."""
    check_at_least(c, 1, "threads", "rl_dynamic_sampling")
    check_at_least(c, 0, "rl_lr")
    given = {"--chats": c.chats, "--problems": c.problems, "--problems-eval": c.problems_eval, "--questions": c.questions}
    for page in c.pages:
        if not is_remote(page) and not page.exists():
            raise UserError(f"{page} does not exist (--pages)", hint="give files or folders with WARC, HTML, text, parquet or JSONL")
    for name, path in given.items():
        if path is not None and not c.pages:
            raise UserError(f"{name} needs --pages", hint="the invented web brings its own; or run `freedive sft`, `rl` or `eval` by themselves")
        if path is not None and not path.is_file():
            raise UserError(f"{path} does not exist or is no file ({name})", hint="a JSONL file")
    if c.problems and not c.chats:
        raise UserError("--problems needs --chats", hint="a base model that was never shown a conversation does not answer")
    if c.problems_eval and not c.problems:
        raise UserError("--problems-eval needs --problems")


def _take(step: Step, config: DiveConfig) -> None:
    """One stage with its line before and after; the time goes to timings.jsonl, also of a part that is interrupted."""
    folder = config.out / step.name
    if (folder / "run.json").is_file() and not config.force:
        with contextlib.redirect_stdout(None):
            step.run(step.config)  # finds its work done, or that the settings differ
        print(f"{step.title}: done before ({step.result(_metrics(folder))})")
        return
    print(f"{step.title}: {step.what}", flush=True)
    began, used = time.perf_counter(), time.process_time()
    try:
        with contextlib.redirect_stdout(_Indented(sys.stdout)):
            step.run(step.config)
    finally:
        seconds = time.perf_counter() - began
        _note(config.out, stage=step.name, seconds=round(seconds, 2), cpu_seconds=round(time.process_time() - used, 2))
    print(f"  -> {step.result(_metrics(folder))} ({seconds:.1f} s)\n", flush=True)


def exam_result(m: dict[str, Any]) -> str:
    return f"{m['accuracy']:.0%} of {m['questions']:,} answers are right, {m['stop_rate']:.0%} end by themselves"


def _metrics(folder: Path) -> dict[str, Any]:
    return read_json(folder / "run.json")["metrics"]


def _note(out: Path, **numbers: Any) -> None:
    with open(out / "timings.jsonl", "ab") as file:
        file.write(json_line(numbers))


def _total(out: Path) -> float:
    lines = (out / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line).get("seconds", 0.0) for line in lines)


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"


class _Indented(io.TextIOBase):
    """Standard output, with what a stage itself says set in."""

    def __init__(self, out: Any):
        self.out, self.fresh = out, True

    def write(self, words: str) -> int:
        for line in words.splitlines(keepends=True):
            self.out.write(f"  {line}" if self.fresh and line.strip() else line)
            self.fresh = line.endswith("\n")
        return len(words)

    def flush(self) -> None:
        self.out.flush()

    def isatty(self) -> bool:
        return self.out.isatty()


@contextlib.contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    before = progress.quiet
    with contextlib.ExitStack() as stack:
        if quiet:
            progress.quiet = True
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield
        finally:
            progress.quiet = before


__all__ = ["DiveConfig", "Step", "list_of_steps", "make_crawl", "run"]
