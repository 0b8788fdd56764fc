"""The URL filter: decisions and reasons of FineWeb's six checks, lists from folders and archives, and lists that are none."""

import gzip
import io
import json
import os
import random
import re
import string
import subprocess
import tarfile
from pathlib import Path

import pytest
from data_pages import adds_up, documents, page, reasons, story
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.data import DataConfig, run
from freedive.data import urls as urls_module
from freedive.runs import UserError, folder_hash
from freedive.tasks.warc import write_warc

tldextract = pytest.importorskip("tldextract", reason="the URL filter needs tldextract (extra [data])")
SUFFIXES = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
PEER = os.environ.get("FREEDIVE_DATATROVE_PYTHON")
LISTS = {
    "domains": ["bad.example.com", "worse.co.uk", "Capital.org", "bücher.de", "# good.com", ""],
    "urls": ["http://one.net/page", "https://one.net/a?b=c#d"],
    "banned_words": ["casino", "x-y", "#hidden"],
    "banned_subwords": ["free pills", "badbad"],
    "soft_banned_words": ["poker", "bet", "slots", "bonus"],
}
HOSTS = [
    "good.com", "hidden.net", "example.com", "bad.example.com", "very.bad.example.com", "worse.co.uk", "www.worse.co.uk", "co.uk", "Capital.org", "capital.org",
    "WWW.Capital.org", "bücher.de", "10.1.2.3", "[::1]", "[::1", "localhost", "one.net", "user:pw@worse.co.uk:80", "worse.co.uk.", "poker.bet", "free-pills.io", "",
]  # fmt: skip
WORDS = [
    "casino",
    "Casino",
    "CASINO",
    "casinos",
    "xy",
    "x-y",
    "hidden",
    "poker",
    "bet",
    "bet",
    "slots",
    "bonus",
    "free",
    "pills",
    "bad",
    "page",
    "a?b=c#d",
    "é",
    "%20",
    "_",
]


def write_lists(folder: Path, lists: dict[str, list[str]], suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        (folder / f"{name}{suffix}").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    urls_module.load.cache_clear()
    return tmp_path / "cache"


def lists_of(path: Path) -> urls_module.UrlLists:
    rules, why_not = urls_module.find("on", path, "none")
    assert rules is not None and not why_not
    return urls_module.load(rules)


def some_urls(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    made = ["http://one.net/page", "https://one.net/page", "https://one.net/a?b=c#d", "one.net/page"]
    for _ in range(count - len(made)):
        glue = draw.choice("/-_.?&=")
        made.append(f"{draw.choice(['http', 'https'])}://{draw.choice(HOSTS)}/{glue.join(draw.choices(WORDS, k=draw.randint(0, 4)))}")
    return made


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://good.com/", ""),
        ("https://a.worse.co.uk/x", "domain"),
        ("https://bad.example.com/x", "subdomain"),
        ("https://example.com/x", ""),
        ("http://one.net/page", "url"),
        ("http://one.net/page/", ""),
        ("https://good.com/my-casino", "hard_blacklisted"),
        ("https://good.com/my-casinos", ""),
        ("https://good.com/xy", "hard_blacklisted"),
        ("https://good.com/hidden", ""),
        ("https://good.com/poker-poker", ""),
        ("https://good.com/poker/bet", "soft_blacklisted"),
        ("https://good.com/Free.Pills", "blacklisted_subword"),
        ("https://worse.co.uk/casino", "domain"),
        ("http://[::1/x", ""),
        ("", ""),
    ],
)
def test_each_check(tmp_path, url, reason):
    assert urls_module.check(url, lists_of(write_lists(tmp_path / "lists", LISTS))) == reason


names = st.text(st.sampled_from("ab"), min_size=1, max_size=3)
few = st.lists(names, max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    domains=few,
    banned=few,
    sub=few,
    soft=few,
    path=st.lists(st.one_of(names, st.sampled_from(["A", "b!", "é"])), max_size=8),
    host=st.lists(names, min_size=1, max_size=3),
)
def test_random_lists_agree_with_the_rules_read_plainly(tmp_path_factory, domains, banned, sub, soft, path, host):
    folder = tmp_path_factory.mktemp("lists")
    host_name = ".".join(host) + ".com"
    url = f"http://{host_name}/{'/'.join(path)}"
    listed = [f"{'.'.join(d)}.com" for d in domains]
    write_lists(
        folder,
        {
            "domains": [*listed, "x.org"],
            "urls": [f"http://{n}.com/{n}" for n in banned],
            "banned_words": banned,
            "banned_subwords": sub,
            "soft_banned_words": soft,
        },
    )
    keys, words = urls_module.read_lists(folder)
    lists = urls_module.UrlLists(
        memoryview(keys),
        frozenset(words["banned_words"]),
        tuple(words["banned_subwords"]),
        frozenset(words["soft_banned_words"]),
        SUFFIXES,
    )
    parts = re.split("[^a-zA-Z0-9]+", url)
    letters = re.sub("[^a-zA-Z0-9]", "", url).lower()
    expected = (
        "domain" if f"{host[-1]}.com" in listed
        else "subdomain" if host_name in listed
        else "url" if url in [f"http://{n}.com/{n}" for n in banned]
        else "hard_blacklisted" if any(w in parts for w in banned)
        else "soft_blacklisted" if sum(w in parts for w in set(soft)) >= 2
        else "blacklisted_subword" if any(w in letters for w in sub)
        else ""
    )  # fmt: skip
    assert urls_module.check(url, lists) == expected


def archive(path: Path, lists: dict[str, list[str]], mode: str) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, lines in lists.items():
            data = "\r\n".join(lines).encode()
            member = tarfile.TarInfo(f"blacklists/adult/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("domains")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def test_folders_and_archives_say_the_same(tmp_path):
    made = some_urls(300)
    plain = lists_of(write_lists(tmp_path / "plain", LISTS))
    expected = [urls_module.check(url, plain) for url in made]
    assert len(set(expected)) == 7  # every reason occurs, and none
    half = {name: lines for name, lines in LISTS.items() if name in ("domains", "urls")}
    mixed = write_lists(tmp_path / "mixed", {name: lines for name, lines in LISTS.items() if name not in half}, ".txt")
    archive(mixed / "lists-v1.tar.gz", half, "w:gz")
    (mixed / "other.csv").write_bytes(b"\xff\0")
    for path in (archive(tmp_path / "a.tar", LISTS, "w"), archive(tmp_path / "a.tar.gz", LISTS, "w:gz"), mixed):
        lists = lists_of(path)
        assert [urls_module.check(url, lists) for url in made] == expected


def test_the_table_is_made_once_and_again_when_it_is_damaged_or_the_lists_change(tmp_path, cache, monkeypatch):
    folder = write_lists(tmp_path / "lists", LISTS)
    before = lists_of(folder)
    files = sorted((cache / "freedive" / "url-lists").iterdir())
    assert len(files) == 2
    urls_module.load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(urls_module, "read_lists", lambda path: pytest.fail("the lists were read again"))
        assert list(lists_of(folder).keys) == list(before.keys)
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
        urls_module.load.cache_clear()
        assert list(lists_of(folder).keys) == list(before.keys)
    (folder / "domains").write_text("new.org\n")
    assert urls_module.check("https://new.org/", lists_of(folder)) == "domain"
    cache.joinpath("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))  # no folder can be made there
    urls_module.load.cache_clear()
    assert urls_module.check("https://new.org/", lists_of(folder)) == "domain"


def test_lists_that_changed_since_the_run_began_are_no_table_of_it(tmp_path, cache):
    folder = write_lists(tmp_path / "lists", LISTS)
    with pytest.raises(UserError, match="not those"):
        urls_module.load(urls_module.UrlRules(folder, "0" * 32))
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (None, b"", "are not at"),
        ("readme.md", b"nothing", "holds no list"),
        ("domains", b"# only comments\n\n", "holds no list"),
        ("domains", b"good.com\n0.0.0.0 bad.com\n", "line 2 .* more than a domain"),
        ("banned_words.txt", b"fine\n\xff\xfe\n", "line 2 .* not UTF-8"),
        ("urls", b"http://a.com\n\0\0\n", "line 2 .* no text"),
        ("lists.tar.gz", b"this is no archive", "could not be read"),
        ("lists.tar.gz", gzip.compress(os.urandom(5000))[:900], "could not be read"),
    ],
)
def test_bad_lists_are_told_before_anything_is_written(tmp_path, name, data, message):
    folder = tmp_path / "lists"
    if name is not None:
        folder.mkdir()
        (folder / name).write_bytes(data)
    (tmp_path / "in.html").write_bytes(page(story(0)))
    with pytest.raises(UserError, match=message):
        run(DataConfig((tmp_path / "in.html",), tmp_path / "out", url_lists=folder))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("out")]


def test_a_list_cut_off_inside_an_archive(tmp_path):
    lists = {"domains": ["".join(random.Random(i).choices(string.ascii_lowercase, k=20)) + ".com" for i in range(20_000)]}
    path = archive(tmp_path / "a.tar.gz", lists, "w:gz")
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match="could not be read"):
        lists_of(path)


def test_the_filter_comes_first_and_is_counted(tmp_path, capsys, monkeypatch):
    lists = write_lists(tmp_path / "lists", LISTS)
    source = tmp_path / "in"
    source.mkdir()
    pages = [(f"https://good.com/{i}", page(story(i))) for i in range(8)]
    pages += [("https://worse.co.uk/1", page(story(20))), ("https://good.com/poker/bet", page("Zu kurz.")), ("https://good.com/casino", b"\xff\0")]
    write_warc(source / "a.warc.gz", pages)
    (source / "casino.txt").write_text(story(30))  # has no address
    (source / "rows.jsonl").write_text(
        json.dumps({"text": story(31), "url": "https://bad.example.com/"}) + "\n" + json.dumps({"text": story(32)}) + "\n"
    )
    out = run(DataConfig((source,), tmp_path / "out", url_lists=lists, decisions=True))
    result = adds_up(out)
    assert [step["step"] for step in result["steps"]][:3] == ["read", "url", "extract"]
    assert reasons(result) == {"url/domain": 1, "url/soft_blacklisted": 1, "url/hard_blacklisted": 1, "url/subdomain": 1}
    assert {d["url"] for d in documents(out)} == {f"https://good.com/{i}" for i in range(8)} | {"casino.txt", "rows.jsonl:2"}
    two = run(DataConfig((source,), tmp_path / "two", url_lists=lists, decisions=True, workers=2))
    assert folder_hash(out) == folder_hash(two)
    moved = lists.rename(tmp_path / "elsewhere").rename(tmp_path / "lists2")
    (moved / "domains").write_text("other.org\n")
    with pytest.raises(UserError, match="digest"):  # other lists are another recipe
        run(DataConfig((source,), tmp_path / "out", url_lists=moved, decisions=True))
    off = run(DataConfig((source,), tmp_path / "off", url_filter="off", url_lists=moved))
    assert "url" not in [step["step"] for step in json.loads((off / "waterfall.json").read_text())["steps"]]


def test_without_lists_fineweb_says_so_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(urls_module, "_installed", lambda: None)
    (tmp_path / "in.html").write_bytes(page(story(0)))
    run(DataConfig((tmp_path / "in.html",), tmp_path / "basic"))
    assert "URL filter" not in capsys.readouterr().out
    with pytest.raises(UserError, match="no document"):
        run(DataConfig((tmp_path / "in.html",), tmp_path / "out", preset="fineweb", languages=("de",)))
    [line] = [line for line in capsys.readouterr().out.splitlines() if "URL filter" in line]
    assert "--url-lists" in line
    with pytest.raises(UserError, match="no lists for the URL filter"):
        run(DataConfig((tmp_path / "in.html",), tmp_path / "out", url_filter="on"))


def test_the_lists_of_an_installed_datatrove_are_found(tmp_path, monkeypatch):
    package = tmp_path / "datatrove"
    write_lists(package / "assets", LISTS)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for preset, mode, found in (
        ("fineweb", "auto", True),
        ("fineweb-paper", "auto", True),
        ("basic", "auto", False),
        ("basic", "on", True),
        ("fineweb", "off", False),
    ):
        assert (urls_module.find(mode, None, preset)[0] is not None) == found


ORACLE = """
import json, sys
from datatrove.data import Document
from datatrove.pipeline.filters import URLFilter
told = json.load(sys.stdin)
l = told["lists"]
theirs = URLFilter(extra_domains=l["domains"], extra_urls=l["urls"], banned_words=l["banned_words"], banned_subwords=l["banned_subwords"],
                   soft_banned_words=l["soft_banned_words"], use_integrated_lists=False) if l else URLFilter()
answers = []
for url in told["urls"]:
    answer = theirs.filter(Document(text="x", id="0", metadata={"url": url}))
    answers.append("" if answer is True else answer[1])
import datatrove
print(json.dumps({"answers": answers, "assets": datatrove.__path__[0] + "/assets"}))
"""


def ask_datatrove(urls: list[str], lists: dict[str, list[str]] | None, home: Path) -> tuple[list[str], Path]:
    told = json.dumps({"urls": urls, "lists": lists})
    done = subprocess.run(
        [str(PEER), "-c", ORACLE],
        input=told,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(home), "HF_ASSETS_CACHE": str(home / "assets")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return answer["answers"], Path(answer["assets"])


@pytest.mark.skipif(not PEER, reason="FREEDIVE_DATATROVE_PYTHON names no Python with datatrove")
def test_the_same_decisions_and_reasons_as_datatrove(tmp_path):
    made = [url for url in some_urls(600) if "[::1/" not in url]  # which datatrove's parser does not survive
    entries = {name: [line for line in lines if line] for name, lines in LISTS.items()}
    theirs, _ = ask_datatrove(made, entries, tmp_path)
    lists = lists_of(write_lists(tmp_path / "lists", LISTS))
    assert [urls_module.check(url, lists) for url in made] == theirs
    assert len(set(theirs)) == 7


@pytest.mark.slow
@pytest.mark.skipif(not PEER, reason="FREEDIVE_DATATROVE_PYTHON names no Python with datatrove")
def test_finewebs_own_lists_give_datatroves_decisions(tmp_path):
    draw = random.Random(1)
    found = subprocess.run([str(PEER), "-c", "import datatrove; print(datatrove.__path__[0])"], capture_output=True, text=True, check=True).stdout
    assets = Path(found.strip()) / "assets"
    sample: dict[str, list[str]] = {}
    for _, name, stream in (found for file in urls_module._paths(assets) for found in urls_module._streams(file)):
        lines = [line.decode().strip() for line in stream if not line.startswith(b"#")]
        sample[name] = draw.sample(lines, min(60, len(lines)))
    made = [f"https://{prefix}{domain}/page" for domain in sample["domains"] for prefix in ("", "www.", "a.b.")]
    made += [f"{scheme}{url}" for url in sample["urls"] for scheme in ("", "http://")]
    made += [f"https://good-{i}.com/{draw.choice('ab')}/{word}" for i, word in enumerate(sample["banned_words"] + sample["banned_subwords"])]
    made += [f"https://good-{i}.com/{'-'.join(draw.sample(sample['soft_banned_words'], 2))}" for i in range(40)]
    made += [f"https://site{i}.org/{'-'.join(draw.choices(['town', 'river', 'Mass', 'class', 'essex', 'grape', 'news'], k=3))}" for i in range(100)]
    theirs, _ = ask_datatrove(made, None, tmp_path)
    lists = lists_of(assets)
    assert [urls_module.check(url, lists) for url in made] == theirs
    assert {"", "domain", "hard_blacklisted", "soft_blacklisted", "blacklisted_subword"} <= set(theirs)
