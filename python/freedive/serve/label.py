"""`freedive label PROMPTS`: a page on this machine where people write ideal answers and put several in order (talk 2.5.1, 4.4)."""

from __future__ import annotations

import getpass
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from freedive.inference.folder import chat_tokens_untrained
from freedive.inference.load import load
from freedive.runs import UserError, check_at_least, file_hash, option
from freedive.sft.labels.guidelines import read_guidelines
from freedive.sft.labels.importing import read_items
from freedive.sft.labels.items import Item, dense
from freedive.sft.labels.store import Desk, Labels, at_work, check_name, make, work_by

from .command import INSTALL, NEEDED, _listen, key_of, model_name

TOLD = 3  # problems named of a file
MOST_ANSWERS = 9  # a digit each


@dataclass(frozen=True)
class LabelConfig:
    """Write ideal answers to prompts, and rank several. Ctrl-C ends it; the same command goes on at the next prompt."""

    prompts: str | None = option(None, 'JSON Lines or parquet: rows with "prompt" or "messages", with answers or without, pairs, OASST trees (not needed to go on with OUT)', positional=True)
    out: Path = option(Path("runs/labels"), "folder of judgements, to be made or gone on with")
    task: Literal["write", "rank", "both"] = option("both", "write an ideal answer, rank the answers that are there, or both")
    labeller: str | None = option(None, "who judges (default: your user name); several work on one folder, each with a process and a --port of their own")
    model: list[Path] = option([], "models whose answers are to be judged: a folder, a .gguf file; several take turns")
    endpoint: str | None = option(None, "an OpenAI-compatible service whose answers are to be judged, http://127.0.0.1:8080/v1 (a key: OPENAI_API_KEY)")
    endpoint_model: str = option("default", "the model's name there")
    answers: int = option(4, "answers a prompt: what the rows lack is sampled from --model and --endpoint while you judge")
    temperature: float = option(1.0, "of sampled answers")
    top_p: float = option(0.95, "of sampled answers")
    max_tokens: int = option(256, "of a sampled answer at most")
    guidelines: Path | None = option(None, "Markdown sheet to be shown beside (default: ours, after InstructGPT's)")
    seed: int | None = option(None, "of the order in which answers are shown, and of samples (default: 0, or what OUT has)")
    port: int = option(8010, "to listen on, on this machine alone; 0 takes a free one")
    api_key: str | None = option(None, "a password for the page, where others use this machine (better: the environment variable FREEDIVE_API_KEY)")
    open: bool = option(False, "open the page in this machine's browser")
    threads: int | None = option(None, "CPU threads (default: all)")
    dry_run: bool = option(False, "check prompts and models, say what would be judged, and stop")


def run(c: LabelConfig) -> int:
    """Serve the page until Ctrl-C; returns the exit code."""
    check_at_least(c, 1, "answers", "max_tokens", "threads")
    check_at_least(c, 0, "port", "temperature", "seed")
    if c.answers > MOST_ANSWERS or c.port > 65535 or not 0 < c.top_p <= 1:
        raise UserError(f"answers is {c.answers}, port {c.port}, top_p {c.top_p}; at most {MOST_ANSWERS} answers, ports to 65535, top_p above 0 to 1")
    if missing := [n for n in (*NEEDED, "nicegui", "markdown_it", "mdit_py_plugins", "latex2mathml", "pygments", "httpx") if importlib.util.find_spec(n) is None]:
        raise UserError(f"the page needs the Python package {missing[0].replace('_', '-')}, which is not installed", hint=INSTALL)
    labeller = check_name(c.labeller if c.labeller is not None else _user())
    key = key_of(c.api_key)
    sheet = read_guidelines(c.guidelines) if c.guidelines is not None or not (c.out / "label.json").is_file() else None
    sampled = bool(c.model or c.endpoint) and c.task != "write"
    if c.endpoint is not None:
        from .pages.source import endpoint_url

        endpoint_url(c.endpoint)
    with _listen("127.0.0.1", c.port) as listening:  # before anything is loaded or made: a port that is taken is told at once
        services = [_service(path, c) for path in c.model] if sampled else []
        begin(c, sheet or "", sampled)
        if c.dry_run:
            return 0
        if c.guidelines is not None:
            work_by(c.out, sheet or "")
        with at_work(c.out, labeller) as desk:
            _serve(c, desk, services, listening, key)
    return 0


def begin(c: LabelConfig, sheet: str, sampled: bool) -> None:
    """Make the folder, or check that it is the one of these prompts. UserError, and nothing is made then."""
    if (c.out / "label.json").is_file():
        labels = Labels(c.out)
        source = labels.head.get("source") or {}
        if c.prompts is not None and Path(c.prompts).is_file() and source.get("hash") not in (None, file_hash(c.prompts)):
            raise UserError(f"{c.out} has judgements about other prompts ({source.get('name')})", hint="choose another --out, or leave PROMPTS out to go on with it")
        if any(len(i.answers) > MOST_ANSWERS for i in labels.items.values()):
            raise UserError(f"{c.out} has prompts with more than {MOST_ANSWERS} answers, which the page has no letters for", hint="freedive label export still takes them")
        if c.seed is not None and c.seed != labels.seed:
            raise UserError(f"{c.out} was begun with seed {labels.seed}, and not {c.seed}", hint="leave --seed out")
        if c.dry_run:
            print(f"{c.out}: {len(labels.items):,} prompts, judged by {', '.join(labels.labellers()) or 'nobody yet'}")
        return
    if c.prompts is None:
        raise UserError(f"{c.out} is no folder of labels, and no prompts are named", hint="freedive label PROMPTS --out FOLDER")
    found, wrong = read_items(c.prompts)
    for problem in wrong[:TOLD]:
        print(f"note: left out: {problem}")
    if len(wrong) > TOLD:
        print(f"note: and {len(wrong) - TOLD:,} more rows with problems")
    kept = [fit(i) for i in found if c.task == "write" or sampled or len(i.answers) > 1]
    short = len(found) - len(kept)
    if not kept:
        why = f"none of its {len(found):,} prompts has two answers" if found else "no row could be read"
        raise UserError(f"there is nothing to judge in {c.prompts}: {why}", hint="--model MODEL samples answers; --task write needs none")
    if short:
        print(f"note: {short:,} prompts without two answers left out (--model samples answers)")
    answers = sum(len(i.answers) for i in kept)
    print(f"{c.prompts}: {len(kept):,} prompts, {answers:,} answers" + (f"; up to {c.answers} a prompt are sampled" if sampled else ""))
    if not c.dry_run:
        hashed = {"hash": file_hash(c.prompts)} if Path(c.prompts).is_file() else {}
        make(c.out, kept, seed=c.seed or 0, guidelines=sheet, source={"name": Path(c.prompts).name, **hashed}, left_out=short + len(wrong))


def fit(item: Item) -> Item:
    """At most as many answers as there are digits; the first ones, with their ranks."""
    if len(item.answers) <= MOST_ANSWERS:
        return item
    kept = item.answers[:MOST_ANSWERS]
    return replace(item, answers=kept, ranks=dict(zip((a.id for a in kept), dense([item.ranks[a.id] for a in kept]))) if item.ranks else {})


def _service(path: Path, c: LabelConfig) -> Any:
    from .service import Service

    if path.is_dir() and chat_tokens_untrained(path):
        raise UserError(f"{path} is a base model: it knows no conversations, and answers nothing", hint="give an assistant: freedive sft makes one")
    lm = load(path, threads=c.threads, max_seqs=MOST_ANSWERS)
    lm.tokenizer.require_chat()
    return Service(lm, name=model_name(path))


def _serve(c: LabelConfig, desk: Desk, services: list[Any], listening: Any, key: str | None) -> None:
    from .candidates import Candidates, our_writer, their_writer
    from .local_app import create_local_app, serve_local
    from .pages import labelling
    from .pages.source import Settings

    writers = [our_writer(s) for s in services]
    if c.endpoint is not None and c.task != "write":
        writers.append(their_writer(c.endpoint, c.endpoint_model))
    settings = Settings(temperature=c.temperature, top_p=c.top_p, max_tokens=c.max_tokens, alternatives=0)
    candidates = Candidates(desk, writers, c.answers, settings, c.task)
    app = create_local_app(lambda: labelling.register(desk, candidates, c.task), services, candidates.working, key)
    where = f"http://127.0.0.1:{listening.getsockname()[1]}"
    left = len(desk.open_items(c.task))
    print(f"{c.out}: {len(desk.items):,} prompts, {left:,} of them not judged yet by {desk.labeller}")
    print(f"open: {where}" + ("" if key is None else ", any name and the key as password"), flush=True)
    if c.open:
        import webbrowser

        webbrowser.open(where)
    serve_local(app, listening)
    left = len(desk.open_items(c.task))
    print(f"stopped; {len(desk.mine):,} judged, {left:,} to go: the same command goes on there" if left else f"stopped; all {len(desk.items):,} are judged")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise UserError("your user name is not known", hint="--labeller NAME") from None
