"""`freedive eval hallucination`: {correct, wrong, refused} for each kind of question, and over-refusal (talk 3.1).

A model that answers everything makes things up where it knows nothing; one that refuses everything is honest and useless. So three shares
are told side by side, for questions whose answers it should know, should half know, and cannot know (`meta.class`, or another key):
wrong is hallucination; refused is right where nothing is known, and over-refusal where the model knew before. With --reference, the
answers of an earlier evaluation on the same questions, over-refusal is measured on exactly those known ones it had right (a guess that
happened to be right is not what a model knows).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows
from freedive.inference import LM, Params, load
from freedive.inference.chat import make_tools
from freedive.inference.load import DTYPE_HELP, WEIGHTS_HELP
from freedive.runs import Artefact, UserError, check_at_least, json_line, option, progress, stage, write_json_atomic

from .asker import Message, OurModel, asker
from .judge import Judge
from .statistics import share

BATCH = 128  # questions between two checkpoints
OUTCOMES = ("correct", "wrong", "refused")
CLUSTERS = ("entity", "person")  # keys of meta that say what a question is about


@dataclass(frozen=True)
class HallucinationConfig:
    """How often a model is right, makes things up, and says that it does not know."""

    model: Path = option(help="the model", positional=True)
    data: Path = option(help='JSONL of questions: {"prompt": text or messages, "answer": "...", "meta": {"class": "known", "aliases": [...], "entity": "..."}}')
    out: Path = option(Path("runs/hallucination"), "folder to write")
    by: str = option("class", "key of meta that says how well a question should be known: known, rare, unseen, or any words")
    known: str = option("known", "the value of --by for questions the model should answer: refusing those is over-refusal")
    reference: Path | None = option(None, "an earlier evaluation on the same questions: over-refusal and lost answers are counted against it")
    judge: str = option("rule", "who judges: rule, self, a model's folder or file, or the address of an OpenAI-compatible service")
    service_model: str = option("", "name of the model at that service")
    tools: list[str] = option([], "tools the model may call, as in `freedive chat`: python, calculator, search:FOLDER, search:http://ADDRESS")
    system: str = option("", "system message before each question")
    base: bool = option(False, "a base model, which knows no conversations: it is asked in plain text")
    limit: int = option(0, "questions asked, spread over the file (0: all)")
    max_new_tokens: int = option(48, "longest answer, in tokens")
    weights: str = option("auto", WEIGHTS_HELP)
    dtype: str = option("float32", DTYPE_HELP)
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "check the input and the model, and stop")


def run(c: HallucinationConfig) -> Path:
    """Measure; returns the folder written. Raises UserError for input that cannot be used."""
    check_at_least(c, 1, "max_new_tokens", "threads")
    check_at_least(c, 0, "limit")
    rows = read_questions(c.data, c.by, c.limit)
    if c.base and c.tools:
        raise UserError("--base and --tools were both given", hint="a base model calls no tools")
    before = read_outcomes(c.reference) if c.reference else {}
    if before and not any(key(row["prompt"]) in before for row in rows):
        raise UserError(f"{c.reference} answers none of the questions of {c.data}", hint="--reference is a folder that this command wrote, for the same --data")
    lm = load(c.model, threads=c.threads, dtype=c.dtype, weights=c.weights)
    own = OurModel(lm, c.base)
    if c.dry_run:
        print(f"would ask {c.model} {len(rows):,} questions and write {c.out}")
        return c.out
    judge_model = None if c.judge in ("rule", "self") or c.judge.startswith(("http://", "https://")) else Path(c.judge)
    inputs = {"model": c.model, "data": c.data, "reference": c.reference, "judge": judge_model}
    with stage("hallucination", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if artefact.done:
            print(f"{c.out} is finished already: nothing to do")
            return artefact.out
        _measure(c, lm, own, artefact, rows, before)
    return artefact.out


def read_questions(path: Path, by: str, limit: int = 0) -> list[dict[str, Any]]:
    """Rows with prompt as messages, answer, aliases and group. UserError names the line of one that cannot be asked."""
    rows, named = [], False
    for line, row in iter_rows(path):
        prompt, meta = row.get("prompt", row.get("question")), row.get("meta") or {}
        if not isinstance(prompt, (str, list)) or not isinstance(row.get("answer"), (str, int, float)) or not isinstance(meta, dict):
            raise UserError(f"{path}, line {line}: a question needs 'prompt' and 'answer'; it has {sorted(row)[:6]}")
        named |= by in meta or by in row
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        about = next((str(meta[k]) for k in CLUSTERS if meta.get(k)), f"line {line}")
        rows.append({"prompt": messages, "answer": str(row["answer"]), "aliases": [str(a) for a in meta.get("aliases") or row.get("aliases") or []],
                     "group": str(meta.get(by, row.get(by, "all"))), "about": about, "meta": meta})  # fmt: skip
    if not rows:
        raise UserError(f"{path} holds no question")
    if by != "class" and not named:
        raise UserError(f"no question of {path} has '{by}', in meta or beside it", hint="--by names a key that says how well a question should be known")
    return rows if not limit or limit >= len(rows) else [rows[i * len(rows) // limit] for i in range(limit)]


def key(prompt: Sequence[Message]) -> str:
    """A question's identity: the user's last words."""
    return str(prompt[-1].get("content"))


def read_outcomes(folder: Path) -> dict[str, str]:
    """Question -> outcome, of an earlier evaluation."""
    path = folder / "answers.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} holds no answers.jsonl", hint="--reference is a folder that `freedive eval hallucination` wrote")
    return {key(row["prompt"]): row["outcome"] for _, row in iter_rows(path)}


def judged(judge: Judge, row: dict[str, Any], reply: str) -> str:
    """ "correct", "wrong" or "refused". An empty reply says nothing: it counts as refused."""
    asked = {"questions": [key(row["prompt"])], "snippet": "", **row}
    if judge.correct(asked, [reply])[0]:
        return "correct"
    return "wrong" if judge.informative(asked, [reply])[0] else "refused"


def table(rows: Sequence[dict[str, Any]], known: str, before: dict[str, str] | None = None) -> dict[str, Any]:
    """Shares by group of answered rows ({"group", "about", "outcome", "calls", "prompt"}), with over-refusal; groups in order of appearance."""
    groups: dict[str, Any] = {}
    for name in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == name]
        about = [row["about"] for row in mine]
        groups[name] = {"n": len(mine), **{o: share([row["outcome"] == o for row in mine], about) for o in OUTCOMES}}
        if any(row["calls"] for row in rows):
            groups[name]["called"] = share([bool(row["calls"]) for row in mine], about)
    result: dict[str, Any] = {"questions": len(rows), "groups": groups}
    if known in groups:
        result["over_refusal"] = groups[known]["refused"]["share"]
    if before:
        had = [row for row in rows if before.get(key(row["prompt"])) == "correct" and (row["group"] == known or known not in groups)]
        result["reference"] = {
            "right_before": len(had),
            "over_refusal": share([row["outcome"] == "refused" for row in had], [row["about"] for row in had]),
            "lost": share([row["outcome"] != "correct" for row in had], [row["about"] for row in had]),
        }
    return result


def told(result: dict[str, Any], known: str) -> str:
    """The table as text."""
    called = any("called" in g for g in result["groups"].values())
    lines = [f"{'':14} {'questions':>9} {'correct':>16} {'wrong':>16} {'refused':>16}" + (f" {'called a tool':>16}" if called else "")]
    for name, g in result["groups"].items():
        cells = [g[o] for o in (*OUTCOMES, *(("called",) if called else ()))]
        lines.append(f"{name[:14]:14} {g['n']:9,} " + " ".join(f"{100 * s['share']:5.1f} ({100 * s['interval_95'][0]:.0f}-{100 * s['interval_95'][1]:.0f}) %".rjust(16) for s in cells))
    if "reference" in result:
        r = result["reference"]
        if r["right_before"]:
            lines.append(f"of {r['right_before']:,} {known} questions right before: {100 * r['over_refusal']['share']:.1f} % are refused now, {100 * r['lost']['share']:.1f} % are not right any more")
    elif "over_refusal" in result:
        lines.append(f"over-refusal: {100 * result['over_refusal']:.1f} %")
    return "\n".join(lines)


def _measure(c: HallucinationConfig, lm: LM, own: OurModel, artefact: Artefact, rows: list[dict[str, Any]], before: dict[str, str]) -> None:
    judge = Judge(None if c.judge == "rule" else asker(c.judge, c.service_model, own, c.threads))
    loop = make_tools(lm, c.tools) if c.tools else None
    system = [{"role": "system", "content": c.system}] if c.system else []
    done = int((artefact.resume or {}).get("done", 0))
    file = artefact.work / "answers.jsonl"
    answered = [json.loads(line) for line in file.read_text(encoding="utf-8", errors="surrogatepass").split("\n")[:done]] if done else []
    with progress.bar(len(rows), "hallucination") as bar:
        bar.advance(done)
        for at in range(done, len(rows), BATCH):
            part = rows[at : at + BATCH]
            prompts = [[*system, *row["prompt"]] for row in part]
            replies: list[tuple[str, list[dict[str, str]]]]
            if loop is None:
                replies = [(texts[0], []) for texts in own.ask(prompts, max_new_tokens=c.max_new_tokens, seeds=[0] * len(part))]
            else:
                opening = list(getattr(loop, "opening", None) or [])
                params = Params(max_new_tokens=c.max_new_tokens, temperature=0.0, stop_ids=lm.tokenizer.stop_ids)
                outs = loop.generate([opening + own.ids(p) for p in prompts], params, [0] * len(part))
                replies = [(o.text.strip(), [{"tool": t.tool, "text": t.text, "answer": t.answer} for t in o.calls]) for o in outs]
            for row, (reply, calls) in zip(part, replies):
                line = {"prompt": row["prompt"], "answer": row["answer"], "reply": reply, "outcome": judged(judge, row, reply), "calls": calls, "group": row["group"], "about": row["about"]}
                answered.append(line)
                artefact.append("answers.jsonl", json_line(line))
            artefact.checkpoint({"done": at + len(part)})
            bar.advance(len(part))
    result = table(answered, c.known, before)
    write_json_atomic(artefact.work / "hallucination.json", result)
    artefact.summary(judge_unclear=judge.unclear, **{f"{name}/{o}": g[o]["share"] for name, g in result["groups"].items() for o in OUTCOMES})
    print(told(result, c.known))
