"""Near-duplicates planted into a corpus at a known Jaccard similarity: how many pairs MinHash finds, and which other pages it joins.

    python benchmarks/near_duplicates.py --corpus openstax.jsonl.gz        # or a folder that `freedive data` wrote, such as DIVE/data

Documents are cut into pages of at most 400 words. A page's twin has runs of 20 and single words replaced by those of other pages until the
Jaccard similarity of the two sets of 5-grams, counted exactly, is within 0.01 of the one asked for. Pages and twins of one similarity
are clustered together as `freedive data` clusters them: a pair is found if both end in the same cluster. Each with FineWeb's rule (one equal
bucket) and with --near-similarity 0.6 as well, which also asks for 60 % of equal hashes; `formula` is what 14 buckets of 8 hashes give.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np

from freedive.data import minhash, words
from freedive.data.texts import iter_texts

RUN, TOLERANCE = 20, 0.01


def shingles(text: str) -> set[tuple[str, ...]]:
    found = words.words_of(minhash.simplify(text))
    return {tuple(found[i : i + minhash.GRAM]) for i in range(len(found) - minhash.GRAM + 1)}


def jaccard(a: set, b: set) -> float:
    return len(a & b) / max(1, len(a | b))


def pages_of(corpus: Path, longest: int, least: int) -> list[str]:
    pages = []
    for text in iter_texts(corpus):
        tokens = text.split()
        parts = [tokens[at : at + longest] for at in range(0, len(tokens), longest)]
        pages += [" ".join(part) for part in parts if len(part) >= least]
    return list(dict.fromkeys(pages))


def twin(page: str, other: str, similarity: float, draw: random.Random) -> str | None:
    """The page with words of another one, as like it as asked for; None if that is not met."""
    own, mine = shingles(page), page.split()
    theirs = other.split()
    for run in (RUN, 1):  # coarse, then fine
        places = list(range(0, len(mine) - run + 1, run))
        draw.shuffle(places)
        for place in places:
            start = draw.randrange(max(1, len(theirs) - run))
            changed = mine[:place] + theirs[start : start + run] + mine[place + run :]
            now = jaccard(own, shingles(" ".join(changed)))
            if now >= similarity - (TOLERANCE if run == 1 else 0):
                mine = changed
            if abs(now - similarity) <= TOLERANCE:
                return " ".join(changed)
            if run > 1 and now < similarity:
                break
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--pages", type=int, default=8000, help="of the corpus, around the pairs")
    parser.add_argument("--words", type=int, default=400)
    parser.add_argument("--least", type=int, default=60, help="words of a page")
    parser.add_argument("--similarities", nargs="+", type=float, default=[0.9, 0.7, 0.5])
    a = parser.parse_args()
    draw = random.Random(0)
    pages = pages_of(a.corpus, a.words, a.least)
    draw.shuffle(pages)
    pages = pages[: a.pages]
    signed = [minhash.signature(page) for page in pages]
    alone = ~minhash.cluster(signed)
    print(json.dumps({"case": "corpus", "pages": len(pages), "near_duplicates_of_its_own": int(alone.sum())}), flush=True)
    for similarity in a.similarities:
        twins: dict[int, str] = {}
        for at in range(len(pages)):
            if len(twins) == a.pairs:
                break
            made = twin(pages[at], pages[at - 1], similarity, draw)
            if made is not None:
                twins[at] = made
        exact = [jaccard(shingles(pages[at]), shingles(text)) for at, text in twins.items()]
        everything = signed + [minhash.signature(text) for text in twins.values()]
        for least in (0.0, 0.6):
            keep, root = minhash.clusters(everything, least)
            found = [int(root[at] == root[len(pages) + i]) for i, at in enumerate(twins)]
            others = int((~keep[: len(pages)]).sum()) - sum(not keep[at] for at in twins)
            case = {"case": similarity, "near_similarity": least, "pairs": len(twins), "jaccard_mean": round(float(np.mean(exact)), 4)}
            formula = {"formula": round(float(np.mean([1 - (1 - s**8) ** 14 for s in exact])), 4)} if least == 0 else {}
            print(json.dumps({**case, "found": round(float(np.mean(found)), 4), **formula, "other_pages_removed": others}), flush=True)


if __name__ == "__main__":
    main()
