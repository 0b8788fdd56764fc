"""A tokenizer's folder: `tokenizer.json` (ours) and `ranks.tiktoken` (OpenAI's format). See docs/tokenizer-format.md.

Nothing in it is executed, and nothing is believed before it is checked: a truncated or mixed-up pair of files would give a
model silently wrong ids (nanochat#291 was a pattern that differed between training and use).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from freedive.runs import UserError

from .chat_config import ChatConfig
from .sentencepiece import SentencePiece, from_llama2c
from .tokenizer import END_OF_TEXT, KINDS, Tokenizer

FORMAT = "freedive-tokenizer-1"
FORMAT_2 = "freedive-tokenizer-2"  # adds keys that a reader must not overlook; written only where they are used
RANKS = "ranks.tiktoken"
CONFIG = "tokenizer.json"


def save(tok: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files into `folder`, the JSON last: without it there is no tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "format": FORMAT,
        "kind": tok.kind,
        "vocab_size": tok.vocab_size,
        "pattern": tok.pattern,
        "special_tokens": dict(sorted(tok.special_tokens.items(), key=lambda item: item[1])),
        "chat": {k: v for k, v in asdict(tok.chat).items() if (k, v) != ("form", "turns")} if tok.chat else None,
    }
    if tok.kind == "bpe":
        ranks = format_ranks(tok.tokens)
        config["ranks_sha256"] = hashlib.sha256(ranks).hexdigest()
        (folder / RANKS).write_bytes(ranks)
    elif isinstance(tok, SentencePiece):
        config.update(pieces=tok.pieces, scores=tok.scores, types=tok.types, add_prefix=tok.add_prefix)
    elif tok.kind == "chars":
        config["characters"] = "".join(token.decode("utf-8") for token, _ in sorted(tok.tokens.items(), key=lambda item: item[1]))
    extra: dict[str, Any] = {"bos": tok.bos, "normalizer": tok.normalizer, "missing_bytes": tok.missing_bytes.hex(),
                             "add_bos": tok.add_bos, "eos": list(tok.eos)}  # fmt: skip
    if extra != _PLAIN:
        config.update(extra, format=FORMAT_2)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def load(folder: Path) -> Tokenizer:
    """Read a tokenizer folder or the `tokenizer/` inside a model folder. Raises UserError saying which file is wrong and how.

    Also a Hugging Face `tokenizer.json`, its folder, or a GGUF file.
    """
    from .imported import from_gguf, from_hf, is_hf

    if folder.is_file() and folder.name.lower().endswith(".gguf"):
        return from_gguf(folder)
    if folder.is_file() and folder.suffix == ".bin":
        return from_llama2c(folder)
    if folder.is_file() and folder.name == CONFIG:
        folder = folder.parent
    if (folder / "tokenizer" / CONFIG).is_file():
        folder = folder / "tokenizer"
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"no tokenizer in {folder}: {CONFIG} is missing",
            hint="make one with: freedive tokenizer --text FILE_OR_FOLDER --out DIR",
        )
    if is_hf(path):
        return from_hf(path)
    config = _read_config(path)
    kind = config["kind"]
    if kind == "spm":
        return _sentencepiece(config, path)
    if kind == "bpe":
        tokens = _read_ranks(folder / RANKS, config)
    elif kind == "bytes":
        tokens = {bytes((b,)): b for b in range(256)}
    else:
        characters = _typed(config, "characters", str, path)
        tokens = {c.encode("utf-8"): i for i, c in enumerate(characters)}
        if len(tokens) != len(characters):
            raise UserError(f"{path}: a character is listed twice")
    try:
        missing = bytes.fromhex(config["missing_bytes"])
        chat = _chat(config["chat"], path)
        bos, normalizer = config["bos"], config["normalizer"]
        tok = Tokenizer(
            kind, tokens, config["special_tokens"], config["pattern"], chat, bos=bos, normalizer=normalizer, missing_bytes=missing,
            add_bos=config["add_bos"], eos=config["eos"],
        )  # fmt: skip
    except UserError as error:
        raise UserError(f"{path}: {error.message}", hint=error.hint) from error
    except ValueError as error:
        raise UserError(f"{path}: 'missing_bytes' is not hexadecimal: {error}", hint=_DAMAGED) from error
    if tok.vocab_size != config["vocab_size"]:
        raise UserError(
            f"{path}: vocab_size is {config['vocab_size']}, but the highest id is {tok.vocab_size - 1}",
            hint="the file was changed",
        )
    return tok


def format_ranks(tokens: dict[bytes, int]) -> bytes:
    """`base64(token) rank` a line, in rank order: OpenAI's own files are exactly this."""
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(tokens.items(), key=lambda item: item[1]))
    return b"".join(lines)


def parse_ranks(data: bytes, path: Path) -> dict[bytes, int]:
    """Inverse of `format_ranks`. Raises UserError with the line number for anything else."""
    ranks: dict[bytes, int] = {}
    used: set[int] = set()
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            word, digits = line.split(b" ")
            token = base64.b64decode(word, validate=True)
            rank = int(digits) if digits.isdigit() else -1
        except (ValueError, binascii.Error) as error:
            raise UserError(f"{path}, line {number}: not 'base64 rank': {line[:60]!r} ({error})", hint=_DAMAGED) from error
        if not token or rank < 0:
            raise UserError(f"{path}, line {number}: not 'base64 rank': {line[:60]!r}", hint=_DAMAGED)
        if token in ranks or rank in used:
            raise UserError(
                f"{path}, line {number}: {'token' if token in ranks else 'rank'} occurs twice: {line[:60]!r}", hint=_DAMAGED
            )
        ranks[token] = rank
        used.add(rank)
    return ranks


_PLAIN: dict[str, Any] = {"bos": END_OF_TEXT, "normalizer": None, "missing_bytes": "", "add_bos": True, "eos": []}
_DAMAGED = "the file is damaged: copy it again, or train the tokenizer again"


def _read_ranks(path: Path, config: dict[str, Any]) -> dict[bytes, int]:
    if not path.is_file():
        raise UserError(f"{path} is missing", hint=_DAMAGED)
    data = path.read_bytes()
    ranks = parse_ranks(data, path)  # first, because it can name a line
    if hashlib.sha256(data).hexdigest() != config["ranks_sha256"]:
        raise UserError(
            f"{path} is not the file that {CONFIG} was written with ({len(ranks):,} ranks; the sha256 differs)", hint=_DAMAGED
        )
    return ranks


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", hint=_DAMAGED) from error
    if not isinstance(config, dict) or config.get("format") not in (FORMAT, FORMAT_2):
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise UserError(f"{path} is format {found!r}, not {FORMAT!r}", hint="give a folder written by freedive tokenizer")
    if config.get("kind") not in (*KINDS, "spm"):
        raise UserError(f"{path}: kind is {config.get('kind')!r}; allowed: {', '.join(KINDS)}")
    _typed(config, "vocab_size", int, path)
    if config["kind"] == "bpe":
        _typed(config, "pattern", str, path)
        _typed(config, "ranks_sha256", str, path)
    else:
        config["pattern"] = None
    _typed(config, "special_tokens", dict, path)
    config.setdefault("chat", None)
    if config["format"] == FORMAT_2:
        for key in ("bos", "missing_bytes"):
            _typed(config, key, str, path)
    else:
        config.update(_PLAIN)
    config = {"normalizer": None, "add_bos": True, "eos": [], **config}
    if not isinstance(config["add_bos"], bool) or not isinstance(config["eos"], list) or any(not isinstance(e, str) for e in config["eos"]):
        raise UserError(f"{path}: 'add_bos' must be true or false, and 'eos' a list of tokens", hint=_DAMAGED)
    return config


def _sentencepiece(config: dict[str, Any], path: Path) -> SentencePiece:
    columns = [_typed(config, key, list, path) for key in ("pieces", "scores", "types")]
    numbers = [v for column in columns[1:] for v in column]
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in numbers):
        raise UserError(f"{path}: a score or type is not a number", hint=_DAMAGED)
    try:
        return SentencePiece(*columns, add_prefix=bool(config.get("add_prefix", True)), bos=config["bos"], eos=config["eos"], add_bos=config["add_bos"],
                             chat=_chat(config["chat"], path))  # fmt: skip
    except UserError as error:
        raise UserError(f"{path}: {error.message}", hint=error.hint) from error


def _typed(config: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    value = config.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(
            f"{path}: {key!r} must be {kind.__name__}, is {value!r:.80}" if key in config else f"{path}: {key!r} is missing",
            hint=_DAMAGED,
        )
    return value


def _chat(value: object, path: Path) -> ChatConfig | None:
    if value is None:
        return None
    known = {f.name for f in fields(ChatConfig)}
    if not isinstance(value, dict) or set(value) - known:
        what = f"unknown keys {sorted(set(value) - known)}" if isinstance(value, dict) else f"is {value!r:.80}"
        raise UserError(f"{path}: 'chat' {what}", hint=f"known keys: {', '.join(sorted(known))}")
    roles = value.get("roles", list(ChatConfig.roles))
    chat = ChatConfig(**{**value, "roles": tuple(roles) if isinstance(roles, list) else ()})
    texts = (chat.start, chat.sep or chat.sep_text, chat.end, chat.assistant, *chat.roles)
    optional = (chat.sep, chat.sep_text, chat.after, chat.default_system)
    wrong = any(not isinstance(t, str) or not t for t in texts) or any(not isinstance(t, str) for t in optional)
    if chat.form not in ("turns", "llama2"):
        raise UserError(f"{path}: the chat form {chat.form!r:.40} is not known", hint="forms: turns, llama2")
    if wrong or not isinstance(chat.bos, bool) or chat.assistant not in chat.roles:
        raise UserError(
            f"{path}: 'chat' needs text for start, sep, end, assistant, true or false for bos, and roles with the assistant in it"
        )
    return chat
