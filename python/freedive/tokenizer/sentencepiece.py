"""SentencePiece's BPE, as Llama 2, TinyLlama and llama2.c use it: pieces with scores, characters first, bytes where there is no piece.

Text gets a space in front, then its characters are joined pair by pair, the pair whose piece has the best score first, leftmost on
ties; a character that has no piece becomes its UTF-8 bytes, which have ids of their own. So two ids can stand for the same byte (the
piece "A" and the byte 0x41), which is why this is no table of ranks for tiktoken.
"""

from __future__ import annotations

import functools
import heapq
import math
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from freedive.runs import UserError

from .chat_config import ChatConfig
from .tokenizer import MAX_IDS, Tokenizer, well_formed

SPACE = "▁"  # how pieces write a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece's types of pieces
_BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")


class SentencePiece(Tokenizer):
    """A Tokenizer of kind "spm". Immutable."""

    def __init__(
        self, pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], *, add_prefix: bool = True, bos: str = "<s>",
        eos: Sequence[str] = ("</s>",), add_bos: bool = True, chat: ChatConfig | None = None,
    ) -> None:  # fmt: skip
        """pieces, scores and types: one per id; spaces may be written as ▁. Raises UserError for a table that cannot encode every text."""
        if not len(pieces) == len(scores) == len(types):
            raise UserError(f"{len(pieces):,} pieces with {len(scores):,} scores and {len(types):,} types")
        if not 1 <= len(pieces) <= MAX_IDS:
            raise UserError(f"a vocabulary of {len(pieces):,} pieces")
        if any(not isinstance(p, str) or not p or well_formed(p) != p for p in pieces):
            raise UserError("a piece is empty or not valid text")
        self.pieces = [p.replace(SPACE, " ") for p in pieces]
        self.add_prefix = add_prefix
        try:
            self.scores, self.types = [float(s) for s in scores], [int(t) for t in types]
        except (OverflowError, TypeError, ValueError) as error:
            raise UserError(f"a score or type is not a number: {error}") from None
        if any(math.isnan(s) for s in self.scores):
            raise UserError("a piece has a score that is no number")
        self.kind, self.pattern, self.chat, self.normalizer, self.missing_bytes = "spm", None, chat, None, b""
        self.vocab_size = len(pieces)
        self._bytes: dict[int, int] = {}
        self._ids: dict[str, int] = {}
        self.special_tokens = {}
        self._table = [None] * self.vocab_size
        for index, (piece, kind) in enumerate(zip(self.pieces, self.types, strict=True)):
            if kind == BYTE:
                named = _BYTE_NAME.fullmatch(piece)
                if named is None:
                    raise UserError(f"the byte piece {index} is called {piece!r:.40}, not <0x..>")
                self._bytes[int(named[1], 16)] = index
                self._table[index] = bytes((int(named[1], 16),))
            elif kind in (CONTROL, UNKNOWN, USER_DEFINED):
                self.special_tokens[piece] = index
                self._table[index] = piece.encode("utf-8")
            elif kind != UNUSED:
                self._ids.setdefault(piece, index)
                self._table[index] = piece.encode("utf-8")
        if len(self._bytes) != 256:
            raise UserError(f"{256 - len(self._bytes)} of the 256 bytes have no piece", hint="vocabularies without byte fallback are not supported")
        for name in (bos, *eos, *((chat.start, chat.end) if chat else ())):
            if name not in self.special_tokens:
                raise UserError(f"there is no special piece {name!r}", hint=f"there are: {', '.join(self.special_tokens)}")
        self.bos, self.eos, self.add_bos = bos, tuple(eos), add_bos
        self.tokens = {p.encode("utf-8"): i for p, i in self._ids.items()}
        for value, index in self._bytes.items():
            self.tokens.setdefault(bytes((value,)), index)
        # Where no piece has a space after something else, nothing is ever joined across such a place, and words can be remembered.
        self._by_word = not any(" " in p.lstrip(" ") for p in self._ids)
        self._word = functools.lru_cache(maxsize=65536)(self._join)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SentencePiece):
            return NotImplemented
        mine, theirs = ((t.pieces, t.scores, t.types, t.add_prefix, t.bos, t.eos, t.add_bos, t.chat) for t in (self, other))
        return mine == theirs

    __hash__ = object.__hash__

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as ordinary text; a space is put in front if the vocabulary was made so."""
        if not isinstance(text, str):
            raise UserError(f"encode needs text (str), got {type(text).__name__}", hint="decode bytes to str first")
        text = well_formed(text)
        if not text:
            return []
        if self.add_prefix:
            text = " " + text
        if not self._by_word:
            return list(self._join(text))
        return [i for word in re.findall(r" *[^ ]+| +$", text) for i in self._word(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; of a whole document, one that begins with bos, without the space that encoding put in front."""
        ids = list(ids)
        if ids and ids[0] == self.bos_id:
            return self.decode_bytes(ids[:1]).decode() + self.decode_bytes(ids[1:]).decode("utf-8", errors="replace").removeprefix(" ")
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, folder: str | Path) -> None:
        from .files import save

        save(self, Path(folder))

    def _join(self, text: str) -> tuple[int, ...]:
        """Merge `text` with a heap of neighbouring pairs; stale entries are known by their lengths."""
        parts = list(text)
        left, right = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))
        heap: list[tuple[float, int, int, int]] = []

        def offer(i: int) -> None:
            j = right[i]
            if j < len(parts) and (found := self._ids.get(parts[i] + parts[j])) is not None:
                heapq.heappush(heap, (-self.scores[found], i, len(parts[i]), len(parts[j])))

        for i in range(len(parts)):
            offer(i)
        while heap:
            _, i, n, m = heapq.heappop(heap)
            j = right[i] if parts[i] else len(parts)
            if len(parts[i]) != n or j >= len(parts) or len(parts[j]) != m or not n or not m:
                continue
            parts[i], parts[j] = parts[i] + parts[j], ""
            right[i] = right[j]
            if right[i] < len(parts):
                left[right[i]] = i
            if left[i] >= 0:
                offer(left[i])
            offer(i)
        ids: list[int] = []
        for part in parts:
            if part:
                found = self._ids.get(part)
                ids += [found] if found is not None else [self._bytes[b] for b in part.encode("utf-8")]
        return tuple(ids)


def from_llama2c(path: str | Path) -> SentencePiece:
    """Read llama2.c's tokenizer.bin: the longest piece's length, then (score float32, length int32, bytes) of each id.

    Raises UserError for a file that is not exactly that.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}") from None
    pieces: list[str] = []
    scores: list[float] = []
    at = 4
    try:
        longest = struct.unpack_from("<i", data)[0]
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            at += 8
            if not 1 <= length <= longest or at + length > len(data):
                raise ValueError(f"piece {len(pieces)} has a length of {length}")
            pieces.append(data[at : at + length].decode("utf-8"))
            scores.append(score)
            at += length
        types = [NORMAL] * len(pieces)
        for index, name in enumerate(("<unk>", "<s>", "</s>")):  # written with line ends around them
            if pieces[index].strip() != name:
                raise ValueError(f"piece {index} is {pieces[index]!r:.40}, not {name}")
            pieces[index], types[index] = name, CONTROL if index else UNKNOWN
        for index in range(3, min(259, len(pieces))):
            types[index] = BYTE
        return SentencePiece(pieces, scores, types)
    except (struct.error, ValueError, IndexError, UserError) as error:
        raise UserError(f"{path} is no llama2.c tokenizer: {error}", hint="it is the tokenizer.bin or tok512.bin that came with the model") from None


def from_hf_model(content: dict[str, Any], specials: dict[str, int], where: str, bos: str | None, eos: Sequence[str], add_bos: bool,
                  chat: ChatConfig | None = None) -> SentencePiece:  # fmt: skip
    """A Hugging Face BPE with byte fallback (Llama 2) as what it was made of: a merge's place is the score of what it makes."""
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    size = 1 + max([*vocab.values(), *specials.values()]) if vocab and all(type(i) is int for i in [*vocab.values(), *specials.values()]) else 0
    if not 0 < size <= MAX_IDS or sorted({*vocab.values(), *specials.values()}) != list(range(size)):
        raise UserError(f"{where}: its ids are not 0 to their number less one")
    pieces, types, scores = [""] * size, [NORMAL] * size, [-float(len(merges) + 1)] * size
    for piece, index in [*vocab.items(), *specials.items()]:
        pieces[index] = piece
        types[index] = CONTROL if piece in specials else BYTE if _BYTE_NAME.fullmatch(piece) else NORMAL
    for place, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        joined = vocab.get("".join(pair)) if len(pair) == 2 and all(isinstance(p, str) for p in pair) else None
        if joined is None:
            raise UserError(f"{where}: merge {place} is not a pair that makes a token: {merge!r:.80}")
        scores[joined] = max(scores[joined], -float(place))
    steps = str(content.get("normalizer")) + str(content.get("pre_tokenizer"))
    prefix = "Prepend" in steps or "'always'" in steps or "'first'" in steps
    try:
        return SentencePiece(pieces, scores, types, add_prefix=prefix, bos=bos or "<s>", eos=[e for e in eos if e in specials] or ["</s>"], add_bos=add_bos,
                             chat=chat)  # fmt: skip
    except UserError as error:
        raise UserError(f"{where}: {error.message}", hint=error.hint) from None
