"""Writing files so that a reader sees the old content or the new, never a mixture, whatever moment the process dies at.

The one recipe: write `NAME.tmp`, fsync it, rename it over NAME, fsync the folder. Everything goes through the functions of
`os`, unbuffered, so that the tests can make any single call fail or kill the process at it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import UserError

MAX_WRITE = 1 << 30  # bytes; Linux writes at most 2 GiB - 4 KiB at once


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Makes renames and new names inside `folder` survive a power cut. Windows cannot open folders: nothing to do there."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: str | os.PathLike[str]) -> None:
    """Forces a file written by someone else to the disk."""
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """os.write until everything is written (it may write less than asked)."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view[:MAX_WRITE]) :]


def write_atomic(path: str | os.PathLike[str], chunks: Iterable[bytes | memoryview]) -> None:
    """Replaces `path` by the chunks' bytes, or leaves it as it was and removes the temporary file, to give back its space."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            for chunk in chunks:
                write_all(descriptor, chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def plain(value: Any) -> Any:
    """The value in JSON's own types: NumPy, tuples, paths and dataclasses are unfolded; NaN and infinities become None."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, os.PathLike):
        return Path(value).as_posix()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # NumPy, without importing it
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def json_line(value: Any) -> bytes:
    """One line of a JSONL file."""
    return (json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "surrogatepass")


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as readable JSON, atomically. The same value always gives the same bytes."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    write_atomic(path, [text.encode("utf-8", "surrogatepass")])


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. UserError if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; a JSON file was expected") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}", hint="it was cut short or changed; make it again") from None
