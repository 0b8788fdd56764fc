"""FineWeb's URL filter: six checks of a page's address against lists of domains, URLs and words (datatrove's `URLFilter`).

The recipe's lists hold 4.56 million domains, so a set of them would cost every run half a gigabyte and seconds. Here they are
hashed once per machine into a sorted table of 64-bit keys in the user's cache folder, which all processes map: 8 bytes a line.
A page is taken for a listed one by mistake about once in 10^12 lookups.

Lists are plain text, one entry a line, `#` for comments, named `domains`, `urls`, `banned_words`, `banned_subwords` and
`soft_banned_words` (with or without .txt), in a folder or a tar archive, at any depth; several of one name are joined.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from freedive.runs import UserError, option, write_atomic

LISTS = ("domains", "urls", "banned_words", "banned_subwords", "soft_banned_words")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
SOFT_WORDS = 2  # different soft words that remove a page
BLOCK = 1 << 20  # bytes
FORMAT = 1  # of the table in the cache folder
_ODD = re.compile(rb"[\0# \t]")  # a comment, a blank, or no text: looked at line by line
_NO_WORD = re.compile(r"[^a-zA-Z0-9]+")


@dataclass(frozen=True)
class UrlRules:
    """The lists, by where they are and, for the recipe, a hash of what they hold."""

    path: Path = option(hash=False)
    digest: str = ""
    soft_words: int = SOFT_WORDS


@dataclass(frozen=True)
class UrlLists:
    """Lists ready for look-up. `keys`: sorted uint64 [entries], of domains and URLs together."""

    keys: Any
    banned_words: frozenset[str]
    banned_subwords: tuple[str, ...]
    soft_banned_words: frozenset[str]
    suffixes: Any  # URL -> its parts, by the public suffix list that tldextract carries

    def has(self, kind: str, entry: str) -> bool:
        """Whether the list of that kind ("domains" or "urls") holds the entry."""
        key = int.from_bytes(_hash(kind, entry.encode("utf-8", "replace")), "little")
        place = bisect.bisect_left(self.keys, key)
        return place < len(self.keys) and self.keys[place] == key


def url_filter(url: str, rules: UrlRules) -> str:
    """The first of the checks that `url` fails, or "": domain, subdomain, url, hard_blacklisted, soft_blacklisted, blacklisted_subword.

    Capitals count in all but the last, as in datatrove. A host without a public suffix, such as an IP address, has no domain.
    """
    return check(url, load(rules), rules.soft_words)


def check(url: str, lists: UrlLists, soft_words: int = SOFT_WORDS) -> str:
    """`url_filter` with lists at hand."""
    domain, host = _hosts(url, lists.suffixes)
    if domain and lists.has("domains", domain):
        return "domain"
    if host and lists.has("domains", host):
        return "subdomain"
    if lists.has("urls", url):
        return "url"
    words = set(_NO_WORD.split(url))
    if not words.isdisjoint(lists.banned_words):
        return "hard_blacklisted"
    if len(words & lists.soft_banned_words) >= soft_words:
        return "soft_blacklisted"
    letters = _NO_WORD.sub("", url).lower()
    return "blacklisted_subword" if any(word in letters for word in lists.banned_subwords) else ""


def _hosts(url: str, suffixes: Any) -> tuple[str, str]:
    """(registered domain, full host name) of a URL: ("example.co.uk", "www.example.co.uk"), or ""."""
    try:
        parts = suffixes(url)
    except ValueError:  # brackets that are no IPv6 address
        return "", ""
    if not (parts.suffix and parts.domain):
        return "", ""
    domain = f"{parts.domain}.{parts.suffix}"
    return domain, f"{parts.subdomain}.{domain}" if parts.subdomain else domain


# Finding and loading


def find(mode: str, path: Path | None, preset: str) -> tuple[UrlRules | None, str]:
    """(rules, "") if the filter is to run, else (None, why not, for people).

    `mode` "auto": where `path` is given, or with a fineweb preset if an installed datatrove carries lists. UserError for lists that
    are not there or cannot be used, and if "on" finds none.
    """
    if mode == "off" or mode == "auto" and path is None and not preset.startswith("fineweb"):
        return None, ""
    where = path or _installed()
    hint = "--url-lists PATH: a folder or tar archive with domains, urls, banned_words ...; or pip install datatrove, which carries FineWeb's"
    if where is None:
        if mode == "on":
            raise UserError("there are no lists for the URL filter", hint=hint)
        return None, f"no URL filter, for lack of lists ({hint})"
    if importlib.util.find_spec("tldextract") is None:
        if mode == "on" or path is not None:
            raise UserError("the URL filter needs the package tldextract, which is not installed", hint="pip install tldextract")
        return None, "no URL filter: it needs the package tldextract (pip install tldextract)"
    rules = UrlRules(where, _digest(where))
    load(rules)
    return rules, ""


def _installed() -> Path | None:
    """The folder of lists of an installed datatrove, which is not imported."""
    package = importlib.util.find_spec("datatrove")
    folder = Path(package.origin).parent / "assets" if package and package.origin else None
    return folder if folder is not None and folder.is_dir() else None


@functools.lru_cache(maxsize=2)
def load(rules: UrlRules) -> UrlLists:
    """The lists, from the table in the cache folder or, the first time on a machine, from the files. UserError if they are bad."""
    import tldextract

    suffixes = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    table = _cache() / f"{rules.digest}-{FORMAT}"
    made = _read_table(table)
    if made is None:
        made = read_lists(rules.path)
        if _digest(rules.path) != rules.digest:  # on another machine, or just now
            raise UserError(
                f"the lists for the URL filter in {rules.path} are not those that the run began with", hint="start over with one set of lists"
            )
        with contextlib.suppress(OSError):  # without a place to keep it, the table is made again next time
            _write_table(table, *made)
            made = _read_table(table) or made
    keys, words = made
    return UrlLists(
        memoryview(keys),  # type: ignore[arg-type]  # an array is a buffer
        frozenset(words["banned_words"]),
        tuple(words["banned_subwords"]),
        frozenset(words["soft_banned_words"]),
        suffixes,
    )


def read_lists(path: Path) -> tuple[np.ndarray, dict[str, list[str]]]:
    """(uint64 keys of domains and URLs, sorted; the word lists, sorted and stripped to a-z and 0-9) of a folder or archive."""
    keys = bytearray()
    words: dict[str, set[str]] = {name: set() for name in LISTS[2:]}
    for file in _paths(path):
        try:
            for where, name, stream in _streams(file):
                for entries in _entries(where, stream, one_word=name == "domains"):
                    if name in words:
                        words[name].update(_NO_WORD.sub("", entry.decode()).lower() for entry in entries)
                    else:
                        keys += b"".join([_hash(name, entry) for entry in entries])
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise UserError(f"the lists for the URL filter in {file} could not be read: {error}", hint="a folder or a whole tar archive") from None
    if not keys and not any(words.values()):
        raise UserError(f"{path} holds no list for the URL filter, or only empty ones", hint=f"looked for files named {', '.join(LISTS)}")
    return np.unique(np.frombuffer(keys, "<u8")), {name: sorted(found - {""}) for name, found in words.items()}


def _hash(kind: str, entry: bytes) -> bytes:
    return hashlib.blake2b(entry, digest_size=8, person=kind.encode()).digest()


def _entries(where: str, stream: IO[bytes], one_word: bool) -> Iterator[list[bytes]]:
    """Entries of one list, some thousand at a time; UserError for what is no text, and for `one_word` with blanks inside, which would
    never match anything."""
    number = 0
    while lines := stream.readlines(BLOCK):
        text = b"".join(lines)
        if text.isascii() and not _ODD.search(text):  # nearly always
            yield text.split()
        else:
            yield [entry for at, line in enumerate(lines, number + 1) if (entry := _entry(f"line {at} of the list {where}", line, one_word))]
        number += len(lines)


def _entry(where: str, line: bytes, one_word: bool) -> bytes:
    entry = line.strip()
    if line.startswith(b"#"):
        return b""
    wrong = "is no text" if b"\0" in entry else ""
    try:
        text = entry.decode("utf-8")
        if one_word and len(text.split()) > 1:
            wrong = wrong or f"is more than a domain: {text[:60]!r}"
    except UnicodeDecodeError:
        wrong = wrong or "is not UTF-8"
    if wrong:
        raise UserError(f"{where} {wrong}", hint="one entry a line, UTF-8")
    return entry


def _paths(path: Path) -> list[Path]:
    """The list files and archives of a folder, or the archive itself."""
    if not path.exists():
        raise UserError(f"the lists for the URL filter are not at {path}", hint="--url-lists takes a folder or a tar archive")
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file() and (_list_name(p.name) or p.name.endswith(ARCHIVES)))
    return [path]


def _list_name(name: str) -> str:
    stem = os.path.basename(name).removesuffix(".txt")
    return stem if stem in LISTS else ""


def _streams(file: Path) -> Iterator[tuple[str, str, IO[bytes]]]:
    """(where it is, name of the list, its bytes) of the list, or of every list of the archive."""
    if name := _list_name(file.name):
        with open(file, "rb") as stream:
            yield str(file), name, stream
        return
    with tarfile.open(file) as archive:
        for member in archive:
            if (name := _list_name(member.name)) and member.isfile():
                part = archive.extractfile(member)
                assert part is not None  # of a regular file
                yield f"{file}:{member.name}", name, part


def _digest(path: Path) -> str:
    """One hash over the names and bytes of all list files."""
    total = hashlib.sha256()
    for file in _paths(path):
        inner = hashlib.sha256()
        try:
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    inner.update(block)
        except OSError as error:
            raise UserError(f"the lists for the URL filter in {file} could not be read: {error.strerror}") from None
        total.update((_list_name(file.name) or "archive").encode() + inner.digest())
    return total.hexdigest()[:32]


# The table in the cache folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freedive" / "url-lists"


def _read_table(table: Path) -> tuple[np.ndarray, dict[str, list[str]]] | None:
    try:
        told = json.loads(table.with_suffix(".json").read_bytes())
        keys = np.load(table.with_suffix(".npy"), mmap_mode="r")
        if keys.dtype == np.uint64 and len(keys) == told["entries"]:
            return keys, {name: list(told[name]) for name in LISTS[2:]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _write_table(table: Path, keys: np.ndarray, words: dict[str, list[str]]) -> None:
    """Under a name of this process's own first: several may come here at once."""
    table.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, keys)
    for suffix, data in ((".npy", buffer.getbuffer()), (".json", json.dumps({"entries": len(keys), **words}).encode())):
        mine = table.with_name(f"{table.name}.{os.getpid()}")
        write_atomic(mine, [data])
        os.replace(mine, table.with_suffix(suffix))
