"""A tokenizer as GGUF metadata. llama.cpp splits text by code it has a name for (tokenizer.ggml.pre), so only patterns it knows can go."""

from __future__ import annotations

from typing import Any

from freedive.runs import UserError

from .export import byte_characters, chat_template, recover_merges
from .imported import GGUF_PATTERNS
from .sentencepiece import BYTE, SPACE, SentencePiece
from .tokenizer import Tokenizer

_NORMAL, _CONTROL, _UNUSED = 1, 3, 5
NORMALIZER = "freedive.normalizer"  # llama.cpp never normalises; without this key a reader takes the vocabulary's usual form


def gguf_tokenizer(tok: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The tokenizer.* entries for `vocab_size` ids; ids that stand for nothing are marked unused.

    Raises UserError for a character tokenizer and for a split pattern that llama.cpp has no name for.
    """
    if vocab_size < tok.vocab_size:
        raise UserError(f"the tokenizer has {tok.vocab_size} ids, the model only {vocab_size}")
    names, types = [f"[UNUSED{i}]" for i in range(vocab_size)], [_UNUSED] * vocab_size
    out: dict[str, Any] = {}
    if isinstance(tok, SentencePiece):
        for i, (piece, kind) in enumerate(zip(tok.pieces, tok.types, strict=True)):
            names[i], types[i] = piece if kind == BYTE else piece.replace(" ", SPACE), kind
        out = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.add_space_prefix": tok.add_prefix}
        out["tokenizer.ggml.scores"] = [*tok.scores, *[0.0] * (vocab_size - tok.vocab_size)]
    elif tok.kind == "chars":
        raise UserError("a tokenizer of characters has no GGUF form", hint="export to hf, or train with --tokenizer bpe or bytes")
    else:
        character = byte_characters()
        written = {token: "".join(character[b] for b in token) for token in tok.tokens}
        for token, i in tok.tokens.items():
            names[i], types[i] = written[token], _NORMAL
        merges = [f"{written[left]} {written[right]}" for left, right in recover_merges(tok.tokens)] if tok.kind == "bpe" else []
        out = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _pre(tok), "tokenizer.ggml.merges": merges, NORMALIZER: tok.normalizer or ""}
    for name, i in tok.special_tokens.items():
        names[i], types[i] = name, types[i] if isinstance(tok, SentencePiece) else _CONTROL
    out |= {"tokenizer.ggml.tokens": names, "tokenizer.ggml.token_type": types}
    if tok.bos in tok.special_tokens:
        out["tokenizer.ggml.bos_token_id"] = tok.bos_id
    ends = [tok.chat.end] if tok.chat else [*tok.eos, tok.bos]
    if ends[0] in tok.special_tokens:
        out["tokenizer.ggml.eos_token_id"] = tok.special(ends[0])
    out["tokenizer.ggml.add_bos_token"] = tok.add_bos and tok.bos in tok.special_tokens
    if tok.chat is not None:
        out["tokenizer.chat_template"] = chat_template(tok.chat, mark=False)
    return out


def _pre(tok: Tokenizer) -> str:
    if tok.kind == "bytes":
        return "qwen2"  # every byte is a token of its own: how text is split beforehand does not matter
    for name, pattern in GGUF_PATTERNS.items():
        if tok.pattern == pattern:
            return name
    raise UserError("llama.cpp has no name for this tokenizer's split pattern, so a GGUF file would encode text differently",
                    hint="export to hf, or train a tokenizer with the default pattern")  # fmt: skip
