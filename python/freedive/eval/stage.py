"""`freedive eval`: published evaluations (suites/), answers to your own questions by group, how often the model stops by itself, bits per byte of a text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from freedive.data.texts import is_artefact, iter_rows, iter_texts
from freedive.inference import LM, load
from freedive.inference.folder import chat_tokens_untrained
from freedive.inference.load import ADAPTER_HELP, DTYPE_HELP, KV_CACHE_HELP, WEIGHTS_HELP
from freedive.objectives import pass_at_k
from freedive.rl.rewards import lacking
from freedive.rl.rollouts import Rollout
from freedive.rl.scoring import Scorer
from freedive.rlhf.rewards import reward_inputs
from freedive.runs import (
    Artefact,
    UserError,
    check_at_least,
    find_function,
    function_file,
    json_line,
    option,
    progress,
    stage,
    write_atomic,
    write_json_atomic,
)
from freedive.tokenizer import END_OF_TEXT, ChatConfig, encode_documents, render
from freedive.tokenizer.chat import validate
from freedive.train.evaluate import held_out_loss

from .card import card, lines
from .match import matches
from .statistics import wilson
from .suites import KINDS
from .suites.base import Asking, Named, example_files, named
from .suites.runner import prepare, run_suites

Row = dict[str, Any]
Checker = Callable[[str, Row], bool]
NO_GROUP = "(none)"


@dataclass(frozen=True)
class EvalConfig:
    """Measure a model on questions, and on text."""

    path: Path | None = option(None, "the model: a folder, a .gguf file, a llama2.c .bin", positional=True)
    model: Path | None = option(None, "the same, by name")
    adapter: Path | None = option(None, ADAPTER_HELP)
    suite: list[str] = option([], f"KIND:FILE of published evaluations; kinds: {', '.join(KINDS)}")
    shots: list[int] = option([0], "examples before each question of a suite; several numbers measure each, and draw the curve")
    examples: list[str] = option([], "FILE of the examples, or KIND:FILE for the suites of one kind (default: the first rows of a suite's own file, as many as the most --shots; they are asked at no number)")
    chat: bool = option(False, "ask mmlu in turns of a conversation too; other suites that generate do so unless --base")
    data: Path | None = option(None, 'JSONL of questions: {"prompt": text or messages, "answer": "...", "meta": {...}}')
    text: Path | None = option(None, "text whose bits per byte are measured: a file, a folder, or a data artefact (its held-out part)")
    out: Path = option(Path("runs/eval"), "folder to write")
    group_by: list[str] = option([], "keys of meta to report accuracy by")
    checker: str = option("match", "match; or package.module:function or file.py:function, taking (reply, row) and returning True or False")
    limit: int = option(0, "questions asked of each file, spread over it (0: all)")
    samples: int = option(1, "answers per question; more than 1 gives pass@k")
    reward: str = option("", "of the --samples answers to a question of --data, how often is the one that this reward likes best right: a reward model's folder, judge:MODEL, file.py:function")
    temperature: float = option(0.0, "0 takes the likeliest token")
    max_new_tokens: int = option(64, "longest answer, in tokens (humaneval and gsm8k want 256 or more)")
    base: bool = option(False, "a base model: the question is plain text, not a turn")
    context: int = option(0, "window of the bits-per-byte measurement, in tokens (0: the model's context)")
    seed: int = option(0, "of sampling")
    weights: str = option("auto", WEIGHTS_HELP)
    dtype: str = option("float32", DTYPE_HELP)
    kv_cache_dtype: str = option("auto", KV_CACHE_HELP)
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "load and check everything, print the plan, and stop")


def by_match(reply: str, row: Row) -> bool:
    """The built-in checker: the row's `answer` is in the reply, as meta.check says (see freedive.eval.match)."""
    return matches(reply, str(row["answer"]), str(row["meta"].get("check", "")))


BUILT_IN: dict[str, Checker] = {"match": by_match}


def run(c: EvalConfig) -> Path:
    """Evaluate; returns the folder written. Raises UserError for input that cannot be used."""
    if c.data is None and c.text is None and not c.suite:
        raise UserError("there is nothing to measure: give --suite, --data (questions) or --text", hint="freedive eval runs/assistant --data questions.jsonl --out runs/eval")
    if (c.path is None) == (c.model is None):
        raise UserError("give the model to measure" if c.path is None else "the model is given twice", hint="freedive eval runs/assistant --data questions.jsonl")
    c = replace(c, model=c.path or c.model, path=None)
    if any(k < 0 for k in c.shots) or not c.shots:
        raise UserError(f"shots is {c.shots}; it must be numbers of at least 0")
    suites = [named(word) for word in c.suite]
    check_at_least(c, 1, "samples", "max_new_tokens", "threads")
    check_at_least(c, 0, "limit", "temperature", "seed")
    if c.samples > 1 and c.temperature == 0:
        raise UserError(f"samples is {c.samples} at temperature 0", hint="several samples need --temperature 1, or all are the same")
    if c.reward and (c.samples < 2 or c.data is None):
        raise UserError("--reward chooses among several answers to the questions of --data", hint="--data questions.jsonl --samples 16 --temperature 1")
    if c.dry_run:
        _measure(c, suites, None)
        return c.out
    inputs = {"model": c.model, "reward_model": reward_inputs([c.reward]) or None, "reward_file": function_file(c.reward), "adapter": c.adapter, "data": c.data, "text": c.text, "checker_file": function_file(c.checker),
              "suites": [s.file for s in suites] or None, "examples": list(example_files(c.examples).values()) or None}  # fmt: skip
    with stage("eval", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if not artefact.done:
            _measure(c, suites, artefact)
    return artefact.out


def _measure(c: EvalConfig, chosen: list[Named], artefact: Artefact | None) -> None:
    """The whole stage; without an artefact (a dry run) it ends when everything is loaded and checked."""
    check = find_function(c.checker, BUILT_IN, "checker")
    assert c.model is not None
    if not c.base and (c.data or chosen) and c.model.is_dir() and chat_tokens_untrained(c.model):
        print(f"{c.model} knows no conversations yet: it is asked in plain text, as with --base")
        c = replace(c, base=True)
    assert c.model is not None
    lm = load(c.model, threads=c.threads, dtype=c.dtype, weights=c.weights, kv_cache_dtype=c.kv_cache_dtype, adapter=c.adapter)
    questions = _questions(c, c.data) if c.data else []
    rows = [row for _, row in questions]
    prompts = [_prompt(c, lm, f"{c.data}, line {line}", row["prompt"]) for line, row in questions]
    text = _text(c, lm, c.text) if c.text else None
    asking = Asking(base=c.base, chat=c.chat, samples=c.samples, temperature=c.temperature, max_new_tokens=c.max_new_tokens, seed=c.seed)
    suites = prepare(chosen, lm, asking, c.shots, c.limit, example_files(c.examples))
    scorer = Scorer([c.reward], threads=c.threads, max_completion_length=c.max_new_tokens) if c.reward else None
    if artefact is None:
        for s in suites:
            print(f"{s.name}: {len(s.items):,} items")
        print(f"{len(rows):,} questions, {c.samples} answer(s) to each, up to {max(map(len, prompts), default=0)} tokens long and {c.max_new_tokens} more; "
              f"{text.n_bytes if text else 0:,} bytes of text; model: {lm.model.config.n_params():,} parameters")  # fmt: skip
        return
    result: dict[str, Any] = {"suites": run_suites(suites, artefact)} if suites else {}
    if rows:
        result |= _exam(c, lm, rows, prompts, check, artefact, scorer)
    if text:
        result |= held_out_loss(lm.model, text.documents, text.window, text.bos, text.n_bytes)
    write_json_atomic(artefact.work / "eval.json", result)
    artefact.summary(**{k: v for k, v in result.items() if isinstance(v, (int, float))})
    artefact.summary(**{f"{name} {metric}": m["mean"] for name, suite in result.get("suites", {}).items() for metric, m in suite["metrics"].items()})
    write_atomic(artefact.work / "report.html", [card(c.model.name, result).encode()])
    print(*lines(result), sep="\n")
    for key, value in result.get("groups", {}).items():
        print(f"  {key}: {value['accuracy']:.3f} of {value['n']}")


# ---- questions -----------------------------------------------------------------------------------------------------


def _questions(c: EvalConfig, path: Path) -> list[tuple[int, Row]]:
    """(line number, row) of each question to ask."""
    questions: list[tuple[int, Row]] = []
    for line, row in iter_rows(path):
        row = {"prompt": row["question"], **row} if "question" in row else row
        if "prompt" not in row or "answer" not in row:
            raise UserError(f"{path}, line {line}: a question needs 'prompt' and 'answer'; it has {sorted(row)[:6]}")
        meta = row.get("meta") or {}
        if not isinstance(meta, dict):
            raise UserError(f"{path}, line {line}: meta must be an object, it is {meta!r:.60}")
        if said := lacking(c.reward, row):
            raise UserError(f"{path}, line {line}: {said}")
        questions.append((line, {**row, "meta": meta}))
    if not questions:
        raise UserError(f"{path} holds no question")
    keys = sorted({key for _, row in questions for key in row["meta"]})
    for key in c.group_by:
        if key not in keys:
            raise UserError(f"no question of {path} has {key!r} in its meta", hint=f"keys to group by: {', '.join(keys) or 'none'}")
    if c.limit and len(questions) > c.limit:
        questions = [questions[i * len(questions) // c.limit] for i in range(c.limit)]
    return questions


def _prompt(c: EvalConfig, lm: LM, where: str, prompt: Any) -> list[int]:
    """The ids of a question: plain text for a base model, else a turn of the user."""
    tok, room = lm.tokenizer, lm.model.config.max_positions
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if c.base:
        validate(messages, tok.chat or ChatConfig(), row=where)
        ids = tok.document_ids(messages[-1]["content"])
    else:
        ids = render(tok, messages, add_generation_prompt=True, row=where)[0]
    if len(ids) >= room:
        raise UserError(f"{where}: a question of {len(ids)} tokens; the model has {room} positions", hint="shorten the question or leave it out")
    return ids


def answers(c: EvalConfig, lm: LM, prompts: list[list[int]]) -> list[list[Any]]:
    """c.samples completions of each prompt."""
    tok = lm.tokenizer
    out: list[list[Any]] = []
    stops = list(tok.stop_ids) if tok.eos else [i for name in (tok.chat.end if tok.chat else "", END_OF_TEXT if c.base else "") if (i := tok.special_tokens.get(name)) is not None]
    with progress.bar(len(prompts), "eval") as bar:
        for at in range(0, len(prompts), 256):
            part = [p for p in prompts[at : at + 256] for _ in range(c.samples)]
            seeds = [(c.seed << 32) + (at + i // c.samples) * c.samples + i % c.samples for i in range(len(part))]
            done = lm.engine.generate(part, max_new_tokens=c.max_new_tokens, temperature=c.temperature, stop_ids=stops, seeds=seeds)
            out += [done[i : i + c.samples] for i in range(0, len(done), c.samples)]
            bar.advance(len(part) // c.samples)
    return out


def _exam(c: EvalConfig, lm: LM, rows: list[Row], prompts: list[list[int]], check: Checker, artefact: Artefact, scorer: Scorer | None = None) -> dict[str, Any]:
    """Accuracy, in all and by group, and of the answer that `scorer` likes best; one line of answers.jsonl for each question."""
    groups: dict[str, list[float]] = defaultdict(list)
    right: list[list[bool]] = []
    stopped = length = 0
    answered = answers(c, lm, prompts)
    rewards = _rewards(scorer, rows, answered) if scorer is not None else [None] * len(rows)
    chosen: list[bool] = []
    for row, outs, earned in zip(rows, answered, rewards):
        good = [_checked(c, check, o.text, row) for o in outs]
        right.append(good)
        if earned is not None:
            chosen.append(good[int(np.argmax(np.nan_to_num(earned, nan=-np.inf)))])
        stopped += sum(o.stopped for o in outs)
        length += sum(len(o.ids) for o in outs)
        values = [str(row["meta"].get(key, NO_GROUP)) for key in c.group_by]
        names = [f"{key}={value}" for key, value in zip(c.group_by, values)]
        for name in [*names, "/".join(values)] if len(values) > 1 else names:
            groups[name].append(sum(good) / len(good))
        artefact.append("answers.jsonl", json_line({"prompt": row["prompt"], "answer": row["answer"], "replies": [o.text for o in outs],
                                                    "right": good, "stopped": [o.stopped for o in outs], "meta": row["meta"]} | ({} if earned is None else {"rewards": earned})))  # fmt: skip
    n, total = len(rows), len(rows) * c.samples
    share = sum(sum(g) for g in right) / total
    result = {"questions": n, "accuracy": share, "accuracy_95": wilson(round(share * n), n), "stop_rate": stopped / total, "mean_length": length / total}
    if c.samples > 1:
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= c.samples]
        result["pass_at"] = {str(k): sum(pass_at_k(c.samples, sum(g), k) for g in right) / n for k in ks}
    if chosen:
        result |= {f"best_of_{c.samples}": sum(chosen) / n, f"best_of_{c.samples}_95": wilson(sum(chosen), n)}
    if groups:
        result["groups"] = {k: {"n": len(v), "accuracy": sum(v) / len(v), "accuracy_95": wilson(round(sum(v)), len(v))} for k, v in sorted(groups.items())}
    return result


def _rewards(scorer: Scorer, rows: list[Row], answered: list[list[Any]]) -> list[list[float]]:
    """Of each answer; NaN where the reward says nothing."""
    out: list[list[float]] = []
    for at in range(0, len(rows), 32):
        part = answered[at : at + 32]
        rollouts = [Rollout([], list(o.ids), np.zeros(len(o.ids), np.float32), o.text, o.stopped, finish_reason=o.finish_reason) for outs in part for o in outs]
        scored = scorer(rollouts, [row for row, outs in zip(rows[at : at + 32], part) for _ in outs], len(part[0]))
        out += [[r.reward for r in scored[i : i + len(part[0])]] for i in range(0, len(scored), len(part[0]))]
    return out


def _checked(c: EvalConfig, check: Checker, reply: str, row: Row) -> bool:
    try:
        return bool(check(reply, row))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the checker {c.checker!r} failed: {type(error).__name__}: {error}",
                        hint="it is called with the reply, a text, and the question's row, a dict with prompt, answer and meta") from error  # fmt: skip


# ---- text ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    documents: list[np.ndarray]  # ids
    n_bytes: int  # of UTF-8
    window: int  # tokens
    bos: int | None


def _text(c: EvalConfig, lm: LM, path: Path) -> _Text:
    most = min(lm.model.config.max_positions, lm.model.max_tokens)
    if not 0 <= c.context <= most:
        raise UserError(f"context is {c.context}; this model reads 1 to {most} tokens at a time (0: as many as it can)")
    texts = list(iter_texts(path, split="val" if is_artefact(path) else None))
    return _Text(encode_documents(lm.tokenizer, texts), sum(len(t.encode()) for t in texts), c.context or most,
                 lm.tokenizer.special_tokens.get(END_OF_TEXT))  # fmt: skip
