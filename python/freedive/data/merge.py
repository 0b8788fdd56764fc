"""From the results of the jobs to the folder: what must see all documents (duplicates, the split) and the shards.

Works on the jobs' files in the order of the input, so the result does not depend on who made them. Duplicates are found on the
documents' keys alone (33 bytes each) and, for near-duplicates, on signatures in a file; the texts then stream through once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from freedive.runs import Artefact, UserError, json_line, progress, read_json, write_json_atomic

from .dedup import Seen, text_id
from .job import KEY, SAMPLE_CHARACTERS, Job
from .shard_files import ShardWriter
from .waterfall import Waterfall

SPLITS = ("train", "val")
DUPLICATES = {"exact_dedup": "exact_duplicate", "near_dedup": "near_duplicate"}


class NothingLeft(UserError):
    """Every document was removed."""


def nothing_left(waterfall: Waterfall) -> NothingLeft:
    """What to say when every document was removed: the commonest reasons, and the setting that would keep most of them."""
    removed = {(step, rule): count["documents"] for step, counts in waterfall.steps.items() for rule, count in counts["removed"].items()}
    commonest = sorted(removed.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{documents:,} {step}/{rule}" for (step, rule), documents in commonest[:5]) or "the files hold none"
    foreign = [(rule.removeprefix("is_"), documents) for (step, rule), documents in commonest if step == "language" and rule.startswith("is_")]
    hint = "try --preset none, which removes nothing for its quality"
    if commonest and commonest[0][0] == ("read", "no_text_field"):
        hint = "no row has such a field with text in it: name another with --text-key"
    unread = sum(documents for (_, rule), documents in commonest if rule in ("bad_encoding", "binary", "binary_file"))
    absent = sum(documents for (step, rule), documents in commonest if step == "read" and rule in ("not_found", "forbidden"))
    if 2 * unread > sum(removed.values()):
        hint = "most of it could not be read as text: give UTF-8 text (iconv -t UTF-8), HTML, WARC, JSONL or parquet"
    if 2 * absent > sum(removed.values()):
        hint = "most of the files are not on their server, or not for you: look at the list of files and at your credentials"
    if 2 * sum(documents for _, documents in foreign) > sum(removed.values()):
        hint = f"most of it is not in the languages to keep (--languages, by default en); to keep it: --languages {' '.join(name for name, _ in foreign[:3])}"
    return NothingLeft(f"no document was left: {reasons}", hint=hint)


class Merge:
    """Call `run` once. `settings` is the stage's configuration."""

    def __init__(self, artefact: Artefact, settings: Any, jobs: list[Job], recipe: str, checkpoint_bytes: int):
        self.artefact, self.settings, self.jobs, self.recipe = artefact, settings, jobs, recipe
        self.checkpoint_bytes = checkpoint_bytes
        self.all = np.concatenate([np.fromfile(job.path("keys"), KEY) for job in jobs])
        self.first = np.cumsum([0, *(job.path("keys").stat().st_size // KEY.itemsize for job in jobs)])
        self.keys = [self.all[a:b] for a, b in zip(self.first[:-1], self.first[1:], strict=True)]
        self.gone = np.zeros(len(self.all), np.uint8)  # 0: stays; else 1 + place in the list of steps that removed it
        self.steps = list(DUPLICATES) + ["line_dedup"]
        self.waterfall = Waterfall()
        self.rejected: dict[str, list[dict[str, str]]] = {}
        for job in jobs:
            told = read_json(job.path("json"))
            self.waterfall.merge(told["waterfall"])
            for reason, samples in told["rejected"].items():
                self.rejected.setdefault(reason, []).extend(samples[: settings.samples - len(self.rejected.get(reason, []))])

    def run(self, near: bool) -> None:
        """Writes everything into the artefact. `near`: remove near-duplicates too. UserError if no document is left."""
        if self.settings.exact_dedup:
            self._remove("exact_dedup", _repeated(self.all["id"]))
        if near:
            self._remove("near_dedup", self._near())
        trim = self.settings.max_line_copies > 0
        if trim:
            self._trim()
        if not np.any(self.gone == 0):
            raise nothing_left(self.waterfall)
        state = self.artefact.resume or {}
        self.samples: dict[str, list[dict[str, str]]] = state.get("samples", {})
        writer = ShardWriter(self.artefact, self.settings.format, self.settings.shard_bytes, self.recipe, state.get("shards"))
        held_out = self._held_out()
        seen = Seen(self.settings.max_line_copies)
        since = 0
        with progress.bar(len(self.jobs), "data: shards") as bar:
            for part in range(state.get("part", 0), len(self.jobs)):
                for number, line in self._lines(part):
                    if self.gone[number]:
                        self._sample(number, line)
                        continue
                    if trim:
                        row = json.loads(line)
                        row["text"] = seen.trim(row["text"])
                        seen.add(row)
                        row["id"] = text_id(row["text"])
                        line = json_line(row)
                    writer.write(SPLITS[held_out[number]], line)
                    since += len(line)
                if since >= self.checkpoint_bytes and part + 1 < len(self.jobs) and not trim and writer.can_stop:
                    writer.flush()
                    self.artefact.checkpoint({"part": part + 1, "shards": writer.state(), "samples": self.samples})
                    since = 0
                bar.advance(1)
        writer.close()
        self._report(writer, held_out)

    def _remove(self, step: str, mask: np.ndarray) -> None:
        """Counts a global step: mask[i] is True for what it removes of the documents that are still there."""
        there = self.gone == 0
        lost = there & mask
        sizes = self.all["bytes"]
        kept = int(sizes[there & ~mask].sum())
        self.waterfall.passed(step, int((there & ~mask).sum()), kept, kept)
        if lost.any():
            self.waterfall.lost(step, DUPLICATES[step], int(lost.sum()), int(sizes[lost].sum()))
        self.gone[lost] = 1 + self.steps.index(step)

    def _near(self) -> np.ndarray:
        """True for the documents of a cluster but one, by the signatures of those that are still there."""
        from . import minhash

        chosen = np.flatnonzero((self.gone == 0) & (self.all["signed"] == 1))
        mask = np.zeros(len(self.all), bool)
        if len(chosen) < 2:
            return mask
        path = Path(self.jobs[0].folder, "signatures")
        with open(path, "wb") as file:
            for part, keys in enumerate(self.keys):
                signed = keys["signed"] == 1
                signatures = np.fromfile(self.jobs[part].path("minhash"), "<u8").reshape(-1, 14, 8)
                there = self.gone[self.first[part] : self.first[part + 1]] == 0
                file.write(np.ascontiguousarray(signatures[there[signed]]).tobytes())
        signatures = np.memmap(path, "<u8", "r", shape=(len(chosen), 14, 8))
        mask[chosen[~minhash.cluster(signatures, self.settings.near_similarity)]] = True
        del signatures
        path.unlink()
        return mask

    def _trim(self) -> None:
        """Counts what cutting repeated lines would leave; the cut itself is made again while writing."""
        seen = Seen(self.settings.max_line_copies)
        for part in range(len(self.jobs)):
            for number, line in self._lines(part):
                if self.gone[number]:
                    continue
                row, size = json.loads(line), int(self.all["bytes"][number])
                text = seen.trim(row["text"])
                if text.strip():
                    self.waterfall.passed("line_dedup", 1, size, len(text.encode()))
                    seen.add({**row, "text": text})
                else:
                    self.waterfall.lost("line_dedup", "no_line_left", 1, size)
                    self.gone[number] = 1 + self.steps.index("line_dedup")

    def _lines(self, part: int) -> Iterator[tuple[int, bytes]]:
        with open(self.jobs[part].path("jsonl"), "rb") as lines:
            yield from enumerate(lines, int(self.first[part]))

    def _held_out(self) -> np.ndarray:
        """uint8 [documents]: 1 for those of the val shards, chosen by the hash of their text; the smallest hash if none is."""
        chosen = self.all["split"] < self.settings.val_fraction * 2**32
        there = np.flatnonzero(self.gone == 0)
        if self.settings.val_fraction > 0 and len(there) > 1:
            if not chosen[there].any():
                chosen[there[np.argmin(self.all["split"][there])]] = True
            elif chosen[there].all():
                chosen[there[np.argmax(self.all["split"][there])]] = False
        elif len(there) == 1:
            chosen[there] = False
        return chosen.astype(np.uint8)

    def _reason(self, number: int) -> str:
        step = self.steps[self.gone[number] - 1]
        return f"{step}/{DUPLICATES.get(step, 'no_line_left')}"

    def _sample(self, number: int, line: bytes) -> None:
        samples = self.samples.setdefault(self._reason(number), [])
        if len(samples) < self.settings.samples:
            row = json.loads(line)
            sample = {"reason": self._reason(number), "url": row["url"], "source": row["source"], "text": row["text"][:SAMPLE_CHARACTERS]}
            samples.append(sample)

    def _report(self, writer: ShardWriter, held_out: np.ndarray) -> None:
        from .page import waterfall_page

        result = {**self.waterfall.result(), "recipe": self.recipe}
        rejected = {**self.rejected, **self.samples}
        write_json_atomic(self.artefact.work / "waterfall.json", result)
        for reason in sorted(rejected):
            for sample in rejected[reason]:
                self.artefact.append("rejected.jsonl", json_line(sample))
        page = waterfall_page(result, [sample for reason in sorted(rejected) for sample in rejected[reason]])
        self.artefact.append("waterfall.html", page)
        if self.settings.decisions:
            self._decisions()
        there = self.gone == 0
        counts = {f"{split}_documents": int((held_out[there] == i).sum()) for i, split in enumerate(SPLITS)}
        numbers = {name: result[name] for name in ("documents_in", "documents_out", "bytes_out")}
        self.artefact.summary(**numbers, **counts, recipe=self.recipe)

    def _decisions(self) -> None:
        """decisions.jsonl: what became of every record, the reasons of the global steps filled in."""
        for part, job in enumerate(self.jobs):
            number = int(self.first[part])
            with open(job.path("decisions.jsonl"), "rb") as lines:
                for line in lines:
                    row = json.loads(line)
                    if not row["reason"]:
                        if self.gone[number]:
                            row["reason"] = self._reason(number)
                        number += 1
                    self.artefact.append("decisions.jsonl", json_line(row))


def _repeated(ids: np.ndarray) -> np.ndarray:
    """True where the same 16 bytes came before."""
    halves = np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of equal ones the first stays first
    same = np.zeros(len(ids), bool)
    same[order[1:]] = np.all(halves[order[1:]] == halves[order[:-1]], axis=1)
    return same
