"""Files over the network, through fsspec (extra [data]): opened and read with patience, and errors told in words.

What passes (a 503 or 429, a connection cut off, a name server that is silent) is tried again after a growing wait with chance in it, or after the
server's Retry-After, for at most `patience` seconds in a row. What does not pass is a `Missing` (404, 403: the file is to blame) or a RemoteError.
"""

from __future__ import annotations

import http
import io
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from freedive.runs import UserError

T = TypeVar("T")
PATIENCE = 120.0  # seconds
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between two tries: doubled from the first to the longest
BLOCK = 8 << 20  # bytes asked for at once
LISTING_TRIES = 3  # of an address that no server answers at: most often it is mistyped
PASSING = (408, 425, 429, 500, 502, 503, 504)
GONE = {401: "forbidden", 403: "forbidden", 404: "not_found", 410: "not_found"}  # status -> reason of the waterfall
# protocol -> what to install for it
PACKAGES = {
    "http": "fsspec aiohttp",
    "https": "fsspec aiohttp",
    "s3": "fsspec s3fs",
    "s3a": "fsspec s3fs",
    "gs": "fsspec gcsfs",
    "hf": "fsspec huggingface-hub",
}
LIBRARIES = ("aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "httpcore", "httpx", "huggingface_hub", "requests", "urllib3")
patience = PATIENCE  # of this process; set by `be_patient`


class RemoteError(Exception):
    """The network failed, which says nothing about the file. `tried`: again and again, as long as `patience` says."""

    def __init__(self, text: str, tried: bool = False):
        super().__init__(text, tried)
        self.text, self.tried = text, tried

    def __str__(self) -> str:
        return self.text


class Missing(Exception):
    """The file is not there, or not for us. `reason`: not_found or forbidden."""

    def __init__(self, text: str, reason: str):
        super().__init__(text, reason)
        self.text, self.reason = text, reason

    def __str__(self) -> str:
        return self.text


def be_patient(seconds: float) -> None:
    """For how long this process tries again what the network refuses."""
    global patience
    patience = seconds


def filesystem(url: str) -> Any:
    """fsspec's file system of an address. UserError: its package is not installed, or the protocol is unknown."""
    scheme = urlsplit(url).scheme
    package = PACKAGES.get(scheme, "fsspec")
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)[0]
    except ImportError:
        raise UserError(f"reading {scheme}:// needs packages that are not installed", hint=f"pip install {package}") from None
    except ValueError as error:
        raise UserError(f"{url} cannot be read: {error}", hint=f"known: {', '.join(sorted(PACKAGES))}") from None
    except Exception as error:  # those of the protocol's package
        raise UserError(f"{url} could not be read: {told(error, url)}", hint=hint(error, url)) from None


def patiently(do: Callable[[], T], url: str, tries: float = float("inf"), say: Callable[[str], None] | None = None) -> T:
    """do(), again and again while the network fails in a way that passes. RemoteError, Missing, or a UserError of do() itself.

    `tries`: the most where nobody answers at all; `say` is told of every wait.
    """
    end, wait = time.monotonic() + patience, FIRST_WAIT
    tried = 0
    while True:
        try:
            return do()
        except (UserError, RemoteError, Missing, MemoryError):
            raise
        except Exception as error:
            tried += 1
            reason = missing(error)
            if reason:
                raise Missing(told(error, url), reason) from error
            left = end - time.monotonic()
            if not passes(error) or left <= 0 or status(error) is None and tried >= tries:
                again = f" (tried {tried} times)" if tried > 1 else ""
                raise RemoteError(f"{url} could not be read: {told(error, url)}{again}", tried=left <= 0) from error
            pause = min(left, max(wait * random.uniform(0.5, 1.5), _retry_after(error)))
            if say is not None and pause >= 1:
                say(f"{url}: {told(error, url)}; trying again in {pause:.0f} s")
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)


def open_remote(url: str) -> io.BufferedReader:
    """The bytes of a remote file, seekable if the server gives parts of files. Missing, RemoteError, UserError."""
    fs = filesystem(url)
    return io.BufferedReader(cast(Any, _Raw(patiently(lambda: _opened(fs, url), url), url)), 1 << 20)


def _opened(fs: Any, url: str) -> Any:
    file = fs.open(url, "rb", block_size=BLOCK)
    if type(file).__name__ == "HTTPFile" and file.size > BLOCK:
        try:
            file._fetch_range(1, 2)
        except ValueError:  # the server gives the whole file only, which fsspec finds out at the second block
            return fs.open(url, "rb", block_size=0)
    return file


def status(error: BaseException) -> int | None:
    """The HTTP status behind an exception of any of the LIBRARIES."""
    for part in _chain(error):
        answer = getattr(part, "response", None)
        if isinstance(answer, dict):  # botocore
            found = (answer.get("ResponseMetadata") or {}).get("HTTPStatusCode")
        else:
            found = getattr(part, "status", None) or getattr(answer, "status_code", None) or getattr(part, "code", None)
        if isinstance(found, int) and 400 <= found < 600:
            return found
    return None


def missing(error: BaseException) -> str:
    """not_found or forbidden if the server (or the file system) says so of the file, else nothing."""
    code = status(error)
    if code is not None:
        return GONE.get(code, "")
    inner = [*_chain(error)][1:]
    if isinstance(error, FileNotFoundError) and not any(_of_network(part) for part in inner):
        return "not_found"
    return "forbidden" if isinstance(error, PermissionError) else ""


def passes(error: BaseException) -> bool:
    """True if the same may work later."""
    code = status(error)
    if code is not None:
        return code in PASSING
    parts = [*_chain(error)]
    return any(_of_network(part) for part in parts) and not any(_ours(part) for part in parts)


def told(error: BaseException, url: str = "") -> str:
    """What happened, in words: the status, or the first sentence of the exceptions that is not just the address."""
    code = status(error)
    if code is not None:
        phrase = http.HTTPStatus(code).phrase if code in set(http.HTTPStatus) else "an unknown status"
        return f"the server says {code} {phrase}"
    parts = [*_chain(error)]
    names = next((part for part in parts if isinstance(part, socket.gaierror)), None)
    if names is not None and urlsplit(url).hostname:
        return f"the address of {urlsplit(url).hostname} is not found ({names.strerror or names})"
    for part in parts:
        text = str(part).strip()
        if text and text.rstrip("/") not in url and not (isinstance(part, FileNotFoundError) and len(parts) > 1):
            return text.splitlines()[0][:200]
    last = parts[-1]
    return "no such file" if isinstance(last, FileNotFoundError) else type(last).__name__


def hint(error: BaseException, url: str) -> str:
    """What to do about it."""
    scheme = urlsplit(url).scheme
    if scheme in ("s3", "s3a") and (missing(error) == "forbidden" or any("Credential" in type(part).__name__ for part in _chain(error))):
        own = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or run `aws configure`"
        return f"{own}; open data often has an https address too (s3://commoncrawl/... is https://data.commoncrawl.org/...)"
    if scheme == "hf":
        return "check the name and the network; sets that ask for it need `hf auth login`"
    return "check the address, the network and your credentials"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it came from, the outermost first."""
    seen: set[int] = set()
    part: BaseException | None = error
    while part is not None and id(part) not in seen:
        seen.add(id(part))
        yield part
        part = part.__cause__ or (None if part.__suppress_context__ else part.__context__)


def _of_network(error: BaseException) -> bool:
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    return isinstance(error, (OSError, TimeoutError)) or type(error).__module__.partition(".")[0] in LIBRARIES


def _ours(error: BaseException) -> bool:
    """What trying again does not mend: no credentials, a certificate that is not trusted, a wrong address."""
    return any(word in type(error).__name__ for word in ("Credential", "Certificate", "InvalidURL", "InvalidUrl", "Validation", "ParamError"))


def _retry_after(error: BaseException) -> float:
    """Seconds that the server asks for, at most a minute."""
    for part in _chain(error):
        headers: Any = getattr(part, "headers", None) or {}
        value = headers.get("Retry-After", "") if hasattr(headers, "get") else ""
        if isinstance(value, str) and value.isdigit():
            return min(float(value), 60.0)
    return 0.0


class _Raw(io.RawIOBase):
    """A file of fsspec whose failed reads are tried again where it can go on from a place, and are RemoteErrors in the end."""

    def __init__(self, file: Any, url: str):
        self._file, self._url = file, url
        self._parts = type(file).__name__ != "HTTPStreamFile"  # which says that it can seek, and cannot

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._parts and bool(self._file.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        def read() -> bytes:
            return cast(bytes, self._file.read(len(buffer)))

        try:
            if self._parts:
                data = patiently(read, self._url)
            else:
                data = read()
        except (RemoteError, MemoryError):
            raise
        except Exception as error:  # aiohttp, botocore, ... each have their own; a file that vanishes while it is read is no Missing either
            raise RemoteError(f"{self._url} could not be read: {told(error, self._url)}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
