"""`freedive data edu-train ANNOTATIONS --out DIR`: a small model of the educational score, from documents that have one (`edu`).

Ridge regression on the score, by conjugate gradients (Hestenes & Stiefel 1952) on the normal equations, which are never formed: a
step multiplies the features by the weights and back. A tenth of the documents, by the hash of their text, is held out for the report;
the strength of the ridge is chosen on another tenth.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from freedive.runs import Artefact, UserError, check_at_least, option, progress, stage, write_json_atomic

from .dedup import text_id
from .edu import BUCKETS, FORMAT, HIGHEST, Body, Settings, as_score, int_score, ngram_features
from .texts import JSONL_SUFFIXES, PARQUET_SUFFIXES, iter_rows, text_files

RIDGES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)  # per document; tried from the strongest on, each from the last one's weights
STEPS, TOLERANCE = 60, 1e-3  # of conjugate gradients; relative to the first residual
GAP = 3e-5  # what the loss may be above its least, as a part of the scores' variance
CHOICE_ROWS = 20_000  # documents on which the ridge is chosen
BLOCK = 1 << 22  # features multiplied at once
CHECKPOINT_ROWS = 10_000  # documents between two checkpoints, for a body
FEWEST = 20  # documents


@dataclass(frozen=True)
class EduTrainConfig:
    """Learn to score documents from documents that have a score."""

    inputs: tuple[Path, ...] = option(help='JSONL or parquet files (or folders): {"text", "score"}, score 0 to 5', positional=True)
    out: Path = option(Path("runs/edu"), "folder to be made; then: freedive data ... --edu-model FOLDER --edu-min 3")
    body: Path | None = option(None, "folder of a model: score by its hidden states, not by words")
    text_key: str = option("text", "field that holds the text")
    score_key: str = option("score", "field that holds the score")
    minimum: int = option(3, "the score to be kept, for the F1 of the report")
    characters: int = option(4000, "of a text that are read (without --body)")
    tokens: int = option(512, "of a text that are read (with --body)")
    threads: int | None = option(None, "CPU threads (default: all)")
    dry_run: bool = option(False, "read the annotations, and stop")
    force: bool = option(False, "replace OUT if it was made with other settings")


class Matrix(Protocol):
    """Features of the documents, [N, F], as far as ridge regression needs to know."""

    rows: int

    def dot(self, weight: np.ndarray) -> np.ndarray: ...
    def back(self, residual: np.ndarray) -> np.ndarray: ...
    def take(self, rows: np.ndarray) -> Matrix: ...
    def plain(self, weight: np.ndarray, bias: float) -> tuple[np.ndarray, float]:
        """Weight and bias for features as `edu` computes them."""
        ...


def run(c: EduTrainConfig) -> Path:
    """Trains and returns the folder. UserError for annotations that cannot be used, before anything is written."""
    check_at_least(c, 1, "characters", "tokens", "threads")
    if not 1 <= c.minimum <= HIGHEST:
        raise UserError(f"--minimum is {c.minimum}", hint=f"allowed: 1 to {HIGHEST}")
    texts, scores = read_annotations(c)
    if c.dry_run:
        print(f"would learn from {len(texts):,} documents with a mean score of {scores.mean():.2f}, and write {c.out}")
        return c.out
    inputs: dict[str, Any] = {"inputs": list(c.inputs), "body": c.body}
    with stage("edu", c, out=c.out, inputs=inputs, force=c.force) as artefact:
        if artefact.done:
            print(f"{c.out} is finished already: nothing to do")
            return artefact.out
        _train(artefact, c, texts, scores)
    return artefact.out


def read_annotations(c: EduTrainConfig) -> tuple[list[str], np.ndarray]:
    """(texts, scores float64 [N]). UserError for a row without text or score, a score out of range, and too little to learn from."""
    texts: list[str] = []
    scores: list[float] = []
    for file in _files(c.inputs):
        for line, row in iter_rows(file):
            text, score = row.get(c.text_key), as_score(row.get(c.score_key))
            if not isinstance(text, str):
                raise UserError(f'{file}, row {line} has no text in "{c.text_key}"', hint="--text-key names the field")
            if score is None or not 0 <= score <= HIGHEST:
                told = f'{file}, row {line}: "{c.score_key}" is {row.get(c.score_key)!r}'
                raise UserError(told, hint=f"a number from 0 to {HIGHEST}; --score-key names the field")
            if text.strip():
                texts.append(text)
                scores.append(score)
    if len(texts) < FEWEST:
        raise UserError(f"there are {len(texts)} documents with a score", hint=f"give at least {FEWEST}; FineWeb-Edu had 450,000")
    if min(scores) == max(scores):
        raise UserError(f"all scores are {scores[0]:g}: there is nothing to learn", hint="give documents of different scores")
    return texts, np.array(scores)


def _files(inputs: tuple[Path, ...]) -> Iterator[Path]:
    if not inputs:
        raise UserError("no annotations were given", hint='freedive data edu-train annotations.jsonl, with rows {"text", "score"}')
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path} does not exist", hint='give JSONL or parquet files with rows {"text", "score"}')
        if (path / "annotations.jsonl").is_file():  # made by freedive data annotate
            yield path / "annotations.jsonl"
            continue
        files = text_files(path, JSONL_SUFFIXES + PARQUET_SUFFIXES)
        if path.is_file() and not path.name.lower().endswith(JSONL_SUFFIXES + PARQUET_SUFFIXES):
            raise UserError(f"{path} is neither JSONL nor parquet", hint='rows are {"text", "score"}')
        yield from files


def _train(artefact: Artefact, c: EduTrainConfig, texts: list[str], scores: np.ndarray) -> None:
    parts = np.array([int(text_id(text)[:8], 16) % 10 for text in texts])  # 0: held out; 1: for the choice of the ridge
    for part in (0, 1):
        if not 0 < (parts == part).sum() < (parts != part).sum():
            raise UserError(f"of {len(texts)} documents none can be held out", hint="give more, and different ones")
    matrix: Matrix = _body_features(artefact, c, texts) if c.body is not None else Sparse.of(texts, c.characters)
    learn, choose = np.flatnonzero(parts > 1), np.flatnonzero(parts == 1)
    ridge = _choose(matrix.take(learn[:CHOICE_ROWS]), scores[learn[:CHOICE_ROWS]], matrix.take(choose), scores[choose])
    known = np.flatnonzero(parts > 0)
    weight, bias = list(fit(matrix.take(known), scores[known], [r for r in RIDGES if r >= ridge]))[-1]
    held = np.flatnonzero(parts == 0)
    predicted = matrix.take(held).dot(weight) + bias
    told = report(predicted, scores[held], c.minimum, float(scores[known].mean()))
    _save(artefact, c, *matrix.plain(weight, bias))
    write_json_atomic(artefact.work / "report.json", {**told, "ridge": ridge, "learned_from": len(known)})
    artefact.summary(ridge=ridge, learned_from=len(known), **{name: value for name, value in told.items() if name != "confusion"})
    _print(told, len(known), c)


def _save(artefact: Artefact, c: EduTrainConfig, weight: np.ndarray, bias: float) -> None:
    from safetensors.numpy import save_file

    s = Settings("ngrams" if c.body is None else "model", c.characters, c.tokens)
    save_file({"weight": weight.astype(np.float32)}, str(artefact.work / "model.safetensors"))
    told = {"format": FORMAT, "kind": s.kind, "characters": s.characters, "tokens": s.tokens, "bias": bias}
    write_json_atomic(artefact.work / "edu.json", told)
    if c.body is not None:
        folder = artefact.work / "body"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in [c.body / "config.json", *sorted(c.body.glob("*.safetensors"))]:
            shutil.copyfile(file, folder / file.name)
        shutil.copytree(c.body / "tokenizer", folder / "tokenizer")


# Features


class Sparse:
    """Rows of few features each: `columns` uint32 and `values` float32 end to end, row i from starts[i] to starts[i + 1]."""

    def __init__(self, columns: np.ndarray, values: np.ndarray, starts: np.ndarray):
        self.columns, self.values, self.starts = columns, values, starts
        self.rows = len(starts) - 1
        self._cuts = [0]  # rows at which a block of about BLOCK features begins
        while self._cuts[-1] < self.rows:
            end = int(np.searchsorted(starts, starts[self._cuts[-1]] + BLOCK, "right")) - 1
            self._cuts.append(min(self.rows, max(self._cuts[-1] + 1, end)))

    @staticmethod
    def of(texts: list[str], characters: int) -> Sparse:
        """The n-gram features of the texts."""
        found = [ngram_features(text, characters) for text in progress(texts, len(texts), "edu: words")]
        starts = np.cumsum([0, *(len(columns) for columns, _ in found)])
        return Sparse(np.concatenate([columns for columns, _ in found]), np.concatenate([values for _, values in found]), starts)

    def dot(self, weight: np.ndarray) -> np.ndarray:
        """float64 [N]"""
        out = np.zeros(self.rows)
        for a, b in zip(self._cuts[:-1], self._cuts[1:], strict=True):
            at = slice(self.starts[a], self.starts[b])
            sums = np.concatenate([[0.0], np.cumsum(self.values[at] * weight[self.columns[at]].astype(np.float64))])
            bounds = self.starts[a : b + 1] - self.starts[a]
            out[a:b] = sums[bounds[1:]] - sums[bounds[:-1]]
        return out

    def back(self, residual: np.ndarray) -> np.ndarray:
        """float64 [F]: the transposed product."""
        out = np.zeros(BUCKETS)
        for a, b in zip(self._cuts[:-1], self._cuts[1:], strict=True):
            at = slice(self.starts[a], self.starts[b])
            each = np.repeat(residual[a:b], np.diff(self.starts[a : b + 1]))
            out += np.bincount(self.columns[at], self.values[at] * each, BUCKETS)
        return out

    def take(self, rows: np.ndarray) -> Sparse:
        sizes = np.diff(self.starts)[rows]
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1]) + np.repeat(self.starts[rows] - (ends - sizes), sizes)
        return Sparse(self.columns[places], self.values[places], np.concatenate([[0], ends]))

    def plain(self, weight: np.ndarray, bias: float) -> tuple[np.ndarray, float]:
        return weight, bias


class Dense:
    """Hidden states, each of the features brought to mean 0 and spread 1."""

    def __init__(self, raw: np.ndarray, mean: np.ndarray | None = None, spread: np.ndarray | None = None):
        self.raw, self.rows = raw, len(raw)
        self.mean = raw.mean(0, dtype=np.float64) if mean is None else mean
        self.spread = np.maximum(raw.std(0, dtype=np.float64), 1e-6) if spread is None else spread
        self._plain = (raw - self.mean) / self.spread

    def dot(self, weight: np.ndarray) -> np.ndarray:
        return self._plain @ weight

    def back(self, residual: np.ndarray) -> np.ndarray:
        return residual @ self._plain

    def take(self, rows: np.ndarray) -> Dense:
        return Dense(self.raw[rows], self.mean, self.spread)

    def plain(self, weight: np.ndarray, bias: float) -> tuple[np.ndarray, float]:
        return weight / self.spread, bias - float(self.mean @ (weight / self.spread))


def _body_features(artefact: Artefact, c: EduTrainConfig, texts: list[str]) -> Dense:
    assert c.body is not None
    body = Body(c.body, c.tokens, max(4096, c.tokens), c.threads)
    done = int((artefact.resume or {}).get("done", 0))
    raw = np.zeros((len(texts), body.width), np.float32)
    raw[:done] = artefact.arrays.get("features", raw[:0])[:done]
    with progress.bar(len(texts), "edu: hidden states") as bar:
        bar.advance(done)
        for first in range(done, len(texts), 64):
            last = min(len(texts), first + 64)
            raw[first:last] = body.features(texts[first:last])
            bar.advance(last - first)
            if last // CHECKPOINT_ROWS > first // CHECKPOINT_ROWS:
                artefact.checkpoint({"done": last}, arrays={"features": raw[:last]})
    return Dense(raw)


# The regression


def fit(x: Matrix, scores: np.ndarray, ridges: list[float]) -> Iterator[tuple[np.ndarray, float]]:
    """(weight float64 [F], bias) that minimise mean((x w + b - score)^2) + ridge w.w, for each ridge in turn, the strongest first."""
    mean = float(scores.mean())

    def normal(w: np.ndarray) -> np.ndarray:  # of the centred features, [F]
        ahead = x.dot(w)
        return x.back(ahead - ahead.mean()) / x.rows

    target = x.back(scores - mean) / x.rows
    weight, product = np.zeros(len(target)), np.zeros(len(target))  # product: normal(weight)
    for ridge in ridges:
        # With a residual r the loss is at most |r|^2 / ridge above its least.
        enough = min(TOLERANCE**2 * float(target @ target), GAP * ridge * float(scores.var()))
        residual = target - product - ridge * weight
        direction, size = residual.copy(), float(residual @ residual)
        for _ in range(STEPS):
            if size <= enough:
                break
            ahead = normal(direction)
            step = size / float(direction @ (ahead + ridge * direction))
            weight, product = weight + step * direction, product + step * ahead
            residual -= step * (ahead + ridge * direction)
            size, before = float(residual @ residual), size
            direction = residual + size / before * direction
        yield weight, mean - float(x.dot(weight).mean())


def _choose(x: Matrix, scores: np.ndarray, other: Matrix, truth: np.ndarray) -> float:
    """The ridge whose weights, learned from `x`, are nearest to the truth about `other`."""
    errors = []
    for weight, bias in progress(fit(x, scores, list(RIDGES)), len(RIDGES), "edu: ridge"):
        errors.append(float(np.mean((other.dot(weight) + bias - truth) ** 2)))
    return RIDGES[int(np.argmin(errors))]


# The report


def report(predicted: np.ndarray, truth: np.ndarray, minimum: int, guess: float) -> dict[str, Any]:
    """How near the predicted scores are to the true ones, both [N]; `guess` is what mae_of_the_mean says of everything."""
    whole, right = (np.array([int_score(v) for v in values]) for values in (predicted, truth))
    kept, wanted = whole >= minimum, right >= minimum
    both = int((kept & wanted).sum())
    f1 = 2 * both / max(1, int(kept.sum() + wanted.sum()))
    confusion = np.zeros((HIGHEST + 1, HIGHEST + 1), int)
    np.add.at(confusion, (right, whole), 1)
    still = predicted.std() == 0 or truth.std() == 0
    return {
        "held_out": len(truth),
        "minimum": minimum,
        "f1": f1,
        "precision": both / max(1, int(kept.sum())),
        "recall": both / max(1, int(wanted.sum())),
        "wanted": int(wanted.sum()),
        "mae": float(np.abs(predicted - truth).mean()),
        "mae_of_the_mean": float(np.abs(guess - truth).mean()),
        "correlation": 0.0 if still else float(np.corrcoef(predicted, truth)[0, 1]),
        "confusion": confusion.tolist(),  # [true score][predicted score]
    }


def _print(told: dict[str, Any], learned_from: int, c: EduTrainConfig) -> None:
    print(f"learned from {learned_from:,} documents; on {told['held_out']:,} held out:")
    print(
        f"  score {c.minimum} and more: F1 {told['f1']:.3f} (precision {told['precision']:.3f}, recall {told['recall']:.3f}; {told['wanted']} such)"
    )
    print(f"  mean absolute error {told['mae']:.3f} (always saying the mean: {told['mae_of_the_mean']:.3f}), correlation {told['correlation']:.3f}")
    print(f"then: freedive data INPUT --edu-model {c.out} --edu-min {c.minimum}")
