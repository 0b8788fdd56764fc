"""`freedive eval`: answers to questions with known answers, by group; how often the model stops by itself; bits per byte of a text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.data.texts import iter_rows, iter_texts
from freedive.inference import LM, load
from freedive.objectives import pass_at_k
from freedive.runs import Artefact, UserError, json_line, option, progress, stage, write_json_atomic
from freedive.tokenizer import END_OF_TEXT, encode_documents, render

from .match import matches


@dataclass(frozen=True)
class EvalConfig:
    """Measure a model on questions, and on text."""

    model: Path = option(help="folder of the model")
    data: Path | None = option(None, 'JSONL of questions: {"prompt": text or messages, "answer": "...", "meta": {...}}')
    text: Path | None = option(None, "text whose bits per byte are measured: a file, a folder, or a data artefact (its held-out part)")
    out: Path = option(Path("eval"), "folder to write")
    group_by: list[str] = option([], "keys of meta to report accuracy by")
    checker: str = option("match", "match, or module:function taking (reply, row) and returning True or False")
    limit: int = option(0, "questions asked, spread over the file (0: all)")
    samples: int = option(1, "answers per question; more than 1 gives pass@k")
    temperature: float = option(0.0, "0 takes the likeliest token")
    max_new_tokens: int = option(64, "longest answer, in tokens")
    base: bool = option(False, "a base model: the question is plain text, not a turn")
    context: int = option(0, "window of the bits-per-byte measurement, in tokens (0: the model's context)")
    seed: int = option(0, "of sampling")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "check the input and stop")


def wilson(right: int, n: int, z: float = 1.96) -> list[float]:
    """95 % confidence interval of a share (Wilson 1927)."""
    if n == 0:
        return [0.0, 1.0]
    p, d = right / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [max(0.0, (p + z * z / (2 * n) - half) / d), min(1.0, (p + z * z / (2 * n) + half) / d)]


def find_checker(name: str) -> Callable[[str, dict[str, Any]], bool]:
    if name == "match":
        return lambda reply, row: matches(reply, str(row["answer"]), str(row["meta"].get("check", "")))
    import importlib

    module, _, function = name.rpartition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"no such checker {name!r}: {error}", hint="match, or module:function") from None


def answers(lm: LM, rows: list[dict[str, Any]], c: EvalConfig) -> list[list[Any]]:
    """c.samples completions of each question."""
    tok = lm.tokenizer
    prompts = []
    for row in rows:
        prompt = row["prompt"]
        if c.base:
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            prompts.append([tok.bos_id, *tok.encode(text)])
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            prompts.append(render(tok, messages, add_generation_prompt=True)[0])
    out: list[list[Any]] = []
    stops = [i for name in (tok.chat.end if tok.chat else "", END_OF_TEXT if c.base else "") if (i := tok.special_tokens.get(name)) is not None]
    with progress.bar(len(rows), "eval") as bar:
        for at in range(0, len(prompts), 256):
            part = [p for p in prompts[at : at + 256] for _ in range(c.samples)]
            seeds = [(c.seed << 32) + (at + i // c.samples) * c.samples + i % c.samples for i in range(len(part))]
            done = lm.engine.generate(part, max_new_tokens=c.max_new_tokens, temperature=c.temperature, stop_ids=stops, seeds=seeds)
            out += [done[i : i + c.samples] for i in range(0, len(done), c.samples)]
            bar.advance(len(part) // c.samples)
    return out


def run(c: EvalConfig) -> Path:
    """Evaluate; returns the folder written. Raises UserError for input that cannot be used."""
    if c.data is None and c.text is None:
        raise UserError("give --data (questions), --text, or both", hint="freedive eval --model runs/assistant --data questions.jsonl --out runs/eval")
    if c.samples < 1 or (c.samples > 1 and c.temperature == 0):
        raise UserError(f"samples is {c.samples} at temperature {c.temperature:g}", hint="at least 1; several need --temperature 1, or all are the same")
    check = find_checker(c.checker)
    rows = _questions(c) if c.data else []
    if c.dry_run:
        print(f"{len(rows):,} questions")
        return c.out
    with stage("eval", c, out=c.out, inputs={"model": c.model, "data": c.data, "text": c.text}, force=c.force) as artefact:
        if not artefact.done:
            _measure(c, rows, check, artefact)
    return artefact.out


def _questions(c: EvalConfig) -> list[dict[str, Any]]:
    assert c.data is not None
    rows = []
    for line, row in iter_rows(c.data):
        if "prompt" not in row or "answer" not in row:
            raise UserError(f"{c.data}, line {line}: a question needs 'prompt' and 'answer'; it has {sorted(row)[:6]}")
        meta = row.get("meta") or {}
        if not isinstance(meta, dict):
            raise UserError(f"{c.data}, line {line}: meta must be an object, it is {meta!r:.60}")
        rows.append({**row, "meta": meta})
    if not rows:
        raise UserError(f"{c.data} holds no question")
    if c.limit and len(rows) > c.limit:
        rows = [rows[i * len(rows) // c.limit] for i in range(c.limit)]
    return rows


def _measure(c: EvalConfig, rows: list[dict[str, Any]], check: Callable[[str, dict[str, Any]], bool], artefact: Artefact) -> None:
    lm = load(c.model, threads=c.threads)
    result: dict[str, Any] = {}
    if rows:
        groups: dict[str, list[float]] = defaultdict(list)
        right: list[list[bool]] = []
        stopped = length = 0
        for row, outs in zip(rows, answers(lm, rows, c)):
            good = [check(o.text, row) for o in outs]
            right.append(good)
            stopped += sum(o.stopped for o in outs)
            length += sum(len(o.ids) for o in outs)
            for key in c.group_by:
                groups[f"{key}={row.get('meta', {}).get(key)}"].append(sum(good) / len(good))
            if len(c.group_by) > 1:
                groups["/".join(str(row["meta"].get(k)) for k in c.group_by)].append(sum(good) / len(good))
            artefact.append("answers.jsonl", json_line({"prompt": row["prompt"], "answer": row["answer"], "replies": [o.text for o in outs],
                                                        "right": good, "stopped": [o.stopped for o in outs], "meta": row["meta"]}))  # fmt: skip
        n, total = len(rows), len(rows) * c.samples
        share = sum(sum(g) for g in right) / total
        result |= {"questions": n, "accuracy": share, "accuracy_95": wilson(round(share * n), n), "stop_rate": stopped / total, "mean_length": length / total}
        if c.samples > 1:
            ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= c.samples]
            result["pass_at"] = {str(k): sum(pass_at_k(c.samples, sum(g), k) for g in right) / n for k in ks}
        if groups:
            result["groups"] = {k: {"n": len(v), "accuracy": sum(v) / len(v), "accuracy_95": wilson(round(sum(v)), len(v))} for k, v in sorted(groups.items())}
    if c.text is not None:
        from freedive.data.texts import is_artefact
        from freedive.train.evaluate import held_out_loss

        most = min(lm.model.config.max_positions, lm.model.max_tokens)
        if not 0 <= c.context <= most:
            raise UserError(f"context is {c.context}; this model reads 1 to {most} tokens at a time (0: as many as it can)")
        texts = list(iter_texts(c.text, split="val") if is_artefact(c.text) else iter_texts(c.text))
        documents, bos = encode_documents(lm.tokenizer, texts), lm.tokenizer.special_tokens.get(END_OF_TEXT)
        result |= held_out_loss(lm.model, documents, c.context or most, bos, sum(len(t.encode()) for t in texts))
    write_json_atomic(artefact.work / "eval.json", result)
    artefact.summary(**{k: v for k, v in result.items() if isinstance(v, (int, float))})
    for key, value in result.items():
        if isinstance(value, float):
            print(f"{key}: {value:.4f}")
    for key, value in result.get("groups", {}).items():
        print(f"  {key}: {value['accuracy']:.3f} of {value['n']}")
