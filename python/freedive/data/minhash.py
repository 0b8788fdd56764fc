"""Near-duplicate documents by MinHash (Broder 1997; FineWeb, 2406.17557 section 3.4), with datatrove's formula bit for bit.

A document's shingles are the 5-grams of its simplified words. Two documents whose shingle sets have Jaccard similarity s share at
least one of 14 buckets of 8 hashes with probability 1 - (1 - s^8)^14: 0.05 at 0.5, 0.56 at 0.7, 0.92 at 0.8, 0.9996 at 0.9.
`signature` is a worker's part; `cluster` the one part that needs all documents. FineWeb removes duplicates within each dump of
Common Crawl, not between them: that was better than removing them all.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from . import words

BUCKETS, HASHES, SEED, GRAM = 14, 8, 1, 5
SHAPE = (BUCKETS, HASHES)
MERSENNE = (1 << 61) - 1
NO_SIGNATURE = np.uint64(2**64 - 1)  # everywhere in the row of a document that has no signature
_NUMBER = re.compile(r"\d+(?:[" + "".join(sorted(words.DECIMAL_SEPARATORS)) + r"]\d+)?")
Array = npt.NDArray[np.uint64]


@functools.lru_cache(maxsize=1)
def permutations() -> tuple[Array, Array]:
    """a and b of the 112 maps h -> (h a + b) mod 2^64 mod (2^61 - 1)."""
    generator = np.random.RandomState(SEED)
    a = generator.randint(1, MERSENNE, dtype=np.uint64, size=BUCKETS * HASHES)
    return a, generator.randint(0, MERSENNE, dtype=np.uint64, size=BUCKETS * HASHES)


def simplify(text: str) -> str:
    """Lower case, numbers as 0, no punctuation, single spaces, no accents: what the words are taken from."""
    text = _NUMBER.sub("0", text.lower())
    text = "".join(" " if c in words.PUNCTUATION or (unicodedata.category(c) == "Cc" and c not in "\t\n") else c for c in text)
    text = unicodedata.normalize("NFD", " ".join(text.split()))
    return "".join(c for c in text if unicodedata.category(c) != "Mn").strip()


def signature(text: str) -> Array | None:
    """uint64 [14 buckets, 8 hashes]; None if the text has fewer than 5 words (such documents are kept)."""
    found = words.split(text, simplify=True)
    if found.needs_reference:  # marks whose order matters: rare
        found = words.split(simplify(text))
    hashes = found.signature(*permutations())
    return None if hashes is None else hashes.reshape(SHAPE)


def reference_signature(text: str) -> Array | None:
    """The same by NumPy and hashlib: the formula, readable; what `signature` is tested against."""
    found = words.words_of(simplify(text))
    if len(found) < GRAM:
        return None
    shingles = [" ".join(found[i : i + GRAM]).encode() for i in range(len(found) - GRAM + 1)]
    h = np.array([[int.from_bytes(hashlib.sha1(shingle).digest()[:8], "little")] for shingle in shingles], dtype=np.uint64)
    a, b = permutations()
    return ((h * a + b) % np.uint64(MERSENNE)).min(0).reshape(SHAPE)


def cluster(signatures: Array | Iterable[Array | None], min_similarity: float = 0.0, memory: int = 1 << 30) -> npt.NDArray[np.bool_]:
    """keep bool [n]: of each cluster of documents that share a bucket, one stays: the root of the largest set, as in datatrove.

    signatures: uint64 [n, 14, 8] (an array, or a np.memmap that may be larger than memory; rows of NO_SIGNATURE stay), or an
    iterable of what `signature` gave. min_similarity: documents of a bucket are joined only if at least this part of their 112
    hashes agrees, an estimate of their Jaccard similarity with standard error 0.05; 0 is datatrove's rule. memory: bytes for
    sorting, beside 8 per document.
    """
    return clusters(signatures, min_similarity, memory)[0]


def clusters(
    signatures: Array | Iterable[Array | None], min_similarity: float = 0.0, memory: int = 1 << 30
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint32]]:
    """(keep, root): as `cluster`, and for each document the number of the one that stays in its place."""
    from freedive import _core

    if not isinstance(signatures, np.ndarray):
        none = np.full(SHAPE, NO_SIGNATURE)
        rows = [none if row is None else row for row in signatures]
        signatures = np.stack(rows) if rows else np.empty((0, *SHAPE), dtype=np.uint64)
    if signatures.shape[1:] != SHAPE or signatures.dtype != np.uint64:
        raise ValueError(f"signatures must be uint64[n, {BUCKETS}, {HASHES}], not {signatures.dtype}{list(signatures.shape)}")
    keep, root = _core.minhash_cluster(signatures, memory, math.ceil(min_similarity * BUCKETS * HASHES))
    return keep, root
