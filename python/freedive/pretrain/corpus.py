"""Text into token arrays: which documents train and which are held out, and the tokenizer a run uses."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from freedive.data.texts import is_artefact, iter_texts
from freedive.data.token_shards import TokenShards, is_shards
from freedive.runs import UserError, notes
from freedive.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, encode_documents, find, train_tokenizer
from freedive.train import Documents


@dataclass(frozen=True)
class Corpus:
    """Token arrays of documents, and the UTF-8 bytes of the held-out ones."""

    train: list[np.ndarray]  # empty if there are shards
    val: list[np.ndarray]
    val_bytes: int
    shards: TokenShards | None = None

    def documents(self, context: int, bos: int | None, seed: int) -> Documents:
        """What to train on: from memory, or mapped from token shards."""
        if self.shards is None:
            return Documents(self.train, context, bos, seed)
        if bos is None:
            raise UserError("token shards mark where documents begin and end", hint="leave out --no-document-edges, or train on the text itself")
        files = self.shards.files["train"]
        at = np.cumsum([0, *(len(file.ids) for file in files)])
        starts = [file.starts.astype(np.int64) + place for file, place in zip(files, at)]
        first, last = (np.concatenate([s[part] for s in starts]) for part in (slice(None, -1), slice(1, None)))
        return Documents.mapped(_Joined([file.ids for file in files], at), first, last, context, seed)


class _Joined:
    """Arrays as if they were one; a slice must lie within one of them."""

    def __init__(self, parts: list[np.ndarray], starts: np.ndarray):
        self.parts, self.starts = parts, starts

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, place: slice) -> np.ndarray:
        part = int(np.searchsorted(self.starts, place.start, "right")) - 1
        begin = int(self.starts[part])
        return self.parts[part][place.start - begin : place.stop - begin]


def read_texts(path: Path, val_fraction: float) -> tuple[list[str], list[str]]:
    """(train, val) documents. A data artefact has its own split; one single document is cut, else documents are split by their hash."""
    if is_artefact(path):
        return list(iter_texts(path, split="train")), list(iter_texts(path, split="val"))
    texts = list(iter_texts(path))
    if len(texts) == 1:  # one long text: the last part is held out, as is usual for tinyshakespeare
        cut = int(len(texts[0]) * (1 - val_fraction))
        return [texts[0][:cut]], [texts[0][cut:]]
    limit = int(val_fraction * 2**32)
    held = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:4], "little") < limit for t in texts]
    return [t for t, h in zip(texts, held) if not h], [t for t, h in zip(texts, held) if h]


def choose_tokenizer(name: str | Tokenizer, vocab_size: int, texts: list[str]) -> Tokenizer:
    """`name`: a Tokenizer, or a tokenizer folder, `tokenizer.json` or GGUF file, "bpe" (trained on the texts), "bytes", "chars", or a known encoding such as "gpt2"."""
    if isinstance(name, Tokenizer):
        return name
    if name == "bytes":
        return byte_tokenizer()
    if name == "chars":
        return char_tokenizer("".join(texts))
    if name == "bpe":
        with notes():
            return train_tokenizer(texts, vocab_size=vocab_size)
    return find(name)


def load_corpus(path: Path, tokenizer: str | Tokenizer, vocab_size: int, val_fraction: float, context: int) -> tuple[Corpus, Tokenizer]:
    """Read, split and encode; token shards are mapped instead. Raises UserError for a corpus too small to fill one window."""
    if is_shards(path):
        shards = TokenShards(path)
        if isinstance(tokenizer, Tokenizer):
            if tokenizer != shards.tokenizer():
                raise UserError(f"{path} holds the tokens of another tokenizer than the model's", hint="make shards with --tokenizer MODEL")
        elif tokenizer != "bpe":
            raise UserError(f"{path} brings its own tokenizer, --tokenizer {tokenizer} was given too", hint="leave --tokenizer out")
        if not shards.files["train"]:
            raise UserError(f"{path} has no training documents")
        return Corpus([], list(shards.documents("val")), sum(file.bytes for file in shards.files["val"]), shards), shards.tokenizer()
    train, val = read_texts(path, val_fraction)
    tok = choose_tokenizer(tokenizer, vocab_size, train + val if tokenizer == "chars" else train)
    corpus = Corpus(encode_documents(tok, train), encode_documents(tok, val), sum(len(t.encode()) for t in val))
    tokens = sum(len(d) for d in corpus.train)
    if tokens < context:
        raise UserError(f"{path} gives {tokens} training tokens, less than one context of {context}", hint="give more text, or lower --context")
    return corpus, tok
