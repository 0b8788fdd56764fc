"""MinHash: datatrove's numbers, the C++ equals the NumPy formula, clusters are what a slow clustering gives."""

import hashlib
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive import _core
from freedive.data import DataConfig, minhash, run, words
from freedive.runs import UserError

FOX = "The quick brown fox jumps over the lazy dog"
GOLDEN = [  # (text, first and last hash, sha256 of all): datatrove 0.10.1
    (FOX + ".", 585594454516184072, 800584869340422436, "5111488576fd07f0"),
    (
        FOX + ", and then it sleeps for 2,500.75 hours under the old café wall!",
        3345544243738946,
        48670531578558187,
        "b0d31a9f3585bba3",
    ),
    (FOX + ", and then it slept for 99 hours under the old cafe wall!", 60783966374992894, 182792453973869179, "835743b1d342629e"),
]
TEXT = st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aB1٣.,'’ \n()éñΣİ\u0301\u0323中€")), max_size=300)


@pytest.mark.parametrize(("text", "first", "last", "digest"), GOLDEN)
def test_signatures_are_datatroves(text, first, last, digest):
    found = minhash.signature(text)
    assert found.shape == (14, 8) and found.dtype == np.uint64
    assert (found[0, 0], found[-1, -1]) == (first, last)
    assert hashlib.sha256(found.astype("<u8").tobytes()).hexdigest()[:16] == digest
    a, b = minhash.permutations()
    assert (a[0], b[0]) == (775169054918279404, 1062448801025099917)


def test_short_texts_have_no_signature():
    assert minhash.signature("one two, three four!") is None and minhash.signature("") is None
    assert minhash.signature("one two, three four! five") is not None


@given(TEXT)
def test_compiled_equals_the_formula(text):
    found, reference = minhash.signature(text), minhash.reference_signature(text)
    assert (found is None) == (reference is None)
    assert found is None or (found == reference).all()


@given(TEXT)
def test_words_make_up_the_text(text):
    found = words.words_of(text)
    assert "".join(found) == "".join(text.split()) and all(found)


@given(st.binary(max_size=300))
def test_sha1(data):
    assert _core.sha1_64(data) == int.from_bytes(hashlib.sha1(data).digest()[:8], "little")


def test_what_words_are():
    assert words.words_of("Don't (really) e-mail Mr. O'Neil at 5pm, it's 3km.") == (
        "Do n't ( really ) e - mail Mr. O'Neil at 5 pm , it 's 3 km .".split()
    )
    assert words.words_of("see https://example.com/a,b?c=1) :-) ...") == ["see", "https://example.com/a,b?c=1", ")", ":-)", "..."]
    assert words.words_of("x" * 5000 + "...") == ["x" * 5000 + "..."]  # long pieces stay whole


def documents(similarity, count, rng, n=400):
    """Pairs of texts whose sets of shingles have about this Jaccard similarity: a common beginning, different ends."""
    common = round(2 * (n - 4) * similarity / (1 + similarity)) + 4
    for _ in range(count):
        draw = lambda k: [f"w{rng.randrange(10**9):x}".translate(str.maketrans("0123456789", "ghijklmnop")) for _ in range(k)]
        start = draw(common)
        yield " ".join(start + draw(n - common)), " ".join(start + draw(n - common))


@pytest.mark.parametrize(
    ("similarity", "min_similarity", "least", "most"), [(0.9, 0.0, 0.98, 1.0), (0.9, 0.6, 0.98, 1.0), (0.5, 0.0, 0.02, 0.09), (0.5, 0.6, 0.0, 0.03)]
)
def test_planted_pairs(similarity, min_similarity, least, most):
    """At 0.5 the formula itself finds 1 - (1 - 0.5^8)^14 = 5.3 %; asking for 60 % of equal hashes leaves fewer than 3 %."""
    pairs = list(documents(similarity, 600, random.Random(7)))
    signatures = [minhash.signature(text) for pair in pairs for text in pair]
    keep = minhash.cluster(signatures, min_similarity)
    found = 1 - (keep.reshape(-1, 2).sum(1) - 1).mean()
    assert least <= found <= most


def test_near_similarity_is_a_setting_of_the_stage(tmp_path):
    rng = random.Random(3)
    rows = [text for pair in documents(0.85, 10, rng) for text in pair]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    kept = {}
    for least in (0.0, 0.6, 1.0):
        settings = DataConfig((tmp_path / "in.jsonl",), tmp_path / f"out{least}", preset="none", languages=(), near_dedup="on", near_similarity=least)
        told = json.loads((run(settings) / "waterfall.json").read_text())
        kept[least] = told["documents_out"]
    assert kept[0.0] == kept[0.6] <= 11 and kept[1.0] == 20
    with pytest.raises(UserError, match="near-similarity"):
        run(DataConfig((tmp_path / "in.jsonl",), tmp_path / "never", near_similarity=1.5))
    assert not (tmp_path / "never").exists()


def slow_clusters(signatures):
    """As datatrove's stages 2 and 3: sorted buckets, neighbours joined, union by size."""
    parent, size = {}, {}

    def find(x):
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    for bucket in range(signatures.shape[1]):
        rows = sorted((tuple(row), i) for i, row in enumerate(signatures[:, bucket]) if row[0] != minhash.NO_SIGNATURE)
        for (before, i), (row, j) in zip(rows, rows[1:], strict=False):
            if before == row:
                x, y = find(i), find(j)
                if x != y:
                    if size.get(x, 1) < size.get(y, 1):
                        x, y = y, x
                    parent[y] = x
                    size[x] = size.get(x, 1) + size.get(y, 1)
    return np.array([find(i) for i in range(len(signatures))])


@given(st.integers(0, 2**32), st.integers(0, 200), st.integers(2, 40))
def test_clusters_equal_the_slow_ones(seed, n, kinds):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**61 - 1, size=(kinds, 8), dtype=np.uint64)
    signatures = values[rng.integers(0, kinds, size=(n, 14))]
    signatures[rng.random(signatures.shape[:2]) < 0.9, :] += rng.integers(1, 2**40, size=8, dtype=np.uint64)
    noise = rng.random((n, 14)) < 0.8
    signatures[noise] = rng.integers(0, 2**61 - 1, size=(noise.sum(), 8), dtype=np.uint64)
    signatures[rng.random(n) < 0.1] = minhash.NO_SIGNATURE
    keep, root = minhash.clusters(signatures)
    assert (root == slow_clusters(signatures)).all() and (keep == (root == np.arange(n))).all()
    assert keep[(signatures[:, 0, 0] == minhash.NO_SIGNATURE)].all()


def test_little_memory_and_a_memmap_change_nothing(tmp_path):
    rng = np.random.default_rng(5)
    signatures = rng.integers(0, 300, size=(20_000, 14, 8), dtype=np.uint64)
    signatures[:, :, 1:] = signatures[:, :, :1]
    signatures[:, :, 0] += rng.integers(0, 200, size=(20_000, 14), dtype=np.uint64) << np.uint64(32)
    signatures.tofile(tmp_path / "signatures")
    mapped = np.memmap(tmp_path / "signatures", dtype=np.uint64, mode="r").reshape(-1, 14, 8)
    keep = minhash.cluster(signatures)
    assert 0 < keep.sum() < len(keep)
    assert (minhash.cluster(mapped, memory=1) == keep).all()


def test_wrong_shapes():
    assert len(minhash.cluster([])) == 0
    with pytest.raises(ValueError, match="uint64"):
        minhash.cluster(np.zeros((3, 112), dtype=np.uint64))


@given(st.lists(st.sampled_from("ab c abc bc ca é".split()), max_size=60), st.integers(1, 10))
def test_repeated_ngrams_equal_the_plain_count(chosen, n):
    found = words.split(" ".join(chosen))
    repetition = found.repetition()
    seen, i, characters = set(), 0, 0
    while i + n <= len(chosen):
        gram = "".join(chosen[i : i + n])
        characters += len(gram) if gram in seen else 0
        i += n if gram in seen else 1
        seen.add(gram)
    assert repetition.repeated(n) == characters
    grams = [" ".join(chosen[i : i + n]) for i in range(len(chosen) - n + 1)]
    assert repetition.top(n) == (max((grams.count(g), -grams.index(g), len(g) * grams.count(g)) for g in grams)[2] if grams else 0)
