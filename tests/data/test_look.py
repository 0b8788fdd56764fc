"""Looking: pages and terminal show what is there, escape what is not text, and say what cannot be shown."""

import json

import pytest
from data_pages import page, story

from freedive.cli import main
from freedive.data import DataConfig, run
from freedive.data.look import LookConfig, score
from freedive.data.look import run as look
from freedive.runs import UserError
from freedive.tasks.warc import write_warc

EVIL = "<script>alert(1)</script>\x1b[31m"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look")
    pages = [(f"https://a.example/{i}", page(story(i))) for i in range(30)]
    pages += [("https://a.example/short", page("Too short.")), ("https://a.example/again", page(story(3)))]
    pages += [("https://a.example/evil", page(EVIL.replace("<", "&lt;") + story(50)))]
    write_warc(folder / "x.warc.gz", pages)
    return run(DataConfig((folder / "x.warc.gz",), folder / "out", decisions=True))


def test_documents_and_reasons_are_shown(made, capsys):
    look(LookConfig(made, count=3))
    told = capsys.readouterr().out
    assert "https://a.example/" in told and "id: " in told and "exact_duplicate" in told
    look(LookConfig(made, reason="exact_dedup"))
    told = capsys.readouterr().out
    assert "https://a.example/again" in told and "https://a.example/short" not in told
    look(LookConfig(made, find="alert(1)", count=1))
    assert "\x1b[31m" not in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing was removed") as error:
        look(LookConfig(made, reason="url"))
    assert "exact_dedup/exact_duplicate" in error.value.hint
    for wrong in (LookConfig(made.parent), LookConfig(made, split="test"), LookConfig(made, count=0)):
        with pytest.raises(UserError):
            look(wrong)


def test_pages_run_no_script_and_load_nothing(made, tmp_path):
    look(LookConfig(made, html=tmp_path / "look.html", count=100))
    text = (tmp_path / "look.html").read_text()
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text and "default-src 'none'" in text
    waterfall = (made / "waterfall.html").read_text()
    assert "<script" not in waterfall and "exact_dedup/exact_duplicate" in waterfall and "https://a.example/again" in waterfall
    result = json.loads((made / "waterfall.json").read_text())
    assert f"{result['documents_in']:,}" in waterfall and result["recipe"] in waterfall


def test_precision_and_recall(made, tmp_path):
    truth = tmp_path / "truth.jsonl"
    rows = [{"url": f"https://a.example/{i}", "expected": "keep"} for i in range(30)]
    rows += [{"url": "https://a.example/again", "expected": "exact_dedup"}, {"url": "https://a.example/evil", "expected": "any"}]
    rows += [{"url": "https://a.example/short", "expected": "gopher_repetition"}]
    truth.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {row["step"]: row for row in score(made, truth)}
    assert found["keep"]["precision"] == found["exact_dedup"]["precision"] == found["exact_dedup"]["recall"] == 1.0
    assert found["gopher_repetition"]["recall"] == 0.0
    truth.write_text('{"url": "https://b.example", "expected": "keep"}\n')
    with pytest.raises(UserError, match="are not in"):
        score(made, truth)


def test_the_second_word_is_a_command_and_a_file_of_that_name_still_an_input(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "look", str(made), "--count", "1"]) == 0
    assert "of input" in capsys.readouterr().out
    (tmp_path / "look").write_text(story(1))
    assert main(["data", "./look", "--out", "out"]) == 0
    assert "https" not in capsys.readouterr().out and (tmp_path / "out" / "run.json").is_file()
    assert main(["data", "look", "no-such-folder"]) == 2
