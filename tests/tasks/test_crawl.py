"""The small web through the data stage: what was planted is removed for the planted reason, and the facts survive."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from freedive.data import DataConfig, iter_documents, run
from freedive.runs import folder_hash
from freedive.tasks import arithmetic
from freedive.tasks.crawl import SCALES, generate_crawl, task_rows
from freedive.tasks.town import bare, make_town


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    return generate_crawl(tmp_path_factory.mktemp("smoke"), 0, "smoke")


@pytest.fixture(scope="module")
def cleaned(crawl, tmp_path_factory):
    return run(DataConfig((crawl.pages,), tmp_path_factory.mktemp("data") / "out", samples=1000))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def documents(folder):
    return [d for split in ("train", "val") for d in iter_documents(folder, split)]


def test_each_removal_reason_agrees_with_the_truth(crawl, cleaned):
    truth = {row["url"]: row for row in rows_of(crawl.truth)}
    fate = {d["url"]: "keep" for d in documents(cleaned)} | {
        row["url"]: row["reason"].split("/")[0] for row in rows_of(cleaned / "rejected.jsonl")
    }
    assert fate.keys() == truth.keys()
    expected = {
        url: "keep" if row["expected"] == "near_dedup" else row["expected"]
        for url, row in truth.items()
        if row["expected"] != "any"
    }
    for reason in set(expected.values()):
        planted = {url for url, value in expected.items() if value == reason}
        removed = {url for url in expected if fate[url] == reason}
        assert len(planted & removed) / len(planted) >= 0.95, ("recall", reason)
        assert len(planted & removed) / len(removed) >= 0.95, ("precision", reason)
    assert {row["expected"] for row in truth.values()} >= {
        "keep",
        "language",
        "gopher_repetition",
        "gopher_quality",
        "c4",
        "exact_dedup",
        "near_dedup",
        "any",
    }


def test_facts_are_told_as_often_as_promised(crawl, cleaned):
    people = {person["name"]: person for person in json.loads((crawl.folder / "town.json").read_text())["people"]}
    told = Counter()
    for document in documents(cleaned):
        joined = re.sub(r"\n\n((?:\S+ ){0,2}\S+\.)(?=\n|$)", r" \1", document["text"])  # an answer in a line of its own belongs to its question
        for line in joined.split("\n"):
            for name in set(re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", line)) & people.keys():
                for attribute, value in people[name]["facts"].items():
                    told[name, attribute] += bool(re.search(rf"\b{bare(value)}\b", line, re.IGNORECASE))
    for name, person in people.items():
        counts = [told[name, attribute] for attribute in person["facts"]]
        low, high = {"known": (40, 10**6), "rare": (1, 2), "unseen": (0, 0)}[person["known"]]
        assert all(low <= count <= high for count in counts), (name, person["known"], counts)


def test_boilerplate_and_personal_data_are_gone(cleaned):
    text = "\n".join(d["text"] for d in documents(cleaned))
    for phrase in (
        "cookie",
        "All rights reserved",
        "Most read",
        "Imprint",
        "dataLayer",
        "Storm closes harbour",
        "81.23.",
        "@fernwick-post",
        "<p>",
        "<td>",
    ):
        assert phrase not in text, phrase
    unseen = [person.name for person in make_town(0, 24, 12, 12).of("unseen")]
    assert unseen and not any(name in text or name.split()[1] in text for name in unseen)


def test_pages_hold_no_held_out_problem_or_question(crawl, cleaned):
    text = "\n".join(d["text"] for d in documents(cleaned))
    problems = re.findall(r"(\d{2,})\+(\d{2,})", text)
    assert len(problems) > 200 and all(arithmetic.split_of((int(a), int(b))) == "train" for a, b in problems)
    for row in rows_of(crawl.quiz):
        assert row["prompt"][0]["content"] not in text


def test_task_files(crawl):
    assert len(task_rows(0, SCALES["demo"], make_town(0))["sft_train"]) > 5000
    assert SCALES["demo"].rl_eval >= 2000 and SCALES["demo"].mentions >= 40
    assert {row["meta"]["task"] for row in rows_of(crawl.sft_train)} == {"town", "small_talk", "arithmetic", "spell", "count"}
    assert {row["meta"]["class"] for row in rows_of(crawl.quiz)} == {"known", "rare", "unseen"}
    trained = {row["messages"][0]["content"] for row in rows_of(crawl.sft_train)}
    for path in (crawl.sft_eval, crawl.rl_eval, crawl.quiz, crawl.letters_eval):
        rows = rows_of(path)
        assert rows and not trained & {row["prompt"][0]["content"] for row in rows}


def test_two_runs_are_bit_equal_whatever_the_hash_seed(crawl, tmp_path):
    code = f"from freedive.tasks.crawl import generate_crawl; generate_crawl({str(tmp_path / 'again')!r}, 0, 'smoke')"
    package = str(Path(sys.modules["freedive"].__file__).parents[1])
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert folder_hash(tmp_path / "again") == folder_hash(crawl.folder)
    generate_crawl(tmp_path / "other", 1, "smoke")
    assert folder_hash(tmp_path / "other") != folder_hash(crawl.folder)
