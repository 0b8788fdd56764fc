"""gigatoken as an optional accelerator of bulk encoding, believed only after it has given the right ids on this machine.

Fast encoders are several times tiktoken's speed and can be silently wrong (one published "drop-in" gives bytes as ids when it is
offline). So: it is compared on texts that hold what encoders differ in, for the very vocabulary in use, before its first use.
"""

from __future__ import annotations

import functools
import json
import random
import sys
from collections.abc import Callable

import numpy as np

from freedive.runs import UserError

from .tokenizer import Tokenizer, well_formed

EncodeBatch = Callable[[list[str], int], list[np.ndarray]]
RANDOM_TEXTS = 400
# where characters behave differently: letters of many scripts, marks, digits, white space, controls, symbols, other planes
_RANGES = (
    (0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0x09, 0x0D), (0x00, 0x1F), (0x80, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x58F), (0x5D0, 0x6FF),
    (0x900, 0x97F), (0xE00, 0xE7F), (0x1160, 0x11FF), (0x2000, 0x206F), (0x20A0, 0x20CF), (0x2150, 0x218F), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFF00, 0xFFEF), (0x1F300, 0x1F6FF), (0x20000, 0x2A6DF), (0xE0100, 0xE01EF),
)  # fmt: skip


def accelerated(tok: Tokenizer) -> EncodeBatch | None:
    """A function (texts, threads) -> one array of ids per text, proven on the golden texts; None, after a note, if there is none."""
    encode_batch, why = _accelerated(tok)
    if encode_batch is None:
        print(f"note: encoding without gigatoken: {why}", file=sys.stderr)
    return encode_batch


def golden_texts(tok: Tokenizer) -> list[str]:
    """Texts that two encoders of the same vocabulary are most likely to disagree on; the same on every machine."""
    rng = random.Random(0)
    words = [token.decode("utf-8", "replace") for token, _ in sorted(tok.tokens.items(), key=lambda item: item[1])]
    texts = ["", " ", "\n", " \n \n", "Hello!!", "Hello!!!", "." * 27, "strawberry", "a" * 5000, " " * 3000, "\r\n\r\n x", "1234567890" * 20]
    texts += ["It's I'LL we'Ve 'tis ''s", "naïve café e\u0301 Å 你好 世界 Привет ก้ 🙂👩‍👩‍👧", "  def f(x):\r\n\treturn x  ", "12 3٣4½Ⅷ²5", "\x00\x1c\x1d\x1f\x85\u200b\ufeff"]
    texts += [f"a{name}b {name}" for name in tok.special_tokens]  # ordinary text: no special token may come out
    for _ in range(RANDOM_TEXTS):
        low, high = rng.choice(_RANGES), rng.choice(_RANGES)
        ranges = (low, high, (0x20, 0x20), (0x61, 0x7A))
        texts.append("".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 60))))
        texts.append("".join(rng.choice(words) for _ in range(rng.randint(1, 40))))
    return [well_formed(text) for text in texts]


@functools.lru_cache(maxsize=4)
def _accelerated(tok: Tokenizer) -> tuple[EncodeBatch | None, str]:
    try:
        import awkward
        import gigatoken
    except ImportError as error:
        return None, f"the package {error.name} is not installed (pip install gigatoken)"
    if tok.missing_bytes or tok.normalizer:
        return None, "this vocabulary lacks bytes or normalizes text"
    try:
        theirs = gigatoken.Tokenizer.from_json(json.dumps(_without_specials(tok)))
    except (UserError, ValueError, RuntimeError, TypeError) as error:
        return None, f"it cannot read this vocabulary ({str(error)[:120]})"

    def encode_batch(texts: list[str], threads: int) -> list[np.ndarray]:
        found = theirs.encode_batch([well_formed(text) for text in texts], parallel=threads > 1)
        flat = awkward.to_numpy(awkward.flatten(found)).astype(tok.dtype, copy=False)
        ends = np.cumsum(awkward.to_numpy(awkward.num(found)))
        return np.split(flat, ends[:-1]) if len(texts) else []

    texts = golden_texts(tok)
    for text, ids in zip(texts, encode_batch(texts, 1), strict=True):
        if ids.tolist() != tok.encode(text):
            return None, f"it gives other ids than tiktoken, for example for {text[:60]!r}"
    return encode_batch, ""


def _without_specials(tok: Tokenizer) -> dict[str, object]:
    """The vocabulary as a `tokenizer.json` with ordinary tokens only, so that no text can hold a special one."""
    from .export import to_hf

    plain = Tokenizer("bpe", tok.tokens, {}, tok.pattern)
    return to_hf(plain)["tokenizer.json"]
