"""`freedive recite`: regurgitation. Which passages of its training data does a model say word for word (talk 2.1)?

A prompt is the beginning of a training document, the answer the likeliest continuation; it counts as recited if all of its tokens
are the document's. What matters is how often the passage occurred (Carlini et al., *Quantifying memorization*, 2023), so copies are
counted over the whole corpus, at any place in any document, and answers that are some other page's words are noticed too. Held-out
documents are the control: what is "recited" of those was guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from freedive.data.texts import is_artefact, iter_documents, shard_paths
from freedive.data.token_shards import TokenShards, is_shards
from freedive.inference import LM, load
from freedive.runs import Artefact, UserError, check_at_least, json_line, option, progress, stage, write_json_atomic
from freedive.tokenizer import Tokenizer, encode_documents

from .stage import wilson

BATCH = 256  # prompts answered between two checkpoints
PLACES = 5  # pages named of a passage
SHOWN = 5  # passages shown in the terminal
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))


@dataclass(frozen=True)
class ReciteConfig:
    """What does a model recite of its training data?"""

    model: Path = option(help="folder of the model", positional=True)
    data: Path = option(help="what it was trained on: token shards, a folder made by `freedive data`, or text")
    out: Path = option(Path("runs/recite"), "folder to write")
    prompt_tokens: int = option(32, "tokens of a document that are given")
    tokens: int = option(32, "tokens that must follow word for word")
    per_group: int = option(200, "passages asked of each group of about equally many copies (0: all)")
    threads: int | None = option(None, "CPU threads (default: all)", hash=False)
    force: bool = option(False, "replace an existing --out")
    dry_run: bool = option(False, "check the input and stop")


@dataclass
class Passage:
    """A stretch of tokens and where the corpus has it."""

    ids: np.ndarray  # [length]
    copies: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)  # (document, token in it) of the first PLACES


class Corpus:
    """The training documents as ids, and what is known of each one's source. Held-out documents apart, if there are any."""

    def __init__(self, data: Path, tok: Tokenizer, threads: int | None):
        self.shards = TokenShards(data) if is_shards(data) else None
        self.ids: dict[str, list[np.ndarray]] = {"train": [], "val": []}
        self._sources: list[dict[str, Any]] = []
        if self.shards is not None:
            if self.shards.tokenizer() != tok:
                raise UserError(f"{data} was encoded with another tokenizer than the model's", hint="give the shards it was trained on, or their text")
            self.ids = {split: list(self.shards.documents(split)) for split in self.ids}
            sizes = np.array([len(ids) + 1 for ids in self.ids["train"]], np.int64)
            ends = np.cumsum([len(file.starts) - 1 for file in self.shards.files["train"]])
            extra = np.searchsorted(ends, np.arange(len(sizes)), "right")  # each file has one edge more, at its end
            self._positions = np.cumsum(sizes) - sizes + extra
            return
        artefact = is_artefact(data)
        for split in ("train", "val") if artefact and shard_paths(data, "val") else ("train",):
            rows = list(iter_documents(data, split if artefact else None))
            self.ids[split] = encode_documents(tok, [row.pop("text") for row in rows], threads)
            if split == "train":
                self._sources = rows

    def source(self, document: int) -> dict[str, Any]:
        """id, url, source and record of a training document, as far as they are known."""
        found = self._sources[document] if self.shards is None else self.shards.find(int(self._positions[document]))
        return {key: found[key] for key in ("url", "source", "record", "id") if found.get(key)}


def window_hashes(ids: np.ndarray, length: int) -> np.ndarray:
    """A hash of each stretch of `length` ids: uint64 [len(ids) - length + 1], empty if the document is shorter."""
    if len(ids) < length:
        return np.zeros(0, np.uint64)
    powers = np.cumprod(np.full(len(ids), _MULTIPLIER, np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((ids.astype(np.uint64) + np.uint64(1)) * powers)])
    inverses = np.cumprod(np.full(len(ids) - length + 1, _INVERSE, np.uint64))
    return (sums[length:] - sums[: len(sums) - length]) * inverses


def count_copies(documents: Sequence[np.ndarray], passages: Sequence[Passage]) -> None:
    """Fill in copies and places: every place of every document where a passage (all of one length) stands. Overlaps count."""
    if not passages:
        return
    length = len(passages[0].ids)
    hashes = np.array([window_hashes(p.ids, length)[0] for p in passages])
    order = np.argsort(hashes, kind="stable")
    keys = hashes[order]
    for number, document in enumerate(progress(documents, len(documents), "recite: copies")):
        found = window_hashes(document, length)
        first = np.searchsorted(keys, found, "left")
        hits = np.flatnonzero((first < len(keys)) & (keys[np.minimum(first, len(keys) - 1)] == found))
        for at in hits.tolist():
            k = int(first[at])
            while k < len(keys) and keys[k] == found[at]:
                passage = passages[order[k]]
                if np.array_equal(passage.ids, document[at : at + length]):  # a hash may lie
                    passage.copies += 1
                    if len(passage.places) < PLACES:
                        passage.places.append((number, at))
                k += 1


def beginnings(documents: Sequence[np.ndarray], length: int) -> list[Passage]:
    """The different first `length` ids of the documents that are long enough, in order."""
    seen: dict[bytes, Passage] = {}
    for ids in documents:
        if len(ids) >= length:
            seen.setdefault(ids[:length].tobytes(), Passage(np.array(ids[:length])))
    return list(seen.values())


def group_of(copies: int) -> str:
    """Copies in powers of two: 0, 1, 2, 3-4, 5-8, ..."""
    if copies <= 2:
        return str(copies)
    high = 1 << (copies - 1).bit_length()
    return f"{high // 2 + 1}-{high}"


def choose(passages: Sequence[Passage], per_group: int) -> list[Passage]:
    """At most `per_group` of each group of copies, spread evenly over the corpus; few copies first."""
    groups: dict[str, list[Passage]] = {}
    for passage in sorted(passages, key=lambda p: p.copies):
        groups.setdefault(group_of(passage.copies), []).append(passage)
    chosen = []
    for members in groups.values():
        n = min(per_group or len(members), len(members))
        chosen += [members[i * len(members) // n] for i in range(n)]
    return chosen


def run(c: ReciteConfig) -> Path:
    """Measure; returns the folder written. Raises UserError for a model or data that cannot be used together."""
    check_at_least(c, 1, "prompt_tokens", "tokens")
    check_at_least(c, 0, "per_group")
    lm = load(c.model, threads=c.threads)
    room = lm.model.config.max_positions - 1
    if c.prompt_tokens + c.tokens > room:
        raise UserError(f"{c.prompt_tokens} + {c.tokens} tokens do not fit the model's context of {room + 1}", hint="lower --prompt-tokens or --tokens")
    if c.dry_run:
        Corpus(c.data, lm.tokenizer, c.threads) if is_shards(c.data) else next(iter_documents(c.data))
        print(f"would ask {c.model} for passages of {c.data} and write {c.out}")
        return c.out
    with stage("recite", c, out=c.out, inputs={"model": c.model, "data": c.data}, force=c.force) as artefact:
        if artefact.done:
            print(f"{c.out} is finished already: nothing to do")
            return artefact.out
        _measure(c, lm, artefact)
    return artefact.out


def _measure(c: ReciteConfig, lm: LM, artefact: Artefact) -> None:
    corpus = Corpus(c.data, lm.tokenizer, c.threads)
    train, length = corpus.ids["train"], c.prompt_tokens + c.tokens
    of_train = beginnings(train, length)
    known = {p.ids.tobytes() for p in of_train}
    held = [p for p in beginnings(corpus.ids["val"], length) if p.ids.tobytes() not in known]
    if not of_train:
        raise UserError(f"no document of {c.data} has {length} tokens", hint="lower --prompt-tokens or --tokens")
    count_copies(train, of_train + held)
    asked = choose(of_train + held, c.per_group)
    answers = np.array(list(_answers(c, lm, artefact, asked)), np.int64)  # [passages, tokens], -1 after an end
    said = [Passage(ids.astype(train[0].dtype)) for ids in answers]
    complete = [p for p, ids in zip(said, answers, strict=True) if ids.min() >= 0]
    count_copies(train, complete)
    tok = lm.tokenizer
    rows = []
    for passage, ids, other in zip(asked, answers, said, strict=True):
        wanted = passage.ids[c.prompt_tokens :].astype(np.int64)
        matched = int(np.argmin(np.append(ids == wanted, False)))
        rows.append({
            "copies": passage.copies, "recited": matched == c.tokens, "matched": matched, "other": matched < c.tokens and other.copies > 0,
            "prompt": tok.decode(passage.ids[: c.prompt_tokens]), "said": tok.decode(ids[ids >= 0]), "wanted": tok.decode(wanted),
            "pages": [corpus.source(d) for d, _ in (passage if matched == c.tokens else other).places] if matched == c.tokens or other.copies else [],
        })  # fmt: skip
    for row in rows:
        artefact.append("recited.jsonl", json_line(row))
    groups = _groups(rows, [*of_train, *held])
    short = sum(len(ids) < length for ids in train)
    result = {"prompt_tokens": c.prompt_tokens, "tokens": c.tokens, "documents": len(train), "too_short": short, "groups": groups}
    write_json_atomic(artefact.work / "recite.json", result)
    artefact.summary(recited=sum(r["recited"] for r in rows), asked=len(rows))
    _print(result, rows)


def _answers(c: ReciteConfig, lm: LM, artefact: Artefact, asked: list[Passage]) -> Iterator[list[int]]:
    """The likeliest c.tokens ids after each prompt; those of an earlier, interrupted run are read from its file."""
    file = artefact.work / "continuations.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if artefact.resume and file.is_file() else []
    yield from done
    stops = [lm.tokenizer.bos_id]
    with progress.bar(len(asked), "recite") as bar:
        bar.advance(len(done))
        for at in range(len(done), len(asked), BATCH):
            part = asked[at : at + BATCH]
            prompts = [[stops[0], *(int(i) for i in p.ids[: c.prompt_tokens])] for p in part]
            outs = lm.engine.generate(prompts, max_new_tokens=c.tokens, temperature=0.0, stop_ids=stops, seeds=[0] * len(part))
            for out in outs:
                ids = [int(i) for i in (out.ids[:-1] if out.stopped else out.ids)]
                ids += [-1] * (c.tokens - len(ids))
                artefact.append("continuations.jsonl", json_line(ids))
                yield ids
            artefact.checkpoint({"answered": at + len(part)})
            bar.advance(len(part))


def _groups(rows: list[dict[str, Any]], passages: Sequence[Passage]) -> list[dict[str, Any]]:
    totals: dict[str, int] = {}
    for passage in passages:
        name = group_of(passage.copies)
        totals[name] = totals.get(name, 0) + 1
    groups = []
    for name in dict.fromkeys(group_of(row["copies"]) for row in rows):
        members = [row for row in rows if group_of(row["copies"]) == name]
        n, recited = len(members), sum(row["recited"] for row in members)
        groups.append({
            "copies": name, "passages": totals[name], "asked": n, "recited": recited, "share": recited / n, "share_95": wilson(recited, n),
            "mean_matched": sum(row["matched"] for row in members) / n, "other_page": sum(row["other"] for row in members),
        })  # fmt: skip
    return groups


def _print(result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    p, t = result["prompt_tokens"], result["tokens"]
    print(f"given the first {p} tokens of a document, are the likeliest next {t} the document's? (0 copies: held out)")
    print(f"{'copies':>8}{'passages':>10}{'asked':>8}{'recited':>9}{'share':>8}  {'95 %':<13}{'right in a row':>15}{'from elsewhere':>16}")
    for g in result["groups"]:
        low, high = g["share_95"]
        spread = f"{low:.0%} to {high:.0%}"
        print(f"{g['copies']:>8}{g['passages']:>10,}{g['asked']:>8}{g['recited']:>9}{g['share']:>8.0%}  {spread:<13}"
              f"{g['mean_matched']:>12.1f}/{t:<2}{g['other_page']:>16}")  # fmt: skip
    if result["too_short"]:
        print(f"{result['too_short']:,} of {result['documents']:,} documents are shorter than {p + t} tokens and were left out")
    shown = sorted((row for row in rows if row["recited"]), key=lambda row: -row["copies"])[:SHOWN]
    for row in shown:
        page = row["pages"][0] if row["pages"] else {}
        where = page.get("url") or " ".join(page[key] for key in ("source", "id") if page.get(key)) or "?"
        start, end = (" ".join(row[key].split()) for key in ("prompt", "said"))
        record = f" ({page['record']})" if page.get("record") else ""
        print(f"\n{row['copies']} copies, first in {where}{record}\n  {start[-100:]} >>> {end[:160]}")
