"""The sheet that labellers work by: ours, after the structure of InstructGPT's (2203.02155, appendix B: helpful, truthful, harmless, and
what decides between them), or a file of the user's. Judgements carry its hash, so it is known by which sheet each was made."""

from __future__ import annotations

import hashlib
from pathlib import Path

from freedive.runs import UserError

OURS = Path(__file__).with_name("guidelines.md")
MAX_BYTES = 1 << 20


def read_guidelines(path: Path | None = None) -> str:
    """The text of a sheet, Markdown; ours where no path is given. UserError for a file that cannot be one."""
    file = path or OURS
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"the guidelines {file} could not be read: {error.strerror}", hint="a Markdown file of your own") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"the guidelines {file} are larger than {MAX_BYTES >> 20} MiB", hint="nobody would read them")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"the guidelines {file} are not UTF-8 text", hint="a Markdown file of your own") from None
    if not text.strip():
        raise UserError(f"the guidelines {file} are empty", hint="leave it out to have ours")
    return text


def guidelines_hash(text: str) -> str:
    """12 characters that stand for a sheet."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
