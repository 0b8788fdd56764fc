"""Make a tokenizer from text: byte-pair merges learned by rustbpe, or the plain bytes, or the characters of a text.

rustbpe counts pairs in 32-bit signed integers and would wrap silently (30 million lines of 80-space indentation are enough, see
huggingface/tokenizers#2058 for the same in its peer), so the text is measured while it streams in and cut before that can happen.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from freedive.runs import UserError

from .chat_config import ChatConfig
from .tokenizer import END_OF_TEXT, MAX_IDS, Tokenizer, well_formed

# Qwen2's split, which llama.cpp knows as "qwen2": GPT-4's, but every digit is a token of its own, which small models add
# better with.
QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TOKENS = ("<|im_start|>", "<|im_sep|>", "<|im_end|>")
# Reserved for tool use (nanochat's names for Python, ours for search), so that a later stage needs no new rows in the embedding.
TOOL_TOKENS = tuple(f"<|{tool}_{edge}|>" for tool in ("python", "output", "search", "results") for edge in ("start", "end"))
DEFAULT_SPECIALS = (END_OF_TEXT, *CHAT_TOKENS, *TOOL_TOKENS)

MAX_PAIR_COUNT = 2**31 - 1
MAX_CHARS = 2_000_000_000  # nanochat's cap; more text hardly changes the merges
_BATCH_BYTES = 4 << 20


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 4096,
    pattern: str = QWEN2_PATTERN,
    special_tokens: Sequence[str] = DEFAULT_SPECIALS,
    max_chars: int = MAX_CHARS,
    max_pair_count: int = MAX_PAIR_COUNT,
) -> Tokenizer:
    """Learn a BPE vocabulary of `vocab_size` ids, specials included (they get the highest ids).

    Ties: the most frequent pair first, then the pair with the smaller ids; the order of the texts doesn't matter. Text that
    can't fill the vocabulary gives a smaller one, with a warning. Raises UserError for a vocabulary too small, no text, or a
    pattern that doesn't parse.
    """
    specials = check_settings(vocab_size, pattern, special_tokens)
    if max_chars < 1:
        raise UserError(f"max_chars is {max_chars}; it must be at least 1")
    if isinstance(texts, str):
        texts = [texts]  # one document, not a million one-letter ones
    try:
        import rustbpe
    except ImportError as error:
        raise UserError(
            "training a BPE tokenizer needs the package rustbpe", hint="pip install rustbpe, or use kind = 'bytes'"
        ) from error

    trainer = rustbpe.Tokenizer()
    guard = _Guard(texts, max_chars, max_pair_count)
    trainer.train_from_iterator(iter(guard), vocab_size - len(specials), pattern=pattern)
    if guard.chars == 0 and guard.stopped:
        raise UserError(f"the first document is too large to train on: {guard.stopped}", hint="split it into several documents")
    if guard.chars == 0:
        raise UserError(
            "there is no text to train a tokenizer on", hint="the corpus is empty; give one with at least a few kilobytes"
        )
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if len(ranks) < vocab_size - len(specials):
        warnings.warn(
            f"{guard.chars:,} characters give only {len(ranks) - 256:,} merges: "
            f"vocab_size is {len(ranks) + len(specials):,}, not {vocab_size:,}",
            stacklevel=2,
        )
    if guard.stopped:
        warnings.warn(f"trained on the first {guard.chars:,} characters: {guard.stopped}", stacklevel=2)
    return Tokenizer("bpe", ranks, _number(specials, len(ranks)), pattern, default_chat(specials))


def check_settings(vocab_size: int, pattern: str, special_tokens: Sequence[str]) -> tuple[str, ...]:
    """Return the special tokens, or raise UserError for settings that `train_tokenizer` can't work with; reads no text."""
    specials = _check_specials(special_tokens)
    minimum = 256 + len(specials)
    if vocab_size < minimum:
        raise UserError(
            f"vocab_size is {vocab_size}; the minimum is {minimum}: 256 bytes and {len(specials)} special tokens",
            hint=f"use at least {minimum}; 4096 suits a million-parameter model",
        )
    if vocab_size > MAX_IDS:
        raise UserError(f"vocab_size is {vocab_size:,}; the maximum is {MAX_IDS:,}")
    byte_tokens = {bytes((b,)): b for b in range(256)}
    Tokenizer("bpe", byte_tokens, _number(specials, 256), pattern)  # parses the pattern, with the same library as rustbpe
    return specials


def byte_tokenizer(special_tokens: Sequence[str] = DEFAULT_SPECIALS) -> Tokenizer:
    """One id per byte, then the specials. Nothing to train, any text encodes, sequences are long."""
    specials = _check_specials(special_tokens)
    return Tokenizer("bytes", {bytes((b,)): b for b in range(256)}, _number(specials, 256), None, default_chat(specials))


def char_tokenizer(text: str | Iterable[str], special_tokens: Sequence[str] = DEFAULT_SPECIALS) -> Tokenizer:
    """One id per character of `text`, in code point order, then the specials. Other characters raise UserError when encoded."""
    specials = _check_specials(special_tokens)
    alphabet: set[str] = set()
    for piece in [text] if isinstance(text, str) else text:
        alphabet.update(well_formed(piece))
    if not alphabet:
        raise UserError("there is no text to take characters from", hint="the corpus is empty")
    characters = sorted(alphabet)
    tokens = {c.encode("utf-8"): i for i, c in enumerate(characters)}
    return Tokenizer("chars", tokens, _number(specials, len(characters)), None, default_chat(specials))


def default_chat(specials: Iterable[str]) -> ChatConfig | None:
    """The talk's chat form if its tokens are there; bos if <|endoftext|> is."""
    names = set(specials)
    return ChatConfig(bos=END_OF_TEXT in names) if names.issuperset(CHAT_TOKENS) else None


class _Guard:
    """Pass texts through until a 32-bit pair count could overflow or `max_chars` is reached.

    Whatever tokens a pair is made of, each of its occurrences is also one of (last byte of the left, first byte of the
    right). The commonest pair of adjacent bytes is therefore an upper bound for every pair count that training will ever
    see.
    """

    def __init__(self, texts: Iterable[str], max_chars: int, max_pair_count: int) -> None:
        self.texts = texts
        self.max_chars = max_chars
        self.max_pair_count = max_pair_count
        self.chars = 0
        self.stopped = ""  # why, if not at the end of the texts
        self._counts = np.zeros(1 << 16, dtype=np.int64)  # occurrences of each pair of adjacent bytes
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            text = well_formed(text)
            room = self.max_chars - self.chars
            if len(text) > room:
                self.stopped = f"max_chars is {self.max_chars:,}"
                text = text[:room]
            encoded = text.encode("utf-8")
            if self._would_overflow(encoded):
                self.stopped = (
                    f"more text, and a pair of bytes could occur over {self.max_pair_count:,} times, the trainer's limit"
                )
                return
            if text:
                self.chars += len(text)
                yield text
            if self.stopped:
                return

    def _would_overflow(self, encoded: bytes) -> bool:
        self._waiting.append(encoded)
        self._waiting_bytes += len(encoded)
        # n bytes hold at most n - 1 of one pair, so counting can wait until the bytes not yet counted could matter or fill a
        # batch
        if self._waiting_bytes < _BATCH_BYTES and int(self._counts.max()) + self._waiting_bytes <= self.max_pair_count:
            return False
        for block in self._waiting:
            values = np.frombuffer(block, dtype=np.uint8)
            for begin in range(0, len(values), _BATCH_BYTES):  # one byte of overlap, so that no pair is lost at a border
                part = values[begin : begin + _BATCH_BYTES + 1].astype(np.uint16)
                self._counts += np.bincount((part[:-1] << 8) | part[1:], minlength=1 << 16)
        self._waiting, self._waiting_bytes = [], 0
        return int(self._counts.max()) > self.max_pair_count


def _check_specials(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or any(not isinstance(n, str) or not n for n in names):
        raise UserError(f"special_tokens must be a list of names, got {names!r}")
    if len(set(names)) != len(names):
        twice = next(n for n in names if list(names).count(n) > 1)
        raise UserError(f"the special token {twice!r} is listed twice")
    return tuple(names)


def _number(names: Sequence[str], first: int) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(names)}
