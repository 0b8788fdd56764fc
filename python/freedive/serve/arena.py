"""`freedive arena A B C`: models against each other (talk 5.2). On a page, where people vote on answers whose authors they do not see; by judges, with
--judge; and the ratings of a log, with --battles or --rank."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.eval.arena.contestants import EXAMPLE, Contestant, read_contestants
from freedive.eval.arena.judges import Judge, find_judge
from freedive.eval.arena.log import Battle, read_log
from freedive.eval.arena.play import Played, play
from freedive.eval.arena.report import lines, rated, result, write_page
from freedive.eval.arena.room import Prompt, Room, read_prompts
from freedive.eval.pairwise import PROMPT
from freedive.runs import UserError, check_at_least, option, write_json_atomic
from freedive.sft.labels.store import check_name

from .command import INSTALL, NEEDED, _listen, key_of
from .label import TOLD, _user

PAGE_NEEDS = (*NEEDED, "nicegui", "markdown_it", "mdit_py_plugins", "latex2mathml", "pygments", "httpx")


@dataclass(frozen=True)
class ArenaConfig:
    """Models against each other: votes on a page, or judges; ratings with intervals. Ctrl-C ends it; the same command goes on."""

    models: tuple[str, ...] = option((), f"who plays: folders, adapters, .gguf files, addresses of services; with settings: {EXAMPLE}, http://127.0.0.1:8080/v1,model=NAME", positional=True)
    prompts: str | None = option(None, "JSON Lines or parquet of prompts or conversations (not needed on the page, where you may ask what you like)")
    out: Path = option(Path("runs/arena"), "folder of answers and battles, to be made or gone on with")
    judge: list[str] = option([], "play without a page, judged by: length, answer, form, task, file.py:function, a model, the address of a service; several in turn")
    judge_name: str = option("", "the judging model's name at the service")
    judge_tokens: int = option(256, "of a judging model's reply at most")
    judge_prompt: Path | None = option(None, "what it is asked instead of ours, a text with {request}, {a} and {b}")
    limit: int | None = option(None, "battles at most (default: every pair on every prompt)")
    battles: Path | None = option(None, "rate this log instead, ours or LMSYS's: JSON Lines, JSON, CSV, parquet with model_a, model_b, winner")
    rank: bool = option(False, "rate the battles of OUT and stop")
    by: list[str] = option([], "count the battles of these judges or voters only")
    only: list[str] = option([], "count the battles among these models only")
    anchor: str | None = option(None, "the model whose rating is 1000 (default: the mean of all is)")
    style_control: bool = option(False, "ratings without what length, headings, lists and bold words do")
    report: Path | None = option(None, "HTML page to write with --battles (OUT/report.html otherwise)")
    voter: str | None = option(None, "who votes (default: your user name)")
    temperature: float = option(0.7, "of answers, where a contestant has none of its own")
    top_p: float = option(1.0, "of answers")
    max_tokens: int = option(256, "of an answer at most")
    seed: int | None = option(None, "of answers, order and sides (default: 0, or what OUT has)")
    port: int = option(8020, "of the page, on this machine alone; 0 takes a free one")
    api_key: str | None = option(None, "a password for the page, where others use this machine (better: the environment variable FREEDIVE_API_KEY)")
    open: bool = option(False, "open the page in this machine's browser")
    threads: int | None = option(None, "CPU threads (default: all)")
    dry_run: bool = option(False, "check contestants, prompts and judges, say what would be played, and stop")


def run(c: ArenaConfig) -> int:
    """Rate, play or serve; returns the exit code."""
    check_at_least(c, 1, "judge_tokens", "max_tokens", "limit", "threads")
    check_at_least(c, 0, "temperature", "seed", "port")
    if c.battles is not None:
        if c.models or c.judge:
            raise UserError("--battles rates a log; models and judges have no part in that", hint="freedive arena --battles FILE")
        _rate(c, c.battles, None)
        return 0
    if c.rank:
        _rate(c, c.out / "battles.jsonl", c.out, Room(c.out, make=False).judges())
        return 0
    contestants = read_contestants(c.models, temperature=c.temperature, top_p=c.top_p, max_tokens=c.max_tokens)
    if len(contestants) < 2:
        raise UserError(f"{len(contestants)} models were given; it takes two to fight", hint="freedive arena runs/sft runs/rl model.gguf; to rate a log: freedive arena --battles FILE")
    prompts = _prompts(c) if c.prompts else []
    return _judged(c, contestants, prompts) if c.judge else _voted(c, contestants, prompts)


def _prompts(c: ArenaConfig) -> list[Prompt]:
    assert c.prompts is not None
    found, wrong = read_prompts(c.prompts)
    for problem in wrong[:TOLD]:
        print(f"note: left out: {problem}")
    if len(wrong) > TOLD:
        print(f"note: and {len(wrong) - TOLD:,} more rows with problems")
    return found


def _judged(c: ArenaConfig, contestants: Sequence[Contestant], prompts: Sequence[Prompt]) -> int:
    """Battles without a page, then the ratings."""
    if not prompts:
        raise UserError("without a page there must be prompts", hint="--prompts FILE")
    form = PROMPT
    if c.judge_prompt is not None:
        try:
            form = c.judge_prompt.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{c.judge_prompt} could not be read: {error}") from None
    if len(set(c.judge)) != len(c.judge):
        raise UserError(f"a judge is named twice: {', '.join(c.judge)}")
    judges = [find_judge(name.removeprefix("judge:"), model=c.judge_name, tokens=c.judge_tokens, form=form, threads=c.threads) for name in c.judge]
    names = [j.name for j in judges]
    if len(set(names)) != len(names):
        raise UserError(f"two judges have one name, by which the log knows them: {', '.join(names)}", hint="rename a folder, or run them one after the other with another --judge-name")
    for judge in judges:
        judge.check(prompts)
    room = Room(c.out, contestants, c.seed, make=not c.dry_run)
    matches = room.matches(prompts)[: c.limit]
    print(f"{len(contestants)} contestants, {len(prompts):,} prompts, {len(matches):,} battles, judged by {', '.join(j.name for j in judges)}")
    if c.dry_run:
        return 0
    played = play(room, prompts, judges, c.limit, c.threads)
    for judge in judges:
        _tell(judge, played[judge.name])
    if not room.log.is_file():
        raise UserError("no battle has a verdict yet", hint=f"{c.out}/unclear.jsonl holds what the judges said instead" if any(t.unclear for t in played.values()) else "another --judge")
    _rate(c, room.log, c.out, room.judges())
    return 0


def _tell(judge: Judge, told: Played) -> None:
    print(f"{judge.name}: {told.judged:,} battles judged" + (f", {told.unclear:,} without a verdict" if told.unclear else "") + (f", {told.silent:,} not applicable" if told.silent else "")
          + (f"; asked in both orders, it contradicted itself in {told.two_faced:,}, which are ties" if told.two_faced else ""))  # fmt: skip


def chosen(c: ArenaConfig, found: Sequence[Battle]) -> list[Battle]:
    """Those that --by and --only leave. UserError for names that are in no battle, and if none is left."""
    names = {name for b in found for name in (b.model_a, b.model_b)}
    for given, known, what in ((c.only, names, "model"), (c.by, {b.judge for b in found}, "judge")):
        if missing := [name for name in given if name not in known]:
            raise UserError(f"there is no {what} {missing[0]!r} in the log", hint=f"there are: {', '.join(sorted(known))[:400]}")
    left = [b for b in found if (not c.by or b.judge in c.by) and (not c.only or {b.model_a, b.model_b} <= set(c.only))]
    if not left:
        raise UserError("no battle is left", hint="fewer of --by and --only")
    return left


def _rate(c: ArenaConfig, log: Path, out: Path | None, judges: dict[str, str] | None = None) -> None:
    """The table; and, of a folder, ratings.json and report.html."""
    found, wrong = read_log(log, judges)
    for problem in wrong[:TOLD]:
        print(f"note: left out: {problem}")
    if len(wrong) > TOLD:
        print(f"note: and {len(wrong) - TOLD:,} more lines with problems")
    made = rated(chosen(c, found), anchor=c.anchor, style_control=c.style_control, seed=c.seed or 0)
    print(f"{log}: {len(made.battles):,} battles of {len(made.battles.models)} models; ties are half a win for each")
    print("\n".join(lines(made)))
    if out is not None:
        write_json_atomic(out / "ratings.json", result(made))
    report = c.report or (out / "report.html" if out else None)
    if report is not None:
        try:
            report.parent.mkdir(parents=True, exist_ok=True)
            print(f"the page: {write_page(report, made)}")
        except OSError as error:
            raise UserError(f"{report} cannot be written: {error.strerror}") from None


def _voted(c: ArenaConfig, contestants: Sequence[Contestant], prompts: Sequence[Prompt]) -> int:
    """The page."""
    if missing := [n for n in PAGE_NEEDS if importlib.util.find_spec(n) is None]:
        raise UserError(f"the page needs the Python package {missing[0].replace('_', '-')}, which is not installed", hint=INSTALL)
    voter = check_name(c.voter if c.voter is not None else _user())
    key = key_of(c.api_key)
    with _listen("127.0.0.1", c.port) as listening:  # before anything is loaded or made
        room = Room(c.out, contestants, c.seed, make=not c.dry_run)
        if c.dry_run:
            print(f"{len(contestants)} contestants" + (f", {len(prompts):,} prompts, {len(room.matches(prompts)):,} battles" if prompts else ", your own prompts"))
            return 0
        _serve(c, room, prompts, voter, listening, key)
    return 0


def _serve(c: ArenaConfig, room: Room, prompts: Sequence[Prompt], voter: str, listening: Any, key: str | None) -> None:
    from .arena_desk import Desk, writers
    from .local_app import create_local_app, serve_local
    from .pages import arena

    services, written_by = writers(room, c.threads)
    desk = Desk(room, prompts, voter, written_by, c.limit)
    app = create_local_app(lambda: arena.register(desk), services, desk.working, key)
    where = f"http://127.0.0.1:{listening.getsockname()[1]}"
    left = len(desk.open_matches())
    print(f"{c.out}: {len(room.contestants)} contestants" + (f", {left:,} battles for {voter} to decide" if prompts else ""))
    print(f"open: {where}" + ("" if key is None else ", any name and the key as password"), flush=True)
    if c.open:
        import webbrowser

        webbrowser.open(where)
    serve_local(app, listening)
    print(f"stopped; {len(desk.done):,} battles decided by {voter}. The ratings: freedive arena --rank --out {c.out}")
