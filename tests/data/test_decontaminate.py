"""Decontamination: planted pieces of evaluation items are always found, whatever their case and punctuation; other text never is."""

import gzip
import json
import random
from pathlib import Path

import pytest
from data_pages import adds_up, documents, page, reasons, story
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.cli import main
from freedive.data import DataConfig, run
from freedive.data import decontaminate as d
from freedive.data.look import score
from freedive.data.words import split
from freedive.runs import UserError, folder_hash
from freedive.tasks.warc import write_warc

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WORDS = [f"{a}{b}" for a in "ba be bi bo du ka ke ki lo lu ma mi no".split() for b in "ran tel pos mik dar".split()]
OTHERS = [f"{a}{b}" for a in "sha she shi tro tru".split() for b in "ven wold gast".split()]
MARKS = st.sampled_from([" ", ", ", ". ", "! ", " -- ", "; ", "\n", "\n\n", ' "', "? (", ") "])


def eval_set(folder: Path, rows: list, name: str = "exam.jsonl") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def rules(folder: Path, rows: list, length: int = 13, fields: tuple = ()) -> d.Decontamination:
    found = d.find([eval_set(folder, rows)], length, "remove", fields)
    assert found is not None
    return found


def sentence(draw: random.Random, count: int, words: list[str] = WORDS) -> str:
    return " ".join(draw.choice(words) for _ in range(count))


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    draw = random.Random(1)
    items = [sentence(draw, draw.randint(8, 60)) for _ in range(200)]
    return items, rules(tmp_path_factory.mktemp("exam"), [{"question": item} for item in items])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_planted_run_is_found_whatever_its_case_and_punctuation(exam, data):
    items, found = exam
    number = data.draw(st.integers(0, len(items) - 1))
    words = items[number].split()
    length = min(13, len(words))
    first = data.draw(st.integers(0, len(words) - length))
    count = data.draw(st.integers(length, len(words) - first))
    planted = "".join(data.draw(st.sampled_from([word, word.title(), word.upper()])) + data.draw(MARKS) for word in words[first : first + count])
    seed = data.draw(st.integers(0, 99))
    before, after = sentence(random.Random(seed), seed, OTHERS), sentence(random.Random(seed + 1), 20, OTHERS)
    matched = d.matches(f"{before} {planted} {after}", found)
    assert len(matched) == 1 and matched[0].name == "exam"
    assert matched[0].text == " ".join(words[first : first + length]) and matched[0].text in items[matched[0].item - 1]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_text_that_shares_no_run_is_never_found(exam, data):
    items, found = exam
    pieces = []  # runs of 12 words at most, and none of a whole item, with other words between
    for _ in range(data.draw(st.integers(0, 12))):
        words = data.draw(st.sampled_from(items)).split()
        first = data.draw(st.integers(0, len(words) - 1))
        most = 12 if len(words) > 12 else len(words) - 1
        pieces += [" ".join(words[first : first + most]), sentence(random.Random(len(pieces)), 2, OTHERS)]
    assert d.matches(" ".join(pieces), found) == []


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200), st.integers(1, 15))
def test_hashes_of_runs_are_equal_exactly_where_the_words_are(text, n):
    found = split(text + " one two one two three one two", simplify=True)
    words, grams = found.list(), found.grams(n).tolist()
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    assert len(grams) == len(runs) and all(0 <= g < 2**61 - 1 for g in grams)
    assert len(set(grams)) == len(set(runs)) == len(set(zip(runs, grams, strict=True)))


def test_short_items_and_numbers(tmp_path):
    nine = "which of these nine words is not a name"
    rows = [
        {"q": nine, "options": ["a b c", "too short by far"]},
        {"q": "only seven words are in this one"},
        {"q": " ".join("12345 678" for _ in range(10))},
    ]
    rows.append({"q": "3 + 4 = 7 and 5 + 6 = 11 and 8 + 9 = 17 and so on without any end to it"})
    found = rules(tmp_path, rows)
    table = d.load(found)
    assert table.found == ({"items": 4, "short": 2, "runs": sum(len(runs.keys) for runs in table.lengths.values())},)
    assert list(table.lengths) == [13, 9] and d.notes(found) == ["exam: 2 of 4 items have fewer than 8 words with letters and are not looked for"]
    assert d.matches(f"So: {nine.title()}? None.", found) and not d.matches(nine[:-4], found)
    assert not d.matches("only seven words are in this one", found) and not d.matches("1 2 3 4 5 " * 20, found)
    assert d.matches("and 5 + 6 = 12 and 8 + 9 = 18 and so on without any end to it, they said", found)  # numbers count as 0


def test_texts_of_rows_however_deep_and_named_fields(tmp_path):
    draw = random.Random(2)
    asked, answered, told = (sentence(draw, 20) for _ in range(3))
    rows = [{"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}], "about": told}]
    assert all(d.matches(text, rules(tmp_path / "all", rows)) for text in (asked, answered, told))
    some = rules(tmp_path / "some", rows, fields=("messages",))
    assert d.matches(asked, some) and not d.matches(told, some)
    with pytest.raises(UserError, match="no field question"):
        rules(tmp_path / "none", rows, fields=("question",))


def test_text_parquet_and_folders_are_sets(tmp_path):
    draw = random.Random(3)
    first, second, third = (sentence(draw, 30) for _ in range(3))
    folder = tmp_path / "held out"
    folder.mkdir()
    (folder / "a.txt").write_text(f"{first[:60]}\n{first[60:]}\n\n{second}\n")
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"prompt": third}))
    found = d.find([f"mine={folder}"], 13, "remove", ())
    assert found is not None and d.load(found).found[0]["items"] == 3
    assert [d.matches(text, found)[0].item for text in (first, second, third)] == [1, 2, 3]
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow (extra [data])")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"question": [first, second]}), tmp_path / "q.parquet")
    found = d.find([str(tmp_path / "q.parquet")], 13, "remove", ())
    assert found is not None and found.sets[0].name == "q" and d.matches(second, found)[0].item == 2


@pytest.mark.parametrize(
    ("specs", "told"),
    [
        (["{0}/absent.jsonl"], "does not exist"),
        (["{0}/exam.jsonl", "{0}/exam.jsonl"], "two evaluation sets"),
        (["a/b={0}/exam.jsonl"], "cannot be called"),
        (["{0}/exam.bin"], "no kind of file"),
        (["{0}/broken.jsonl"], "no JSON object"),
        (["{0}/short.jsonl"], "no item of 1 has 8 words"),
        (["{0}/empty.jsonl"], "is empty"),
    ],
)
def test_bad_sets_are_told_before_anything_is_written(tmp_path, specs, told, capsys):
    eval_set(tmp_path, [{"q": sentence(random.Random(4), 20)}])
    eval_set(tmp_path, [{"q": "short"}], "short.jsonl")
    (tmp_path / "exam.bin").write_bytes(b"x")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "in.txt").write_text(story(1))
    assert main(["data", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out"), "--decontaminate", *(s.format(tmp_path) for s in specs)]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.parts").exists()
    with pytest.raises(UserError, match="decontaminate-words"):
        d.find([], 4, "remove", ())


@pytest.fixture
def crawl(tmp_path):
    """40 pages, every fifth with an item of one of two sets in it, its words changed in case and punctuation; and the truth."""
    draw = random.Random(5)
    sets = {name: [sentence(draw, 25) for _ in range(10)] for name in ("one", "two")}
    for name, items in sets.items():
        eval_set(tmp_path, [{"question": item, "answer": "7"} for item in items], f"{name}.jsonl")
    pages, truth = [], []
    for i in range(40):
        text, url = story(i), f"https://a.example/{i}"
        if i % 5 == 0:
            item = sets["two" if i % 10 else "one"][i // 5].upper().replace(" ", ", ", 3)
            text = f"{text[:200]} {item}. {text[200:]}"
        pages.append((url, page(text)))
        truth.append({"url": url, "expected": "decontamination" if i % 5 == 0 else "keep"})
    (tmp_path / "crawl").mkdir()
    for part in range(3):
        write_warc(tmp_path / "crawl" / f"{part}.warc.gz", pages[part::3])
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in truth))
    return tmp_path


def config(crawl: Path, out: str, **more) -> DataConfig:
    sets = (str(crawl / "one.jsonl"), f"second={crawl / 'two.jsonl'}")
    return DataConfig((crawl / "crawl",), crawl / out, **{"preset": "none", "decontaminate": sets, "decisions": True, **more})


def test_the_stage_removes_counts_and_tells(crawl):
    out = run(config(crawl, "out"))
    result = adds_up(out)
    assert reasons(result) == {"decontamination/one": 4, "decontamination/second": 4}
    found = {row["step"]: row for row in score(out, crawl / "truth.jsonl")}
    assert found["decontamination"]["precision"] == found["decontamination"]["recall"] == 1 and found["keep"]["right"] == 32
    samples = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(samples) == 8 and all(len(sample["why"].split(": ")[1].split()) == 13 for sample in samples)
    assert samples[0]["why"].split(": ")[1] in (out / "waterfall.html").read_text()
    plain = run(config(crawl, "plain", decontaminate=()))
    assert len(documents(plain)) == 40


def test_marked_documents_stay(crawl):
    out = run(config(crawl, "marked", decontaminate_action="mark"))
    rows = [json.loads(line) for file in sorted(out.glob("*-0*.jsonl")) for line in file.read_text().splitlines()]
    assert len(rows) == 40 and sorted(sum((row.get("contamination", []) for row in rows), [])) == ["one"] * 4 + ["second"] * 4
    adds_up(out)


def test_ranks_and_workers_give_the_same_bytes_and_the_sets_are_part_of_the_recipe(crawl, tmp_path):
    whole = run(config(crawl, "out"))
    for rank in range(2):
        run(config(crawl, "ranks", rank=rank, world=2))
    assert folder_hash(run(config(crawl, "ranks"))) == folder_hash(whole) == folder_hash(run(config(crawl, "two", workers=2)))
    recipe = json.loads((whole / "waterfall.json").read_text())["recipe"]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("one.jsonl", "two.jsonl"):
        (moved / name).write_bytes((crawl / name).read_bytes())
    same = config(crawl, "out", decontaminate=(str(moved / "one.jsonl"), f"second={moved / 'two.jsonl'}"))
    assert run(same) == whole  # the same sets, wherever they lie: nothing to do
    (moved / "one.jsonl").write_text((moved / "one.jsonl").read_text().replace("answer", "solution"))
    with pytest.raises(UserError, match="other settings"):
        run(same)
    other = run(config(crawl, "other", decontaminate_words=12))
    assert json.loads((other / "waterfall.json").read_text())["recipe"] != recipe


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"development data not found in {SHARED}")
def test_real_questions_are_found_in_real_pages_and_nothing_else():
    found = d.find([str(SHARED / "rl" / "gsm8k_train.jsonl.gz")], 13, "remove", ())
    assert found is not None
    questions = [json.loads(line)["question"] for line in gzip.open(SHARED / "rl" / "gsm8k_train.jsonl.gz")][::25]
    pages = [json.loads(line)["text"] for line in gzip.open(SHARED / "text" / "openstax.jsonl.gz")][::40]
    assert not any(d.matches(text, found) for text in pages)
    for number, question in enumerate(questions):
        text = pages[number % len(pages)]
        matched = d.matches(f"{text[:3000]}\n{question}\n{text[3000:5000]}", found)
        assert matched and matched[0].name == "gsm8k_train"
