"""From text to token ids and back (the talk's 1.2), and from conversations to ids with a loss mask (its 2.4).

Three kinds share one class: `bpe` (trained here through rustbpe, encoded by tiktoken), `bytes` and `chars`. The one idea
worth knowing: `encode` knows ordinary text only. A special token is never the result of a string; it is an id which the chat
renderer puts there.
"""

from __future__ import annotations

from .chat import ChatConfig, check_mask, parse, render, render_text
from .export import save_hf, to_hf
from .export_gguf import gguf_tokenizer
from .imported import from_gguf, from_hf
from .known import download, find, get
from .tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer, encode_documents
from .train import DEFAULT_SPECIALS, QWEN2_PATTERN, byte_tokenizer, char_tokenizer, train_tokenizer

__all__ = [
    "DEFAULT_SPECIALS",
    "END_OF_TEXT",
    "QWEN2_PATTERN",
    "ChatConfig",
    "StreamDecoder",
    "Tokenizer",
    "byte_tokenizer",
    "char_tokenizer",
    "check_mask",
    "download",
    "encode_documents",
    "find",
    "from_gguf",
    "from_hf",
    "get",
    "gguf_tokenizer",
    "parse",
    "render",
    "render_text",
    "save_hf",
    "to_hf",
    "train_tokenizer",
]
