"""One process at a time per output folder: a lock file `OUT.lock` beside it, holding the writer's process id.

The lock itself is the kernel's (fcntl.lockf), so it disappears with the process, however that ends, and a lock file left by
a dead process is taken over. lockf rather than flock, because forked workers must not inherit it: they would keep a killed
run locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows: only the check within this process remains
    fcntl = None  # type: ignore[assignment]

_held: set[str] = set()  # kernel record locks do not exclude a process from itself


@contextlib.contextmanager
def locked(out: str | os.PathLike[str]) -> Iterator[None]:
    """Holds `OUT.lock`. UserError if another process (or another part of this one) is writing OUT."""
    path = os.path.realpath(out) + ".lock"
    if path in _held:
        raise _busy(out, os.getpid())
    _held.add(path)
    try:
        descriptor = _acquire(path, out)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # gone already: somebody tidied up by hand
                os.unlink(path)
            os.close(descriptor)
    finally:
        _held.discard(path)


def _acquire(path: str, out: str | os.PathLike[str]) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, NotADirectoryError) as error:  # no place for files: /proc
            raise UserError(f"{out} cannot be written: {error.strerror or error}", hint="choose another --out") from None
        try:
            if fcntl is not None:
                try:
                    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EAGAIN):
                        raise _busy(out, _pid(path)) from None
                    if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without locks: go on
                        raise
            # The previous holder may have removed the file between our open and our lock: then the name is free again.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()}\n".encode())
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _pid(path: str) -> int | None:
    try:
        return int(Path(path).read_text().strip())
    except (OSError, ValueError):
        return None


def _busy(out: str | os.PathLike[str], pid: int | None) -> UserError:
    who = f"process {pid}" if pid else "another process"
    return UserError(f"{who} is writing {out} right now", hint="wait for it to end, stop it, or choose another --out")
