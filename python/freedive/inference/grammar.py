"""Answers of a given form: a JSON schema, a regular expression, a Lark grammar or one of some choices, through llguidance.

Before each token, llguidance says which ids keep the answer within the grammar; the sampler draws among those. Grammars come from users
and from the network, so they are compiled under limits, and a bad one is an error of that request alone.
"""

from __future__ import annotations

import functools
import json
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from freedive.runs import UserError
from freedive.tokenizer import Tokenizer

KINDS = ("json_schema", "json_object", "regex", "lark", "choice")
MAX_CHARACTERS = 100_000


@dataclass(frozen=True)
class Grammar:
    """`kind` is one of KINDS; `text` a schema as JSON, an expression, a grammar, or a JSON list of choices. Checked when made."""

    kind: str
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown kind of grammar {self.kind!r:.40}", hint=f"known: {', '.join(KINDS)}")
        if len(self.text) > MAX_CHARACTERS:
            raise UserError(f"a grammar of {len(self.text):,} characters; the limit is {MAX_CHARACTERS:,}")
        _compile(self.kind, self.text)


@functools.lru_cache(maxsize=256)
def _compile(kind: str, text: str) -> str:
    """llguidance's form. Raises UserError for what cannot be parsed."""
    matcher = _llguidance().LLMatcher
    try:
        if kind == "json_object":
            made = matcher.grammar_from_json_schema({"type": "object"})
        elif kind == "json_schema":
            schema = json.loads(text)
            if not isinstance(schema, (dict, bool)):
                raise ValueError("a schema is an object, true or false")
            made = matcher.grammar_from_json_schema(schema)
        elif kind == "regex":
            made = matcher.grammar_from_regex(text)
        elif kind == "choice":
            choices = json.loads(text)
            if not isinstance(choices, list) or not choices or any(not isinstance(c, str) or not c for c in choices):
                raise ValueError("choices are a list of texts")
            made = matcher.grammar_from_lark("start: " + " | ".join(json.dumps(c) for c in choices))
        else:
            made = matcher.grammar_from_lark(text)
        wrong = matcher.validate_grammar(made, None)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"the {kind} cannot be used: {_sentence(str(error))}") from None
    if wrong:
        raise UserError(f"the {kind} cannot be used: {_sentence(str(wrong))}")
    return made


def _sentence(error: str) -> str:
    """Of what a parser draws over several lines, what is wrong."""
    return next((line.removeprefix("error: ") for line in error.splitlines() if line.startswith("error: ")), error)[:500]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UserError("answers of a given form need the Python package llguidance", hint="run: pip install 'freedive[serve]'") from None
    return llguidance


class _Vocabulary:
    """A Tokenizer in the form llguidance asks for."""

    def __init__(self, tok: Tokenizer):
        stops = tok.stop_ids
        self.eos_token_id = tok.im_end if tok.chat else stops[0] if stops else 0
        self.bos_token_id = tok.special_tokens.get(tok.bos)
        self.tokens = [(b"\xff[%d]" % i if i in tok.special_ids or entry is None else entry) for i, entry in enumerate(tok._table)]
        self.special_token_ids = sorted(tok.special_ids | {i for i, entry in enumerate(tok._table) if entry is None})
        self._tok = tok

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tok.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


_VOCABULARIES: weakref.WeakKeyDictionary[Tokenizer, tuple[Any, int]] = weakref.WeakKeyDictionary()


def _vocabulary(tok: Tokenizer) -> tuple[Any, int]:
    """llguidance's tokenizer, and the id that stands for the end in it. Made once for each tokenizer."""
    if tok not in _VOCABULARIES:
        library, vocabulary = _llguidance(), _Vocabulary(tok)
        _VOCABULARIES[tok] = library.LLTokenizer(library.TokenizerWrapper(vocabulary)), vocabulary.eos_token_id
    return _VOCABULARIES[tok]


class Matcher:
    """Where in its grammar one answer is."""

    def __init__(self, grammar: Grammar, tok: Tokenizer):
        library = _llguidance()
        vocabulary, self._eos = _vocabulary(tok)
        self._stops = set(tok.stop_ids)
        self._matcher = library.LLMatcher(vocabulary, _compile(grammar.kind, grammar.text), log_level=0)
        if self._matcher.is_error():
            raise UserError(f"the {grammar.kind} cannot be used: {_sentence(self._matcher.get_error())}")

    def mask(self, vocab_size: int) -> np.ndarray:
        """uint8 [vocab_size]: ids that may come next. Every stop id of the tokenizer may where the grammar allows an end."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        out = np.zeros(vocab_size, np.uint8)
        n = min(vocab_size, len(bits))
        out[:n] = bits[:n]
        if out[self._eos]:
            out[[i for i in self._stops if i < vocab_size]] = 1
        return out

    def push(self, token: int) -> bool:
        """Take a token; True if nothing can follow: the answer is complete, or llguidance gave up on it (a limit was met)."""
        return token in self._stops or not self._matcher.consume_token(token) or bool(self._matcher.is_stopped())
