"""What the demonstrations start from: an invented web, a tokenizer and a base model trained on it, one for each seed.

The web is the dive's (freedive.tasks), with more people who are read of once or twice, and with tables of contents and word lists, from
which the tokenizer learns runs of dots and the model how words are spelled. No page holds a sum of four numbers, a product, a tool call
or a word about who the model is: those come with the conversations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from freedive.data import stage as data
from freedive.data.stage import DataConfig
from freedive.data.texts import iter_texts
from freedive.pretrain import stage as pretrain
from freedive.pretrain.stage import PretrainConfig
from freedive.runs import json_line, stage, write_atomic
from freedive.tasks import lessons
from freedive.tasks.crawl import SCALES, Scale, crawl_paths, generate_crawl, make_scaled_town
from freedive.tasks.draw import Draw
from freedive.tasks.town import Town
from freedive.tokenizer import stage as tokenizer
from freedive.tokenizer.stage import TokenizerConfig

ORDER_STREAM = 81


@dataclass(frozen=True)
class Size:
    """How much of everything; counts of rows, documents and steps, never seconds."""

    scale: Scale
    contents: int  # documents
    word_lists: int
    vocab_size: int
    depth: int
    context: int
    epochs: float
    batch: int


FULL = Size(
    replace(SCALES["demo"], known=100, rare=140, unseen=90, mentions=80, sum_bytes=150_000, letter_bytes=30_000, docs_bytes=250_000, junk=8, files=2),
    contents=110, word_lists=160, vocab_size=2048, depth=4, context=256, epochs=4.0, batch=2048,
)  # fmt: skip
SMOKE = Size(
    replace(SCALES["smoke"], junk=2, sum_bytes=8000, letter_bytes=3000, docs_bytes=12_000, mentions=36),
    contents=10, word_lists=20, vocab_size=640, depth=2, context=256, epochs=2.0, batch=2048,
)  # fmt: skip


@dataclass(frozen=True)
class WebConfig:
    """What the web depends on."""

    out: Path
    size: Size
    seed: int


def town_of(size: Size, seed: int) -> Town:
    return make_scaled_town(seed, size.scale)


def make_base(out: Path, size: Size, seed: int, threads: int | None) -> Path:
    """Web, tokenizer and base model below `out`, as far as they are not there; returns the model's folder."""
    _web(WebConfig(out / "web", size, seed))
    data.run(DataConfig(inputs=(crawl_paths(out / "web").pages,), out=out / "data", workers=threads or 0))
    _corpus(WebConfig(out / "corpus", size, seed), out / "data")
    corpus = out / "corpus" / "corpus.jsonl"
    tokenizer.run(TokenizerConfig(data=corpus, out=out / "tokenizer", vocab_size=size.vocab_size, seed=seed, threads=threads))
    pretrain.run(PretrainConfig(
        text=corpus, tokenizer=str(out / "tokenizer"), out=out / "base", depth=size.depth, context=size.context, epochs=size.epochs,
        batch_tokens=size.batch, micro_tokens=size.batch, optimizer="adamw", val_fraction=0.02, dtype="auto", seed=seed, threads=threads, samples=2, max_positions=1024,
    ))  # fmt: skip
    return out / "base"


def _web(c: WebConfig) -> None:
    with stage("demos-web", c, out=c.out) as artefact:
        if not artefact.done:
            generate_crawl(artefact.work, c.seed, c.size.scale)


def _corpus(c: WebConfig, cleaned: Path) -> None:
    """The cleaned pages and the lessons, in random order."""
    with stage("demos-corpus", c, out=c.out, inputs={"data": cleaned}) as artefact:
        if not artefact.done:
            texts = [*iter_texts(cleaned), *lessons.contents(c.seed, c.size.contents), *lessons.word_lists(c.seed, c.size.word_lists)]
            write_atomic(artefact.work / "corpus.jsonl", (json_line({"text": text}) for text in Draw(c.seed, ORDER_STREAM).shuffled(texts)))
            artefact.summary(documents=len(texts))
