"""The Tokenizer: ordinary text -> ids, ids -> text, and a table of what each id stands for.

It may touch tiktoken and NumPy, nothing else of freedive but errors. Encoding is tiktoken's (about 3 M tokens/s on one
core); decoding is a table of bytes, because a model may have id holes (cl100k has 16) and a library that panics on one would
take the run with it.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from freedive.runs import UserError, default_threads

from .chat_config import ChatConfig

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
KINDS = ("bpe", "bytes", "chars")
MAX_IDS = 1 << 24  # a table larger than any published vocabulary (o200k: 200,265 ids) is a damaged file, not a tokenizer


def well_formed(text: str) -> str:
    """Return `text` with lone surrogates (which JSON can carry and UTF-8 can not) replaced by U+FFFD, as tiktoken does."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Tokenizer:
    """Text <-> ids. Immutable; made by `train_tokenizer`, `byte_tokenizer`, `char_tokenizer`, `get` or `Tokenizer.load`."""

    def __init__(
        self,
        kind: str,
        tokens: Mapping[bytes, int],  # ordinary tokens: for bpe the ranks, for bytes and chars one entry a byte or character
        special_tokens: Mapping[str, int],
        pattern: str | None = None,
        chat: ChatConfig | None = None,
        *,
        bos: str = END_OF_TEXT,  # name of the special token that stands before every document
        normalizer: str | None = None,  # a Unicode form applied before encoding; Qwen's vocabularies ask for "NFC"
        missing_bytes: bytes = b"",  # bpe: byte values that no token holds (SmolLM2 lacks 21); they are left out when encoding
        add_bos: bool = True,  # whether a text to continue begins with bos; published models say so in their files
        eos: Sequence[str] = (),  # special tokens that end what a model writes, besides bos and the chat form's end
    ) -> None:
        """Check the table and build the encoder. Raises UserError for a table that can't encode, or ids that collide."""
        self.kind = kind
        self.bos = bos
        self.normalizer = normalizer
        self.missing_bytes = bytes(sorted(missing_bytes))
        self.add_bos, self.eos = add_bos, tuple(eos)
        self.tokens = dict(tokens)
        self.special_tokens = dict(special_tokens)
        self.pattern = pattern
        self.chat = chat
        _check_table(self)
        self.vocab_size = 1 + max([*self.tokens.values(), *self.special_tokens.values()])
        self._table: list[bytes | None] = [None] * self.vocab_size
        for token, index in self.tokens.items():
            self._table[index] = token
        for name, index in self.special_tokens.items():
            self._table[index] = name.encode("utf-8")
        if kind == "bpe":
            self._encoding = _tiktoken_encoding(self)
        elif kind == "chars":
            self._char_ids = {token.decode("utf-8"): index for token, index in self.tokens.items()}

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size}, special_tokens={len(self.special_tokens)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        mine, theirs = (
            (t.kind, t.tokens, t.special_tokens, t.pattern, t.chat, t.bos, t.normalizer, t.missing_bytes, t.add_bos, t.eos)
            for t in (self, other)
        )
        return mine == theirs

    __hash__ = object.__hash__

    # -- text to ids ----------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` as ordinary text: no string gives a special token, and nothing is ever added."""
        if not isinstance(text, str):
            raise UserError(f"encode needs text (str), got {type(text).__name__}", hint="decode bytes to str first")
        if self.normalizer:
            text = unicodedata.normalize(self.normalizer, text)  # type: ignore[arg-type]
        if self.kind == "bpe":
            try:
                ids = self._encoding.encode_ordinary(text)
            except BaseException as error:
                raise _told(error, self) from None
            if self.missing_bytes and any(i >= self.vocab_size for i in ids):
                return _encode_without(self, text)
            return ids
        text = well_formed(text)
        if self.kind == "bytes":
            return list(text.encode("utf-8"))
        try:
            return [self._char_ids[c] for c in text]
        except KeyError as error:
            raise UserError(
                f"{error.args[0]!r} (U+{ord(error.args[0]):04X}) is not among this tokenizer's {len(self.tokens)} characters",
                hint="characters come from the training text only; use kind = 'bpe' or 'bytes' for text of any kind",
            ) from None

    def encode_array(self, text: str) -> np.ndarray:
        """Return the ids of `text` as an array in `self.dtype`; for large texts the faster way, and it lets other threads run."""
        if self.kind == "bpe" and isinstance(text, str) and not self.missing_bytes and not self.normalizer:
            try:
                ids = self._encoding.encode_to_numpy(well_formed(text), allowed_special=set(), disallowed_special=())
            except BaseException as error:
                raise _told(error, self) from None
        elif self.kind == "bytes" and isinstance(text, str) and not self.normalizer:
            ids = np.frombuffer(well_formed(text).encode("utf-8"), np.uint8)
        else:
            ids = np.asarray(self.encode(text), dtype=np.uint32)
        return ids.astype(self.dtype, copy=False)

    # -- ids to text ----------------------------------------------------------------------------------------------------

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one id (a special token: its name). Raises UserError for an id that stands for nothing."""
        index = int(token)
        found = self._table[index] if 0 <= index < self.vocab_size else None
        if found is None:
            what = "is a hole in" if 0 <= index < self.vocab_size else "is outside of"
            raise UserError(
                f"token id {index} {what} this vocabulary (ids 0 to {self.vocab_size - 1})",
                hint="mask logits with tok.vocab_mask",
            )
        return found

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of `ids`, joined."""
        return b"".join([self.token_bytes(i) for i in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder which takes ids one at a time and gives whole characters."""
        return StreamDecoder(self)

    # -- what is in it --------------------------------------------------------------------------------------------------

    @cached_property
    def vocab_mask(self) -> np.ndarray:
        """uint8 [vocab_size]: 1 where an id stands for something, 0 at holes."""
        mask = np.array([entry is not None for entry in self._table], dtype=np.uint8)
        mask.flags.writeable = False
        return mask

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type which holds every id: uint16 up to 65,536 ids, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        return frozenset(self.special_tokens.values())

    def special(self, name: str) -> int:
        """Return the id of a special token. Raises UserError naming those that exist."""
        if name not in self.special_tokens:
            known = ", ".join(self.special_tokens) or "none"
            raise UserError(f"this tokenizer has no special token {name!r}", hint=f"its special tokens: {known}")
        return self.special_tokens[name]

    @property
    def bos_id(self) -> int:
        """Id of the token that stands before every document: <|endoftext|>, or what a published vocabulary has instead."""
        return self.special(self.bos)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end what a model writes, sorted: the token between documents, the end of a turn, and the model's own."""
        names = {self.bos, *self.eos, *([self.chat.end] if self.chat else [])}
        return tuple(sorted(self.special_tokens[n] for n in names if n in self.special_tokens))

    def document_ids(self, text: str) -> list[int]:
        """The ids of a text that a model shall continue: with bos in front if the model was made so, or where there is nothing else."""
        ids = self.encode(text)
        return ids if ids and not self.add_bos else [self.bos_id, *ids]

    @property
    def im_start(self) -> int:
        """Id that opens a turn of a conversation."""
        return self.special(self.require_chat().start)

    @property
    def im_sep(self) -> int:
        """Id between a turn's role and its content. UserError where plain text stands between them (ChatML)."""
        return self.special(self.require_chat().sep)

    @property
    def im_end(self) -> int:
        """Id that ends a turn: what an assistant must learn to say."""
        return self.special(self.require_chat().end)

    def require_chat(self) -> ChatConfig:
        """Return the chat form, or raise UserError if this tokenizer has none."""
        if self.chat is None:
            raise UserError(
                "this tokenizer has no chat form", hint="take one with chat tokens: a trained one, or get('o200k_chatml')"
            )
        return self.chat

    # -- files ----------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and, for bpe, `ranks.tiktoken` (docs/tokenizer-format.md)."""
        from .files import save

        save(self, Path(folder))

    @staticmethod
    def load(folder: str | Path) -> Tokenizer:
        """Read a tokenizer folder, or the `tokenizer/` inside a model folder. Everything is checked; raises UserError.

        Published tokenizers are read too: Hugging Face's `tokenizer.json` (the file or its folder), and the one in a GGUF file.
        """
        from .files import load

        return load(Path(folder))


class StreamDecoder:
    """Ids in, text out, whole UTF-8 characters only: joined, the pieces equal `tok.decode(ids)`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Take one id, return the characters which it completes (possibly none)."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """End the stream: an unfinished character becomes U+FFFD. The decoder can be used again."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


_CHUNK_CHARS = 1 << 18  # of text that a thread takes at once; a task a document would cost more than short documents do


def encode_documents(tok: Tokenizer, texts: Iterable[str], threads: int | None = None, fast: bool = False) -> list[np.ndarray]:
    """Return one array of ids per text, in `tok.dtype`, in the order of the texts whatever the number of threads.

    `fast` uses the package gigatoken, if it is installed and gives this tokenizer's ids on the golden texts (`accelerate.py`);
    a note says why not otherwise.
    """
    if threads is None:
        threads = default_threads()
    if fast and tok.kind == "bpe":
        from .accelerate import accelerated

        encode_batch = accelerated(tok)
        if encode_batch is not None:
            return encode_batch(list(texts), threads)
    if threads <= 1 or tok.kind != "bpe":  # bytes and chars are Python loops: threads would only queue for the interpreter
        return [tok.encode_array(text) for text in texts]

    from concurrent.futures import ThreadPoolExecutor  # brings logging: 8 ms

    def encode(chunk: list[str]) -> list[np.ndarray]:
        return [tok.encode_array(text) for text in chunk]

    with ThreadPoolExecutor(threads) as pool:
        return [ids for chunk in pool.map(encode, _chunks(texts)) for ids in chunk]


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encode_without(tok: Tokenizer, text: str) -> list[int]:
    """Encode text that holds bytes which the vocabulary lacks: they are left out of each piece after the split and before
    merging, as Hugging Face's tokenizers do. Slow; such text is a few control characters in a web page.
    """
    import regex  # tiktoken depends on it

    # Python calls the separators 0x1c to 0x1f white space, Unicode and Rust do not
    pattern = (tok.pattern or "").replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}")
    ids: list[int] = []
    for match in regex.finditer(pattern, well_formed(text)):
        piece = match.group().encode("utf-8").translate(None, tok.missing_bytes)
        parts = [piece] if piece in tok.tokens else byte_pairs(piece, tok.tokens, tok.vocab_size)
        ids.extend(tok.tokens[part] for part in parts)
    return ids


def byte_pairs(data: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """BPE of `data` with merges of rank < limit: always the lowest rank, leftmost first."""
    parts = [data[i : i + 1] for i in range(len(data))]
    found = [ranks.get(data[i : i + 2], limit) for i in range(len(data) - 1)]  # the rank of each neighbouring pair
    while found:
        best = min(found)
        if best >= limit:
            break
        at = found.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del found[at]
        if at > 0:
            found[at - 1] = ranks.get(parts[at - 1] + parts[at], limit)
        if at < len(found):
            found[at] = ranks.get(parts[at] + parts[at + 1], limit)
    return parts


def _check_table(tok: Tokenizer) -> None:
    if tok.kind not in KINDS:
        raise UserError(f"unknown kind of tokenizer {tok.kind!r}", hint=f"allowed: {', '.join(KINDS)}")
    ids = [*tok.tokens.values(), *tok.special_tokens.values()]
    if not ids:
        raise UserError("a tokenizer needs at least one token")
    if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= MAX_IDS:
        bad = next(i for i in ids if type(i) is not int or not 0 <= i < MAX_IDS)
        raise UserError(f"token id {bad!r} is not a whole number from 0 to {MAX_IDS - 1}")
    if len(set(ids)) != len(ids):
        seen: set[int] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise UserError(f"token id {twice} stands for two tokens")
    if "" in tok.special_tokens or b"" in tok.tokens:
        raise UserError("a token can't be empty")
    if any(well_formed(name) != name for name in tok.special_tokens):
        raise UserError("the name of a special token is not valid Unicode")
    if tok.kind in ("bpe", "bytes"):
        missing = [b for b in range(256) if bytes((b,)) not in tok.tokens]
        if missing != list(tok.missing_bytes):
            odd = sorted(set(missing) ^ set(tok.missing_bytes))
            raise UserError(f"{len(odd)} of the 256 single bytes have no token (the first: 0x{odd[0]:02x})")
    if tok.kind == "bytes" and any(tok.tokens[bytes((b,))] != b for b in range(256)):
        raise UserError("in a bytes tokenizer the id of a byte is its value")
    if tok.normalizer not in (None, "NFC", "NFD", "NFKC", "NFKD"):
        raise UserError(f"unknown normalizer {tok.normalizer!r}", hint="allowed: NFC, NFD, NFKC, NFKD or none")
    if any(name not in tok.special_tokens for name in tok.eos):
        raise UserError(f"the tokens that end a text, {', '.join(tok.eos)}, are not all among the special tokens")
    if tok.bos != END_OF_TEXT and tok.bos not in tok.special_tokens:
        raise UserError(f"the token before documents, {tok.bos!r}, is not among the special tokens")
    if tok.chat is not None:
        names = {"start": tok.chat.start, "sep": tok.chat.sep, "end": tok.chat.end}
        if not tok.chat.sep and tok.chat.sep_text:
            del names["sep"]
        if tok.chat.bos:
            names["bos"] = tok.bos
        for role, name in names.items():
            if name not in tok.special_tokens:
                raise UserError(
                    f"the chat form's {role} token {name!r} is not among the special tokens",
                    hint=f"there are: {', '.join(tok.special_tokens)}",
                )
        if len({tok.chat.start, tok.chat.sep, tok.chat.end}) < 3:
            raise UserError("the chat form's start, sep and end tokens must be three different tokens")


def _told(error: BaseException, tok: Tokenizer) -> BaseException:
    """A panic of tiktoken's as a sentence: it has no answer to a split pattern that finds an empty piece, and its regular expressions give up on
    hundreds of thousands of spaces in a row. Any other error as it is.
    """
    if type(error).__name__ != "PanicException":
        return error
    if "StackOverflow" in str(error):
        return UserError("the text holds more white space in a row than the split pattern can look through", hint="shorten it, or encode it in parts")
    return UserError("the tokenizer's split pattern finds pieces without a character", hint=f"pattern: {(tok.pattern or '')[:200]}")


def _tiktoken_encoding(tok: Tokenizer) -> tiktoken.Encoding:
    import tiktoken  # 40 ms: not paid by `import freedive`

    if not tok.pattern:
        raise UserError("a bpe tokenizer needs the split pattern which it was trained with")
    # the library needs all bytes: absent ones get ids above all others, which never leave `encode`
    ranks = tok.tokens | {bytes((b,)): tok.vocab_size + n for n, b in enumerate(tok.missing_bytes)}
    try:
        return tiktoken.Encoding("freedive", pat_str=tok.pattern, mergeable_ranks=ranks, special_tokens=tok.special_tokens)
    except ValueError as error:
        raise UserError(
            f"the split pattern is not a valid regular expression: {error}", hint=f"pattern: {tok.pattern[:200]}"
        ) from error
