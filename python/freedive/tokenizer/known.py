"""OpenAI's published vocabularies, offline: gpt2, cl100k_base, o200k_base, the last two also with chat tokens.

The rank files are found where a machine already has them (tiktoken's cache, or an installed package that carries them) and
checked by sha256 before use. Only `download`, which somebody has to ask for, uses the network; nothing is copied into freedive.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freedive.runs import UserError, write_atomic

from .chat_config import ChatConfig
from .files import format_ranks, parse_ranks
from .tokenizer import END_OF_TEXT, Tokenizer

_BASE = "https://openaipublic.blob.core.windows.net/"
# address under _BASE and sha256 of the file; tiktoken's cache calls each file sha1(address)
_FILES = {
    "cl100k": ("encodings/cl100k_base.tiktoken", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
    "o200k": ("encodings/o200k_base.tiktoken", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    "p50k": ("encodings/p50k_base.tiktoken", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"),
    "r50k": ("encodings/r50k_base.tiktoken", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
    "vocab.bpe": ("gpt-2/encodings/main/vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    "encoder.json": ("gpt-2/encodings/main/encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
}
# packages that carry rank files under tiktoken's cache names; found by path, never imported
_CARRIERS = (("llama_index", "core/_static/tiktoken_cache"), ("litellm", "litellm_core_utils/tokenizers"))

_MAX_BYTES = 1 << 26  # the largest rank file has 3.6 MB

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
O200K_PATTERN = "|".join(
    [
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)


@dataclass(frozen=True)
class _Known:
    ranks: str
    pattern: str
    special_tokens: tuple[tuple[str, int], ...]
    chat: ChatConfig | None = None


def _chatml(first: int) -> tuple[tuple[str, int], ...]:
    # ids from dqbd/tiktokenizer (the viewer shown in the talk), not from OpenAI
    return (("<|im_start|>", first), ("<|im_end|>", first + 1), ("<|im_sep|>", first + 2))


_CL100K_SPECIALS = (
    (END_OF_TEXT, 100257),
    ("<|fim_prefix|>", 100258),
    ("<|fim_middle|>", 100259),
    ("<|fim_suffix|>", 100260),
    ("<|endofprompt|>", 100276),
)
_O200K_SPECIALS = ((END_OF_TEXT, 199999), ("<|endofprompt|>", 200018))
_NO_BOS = ChatConfig(bos=False)
_KNOWN = {
    "gpt2": _Known("r50k", GPT2_PATTERN, ((END_OF_TEXT, 50256),)),
    "cl100k_base": _Known("cl100k", CL100K_PATTERN, _CL100K_SPECIALS),
    "o200k_base": _Known("o200k", O200K_PATTERN, _O200K_SPECIALS),
    "cl100k_chatml": _Known("cl100k", CL100K_PATTERN, (*_CL100K_SPECIALS, *_chatml(100264)), _NO_BOS),
    "o200k_chatml": _Known("o200k", O200K_PATTERN, (*_O200K_SPECIALS, *_chatml(200264)), _NO_BOS),
}


@functools.lru_cache(maxsize=8)
def get(name: str) -> Tokenizer:
    """Return a published tokenizer by name. UserError for an unknown name, or if its rank file is not on this machine."""
    if name not in _KNOWN:
        raise UserError(f"no published tokenizer is called {name!r}", hint=f"known names: {', '.join(_KNOWN)}")
    known = _KNOWN[name]
    ranks = _gpt2_ranks() if known.ranks == "r50k" else _read(known.ranks)
    if ranks is None:
        address, _ = _FILES[known.ranks]
        raise UserError(
            f"the ranks of {name} are not on this machine, and freedive downloads nothing by itself",
            hint="pip install --no-deps llama-index-core (cl100k, o200k) or litellm (these and gpt2), or run: freedive tokens "
            f"--download {name}, or save {_BASE}{address} as {_cache_name(known.ranks)} in a folder and set TIKTOKEN_CACHE_DIR",
        )
    return Tokenizer("bpe", ranks, dict(known.special_tokens), known.pattern, known.chat)


def names() -> tuple[str, ...]:
    """The names that `get` knows."""
    return tuple(_KNOWN)


def find(name: str | Path) -> Tokenizer:
    """A tokenizer by name (`gpt2`, `o200k_chatml`, `bytes`, ...) or from a path: a tokenizer or model folder, a `tokenizer.json`, a GGUF file.

    Raises UserError.
    """
    if Path(name).exists():
        return Tokenizer.load(name)
    if str(name) == "bytes":
        from .train import byte_tokenizer

        return byte_tokenizer()
    if os.sep in str(name) or str(name).endswith((".gguf", ".json")):
        raise UserError(f"no such file or folder: {name}", hint=f"or a name: bytes, {', '.join(_KNOWN)}")
    return get(str(name))


def download(name: str, base: str = _BASE, timeout: float = 60.0) -> Path:
    """Fetch the rank file of a published tokenizer into tiktoken's cache and return its path; one that is there is left alone.

    The file is written only if its sha256 is the published one. Raises UserError without network, or for other bytes.
    """
    if name not in _KNOWN:
        raise UserError(f"no published tokenizer is called {name!r}", hint=f"known names: {', '.join(_KNOWN)}")
    ranks = _KNOWN[name].ranks
    address, expected = _FILES[ranks]
    path = next(_folders()) / _cache_name(ranks)
    if _find(ranks) is not None:
        return path
    import urllib.request  # as slow to import as half of freedive

    try:
        with urllib.request.urlopen(base + address, timeout=timeout) as answer:
            data = answer.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{base}{address} could not be fetched: {error}", hint="pip install --no-deps llama-index-core carries some of them"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise UserError(f"{base}{address} has the sha256 {found[:16]}..., not {expected[:16]}...; nothing was written")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, [data])
    get.cache_clear()
    return path


def _gpt2_ranks() -> dict[bytes, int] | None:
    """r50k from its own file, or from p50k (whose ranks below 50256 are r50k's), or from the two files GPT-2 came with."""
    ranks = _read("r50k")
    if ranks is None and (p50k := _read("p50k")) is not None:
        ranks = {token: rank for token, rank in p50k.items() if rank < 50256}
    if ranks is None and (merges := _find("vocab.bpe")) and (encoder := _find("encoder.json")):
        ranks = _data_gym_ranks(merges, encoder)
    if ranks is not None and hashlib.sha256(format_ranks(ranks)).hexdigest() != _FILES["r50k"][1]:
        raise UserError("the GPT-2 ranks rebuilt from this machine's files are not OpenAI's")
    return ranks


def _data_gym_ranks(merges: bytes, encoder: bytes) -> dict[bytes, int]:
    """GPT-2's `vocab.bpe` writes each byte as a printable character; rank = its place in `encoder.json`."""
    byte_of = byte_of_character()
    ids = json.loads(encoder)
    words = [*byte_of, *("".join(line.split()) for line in merges.decode("utf-8").splitlines()[1:] if line)]
    return {bytes(byte_of[c] for c in word): ids[word] for word in words}


@functools.cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's printable character -> the byte that it stands for."""
    from .export import byte_characters

    return {character: value for value, character in enumerate(byte_characters())}


def _read(name: str) -> dict[bytes, int] | None:
    data = _find(name)
    return None if data is None else parse_ranks(data, Path(_cache_name(name)))


def _find(name: str) -> bytes | None:
    """Contents of the first copy whose sha256 is right; a wrong one is passed over, never deleted (tiktoken would)."""
    for folder in _folders():
        path = folder / _cache_name(name)
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if hashlib.sha256(data).hexdigest() == _FILES[name][1]:
            return data
    return None


def _cache_name(name: str) -> str:
    return hashlib.sha1((_BASE + _FILES[name][0]).encode(), usedforsecurity=False).hexdigest()


def _folders() -> Iterator[Path]:
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):  # tiktoken's own order
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    yield Path(tempfile.gettempdir()) / "data-gym-cache"
    for package, inside in _CARRIERS:
        try:
            spec = importlib.util.find_spec(package)  # of a top-level name: imports nothing
        except (ImportError, ValueError):
            continue
        for location in (spec.submodule_search_locations or []) if spec else []:
            yield Path(location) / inside
