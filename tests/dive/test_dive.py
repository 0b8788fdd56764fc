"""The dive: a list whose steps fit together, and (slow) the smoke tier from the first page to the report, interrupted and not."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from html_page import Page

from freedive import cli
from freedive.dive.command import command_of
from freedive.dive.exam import KINDS, exam_rows
from freedive.dive.stage import DiveConfig, list_of_steps, run
from freedive.dive.tiers import TIERS
from freedive.runs import UserError, folder_hash
from freedive.tasks import check
from freedive.tasks.crawl import generate_crawl


@pytest.mark.parametrize("tier", TIERS)
def test_every_step_reads_only_what_an_earlier_one_wrote(tmp_path, tier):
    written: set[Path] = set()
    for step in list_of_steps(DiveConfig(tier=tier, out=tmp_path), TIERS[tier]):
        assert step.config.out == tmp_path / step.name
        for field in dataclasses.fields(step.config):
            value = getattr(step.config, field.name)
            for path in value if isinstance(value, tuple) else (value,):
                if isinstance(path, Path) and field.name != "out":
                    assert any(path.is_relative_to(folder) for folder in written), (step.name, field.name)
        written.add(step.config.out)


def test_dry_run_says_the_steps_and_writes_nothing(tmp_path, capsys):
    run(DiveConfig(tier="smoke", out=tmp_path / "dive", dry_run=True))
    said = capsys.readouterr().out
    assert all(section in said for section in ("1.1", "1.2", "1.3", "1.5", "2 ", "3 ", "4 "))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tier", ["smoke", "demo"])
def test_a_dry_run_prints_the_commands_that_do_the_same(tier, tmp_path):
    """Each stage's line, given to the command line, is the configuration that the dive runs."""
    for config in (DiveConfig(tier=tier, out=tmp_path / "dive"), DiveConfig(tier=tier, out=tmp_path / "dive", threads=1, seed=3, force=True, rl_lr=1e-3, rl_dynamic_sampling=3)):
        verbs = 0
        for step in list_of_steps(config, TIERS[tier]):
            words = shlex.split(command_of(step.config))
            if words[0] == "freedive":
                parsed = cli.parse(type(step.config), words[2:], "test")
                if hasattr(parsed, "inputs"):  # paths, or addresses as text
                    parsed = dataclasses.replace(parsed, inputs=tuple(map(Path, parsed.inputs)))
                assert parsed == step.config
                verbs += 1
        assert verbs == 8


def test_out_that_is_a_file_is_an_error_for_people(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        run(DiveConfig(tier="smoke", out=tmp_path / "file"))


def test_the_exam_holds_each_kind_of_question_and_its_answers_are_right(tmp_path):
    web = generate_crawl(tmp_path, 0, "smoke")
    rows = list(exam_rows(web, 0, 8, 5))
    assert {row["meta"]["task"] for row in rows} == {"town", "arithmetic", "spell", "count"}
    assert {row["meta"]["kind"] for row in rows} == set(KINDS.values())
    assert {row["meta"]["class"] for row in rows if row["meta"]["task"] == "town"} == {"known", "rare", "unseen"}
    for row in rows:
        said = f"= {row['answer']}" if row["meta"]["task"] in ("arithmetic", "count") else row["answer"]
        assert check(said, row) and not check("I don't know.", row)
    assert rows == list(exam_rows(web, 0, 8, 5))


@pytest.mark.slow
def test_the_smoke_dive_and_its_report(tmp_path, capsys):
    out = tmp_path / "dive"
    run(DiveConfig(tier="smoke", out=out, quiet=True))
    assert capsys.readouterr().out == ""
    page = Page((out / "report.html").read_text())
    page.is_self_contained()
    wanted = "data tokens training network base assistant limits practice times settings".split()
    assert set(wanted) <= set(page.anchors)
    dive = json.loads((out / "dive.json").read_text())
    for name, stage in dive["stages"].items():
        assert stage["hash"] == folder_hash(out / name)
    # a dive whose later stages are gone makes them again, the same
    before = (out / "dive.json").read_bytes()
    for name in ("eval-sft", "rl"):
        (out / name).rename(tmp_path / name)
    run(DiveConfig(tier="smoke", out=out))
    assert (out / "dive.json").read_bytes() == before
    assert "1.3 The training process: done before" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with other settings"):
        run(DiveConfig(tier="smoke", out=out, seed=1))
