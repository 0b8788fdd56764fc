"""`freedive demos` at its smallest: every arm runs, is not run again, and what it prints says which figures it reached."""

import json
from dataclasses import replace

import pytest

from freedive.cli import main
from freedive.dive.demos import mixture, room, world
from freedive.dive.demos import stage as demos
from freedive.dive.demos.arms import ARMS
from freedive.dive.demos.stage import DemosConfig
from freedive.runs import UserError, folder_hash
from freedive.tasks import counting, identity, reckoning, town_probe
from freedive.tasks import town as people
from freedive.tasks.arithmetic import split_of
from freedive.tokenizer import byte_tokenizer, check_mask, render

TINY = room.Tier(
    replace(world.SMOKE, scale=replace(world.SMOKE.scale, known=8, rare=6, unseen=4, mentions=18, junk=0, files=1), contents=3, word_lists=3, vocab_size=400, depth=1, epochs=0.4),
    mixture.Counts(sums=4, products=4, letters=4, dots=1), 0.2, 4, 12, 8, 4,
    room.Practice(rows=12, epochs=0.5, problems=8, held_out=4, samples=4, steps=1, prompts=2),
    room.Opinions(jokes=12, epochs=0.5, lists=6, few=3, held_out=4, judged=4, steps=2, prompts=2, over=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(room.TIERS, "smoke", TINY)
        patch.setattr(demos, "TIERS", room.TIERS)
        demos.run(DemosConfig(out=folder / "demos", tier="smoke", seeds=(0,), threads=1, results=folder / "results.json"))
    return folder


def test_every_arm_has_figures_and_the_report_tells_them(out):
    summary = json.loads((out / "demos" / "demos.json").read_text())
    assert [arm["arm"] for arm in summary["arms"]] == list(ARMS)
    report = (out / "demos" / "demos.html").read_text()
    for arm in summary["arms"]:
        assert ARMS[arm["arm"]].title in report and len(arm["figures"]) >= 2
        for figure in arm["figures"]:
            assert figure["n"] > 0 and (figure["unit"] == "times" or -1 <= figure["share"] <= 1)
            assert figure["met"] is None or figure["target"].split()[0] in (">=", "<=")
    (row,) = json.loads((out / "results.json").read_text())
    assert row["command"] == "freedive demos --tier smoke --seeds 0" and row["machine"]["freedive"] and len(row["times"]) == len(ARMS)


def test_a_second_call_runs_nothing_again(out, monkeypatch):
    monkeypatch.setitem(room.TIERS, "smoke", TINY)
    before = {p: p.stat().st_mtime_ns for p in (out / "demos" / "seed-0").glob("*/run.json")}
    demos.run(DemosConfig(out=out / "demos", tier="smoke", seeds=(0,), only=("sums", "identity"), threads=1))
    assert before == {p: p.stat().st_mtime_ns for p in (out / "demos" / "seed-0").glob("*/run.json")}


def test_nobody_who_is_examined_is_taught(out):
    seed = out / "demos" / "seed-0"
    rows = lambda path: [json.loads(line) for line in path.read_text().splitlines()]
    held = {row["meta"]["person"] for row in rows(seed / "rows" / "exam" / "rows.jsonl") if row["meta"]["class"] != "known"}
    taught = [p for p in ((seed / "probe" / "sft.jsonl"), (seed / "rows" / "search" / "rows.jsonl"), (seed / "rows" / "mixture" / "rows.jsonl")) if p.exists()]
    for path in taught:
        said = path.read_text()
        assert not [name for name in held if name in said]


def test_jokes_are_judged_on_requests_that_nothing_saw(out):
    seed = out / "demos" / "seed-0"
    of = lambda path: {json.loads(line)["prompt"] for line in (seed / path / "rows.jsonl").read_text().splitlines()}
    asked = {split: of(f"rows/joke-requests-{split}") for split in ("train", "validation", "test")}
    assert all(asked.values()) and sum(map(len, asked.values())) == len(set().union(*asked.values()))
    assert all(of(f"opinions-{split}") <= asked[split] for split in asked) and of("rows/opinions-train-tame") <= asked["train"]
    judged = {folder_hash(seed / path / "rows.jsonl") for path in ("rows/joke-requests-test", "opinions-test", "rows/opinions-test-tame")}
    for stage in ("comedian", "reward", "reward-weak", "ppo", "dpo", "ppo-overdone"):
        given = json.loads((seed / stage / "run.json").read_text())["inputs"]
        assert not judged & {part for found in given.values() for part in found["hash"].split("+")}


def test_wrong_demonstrations(tmp_path, capsys):
    with pytest.raises(UserError, match="there is no demonstration 'sum'"):
        demos.run(DemosConfig(out=tmp_path / "o", only=("sum",)))
    with pytest.raises(UserError, match="seeds are"):
        demos.run(DemosConfig(out=tmp_path / "o", seeds=(1, 1)))
    assert main(["demos", "--dry-run", "--only", "sums", "--out", str(tmp_path / "o")]) == 0
    assert "Tokens to think" in capsys.readouterr().out and not (tmp_path / "o").exists()


@pytest.mark.parametrize("numbers", [(47, 35, 12, 68), (10, 10, 10, 10), (99, 99, 99, 99), (11, 22, 33, 44, 55)])
def test_steps_are_true_sums(numbers):
    told, _, answer = reckoning.steps(numbers).partition(". Answer ")
    assert int(answer) == sum(numbers)
    carry = 0
    for column, chain in enumerate(told.split(", ")):
        total = 0
        for part in chain.split("+"):
            digit, _, shown = part.partition("=")
            total += int(digit)
            assert not shown or int(shown) == total
        digits = [n // 10**column % 10 for n in numbers]
        assert total == sum(digits) + carry
        carry = total // 10


def test_rows_are_right_train_on_what_the_assistant_says_and_keep_the_splits_apart():
    tok = byte_tokenizer()
    rows = [*mixture.skills(mixture.Counts(20, 20, 20, 1), 3), *mixture.skills(mixture.Counts(20, 20, 20, 1), 3, "held_out")]
    for row in rows:
        ids, mask = render(tok, row["messages"])
        check_mask(tok, ids, mask)
        assert counting.check(row["messages"][-1]["content"], row["answer"])
    words = {s: {r["meta"]["word"] for r in rows if r["meta"]["task"] == "letters" and r["meta"]["split"] == s} for s in ("train", "held_out")}
    runs = {s: {r["meta"]["dots"] for r in rows if r["meta"]["task"] == "dots"} & set(counting.numbers(s)) for s in ("train", "held_out")}
    assert words["train"] and words["held_out"] and not words["train"] & words["held_out"]
    assert runs["held_out"] and not set(counting.numbers("train")) & set(counting.numbers("held_out")) and runs["held_out"] <= set(counting.ASKED_DOTS)
    sums = [r for r in rows if r["meta"]["task"] in ("four_term_sums", "products")]
    assert all(split_of(r["meta"]["numbers"]) == r["meta"]["split"] for r in sums)
    assert counting.marked("book", "o") == "-o0: -b-o1-o2-k"


def test_identity_holds_out_wordings_and_names():
    assert not set(identity.TRAIN) & set(identity.HELD_OUT) and not set(identity.names("train")) & set(identity.names("held_out"))
    for row in [*identity.questions(), *identity.system_rows(20, 0, "held_out"), *identity.hard_coded_rows(5, 0)]:
        assert identity.check(row["messages"][-1]["content"], row["answer"])
    assert not identity.check("I am Bora, made by us.", "freedive")


def test_templates_find_the_facts_they_were_made_from():
    import re

    town = people.make_town(0, 6, 2, 2)
    found = [(re.compile(t["pattern"]), t) for t in town_probe.templates()]
    for person in town.people:
        for attribute in people.ATTRIBUTES:
            for sentence in people.text.SENTENCES[attribute]:
                said = person.fill(sentence, attribute)
                hits = [m.groupdict() for pattern, t in found if (m := pattern.search(said)) and t["questions"][0] == people.text.TRAIN_QUESTIONS[attribute][0].replace("{n}", "{name}")]
                assert {"name": person.name, "value": person.facts[attribute]} in hits
