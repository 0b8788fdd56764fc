"""Where raw documents come from: local files and folders, and https://, s3://, hf://, gs:// ... through fsspec (extra [data]).

An input becomes a list of sources in a fixed order; a source is one file, the unit of work. Lists of files as Common Crawl
publishes them (warc.paths.gz) are followed. `remote` has what goes over the network.
"""

from __future__ import annotations

import collections
import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from freedive.runs import UserError, progress

from .remote import LISTING_TRIES, Missing, RemoteError, filesystem, hint, open_remote, patiently, told
from .texts import Zstd, is_artefact, shard_paths, text_files

WARC_SUFFIXES = (".warc", ".wet")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
JSON_SUFFIXES = (".json",)  # JSON Lines under another name, as C4's are, or one array or object
PARQUET_SUFFIXES = (".parquet",)
LIST_SUFFIXES = (".paths", ".paths.gz")
COMPRESSED = (".gz", ".zst")
PLAIN_SUFFIXES = WARC_SUFFIXES + HTML_SUFFIXES + TEXT_SUFFIXES + JSONL_SUFFIXES + JSON_SUFFIXES
SUFFIXES = PLAIN_SUFFIXES + tuple(s + c for s in PLAIN_SUFFIXES for c in COMPRESSED) + PARQUET_SUFFIXES + LIST_SUFFIXES
COMMON_CRAWL = "https://data.commoncrawl.org/"  # what the lines of its lists are relative to
COMMON_CRAWL_FOLDERS = ("crawl-data/", "cc-index/", "contrib/", "projects/")
NOT_DATA = ("get.json", "run.json")  # say how a folder came about


@dataclass(frozen=True)
class Source:
    """One input file. `path` is a local path or a URL, `name` what documents say they come from, `size` bytes (-1: unknown)."""

    path: str
    name: str
    size: int
    version: str = ""  # of a remote file: entity tag or time of change
    form: str | None = None  # kind and compression together (".warc.gz"), where they are known otherwise than by the path's suffix

    @property
    def remote(self) -> bool:
        return is_remote(self.path)

    @property
    def kind(self) -> str:
        """The suffix without compression: ".warc", ".jsonl", ".html", ".parquet" ..., or ""."""
        lower = self._lower
        stem = lower.removesuffix(self.compression) if self.compression else lower
        return next((s for s in PLAIN_SUFFIXES + PARQUET_SUFFIXES if stem.endswith(s)), "")

    @property
    def compression(self) -> str:
        lower = self._lower
        return next((c for c in COMPRESSED if lower.endswith(c)), "")

    @property
    def _lower(self) -> str:
        if self.form is not None:
            return self.form
        return urlsplit(self.path).path.lower() if self.remote else self.path.lower()

    def open(self) -> BinaryIO:
        """The file's bytes as they are, seekable. RemoteError, Missing: of remote files only."""
        return cast(BinaryIO, open_remote(self.path)) if self.remote else open(self.path, "rb")

    def open_plain(self) -> BinaryIO:
        """The file's bytes, decompressed."""
        stream = self.open()
        if self.compression == ".gz":
            return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
        if self.compression == ".zst":
            return cast(BinaryIO, io.BufferedReader(cast(Any, Zstd(stream)), 1 << 20))
        return stream


def is_remote(path: str | os.PathLike[str]) -> bool:
    """True for text such as https://..., s3://... or file://...; never for a Path."""
    return isinstance(path, str) and "://" in path


def sources(inputs: tuple[str | Path, ...]) -> list[Source]:
    """The files of the inputs, each input's sorted by path. UserError: one is missing, or holds no file that can be read."""
    found: list[Source] = []
    for item in inputs:
        found += _remote_sources(str(item)) if is_remote(item) else _local_sources(Path(item))
    return [source for entry in found for source in (_listed(entry) if entry.path.lower().endswith(LIST_SUFFIXES) else [entry])]


def _local_sources(path: Path) -> list[Source]:
    if not path.exists():
        raise UserError(f"{path} does not exist", hint="give files or folders with WARC, HTML, text, parquet or JSONL")
    if is_artefact(path):  # only its shards, not the rejected and the report
        files = shard_paths(path, "train") + shard_paths(path, "val")
    else:
        files = text_files(path, SUFFIXES)
        if path.is_dir():
            every = text_files(path, ("",))
            files = [file for file in files if file.name not in NOT_DATA]
            _tell_left_out(path, {file.as_posix() for file in every if file.name not in NOT_DATA} - {file.as_posix() for file in files})
    return [Source(str(file), file.name if path.is_file() else file.relative_to(path).as_posix(), file.stat().st_size) for file in files]


def _remote_sources(url: str) -> list[Source]:
    try:
        return patiently(lambda: _found(filesystem(url), url), url, LISTING_TRIES, _say)
    except Missing as error:
        cause = error.__cause__ or error
        told_of = "may not be read" if error.reason == "forbidden" else "does not exist"
        raise UserError(f"{url} {told_of}: {error}", hint=hint(cause, url)) from None
    except RemoteError as error:
        raise UserError(str(error), hint=hint(error.__cause__ or error, url)) from None


def _found(fs: Any, url: str) -> list[Source]:
    """The files of an address, which may be a folder or hold a *."""
    if urlsplit(url).scheme in ("http", "https"):
        return [_remote_source(fs, url)]
    root = fs._strip_protocol(url)
    if "*" in root:
        names = sorted(fs.glob(root))
    elif fs.isdir(root):
        every = {name for name in fs.find(root) if name.rpartition("/")[2] not in NOT_DATA}
        names = sorted(name for name in every if name.lower().endswith(SUFFIXES))
        _tell_left_out(url, every.difference(names))
    else:
        names = [root]
    if not names:
        raise UserError(f"{url} holds no file that can be read", hint="looked for " + ", ".join(PLAIN_SUFFIXES + PARQUET_SUFFIXES))
    return [_remote_source(fs, fs.unstrip_protocol(name)) for name in names]


def _tell_left_out(folder: Path | str, names: Iterable[str]) -> None:
    """One line about the files of a folder that are not read, by suffix."""
    counts = collections.Counter(os.path.splitext(name.rpartition("/")[2])[1].lower() or "without suffix" for name in names)
    if counts:
        kinds = [f"{kind} {count:,}" for kind, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        more = [f"{len(kinds) - 8} more kinds"] if len(kinds) > 8 else []
        _say(f"{folder}: {sum(counts.values()):,} files left out: {', '.join(kinds[:8] + more)}; given by name, a file is read as what it looks like")


def _say(text: str) -> None:
    if not progress.quiet:
        print(f"note: {text}", file=sys.stderr)


def _remote_source(fs: Any, url: str) -> Source:
    info = fs.info(url)
    version = next((str(info[key]) for key in ("ETag", "etag", "last_modified", "LastModified", "mtime") if info.get(key)), "")
    size = info.get("size")
    return Source(url, url.split("?")[0], -1 if size is None else int(size), version)


def _listed(entry: Source) -> Iterator[Source]:
    """The files that a list of paths names, one a line: URLs, files beside it, or paths of Common Crawl. UserError for another line."""
    try:
        with entry.open() as stream:
            data = stream.read()
        text = (zlib.decompress(data, 47) if data.startswith(b"\x1f\x8b") else data).decode()
    except (Missing, RemoteError) as error:
        raise UserError(str(error), hint=hint(error.__cause__ or error, entry.path)) from None
    except (OSError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{entry.path} is no list of files: {told(error)}") from None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        near = Path(entry.path).parent / line
        if not line:
            continue
        if is_remote(line):
            yield Source(line, line, -1)
        elif not entry.remote and near.is_file():
            yield Source(str(near), line, near.stat().st_size)
        elif line.lstrip("/").startswith(COMMON_CRAWL_FOLDERS):
            yield Source(COMMON_CRAWL + line.lstrip("/"), line, -1)
        else:
            beside = "no address" if entry.remote else "neither a file beside the list nor an address"
            ways = f"give https://..., s3://... or a path of Common Crawl ({', '.join(COMMON_CRAWL_FOLDERS)})"
            raise UserError(f"{entry.path}, line {number}: {line[:200]} is {beside}", hint=ways)
