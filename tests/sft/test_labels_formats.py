"""What goes out of a folder of labels comes back: Label Studio's files, Argilla's, and rows as sft/rows.py reads them; OASST's own ranks are exported as they are."""

from __future__ import annotations

import json
import tempfile
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from label_cases import folders

from freedive.cli import main
from freedive.runs import UserError
from freedive.sft.data import DataSource, iter_data
from freedive.sft.labels import argilla, label_studio
from freedive.sft.labels.exports import _write_all, merged, pair_rows, rank_rows, sft_rows
from freedive.sft.labels.importing import from_rows, write
from freedive.sft.labels.items import make_item
from freedive.sft.labels.store import FLAGS, Judgement, Labels
from freedive.sft.rows import conversations, rankings


def there_and_back(kind, found, judgements, **how):
    with tempfile.TemporaryDirectory() as room:
        write(Path(room) / "in", found, judgements, seed=1, guidelines="# Sheet")
        labels = Labels(Path(room) / "in")
        _write_all(Path(room) / "out", kind.files(labels, list(labels.judgements()), **how), False)
        return kind.read(Path(room) / "out")


@given(folders())
def test_label_studio_and_back(drawn):
    found, judgements = drawn
    items, told = there_and_back(label_studio, found, judgements)
    assert items == found and sorted(told, key=repr) == sorted(judgements, key=repr)


@given(folders(least=2))
def test_label_studio_s_pairs_and_back(drawn):
    """Of a comparison, what Pairwise has a place for: the whole order out of its pairs, notes and flags, seconds, who and when."""
    found, judgements = drawn
    items, told = there_and_back(label_studio, found, judgements, pairwise=True)
    assert items == found
    back = {(j.item, j.labeller): j for j in told}
    for j in judgements:
        if not (j.ranks or j.skipped):
            continue
        other = back[j.item, j.labeller]
        assert (other.ranks, other.notes, other.flags, other.seconds, other.skipped, other.time) == (j.ranks, j.notes, j.flags, j.seconds, j.skipped, j.time)


@given(folders())
def test_argilla_and_back(drawn):
    found, judgements = drawn
    items, told = there_and_back(argilla, found, judgements)
    assert sorted(items, key=repr) == sorted(found, key=repr) and sorted(told, key=repr) == sorted(judgements, key=repr)


@given(folders())
def test_rows_say_what_was_judged(drawn):
    found, judgements = drawn
    items = {i.id: i for i in found}
    done = [j for j in judgements if not j.skipped]
    ranked = [j for j in done if j.ranks]
    for j, row in zip(ranked, rank_rows(items, ranked), strict=True):
        [order] = rankings(json.loads(json.dumps(row)))
        assert order.prompt == list(items[j.item].prompt)
        assert [c[0]["content"] for c in order.completions] == [a.text for a in items[j.item].answers] and order.ranks == [j.ranks[a.id] for a in items[j.item].answers]
    pairs = list(pair_rows(items, ranked))
    assert len(pairs) == sum(j.ranks[a] != j.ranks[b] for j in ranked for a, b in combinations(j.ranks, 2))
    for row in pairs:
        j = next(j for j in ranked if (j.item, j.labeller) == (row["item"], row["labeller"]))
        ids = [{i for i in j.ranks if next(a.text for a in items[j.item].answers if a.id == i) == row[side][0]["content"]} for side in ("chosen", "rejected")]
        assert any(j.ranks[a] < j.ranks[b] for a in ids[0] for b in ids[1])
        assert rankings(row)[0].ranks == [0, 1]
    for row in sft_rows(items, done):
        [messages] = conversations(row)
        assert messages[-1]["role"] == "assistant" and messages[:-1] == list(items[row["item"]].prompt)


@given(folders(least=2))
def test_merging_agrees_with_everybody_who_agrees(drawn):
    found, judgements = drawn
    done = [j for j in judgements if j.ranks and not j.skipped]
    for one in merged(done):
        mine = [j for j in done if j.item == one.item]
        for a, b in combinations(one.ranks, 2):
            if all(j.ranks[a] < j.ranks[b] for j in mine):
                assert one.ranks[a] < one.ranks[b]
            if all(j.ranks[a] == j.ranks[b] for j in mine):
                assert one.ranks[a] == one.ranks[b]
        assert sorted(set(one.ranks.values())) == list(range(len(set(one.ranks.values()))))


def test_what_label_studio_itself_exports_is_read(tmp_path: Path):
    """A project of others: their names of things, users by number, an order without buckets, a comparison whose sides are named in config.xml."""
    tasks = [
        {"id": 7, "data": {"prompt": "Which?", "items": [{"id": "llm_1", "title": "One", "body": "first"}, {"id": "llm_2", "body": "second"}, {"id": "llm_3", "html": "third"}]},
         "annotations": [{"id": 1, "completed_by": 3, "lead_time": 4.5, "was_cancelled": False, "created_at": "2026-03-09T22:16:08.728353Z",
                          "result": [{"id": "x", "from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": {"rank": ["llm_3", "llm_1", "llm_2"]}}}]},
                         {"id": 2, "completed_by": {"id": 4, "email": "ada@example.org"}, "was_cancelled": True, "result": []}]},
        {"data": {"prompt": "And?", "items": [{"id": "a", "body": "x"}, {"id": "b", "body": "y"}, {"id": "c", "body": "z"}]},
         "annotations": [{"completed_by": 3, "result": [{"from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": {"poor": ["a"], "_": ["c"], "good": ["b"]}}}]}]},
    ]  # fmt: skip
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    (tmp_path / "config.xml").write_text('<View><List name="results" value="$items"/><Ranker name="rank" toName="results"><Bucket name="good"/><Bucket name="poor"/></Ranker></View>')
    items, told = label_studio.read(tmp_path)
    assert [[a.text for a in i.answers] for i in items] == [["first", "second", "third"], ["x", "y", "z"]]
    by = {(j.item, j.labeller): j for j in told}
    one = by[items[1].id, "3"]
    assert one.ranks == {"b": 0, "a": 1}  # "_" is what was not ranked
    (tmp_path / "config.xml").unlink()
    _, told = label_studio.read(tmp_path / "tasks.json")
    by = {(j.item, j.labeller): j for j in told}
    assert by[items[0].id, "3"].ranks == {"llm_3": 0, "llm_1": 1, "llm_2": 2} and by[items[0].id, "3"].seconds == 4.5 and by[items[0].id, "ada@example.org"].skipped
    pair = [{"data": {"question": "Q", "left_text": "l", "right_text": "r"}, "annotations": [{"completed_by": 1, "result": [{"from_name": "pw", "to_name": "pw", "type": "pairwise", "value": {"selected": "right"}}]}]}]
    (tmp_path / "tasks.json").write_text(json.dumps(pair))
    (tmp_path / "config.xml").write_text('<View><Pairwise name="pw" toName="a,b"/><Text name="a" value="$left_text"/><Text name="b" value="$right_text"/></View>')
    [item], [j] = label_studio.read(tmp_path)
    assert [a.text for a in item.answers] == ["l", "r"] and j.ranks == {"a0": 1, "a1": 0}


def test_what_argilla_s_client_saves_from_a_server_is_read(tmp_path: Path):
    """Rankings as plain lists, no statuses, questions and fields of others' names."""
    user = "5f1e7a36-1111-4222-8333-444455556666"
    records = [{"id": "r1", "fields": {"instruction": "Q", "response-1": "x", "response-2": "y"}, "metadata": {}, "suggestions": {}, "vectors": {}, "status": "completed",
                "_server_id": None, "responses": {"preference": [{"value": ["response-2", "response-1"], "user_id": user}], "corrected": [{"value": "z", "user_id": user}],
                                                  "comments": [{"value": "why", "user_id": user}]}}]  # fmt: skip
    (tmp_path / "records.json").write_text(json.dumps(records))
    [item], [j] = argilla.read(tmp_path)
    assert ([m["content"] for m in item.prompt], [a.text for a in item.answers]) == (["Q"], ["x", "y"])
    assert (j.labeller, j.ranks, j.text, j.notes) == (user, {"a1": 0, "a0": 1}, "z", "why")


def test_a_submitted_argilla_ranking_has_what_its_server_asks_for(tmp_path: Path):
    """Every option once, ranks from 1 to their number (argilla-server, validators/response_values.py)."""
    found = [make_item([{"role": "user", "content": "Q"}], ["x", "y", "z"]), make_item([{"role": "user", "content": "P"}], ["x", "y"])]
    judged = [Judgement(found[0].id, "ada", ranks={"a0": 1, "a1": 0, "a2": 1}, flags=[FLAGS[0]]), Judgement(found[1].id, "ada", ranks={"a0": 0, "a1": 0})]
    write(tmp_path / "x", found, judged)
    labels = Labels(tmp_path / "x")
    files = argilla.files(labels, list(labels.judgements()))
    for k in (2, 3):
        settings_, records = files[f"answers-{k}/.argilla/settings.json"], files[f"answers-{k}/records.json"]
        options = [o["value"] for q in settings_["questions"] if q["name"] == "ranking" for o in q["settings"]["options"]]
        assert len(records) == 1 and options == [f["name"] for f in settings_["fields"]][1:]
        [response] = records[0]["responses"]["ranking"]
        assert sorted(v["value"] for v in response["value"]) == options and all(1 <= v["rank"] <= k for v in response["value"])
        assert {q for r in records for q in r["responses"]} <= {q["name"] for q in settings_["questions"]}


@given(folders())
@settings(max_examples=30)
def test_label_studio_s_results_name_what_its_configuration_has(drawn):
    found, judgements = drawn
    with tempfile.TemporaryDirectory() as room:
        write(Path(room) / "in", found, judgements)
        labels = Labels(Path(room) / "in")
        for pairwise in (False, True) if any(len(i.answers) > 1 for i in found) else (False,):
            files = label_studio.files(labels, list(labels.judgements()), pairwise=pairwise)
            tags = {t.get("name"): t for t in ET.fromstring(files["config.xml"]).iter() if t.get("name") and t.tag != "Bucket"}
            for task in files["tasks.json"]:
                assert all(t.get("value", "$")[1:] in task["data"] for t in tags.values() if t.get("value"))
                for r in (r for a in task["annotations"] for r in a["result"]):
                    tag = tags[r["from_name"]]
                    assert tag.tag.lower() == r["type"] and (r["to_name"] in (tag.get("toName") or "").split(",") or r["type"] == "pairwise" and r["to_name"] == r["from_name"])


def test_oasst_s_ranks_go_through_as_they_are(tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]):
    file = shared_data / "sft" / "oasst_en_100_trees.jsonl.gz"
    wanted = [r for _, _, row in iter_data(DataSource(str(file))) for r in rankings(row)]
    assert main(["label", "import", str(file), "--out", str(tmp_path / "x")]) == 0
    assert "212 prompts, 641 answers, 212 judgements (file 212)" in capsys.readouterr().out
    for way in ("rows", "label-studio", "argilla"):
        out = tmp_path / "x"
        if way != "rows":
            assert main(["label", "export", str(tmp_path / "x"), "--format", way, "--out", str(tmp_path / way)]) == 0
            assert main(["label", "import", str(tmp_path / way), "--format", way, "--out", str(tmp_path / f"{way}-x")]) == 0
            out = tmp_path / f"{way}-x"
        assert main(["label", "export", str(out), "--format", "ranks", "--out", str(tmp_path / f"{way}.jsonl")]) == 0
        rows = [json.loads(line) for line in open(tmp_path / f"{way}.jsonl")]
        key = lambda r: json.dumps([r.prompt, r.completions, r.ranks], sort_keys=True)
        told = [r for row in rows for r in rankings(row)]
        from freedive.sft.labels.items import dense

        assert sorted(map(key, told)) == sorted(key(type(r)(r.prompt, r.completions, dense(r.ranks))) for r in wanted)
        assert way == "argilla" or [r.prompt for r in told] == [r.prompt for r in wanted]
    assert main(["label", "export", str(tmp_path / "x"), "--format", "pairs"]) == 0
    pairs = [json.loads(line) for line in open(tmp_path / "x" / "export" / "pairs.jsonl")]
    assert len(pairs) == sum(len(r.ranks) * (len(r.ranks) - 1) // 2 for r in wanted) and "judged by a file" not in str(pairs[0])


def test_what_cannot_be_exported_or_imported_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "x", [make_item([{"role": "user", "content": "Q"}], ["a"])], [])
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "other.json").write_text('[{"data": {"image": "x.png"}}]')
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Q"}\n')
    for arguments, told in [
        (["export", str(tmp_path / "x"), "--format", "pairs"], "no two answers were told apart"),
        (["export", str(tmp_path / "x"), "--format", "sft"], "no ideal answer was written"),
        (["export", str(tmp_path / "x"), "--format", "label-studio", "--pairwise"], "two answers to compare"),
        (["export", str(tmp_path), "--format", "sft"], "is no folder of labels"),
        (["export", str(tmp_path / "x"), "--labeller", "ada"], "there is no labeller 'ada'"),
        (["import", str(tmp_path / "bad.json"), "--format", "label-studio", "--out", str(tmp_path / "y")], "damaged"),
        (["import", str(tmp_path / "other.json"), "--format", "label-studio", "--out", str(tmp_path / "y")], "has no prompt"),
        (["import", str(tmp_path / "none"), "--format", "argilla", "--out", str(tmp_path / "y")], "does not exist"),
        (["import", str(tmp_path / "x"), "--format", "argilla", "--out", str(tmp_path / "y")], "holds no records.json"),
        (["import", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "y")], "holds no order"),
        (["agreement", str(tmp_path / "x")], "no two labellers"),
    ]:
        assert main(["label", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert told in error, (arguments, error)
        assert not (tmp_path / "y").exists() and not (tmp_path / "x" / "export").exists()
    _write_all(tmp_path / "z", {"a.json": []}, False)
    with pytest.raises(UserError, match="exists"):
        _write_all(tmp_path / "z", {"a.json": [1]}, False)
    assert json.loads((tmp_path / "z" / "a.json").read_text()) == []


def test_an_order_that_is_imported_is_its_labellers_alone(tmp_path: Path):
    """and not once more the file's, with which she would agree entirely."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 0, 2]}) + "\n")
    items, judged = from_rows(str(tmp_path / "rows.jsonl"), "ada")
    assert [i.ranks for i in items] == [{}] and [sorted(j.ranks.values()) for j in judged] == [[0, 1, 2]]


def test_both_forms_of_argillas_orders():
    assert argilla._order(["right", "left"]) == argilla._order([{"value": "right", "rank": 1}, {"value": "left"}]) == ["right", "left"]
    assert argilla._order([{"rank": 1}]) == argilla._order("right") == []
