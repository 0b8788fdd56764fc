"""Extractors: what they keep, that one page's text depends on that page only, and pages that hang, crash or are hardly HTML."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from data_pages import adds_up, documents, page, reasons, story

from freedive.data import DataConfig, run
from freedive.data import extract as extract_module
from freedive.data.extract import extract
from freedive.data.record import Record
from freedive.runs import UserError, folder_hash
from freedive.tasks.warc import write_warc

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT.parent / "shared" / "data" / "html"
needs_shared = pytest.mark.skipif(not HTML.is_dir(), reason=f"development data not found in {HTML}")
needs_trafilatura = pytest.mark.skipif(importlib.util.find_spec("trafilatura") is None, reason="trafilatura is not installed (extra [data])")
KINDS = ["resiliparse", "plain", pytest.param("trafilatura", marks=needs_trafilatura)]


def text_of(html: bytes, extractor: str) -> str:
    text, reason = extract(Record("https://a.example/", "s", html, html=True), extractor)
    assert not reason
    return text or ""


def shown(seed: int) -> bytes:
    return (
        f"<html><head><title>On rivers</title><style>p{{color:red}}</style></head><body><nav><a href='/'>Home page</a></nav>"
        f"<article><h1>Rivers</h1><p>{story(seed)}</p></article><form><button>Subscribe</button></form><script>var hidden = 1</script>"
        f"<footer>Imprint</footer></body></html>"
    ).encode()


@pytest.mark.parametrize("extractor", KINDS)
def test_the_main_text_or_all_of_it(extractor):
    text = text_of(shown(1), extractor)
    assert " ".join(story(1).split()) in " ".join(text.split()) and "hidden" not in text and "color" not in text
    for word in ("On rivers", "Home page", "Subscribe", "Imprint"):
        assert (word in text) == (extractor == "plain")


@pytest.mark.parametrize("extractor", KINDS)
def test_the_text_of_a_page_does_not_depend_on_earlier_pages(extractor):
    paragraphs = [f"<p>{story(seed)}</p>" for seed in range(6)]
    pages = [f"<html><body><article>{''.join(paragraphs[i:])}</article></body></html>".encode() for i in range(5)]
    alone = [text_of(data, extractor) for data in pages]
    assert [text_of(data, extractor) for data in reversed(pages * 3)][::-1] == alone * 3
    assert all(story(5) in text for text in alone)


@needs_trafilatura
def test_trafilatura_runs_with_finewebs_settings():
    import trafilatura
    from trafilatura.deduplication import LRU_TEST

    for seed in range(5):
        html = shown(seed).decode()
        assert text_of(html.encode(), "trafilatura") == trafilatura.extract(html, favor_precision=True, include_comments=False, deduplicate=True)
        LRU_TEST.clear()


@pytest.mark.parametrize("extractor", KINDS)
@pytest.mark.parametrize("html", ["<", "<p" * 20_000, "<div>" * 20_000 + "x", "\x00<p>a</p>", "<p>&#xd800;&#0;</p>", "<!--", "<table>" * 1500 + "<td>a", "<a><b><i>" * 600 + "x"])  # fmt: skip
def test_odd_html_is_survived(html, extractor):
    text, reason = extract(Record("u", "s", html.encode(), html=True), extractor)
    assert (text is None) == bool(reason)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for part in "ab":
        pages = [(f"https://a.example/{part}{i}", page(("POISON " if i == 3 else "") + story(ord(part) + 10 * i))) for i in range(8)]
        write_warc(folder / f"{part}.warc.gz", pages)
    return folder


@needs_trafilatura
def test_trafilatura_gives_the_same_bytes_for_any_number_of_workers(source, tmp_path, monkeypatch):
    monkeypatch.setattr("freedive.data.stage.GROUP_BYTES", 1)
    one, two = (run(DataConfig((source,), tmp_path / str(n), extractor="trafilatura", workers=n)) for n in (1, 2))
    assert folder_hash(one) == folder_hash(two) and adds_up(one)["documents_out"] == 16
    with pytest.raises(UserError, match="extractor"):
        run(DataConfig((source,), tmp_path / "1"))


def hang(html: str) -> None:
    """Inside C, holding the interpreter's lock, where no signal handler or thread of the same process gets a turn."""
    if "POISON" in html:
        re.match(r"(a+)+$", "a" * 60 + "b")


def overflow(html: str) -> None:
    if "POISON" in html:
        raise RecursionError("too deep for the extractor")


@pytest.mark.parametrize("extractor", KINDS)
@pytest.mark.parametrize(("fate", "reason"), [(hang, "read/timeout"), (overflow, "extract/bad_html")])
def test_an_extractor_that_hangs_or_fails_costs_that_page_only(source, tmp_path, monkeypatch, extractor, fate, reason):
    inner = extract_module._EXTRACTORS[extractor]

    def poisoned(html: str) -> str:
        fate(html)
        return inner(html)

    monkeypatch.setitem(extract_module._EXTRACTORS, extractor, poisoned)
    out = run(DataConfig((source,), tmp_path / "out", extractor=extractor, page_seconds=0.3 if fate is hang else 20.0))
    assert reasons(adds_up(out)) == {reason: 2}
    assert {d["url"] for d in documents(out)} == {f"https://a.example/{part}{i}" for part in "ab" for i in range(8) if i != 3}


def test_a_missing_extractor_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    extract_module._load_trafilatura.cache_clear()
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(UserError, match="--extractor trafilatura"):
        run(DataConfig((source,), tmp_path / "out", extractor="trafilatura"))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


# Real pages, by the benchmark's measure


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("extraction_benchmark", ROOT / "benchmarks" / "extraction.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_markup_of_rest_is_no_part_of_what_a_reader_sees(benchmark):
    rst = """.. _label:
.. index:: single: word
   pair: a; b

Title
=====

.. note:: See :func:`open` and :mod:`~os.path`, or `a site <https://a.example>`_; :ref:`here <label>`.

.. A comment
   of two lines
.. code-block:: python
   :linenos:

   x = {1: 2}
"""
    assert benchmark.words(benchmark.visible(rst)) == benchmark.words("Title See open and path or a site here x = {1: 2}")


@needs_shared
@pytest.mark.parametrize(
    ("extractor", "least"), [("resiliparse", 0.93), pytest.param("trafilatura", 0.95, marks=[needs_trafilatura, pytest.mark.slow])]
)
def test_f1_of_the_body_of_real_pages(benchmark, extractor, least):
    result = benchmark.pairs(HTML / "python311_docs_pairs.jsonl.gz", extractor)
    assert result["f1"] >= least, json.dumps(result)


@needs_shared
def test_the_plain_mode_recovers_common_crawls_words(benchmark):
    assert benchmark.recovered(HTML / "whirlwind.warc.gz", HTML / "whirlwind.warc.wet.gz")["recovered"] >= 0.98
