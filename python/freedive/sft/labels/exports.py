"""`freedive label export FOLDER --format ...`: what labellers said, as rows to train on, or as files of two labelling programs.

sft      {"messages"}: the prompt and the ideal answer that was written
pairs    {"prompt", "chosen", "rejected"}: TRL's conversational preference rows, one for each two answers that are no tie
ranks    {"prompt", "completions", "ranks"}: all answers of a judgement, 0 is best, ties allowed; sft/rows.py's `rankings` reads it
Columns beside these say where a row comes from (item, labeller, scores, sources) and are ignored by training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from freedive.runs import UserError, json_line, option, write_atomic

from . import argilla, label_studio
from .items import Item, dense
from .store import Judgement, Labels

Format = Literal["sft", "pairs", "ranks", "label-studio", "argilla"]


@dataclass(frozen=True)
class ExportConfig:
    """Labels as rows to train on, or as files of a labelling program."""

    folder: Path = option(help="folder made by `freedive label`", positional=True)
    format: Format = option("ranks", "sft, pairs, ranks: rows to train on; label-studio, argilla: files to open there")
    out: Path | None = option(None, "file, or folder for label-studio and argilla (default: FOLDER/export/FORMAT)")
    labeller: list[str] = option([], "only these labellers (default: all)")
    merge: bool = option(False, "pairs, ranks: one order an item, by the mean of its labellers' ranks, instead of one a labeller")
    keep_flagged: bool = option(True, "--no-keep-flagged leaves out what was flagged")
    pairwise: bool = option(False, "label-studio: a task for each two answers, to be compared, instead of one a prompt, to be ranked")
    force: bool = option(False, "replace OUT")


def run(c: ExportConfig) -> int:
    """Write the rows, and say how many."""
    labels = Labels(c.folder)
    found = [j for j in labels.judgements(c.labeller or None) if c.keep_flagged or not j.flags]
    if c.format in ("label-studio", "argilla"):
        out = c.out or c.folder / "export" / c.format
        files = label_studio.files(labels, found, pairwise=c.pairwise) if c.format == "label-studio" else argilla.files(labels, found)
        _write_all(out, files, c.force or c.out is None)
        print(f"{out}: {len(labels.items):,} prompts, {sum(1 for j in found if not j.skipped):,} judgements; files: {', '.join(files)}")
        return 0
    done = [j for j in found if not j.skipped]
    rows = list(_rows(c, labels, done))
    if not rows:
        what = {"sft": "no ideal answer was written", "pairs": "no two answers were told apart", "ranks": "nothing was ranked"}[c.format]
        raise UserError(f"{what} in {c.folder}: there is nothing to export", hint=f"it has {len(done)} judgements of {len(labels.labellers())} labellers")
    out = c.out or c.folder / "export" / f"{c.format}.jsonl"
    _write_all(out.parent, {out.name: b"".join(json_line(row) for row in rows)}, c.force or c.out is None)
    print(f"{out}: {len(rows):,} rows of {len({r['item'] for r in rows}):,} prompts and {len({r['labeller'] for r in rows}):,} labellers")
    return 0


def _rows(c: ExportConfig, labels: Labels, done: Sequence[Judgement]) -> Iterator[dict[str, Any]]:
    if c.format == "sft":
        yield from sft_rows(labels.items, done)
    else:
        orders = merged(done) if c.merge else [j for j in done if j.ranks]
        yield from (pair_rows if c.format == "pairs" else rank_rows)(labels.items, orders)


def sft_rows(items: dict[str, Item], judgements: Iterable[Judgement]) -> Iterator[dict[str, Any]]:
    """A conversation for each ideal answer."""
    for j in judgements:
        if j.text and not j.skipped:
            yield {"messages": [*items[j.item].prompt, _said(j.text)], **_origin(j)}


def rank_rows(items: dict[str, Item], judgements: Iterable[Judgement]) -> Iterator[dict[str, Any]]:
    """One row a judgement, its answers in the order of the item."""
    for j in judgements:
        answers = [a for a in items[j.item].answers if a.id in j.ranks]
        if answers and not j.skipped:
            row = {"prompt": list(items[j.item].prompt), "completions": [[_said(a.text)] for a in answers], "ranks": [j.ranks[a.id] for a in answers]}
            if j.scores:
                row["scores"] = [j.scores.get(a.id) for a in answers]
            yield {**row, "sources": [a.source for a in answers], **_origin(j)}


def pair_rows(items: dict[str, Item], judgements: Iterable[Judgement]) -> Iterator[dict[str, Any]]:
    """One row for each two answers of a judgement of which one is better."""
    for j in judgements:
        if j.skipped:
            continue
        for one, other in combinations([a for a in items[j.item].answers if a.id in j.ranks], 2):
            if j.ranks[one.id] == j.ranks[other.id]:
                continue
            best, worst = (one, other) if j.ranks[one.id] < j.ranks[other.id] else (other, one)
            row: dict[str, Any] = {"prompt": list(items[j.item].prompt), "chosen": [_said(best.text)], "rejected": [_said(worst.text)]}
            if best.id in j.scores and worst.id in j.scores:
                row |= {"score_chosen": j.scores[best.id], "score_rejected": j.scores[worst.id]}
            yield {**row, **_origin(j)}


def merged(judgements: Iterable[Judgement]) -> list[Judgement]:
    """One order an item: answers by the mean of the ranks that labellers gave them (Borda's count), equal means tie; scores are means, rounded.

    Labellers who were shown other answers of an item do not count in each other's: the answers that most of them ranked are taken.
    """
    by_item: dict[str, list[Judgement]] = {}
    for j in judgements:
        if j.ranks and not j.skipped:
            by_item.setdefault(j.item, []).append(j)
    out = []
    for found in by_item.values():
        shown = [tuple(sorted(j.ranks)) for j in found]
        ids = max(dict.fromkeys(shown), key=shown.count)
        same = [j for j, s in zip(found, shown) if s == ids]
        sums = [sum(j.ranks[i] for j in same) for i in ids]  # whole numbers: equal means are equal
        scores = {i: round(sum(told) / len(told)) for i in ids if (told := [j.scores[i] for j in same if i in j.scores])}
        flags = list(dict.fromkeys(flag for j in same for flag in j.flags))
        name = same[0].labeller if len(same) == 1 else "+".join(j.labeller for j in same)
        out.append(replace(same[0], labeller=name, ranks=dict(zip(ids, dense(sums))), scores=scores, flags=flags, text="", notes="", answer_notes={}))
    return out


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _origin(j: Judgement) -> dict[str, Any]:
    return {"item": j.item, "labeller": j.labeller} | ({"flags": j.flags} if j.flags else {})


def _write_all(folder: Path, files: dict[str, Any], force: bool) -> None:
    """Files below a folder, each written atomically: bytes as they are, the rest as JSON. UserError where one is there already."""
    for name in files:
        if (folder / name).exists() and not force:
            raise UserError(f"{folder / name} exists", hint="add --force to replace it, or choose another --out")
    try:
        for name, what in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, [what if isinstance(what, bytes) else (json.dumps(what, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogatepass")])
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}", hint="choose another --out") from error
