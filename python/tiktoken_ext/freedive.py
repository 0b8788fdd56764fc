"""freedive's encodings for tiktoken: `tiktoken.get_encoding("o200k_chatml")` works wherever freedive is installed.

tiktoken imports every module of this namespace package at its first `get_encoding`, and a name that exists twice breaks all of
them; so the names are new ones, and freedive itself is imported only when one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _constructor(name: str, known: str) -> Callable[[], dict[str, Any]]:
    def construct() -> dict[str, Any]:
        from freedive.tokenizer import get

        tok = get(known)
        return {"name": name, "pat_str": tok.pattern, "mergeable_ranks": tok.tokens, "special_tokens": tok.special_tokens}

    return construct


ENCODING_CONSTRUCTORS = {
    "gpt2_offline": _constructor("gpt2_offline", "gpt2"),
    "cl100k_chatml": _constructor("cl100k_chatml", "cl100k_chatml"),
    "o200k_chatml": _constructor("o200k_chatml", "o200k_chatml"),
}
