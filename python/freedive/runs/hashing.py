"""Content hashes: what a run was made from and what it made, independent of where the files lie and when they were written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

# Never part of an artefact's hash: they hold wall-clock numbers.
UNHASHED = frozenset({"timings.jsonl", "report.html"})


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_below(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Relative paths, with forward slashes, of every file below `folder`, sorted."""
    root = Path(folder)
    found = [Path(at, name).relative_to(root).as_posix() for at, _, names in os.walk(root) for name in names]
    return iter(sorted(found))


def folder_hash(folder: str | os.PathLike[str]) -> str:
    """SHA-256 over names and contents of all files below `folder` except UNHASHED; of a file, its file_hash."""
    root = Path(folder)
    if root.is_file():
        return file_hash(root)
    digest = hashlib.sha256()
    for name in files_below(root):
        if name.rsplit("/", 1)[-1] not in UNHASHED:
            digest.update(f"{name}\0{file_hash(root / name)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
