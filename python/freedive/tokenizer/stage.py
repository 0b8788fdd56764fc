"""`freedive tokenizer`: documents in, a tokenizer folder out, and how well it compresses text that it has not seen.

A data artefact brings its own held-out shards; of other text every 20th document is held out, or of fewer documents each
one's last 20th.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freedive.data.texts import is_artefact, iter_texts, shard_paths
from freedive.runs import UserError, check_at_least, notes, option, progress, stage

from .colour import segments, to_ansi
from .tokenizer import Tokenizer, encode_documents
from .train import DEFAULT_SPECIALS, MAX_CHARS, QWEN2_PATTERN, byte_tokenizer, char_tokenizer, check_settings, train_tokenizer

HELD_OUT_EVERY = 20
HELD_OUT_CHARS = 1_000_000
SAMPLE_CHARS = 240


@dataclass(frozen=True)
class TokenizerConfig:
    """What `freedive tokenizer` takes."""

    data: Path | None = option(None, "folder made by `freedive data`")
    text: Path | None = option(None, "your own text instead: a .txt, .md or .jsonl(.gz) file, or a folder of these")
    out: Path = option(Path("runs/tokenizer"), "folder to write")
    kind: Literal["bpe", "bytes", "chars"] = option("bpe", "bpe learns pieces of words; bytes and chars have nothing to learn")
    vocab_size: int = option(4096, "number of ids, special tokens included (bpe)")
    pattern: str = option(QWEN2_PATTERN, "regular expression that splits text before merging (bpe)")
    special_tokens: tuple[str, ...] = option(DEFAULT_SPECIALS, "names of the special tokens")
    max_chars: int = option(MAX_CHARS, "learn from at most this many characters (bpe)")
    seed: int = option(0, "which of every 20 documents is held out, where the data has no held-out part")
    threads: int | None = option(None, "CPU threads for measuring; the default is all")
    force: bool = option(False, "replace a finished run with other settings")
    dry_run: bool = option(False, "check the input and say what would be done")


def run(config: TokenizerConfig) -> Path:
    """Make the tokenizer and return its folder. Raises UserError for input that can't be read or settings that can't work."""
    check_at_least(config, 1, "threads", "max_chars")
    source = _source(config)
    if config.dry_run:
        _dry_run(config, source)
        return config.out
    inputs = {"data": config.data, "text": config.text}
    with stage("tokenizer", config, out=config.out, inputs=inputs, force=config.force) as run:
        if run.done:
            print(f"{config.out} is finished already: nothing to do")
            return run.out
        held: list[str] = []
        with notes():
            tok = _make(config, source, held)
        tok.save(run.work)
        run.summary(kind=tok.kind, vocab_size=tok.vocab_size)
        print(f"tokenizer: {tok.vocab_size:,} ids ({_what(tok)}, {len(tok.special_tokens)} special tokens)")
        held = [text for text in held if text]
        if held:
            size = sum(len(text.encode("utf-8", "replace")) for text in held)
            count = sum(len(ids) for ids in encode_documents(tok, held, config.threads))
            run.summary(held_out_bytes=size, held_out_tokens=count, bytes_per_token=round(size / count, 4))
            print(f"held-out text: {size:,} bytes in {count:,} tokens, {size / count:.2f} bytes per token")
            print(sample(tok, held[0]))
    print(f"written to {config.out}")
    return run.out


def hold_out(texts: Iterable[str], held: list[str], seed: int = 0) -> Iterator[str]:
    """Yield the texts to learn from and put the others into `held`, at most HELD_OUT_CHARS."""
    texts = iter(texts)
    first = list(itertools.islice(texts, HELD_OUT_EVERY))
    room = HELD_OUT_CHARS
    for number, text in enumerate(itertools.chain(first, texts)):
        if len(first) < HELD_OUT_EVERY:
            cut = len(text) - min(len(text) // HELD_OUT_EVERY, room)
            held.append(text[cut:])
            room -= len(text) - cut
            yield text[:cut]
        elif number % HELD_OUT_EVERY == seed % HELD_OUT_EVERY and len(text) <= room:
            held.append(text)
            room -= len(text)
        else:
            yield text


def sample(tok: Tokenizer, text: str) -> str:
    """The beginning of `text` with its tokens coloured, or between bars where there are no colours."""
    ids = tok.encode(text[:SAMPLE_CHARS].strip() or text[:SAMPLE_CHARS])
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return to_ansi(tok, ids)
    return "|".join(piece for piece, _ in segments(tok, ids))


def _source(config: TokenizerConfig) -> Path | None:
    if config.data is not None and config.text is not None:
        raise UserError("both --data and --text are given", hint="give one of them")
    source = config.data if config.data is not None else config.text
    if source is None and config.kind != "bytes":
        raise UserError(
            "there is nothing to learn from", hint="give --data FOLDER (made by freedive data) or --text FILE_OR_FOLDER"
        )
    return source


def _make(config: TokenizerConfig, source: Path | None, held: list[str]) -> Tokenizer:
    texts: Iterable[str] = ()
    if source is not None and is_artefact(source) and shard_paths(source, "val"):
        texts = iter_texts(source)
        room = HELD_OUT_CHARS
        for text in iter_texts(source, "val"):
            held.append(text[:room])
            room -= len(held[-1])
            if room == 0:
                break
    elif source is not None:
        texts = hold_out(iter_texts(source), held, config.seed)
    if config.kind == "bytes":
        for _ in texts:  # read it all the same: it is measured, and what can't be read must be said
            pass
        return byte_tokenizer(config.special_tokens)
    texts = progress(texts, None, "tokenizer")
    if config.kind == "bpe":
        return train_tokenizer(texts, config.vocab_size, config.pattern, config.special_tokens, config.max_chars)
    # held-out text has to be encodable too, so its characters count; `held` grows while `texts` is read
    return char_tokenizer(itertools.chain(texts, (text for text in held)), config.special_tokens)


def _dry_run(config: TokenizerConfig, source: Path | None) -> None:
    if config.kind == "bpe":
        check_settings(config.vocab_size, config.pattern, config.special_tokens)
    if source is not None:
        next(iter_texts(source))
    what = f"learn {config.vocab_size:,} ids from {source}" if config.kind == "bpe" else f"make a {config.kind} tokenizer"
    print(f"would {what} and write {config.out}")


def _what(tok: Tokenizer) -> str:
    if tok.kind == "bpe":
        return f"256 bytes, {len(tok.tokens) - 256:,} merges"
    return "256 bytes" if tok.kind == "bytes" else f"{len(tok.tokens):,} characters"
