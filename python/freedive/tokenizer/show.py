"""`freedive tokens`: what a model sees instead of your text (the talk's 1.2, and its puzzles of 2.7): pieces, ids, bytes, count.

Two encodings side by side, a conversation with its loss mask, and why a model can't count letters or dots. For a look, not for
files: a long text's table is cut, its count is not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.runs import UserError, option

from .chat import render
from .colour import segments, to_ansi
from .export import save_hf
from .known import download, find
from .tokenizer import Tokenizer

DOTS = 27  # the talk's row of dots


@dataclass(frozen=True)
class TokensConfig:
    """What `freedive tokens` takes."""

    text: str = option("", "the text; `-` reads it from standard input", positional=True)
    encoding: str = option("o200k_chatml", "name (gpt2, cl100k_base, o200k_base, cl100k_chatml, o200k_chatml, bytes), or a tokenizer, model or GGUF")
    compare: str = option("", "a second encoding, shown beside the first")
    file: Path | None = option(None, "read the text from this file instead")
    chat: bool = option(False, 'the text is a conversation: JSON as [{"role": "user", "content": "..."}], or just what the user says')
    explain: bool = option(False, "say what the pieces mean for counting and spelling; without a text, the talk's puzzles")
    rows: int = option(60, "longest table of tokens; there is none with --compare")
    export: Path | None = option(None, "write the encoding as Hugging Face's tokenizer.json and tokenizer_config.json into this folder")
    download: str = option("", "fetch the rank file of this encoding into tiktoken's cache, checked by its sha256")


def run(c: TokensConfig) -> None:
    """Print. Raises UserError for no text, an unknown encoding, or a conversation that is none."""
    if c.rows < 0:
        raise UserError(f"--rows is {c.rows}", hint="it must be at least 0")
    if c.download:
        print(f"{c.download}: {download(c.download)}")
        if not (c.text or c.file or c.explain or c.export):
            return
    tok = find(c.encoding)
    if c.export is not None:
        if (c.export / "tokenizer.json").exists():
            raise UserError(f"{c.export} holds a tokenizer.json already", hint="choose another folder: freedive never replaces your files")
        save_hf(tok, c.export)
        print(f"{c.encoding} written to {c.export}, for transformers, vLLM and llama.cpp")
        if not (c.text or c.file or c.explain):
            return
    text = _text(c)
    if c.chat:
        if not text:
            raise UserError("there is no conversation", hint='freedive tokens "Hello" --chat')
        if c.compare or c.explain:
            raise UserError("--chat shows one encoding, without --compare and --explain")
        ids, mask = chat_ids(tok, text)
        show(tok, c.encoding, ids, c.rows, mask)
        return
    other = find(c.compare) if c.compare else None
    if other is not None and not text:
        raise UserError("there is no text to compare on", hint='freedive tokens "some text" --compare gpt2')
    if text:
        show(tok, c.encoding, tok.encode(text), 0 if other else c.rows)
    if other is not None:
        show(other, c.compare, other.encode(text), 0)
        print("\n".join(difference(tok, c.encoding, other, c.compare, text)))
    if c.explain:
        print("\n".join(explain(tok, text) if text else puzzles(tok)))


def chat_ids(tok: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """(ids, loss mask) of a conversation given as JSON, or of `text` said by a user; an answer is opened unless there is one."""
    messages: Any
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError):
        messages = None
    if isinstance(messages, dict) and "messages" in messages:
        messages = messages["messages"]
    if not isinstance(messages, list):
        if text.lstrip()[:1] in ("[", "{"):
            raise UserError("the conversation is not JSON", hint='for example [{"role": "user", "content": "Hello"}]')
        messages = [{"role": "user", "content": text}]
    chat = tok.require_chat()
    answered = bool(messages) and isinstance(messages[-1], dict) and messages[-1].get("role") == chat.assistant
    return render(tok, messages, add_generation_prompt=not answered)


def show(tok: Tokenizer, name: str, ids: Sequence[int], rows: int, mask: Sequence[int] | None = None) -> None:
    """The count, the text in pieces, and a table of the tokens."""
    size = len(tok.decode_bytes(ids))
    trained = "" if mask is None else f", {sum(mask)} of them trained"
    print(f"{name}: {len(ids):,} tokens{trained}, {size:,} bytes, {size / max(len(ids), 1):.2f} bytes per token")
    if coloured():
        print(to_ansi(tok, ids, mask))
    else:
        print("|".join(_plain(piece) for piece, _ in segments(tok, ids)))
    if rows:
        print(f"{'id':>8}  {'bytes':<29}{'trained  ' if mask is not None else ''}text")
    for at, token in enumerate(ids[:rows]):
        data = tok.token_bytes(token)
        shown = data.hex(" ") if len(data) <= 8 else data[:8].hex(" ") + f" +{len(data) - 8}"
        flag = "" if mask is None else f"{'yes' if mask[at] else '':<9}"
        print(f"{token:>8}  {shown:<29}{flag}{_plain(data.decode('utf-8')) if _whole(data) else '(part of a character)'}")
    if rows and len(ids) > rows:
        print(f"{'...':>8}  {len(ids) - rows:,} more")


def difference(left: Tokenizer, left_name: str, right: Tokenizer, right_name: str, text: str, most: int = 12) -> list[str]:
    """Where two encodings cut a text differently: each stretch between two cuts that both make, as lines."""
    cuts = []
    for tok in (left, right):
        at, ends = 0, []
        for token in tok.encode(text):
            at += len(tok.token_bytes(token))
            ends.append(at)
        cuts.append(ends)
    if cuts[0][-1:] != cuts[1][-1:]:
        return ["the two encodings do not keep the same bytes (a normalizer, or bytes without a token)"]
    raw = left.decode_bytes(left.encode(text))
    lines, differing, start = [], 0, 0
    for end in sorted(set(cuts[0]) & set(cuts[1])):
        inner = [[start, *(cut for cut in ends if start < cut < end), end] for ends in cuts] if end - start > 1 else []
        if inner and inner[0] != inner[1]:
            differing += 1
            if differing <= most:
                pieces = ["|".join(_plain(raw[a:b].decode("utf-8", "replace")) for a, b in zip(cut, cut[1:], strict=False)) for cut in inner]
                lines.append(f"  {pieces[0]}   {right_name}: {pieces[1]}")
        start = end
    counts = [len(ends) for ends in cuts]
    head = f"{left_name} {counts[0]:,} tokens, {right_name} {counts[1]:,} ({counts[1] / max(counts[0], 1):.2f} times as many); "
    head += f"cut differently in {differing:,} place{'s' if differing != 1 else ''}"
    more = [f"  ... {differing - most:,} more"] if differing > most else []
    return [head, *lines, *more]


def explain(tok: Tokenizer, text: str) -> list[str]:
    """What the pieces of one text mean for a model that should count or spell it, as sentences."""
    ids = tok.encode(text)
    pieces = [piece for piece, _ in segments(tok, ids)]
    lines = [f"{_plain(text)!r}: the model sees {len(ids)} id{'s' if len(ids) != 1 else ''} {_some(ids)}, for {' | '.join(_plain(p) for p in pieces[:12])}"]
    letters = [c for c in dict.fromkeys(text.lower()) if c.isalpha()]
    most = max(letters, key=lambda c: (text.lower().count(c), -letters.index(c)), default="")
    if len(set(text)) == 1 and len(text) > 1:
        lines.append(f"  {len(text)} times {text[0]!r} are {len(ids)} tokens of {', '.join(str(len(p)) for p in pieces[:12])}: nothing in an id says how many it holds.")
    elif most and text.lower().count(most) > 1 and len(pieces) < len(text):
        counts = ", ".join(f"{p.lower().count(most)} in {_plain(p)!r}" for p in pieces[:12])
        lines.append(f"  {text.lower().count(most)} times {most!r}: {counts}. The letters are inside of the ids; to count them it must know each piece's spelling by heart.")
        spelled = " ".join(text)
        lines.append(f"  Spelled out, {_plain(spelled[:40])!r} is {len(tok.encode(spelled))} tokens, about one a letter: that it can count.")
    return lines


def puzzles(tok: Tokenizer) -> list[str]:
    """The talk's puzzles, computed with this encoding."""
    lines = ["Why a model that writes poems stumbles here: it never sees letters, only ids.", ""]
    for text in ("strawberry", "ubiquitous", "." * DOTS):
        lines += explain(tok, text)
    two, three = tok.encode("Hello!!"), tok.encode("Hello!!!")
    same = "as many ids, the last one another" if len(two) == len(three) else f"{len(two)} ids and {len(three)}"
    lines.append(f"'Hello!!' is {two}, 'Hello!!!' is {three}: {same}.")
    forms = ["hello", "Hello", "HELLO", " hello", "hello world", "helloworld"]
    lines.append("One word is many: " + "; ".join(f"{form!r} {tok.encode(form)}" for form in forms))
    numbers = ["9.11", "9.9", "127", "1273", "12735"]
    lines.append("Numbers come in pieces: " + "; ".join("|".join(p for p, _ in segments(tok, tok.encode(n))) for n in numbers))
    if tok.special_tokens:
        name = tok.chat.start if tok.chat else next(iter(tok.special_tokens))
        lines.append(f"{name!r} typed by a user is {len(tok.encode(name))} ordinary tokens; the special token {tok.special(name)} is put there by the program only.")
    return lines


def coloured() -> bool:
    """Whether standard output takes colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _text(c: TokensConfig) -> str:
    if c.file is not None and c.text:
        raise UserError("both a text and --file are given", hint="give one of them")
    if c.file is not None:
        from freedive.data.texts import decode_utf8

        try:
            return decode_utf8(c.file.read_bytes(), c.file)
        except OSError as error:
            raise UserError(f"{c.file} could not be read: {error.strerror}") from None
    if c.text == "-":
        return sys.stdin.read()
    if not c.text and not c.explain:
        raise UserError("there is no text", hint='freedive tokens "some text", --file FILE, - for standard input, or --explain for the talk\'s puzzles')
    return c.text


def _plain(text: str) -> str:
    """Without anything that steers a terminal; line ends and tabs are shown."""
    return "".join({"\n": "↵", "\t": "→"}.get(c, c if c.isprintable() else "·") for c in text)


def _whole(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _some(ids: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, ids[:12])) + (", ...]" if len(ids) > 12 else "]")
