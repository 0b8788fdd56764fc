"""Where raw documents come from: local files and folders, and https://, s3://, hf://, gs:// ... through fsspec (extra [data]).

An input becomes a list of sources in a fixed order; a source is one file, the unit of work. Lists of files as Common Crawl
publishes them (warc.paths.gz) are followed.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from freedive.runs import UserError

from .texts import Zstd, is_artefact, shard_paths, text_files

WARC_SUFFIXES = (".warc", ".wet")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)
LIST_SUFFIXES = (".paths", ".paths.gz")
COMPRESSED = (".gz", ".zst")
PLAIN_SUFFIXES = WARC_SUFFIXES + HTML_SUFFIXES + TEXT_SUFFIXES + JSONL_SUFFIXES
SUFFIXES = PLAIN_SUFFIXES + tuple(s + c for s in PLAIN_SUFFIXES for c in COMPRESSED) + PARQUET_SUFFIXES + LIST_SUFFIXES
COMMON_CRAWL = "https://data.commoncrawl.org/"  # what the lines of its lists are relative to
# protocol -> what to install for it
PACKAGES = {
    "http": "fsspec aiohttp",
    "https": "fsspec aiohttp",
    "s3": "fsspec s3fs",
    "s3a": "fsspec s3fs",
    "gs": "fsspec gcsfs",
    "hf": "fsspec huggingface-hub",
}


class RemoteError(Exception):
    """The network failed, which says nothing about the file: try again."""


@dataclass(frozen=True)
class Source:
    """One input file. `path` is a local path or a URL, `name` what documents say they come from, `size` bytes (-1: unknown)."""

    path: str
    name: str
    size: int
    version: str = ""  # of a remote file: entity tag or time of change

    @property
    def remote(self) -> bool:
        return is_remote(self.path)

    @property
    def kind(self) -> str:
        """The suffix without compression: ".warc", ".jsonl", ".html", ".parquet" ..., or ""."""
        lower = urlsplit(self.path).path.lower() if self.remote else self.path.lower()
        stem = lower.removesuffix(self.compression) if self.compression else lower
        return next((s for s in PLAIN_SUFFIXES + PARQUET_SUFFIXES if stem.endswith(s)), "")

    @property
    def compression(self) -> str:
        lower = urlsplit(self.path).path.lower() if self.remote else self.path.lower()
        return next((c for c in COMPRESSED if lower.endswith(c)), "")

    def open(self) -> BinaryIO:
        """The file's bytes as they are, seekable. OSError of a remote file is a RemoteError."""
        if not self.remote:
            return open(self.path, "rb")
        try:
            return cast(BinaryIO, _Remote(_filesystem(self.path), self.path))
        except OSError as error:
            raise RemoteError(f"{self.path}: {error}") from error

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
    # of a folder that `freedive data` wrote only the shards, not the rejected and the report
    files = shard_paths(path, "train") + shard_paths(path, "val") if is_artefact(path) else text_files(path, SUFFIXES)
    return [Source(str(file), file.name if path.is_file() else file.relative_to(path).as_posix(), file.stat().st_size) for file in files]


def _remote_sources(url: str) -> list[Source]:
    fs = _filesystem(url)
    try:
        if urlsplit(url).scheme in ("http", "https"):
            return [_remote_source(fs, url)]
        root = fs._strip_protocol(url)
        if "*" in root:
            names = sorted(fs.glob(root))
        elif fs.isdir(root):
            names = sorted(name for name in fs.find(root) if name.lower().endswith(SUFFIXES))
        else:
            names = [root]
        if not names:
            raise UserError(f"{url} holds no file that can be read", hint="looked for " + ", ".join(PLAIN_SUFFIXES + PARQUET_SUFFIXES))
        return [_remote_source(fs, fs.unstrip_protocol(name)) for name in names]
    except OSError as error:
        told = "does not exist" if isinstance(error, FileNotFoundError) else f"could not be read: {error}"
        raise UserError(f"{url} {told}", hint="check the address, the network and your credentials") from None


def _remote_source(fs: Any, url: str) -> Source:
    info = fs.info(url)
    version = next((str(info[key]) for key in ("ETag", "etag", "last_modified", "LastModified", "mtime") if info.get(key)), "")
    size = info.get("size")
    return Source(url, url.split("?")[0], -1 if size is None else int(size), version)


def _listed(entry: Source) -> Iterator[Source]:
    """The files that a list of paths names, one a line: URLs, or paths of Common Crawl."""
    try:
        with entry.open() as stream:
            data = stream.read()
        lines = (zlib.decompress(data, 47) if data.startswith(b"\x1f\x8b") else data).decode().split()
    except (OSError, zlib.error, UnicodeDecodeError, RemoteError) as error:
        raise UserError(f"{entry.path} is no list of files: {error}") from None
    for line in lines:
        near = Path(entry.path).parent / line
        if is_remote(line):
            yield Source(line, line, -1)
        elif not entry.remote and near.is_file():
            yield Source(str(near), line, near.stat().st_size)
        else:
            yield Source(COMMON_CRAWL + line.lstrip("/"), line, -1)


def _filesystem(url: str) -> Any:
    scheme = urlsplit(url).scheme
    package = PACKAGES.get(scheme, "fsspec")
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)[0]
    except ImportError:
        raise UserError(f"reading {scheme}:// needs packages that are not installed", hint=f"pip install {package}") from None
    except ValueError as error:
        raise UserError(f"{url} cannot be read: {error}", hint=f"known: {', '.join(sorted(PACKAGES))}") from None


class _Remote(io.BufferedReader):
    """A remote file whose network errors are RemoteErrors."""

    def __init__(self, fs: Any, url: str):
        super().__init__(cast(Any, _Raw(fs.open(url, "rb", block_size=8 << 20))), 1 << 20)


class _Raw(io.RawIOBase):
    def __init__(self, file: Any):
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:  # aiohttp, botocore, ... each have their own
            raise RemoteError(f"{type(error).__name__}: {error}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
