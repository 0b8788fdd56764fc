"""Where the search tool looks: a BM25 index of documents on this machine, or a service over HTTP. One method, `search(query, k)`.

BM25 (Robertson & Zaragoza 2009, k1 = 1.2, b = 0.75, the idf of Lucene): a document is good that holds the query's rare words, often for
its length.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from freedive.runs import UserError

K1, B = 1.2, 0.75
_WORD = re.compile(r"\w+")
MAX_ANSWER = 1 << 20  # bytes taken of a service's answer


@dataclass(frozen=True)
class Hit:
    """One document found."""

    title: str
    url: str
    text: str  # the passage
    score: float = 0.0


class Backend(Protocol):
    """Anything that finds documents. Raises UserError when it cannot."""

    def search(self, query: str, k: int) -> list[Hit]: ...


def words(text: str) -> list[str]:
    """Words in lower case, accents taken off."""
    plain = unicodedata.normalize("NFKD", text.lower())
    return _WORD.findall("".join(c for c in plain if not unicodedata.combining(c)))


class BM25:
    """An index in memory over passages of documents."""

    def __init__(self, documents: Iterable[dict[str, Any]], passage_words: int = 120):
        """documents: dicts with "text", and "url", "title" or "id" if they have them; each is cut into passages of so many words."""
        self._passages: list[Hit] = []
        postings: dict[str, list[tuple[int, int]]] = {}
        lengths = []
        for document in documents:
            text = str(document.get("text", ""))
            url = str(document.get("url") or document.get("id") or "")
            title = str(document.get("title") or text.strip().split("\n", 1)[0][:80])
            pieces = re.findall(r"\S+\s*", text)
            for begin in range(0, len(pieces), passage_words):
                passage = "".join(pieces[begin : begin + passage_words])
                found = Counter(words(title + " " + passage))
                for word, count in found.items():
                    postings.setdefault(word, []).append((len(self._passages), count))
                lengths.append(sum(found.values()))
                self._passages.append(Hit(title, url, passage))
        if not self._passages:
            raise UserError("there is no document to search in", hint="give a folder of `freedive data`, or of texts")
        self._lengths = np.array(lengths, np.float32)
        self._norm = K1 * (1 - B + B * self._lengths / self._lengths.mean())
        self._postings = {word: (np.array([p[0] for p in rows], np.int32), np.array([p[1] for p in rows], np.float32)) for word, rows in postings.items()}

    def __len__(self) -> int:
        return len(self._passages)

    @staticmethod
    def of(path: Path) -> BM25:
        """Index a folder made by `freedive data`, or a file or folder of texts."""
        from freedive.data.texts import is_artefact, iter_documents

        if not is_artefact(path):
            return BM25(iter_documents(path))
        return BM25(document for split in ("train", "val") for document in iter_documents(path, split))

    def search(self, query: str, k: int) -> list[Hit]:
        """The k best passages, the best first, the earlier on ties; none that holds no word of the query."""
        scores = np.zeros(len(self._passages), np.float64)
        n = len(self._passages)
        for word in dict.fromkeys(words(query)):
            if word in self._postings:
                rows, counts = self._postings[word]
                idf = np.log1p((n - len(rows) + 0.5) / (len(rows) + 0.5))
                scores[rows] += idf * counts * (K1 + 1) / (counts + self._norm[rows])
        best = np.argsort(-scores, kind="stable")[: max(k, 0)]
        return [Hit(h.title, h.url, h.text, float(scores[i])) for i in best if scores[i] > 0 for h in [self._passages[i]]]


class HTTP:
    """A search service: GET URL?q=QUERY&k=K answers with a JSON list of {"title", "url", "text"}, or with that list under "results"."""

    def __init__(self, url: str, timeout: float = 10.0):
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url!r:.80} is no address of a search service", hint="it begins with http:// or https://")
        self.url, self.timeout = url, timeout

    def search(self, query: str, k: int) -> list[Hit]:
        import urllib.parse
        import urllib.request

        address = f"{self.url}{'&' if '?' in self.url else '?'}{urllib.parse.urlencode({'q': query, 'k': k})}"
        try:
            with urllib.request.urlopen(address, timeout=self.timeout) as answer:
                content = json.loads(answer.read(MAX_ANSWER))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"the search service {self.url} gave no answer: {error}") from None
        rows = content.get("results") if isinstance(content, dict) else content
        if not isinstance(rows, list) or any(not isinstance(row, dict) for row in rows):
            raise UserError(f"the search service {self.url} answered with something else than a list of results")
        return [Hit(str(row.get("title") or ""), str(row.get("url") or ""), str(row.get("text") or "")) for row in rows[:k]]
