"""Tokens in colour, for a terminal and for the report, as the talk's viewer shows them.

A character split over several tokens is one coloured segment with several ids: half a character can't be drawn.
"""

from __future__ import annotations

import codecs
import html
from collections.abc import Iterator, Sequence

from .tokenizer import Tokenizer

# Pastel backgrounds under black text: readable on a light and on a dark page, neighbours apart also without colour vision.
HTML_COLOURS = ("#cfe3ff", "#ffe2b8", "#cdf0cf", "#f7cfe0", "#e3d6fa", "#f2f0b5")
ANSI_COLOURS = (153, 223, 151, 218, 183, 229)  # the nearest of the 256-colour palette
_SPECIAL_HTML, _SPECIAL_ANSI = "#4a4a4a", 240


def segments(tok: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Yield (text, its ids): the fewest tokens that end on a whole character. The texts joined are `tok.decode(ids)`."""
    waiting: list[int] = []
    data = b""
    for token in ids:
        special = int(token) in tok.special_ids
        if special and waiting:  # bytes before it stay unfinished
            yield data.decode("utf-8", errors="replace"), waiting
            waiting, data = [], b""
        waiting.append(int(token))
        data += tok.token_bytes(token)
        if not _unfinished(data):
            yield data.decode("utf-8", errors="replace"), waiting
            waiting, data = [], b""
    if waiting:
        yield data.decode("utf-8", errors="replace"), waiting


def to_ansi(tok: Tokenizer, ids: Sequence[int], mask: Sequence[int] | None = None) -> str:
    """The text with a background colour per token (256-colour escape codes); line ends are shown as ↵; trained tokens underlined."""
    out = []
    at = 0
    for number, (text, members) in enumerate(segments(tok, ids)):
        if members[0] in tok.special_ids:
            style = f"\x1b[97;48;5;{_SPECIAL_ANSI}m"
        else:
            style = f"\x1b[30;48;5;{ANSI_COLOURS[number % len(ANSI_COLOURS)]}m"
        if mask is not None and any(mask[at : at + len(members)]):
            style += "\x1b[4m"
        at += len(members)
        # a colour must not run on to the end of the line, and text of the web must not steer the terminal
        shown = "".join(c if c == "\n" or c.isprintable() else "·" for c in text.replace("\r\n", "\n"))
        out.append("\x1b[0m\n".join(style + line for line in shown.replace("\n", "↵\n").split("\n")) + "\x1b[0m")
    return "".join(out)


def to_html(tok: Tokenizer, ids: Sequence[int], mask: Sequence[int] | None = None) -> str:
    """A self-contained <div>: a <span> per token, its ids and bytes as a tooltip; trained tokens (by `mask`) underlined."""
    parts = []
    at = 0
    for number, (text, members) in enumerate(segments(tok, ids)):
        special = members[0] in tok.special_ids
        colour = _SPECIAL_HTML if special else HTML_COLOURS[number % len(HTML_COLOURS)]
        style = f"background:{colour};color:{'#fff' if special else '#111'}"
        if mask is not None and any(mask[at : at + len(members)]):
            style += ";border-bottom:3px solid #c0392b"
        at += len(members)
        data = b"".join(tok.token_bytes(i) for i in members)
        title = f"id {', '.join(map(str, members))} · bytes {data.hex(' ')}"
        shown = html.escape(text).replace("\r", "␍").replace("\n", "↵\n").replace("\t", "→\t")
        parts.append(f'<span style="{style}" title="{title}">{shown}</span>')
    style = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;line-height:1.7"
    return f'<div class="tokens" style="{style}">{"".join(parts)}</div>'


def _unfinished(data: bytes) -> bool:
    """True if `data` ends within a character which more bytes could complete."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return bool(decoder.getstate()[0])
