"""Errors for people: a `UserError` is something the user can put right; everything else is a bug in freedive.

The command line prints a UserError's message and hint and ends with code 2, without a traceback. Low-level errors that
are the user's business (a full disk, a folder without write permission) are translated here, in one place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Iterator


class UserError(Exception):
    """What was wrong and the value seen (`message`), and what to do about it (`hint`)."""

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


def is_disk_full(error: BaseException) -> bool:
    """True for a full disk or quota, also when a library wrapped the system's error in its own (safetensors does)."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return not isinstance(error, UserError) and os.strerror(errno.ENOSPC) in str(error)


def disk_full(folder: str | os.PathLike[str], resumes: bool = False) -> UserError:
    """The UserError for a disk that filled up while `folder` was being written; `resumes`: there is a checkpoint to go on from."""
    where = os.path.abspath(folder)
    while not os.path.exists(where):
        where = os.path.dirname(where)
    free = shutil.disk_usage(where).free
    hint = "free some space on that disk and run the same command again" + (": it resumes from the last checkpoint" if resumes else "")
    return UserError(f"the disk is full: {folder} could not be written ({human_bytes(free)} free there)", hint=hint)


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """What the body warns of (UserWarning) is printed as lines `note: ...`, for people, instead of Python's file and line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        print(f"note: {warning.message}")


def human_bytes(count: float) -> str:
    """12345678 -> '11.8 MiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
