"""The folder of labels: what was acknowledged is there after kill -9 at any byte, nothing half-written counts, orders are fair, wrong judgements leave no trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_cases import TEXTS, folders

from freedive.runs import UserError
from freedive.sft.labels.guidelines import guidelines_hash, read_guidelines
from freedive.sft.labels.importing import write
from freedive.sft.labels.items import Answer, Item, dense, items, make_item
from freedive.sft.labels.store import Judgement, Labels, at_work, check_name, clean_name, make, work_by

ITEM = make_item([{"role": "user", "content": "Why?"}], ["one", "two", "three"])


def folder_of(path: Path, *more: Item) -> Path:
    make(path / "labels", [ITEM, *more], seed=3, guidelines="# Be fair")
    return path / "labels"


@given(folders(), st.data())
def test_what_is_cut_off_at_any_byte_loses_that_line_only(drawn, data):
    found, judgements = drawn
    mine = [replace(j, labeller="ada") for j in judgements]
    with tempfile.TemporaryDirectory() as room:
        make(Path(room) / "x", found)
        path = Path(room) / "x" / "judgements" / "ada.jsonl"
        sizes = [0]
        with at_work(Path(room) / "x", "ada") as desk:
            for j in mine:
                desk.judge(j)
                sizes.append(path.stat().st_size)
            last = desk.mine
        assert Labels(Path(room) / "x").last("ada") == last
        if not mine:
            return
        cut = data.draw(st.integers(0, sizes[-1]))
        os.truncate(path, cut)
        whole = {j.item: j for j, size in zip(mine, sizes[1:]) if size <= cut}
        assert Labels(Path(room) / "x").last("ada") == whole
        with at_work(Path(room) / "x", "ada") as desk:  # and it goes on from there
            assert desk.mine == whole
            desk.judge(mine[0])
        assert Labels(Path(room) / "x").last("ada") == whole | {mine[0].item: mine[0]}


def test_a_killed_process_has_kept_what_it_acknowledged_and_the_draft(tmp_path: Path):
    found = [make_item([{"role": "user", "content": str(i)}], ["a", "b"]) for i in range(2000)]
    make(tmp_path / "x", found)
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from freedive.sft.labels.store import Judgement, at_work
        with at_work(Path(sys.argv[1]), "ada") as desk:
            for item in desk.open_items("rank"):
                desk.draft(item, {"text": "typed " + item})
                desk.judge(Judgement(item, "ada", ranks={"a0": 0, "a1": 1}))
                print(item, flush=True)
    """)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    seen: list[str] = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        seen += [process.stdout.readline().strip() for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.read().split()
        process.wait()
    kept = Labels(tmp_path / "x").last("ada")
    assert set(seen) <= set(kept) and len(kept) <= len(set(seen)) + 3  # one a kill may have been written and not told
    assert len(seen) == len(set(seen))  # each process went on at the next one
    drafts = json.loads((tmp_path / "x" / "drafts" / "ada.json").read_text())
    assert len(drafts) <= 1 and all(d["text"] == "typed " + item for item, d in drafts.items())


def test_several_labellers_but_one_process_each(tmp_path: Path):
    folder = folder_of(tmp_path)
    with at_work(folder, "ada") as ada, at_work(folder, "grace") as grace:
        ada.judge(Judgement(ITEM.id, "ada", text="mine"))
        grace.judge(Judgement(ITEM.id, "grace", text="hers"))
        with pytest.raises(UserError, match="is writing"), at_work(folder, "ada"):
            pass
    assert [(j.labeller, j.text) for j in Labels(folder).judgements()] == [("ada", "mine"), ("grace", "hers")]
    assert [j.text for j in Labels(folder).judgements(["grace"])] == ["hers"]
    with pytest.raises(UserError, match="there is no labeller 'linus'"):
        list(Labels(folder).judgements(["linus"]))


def test_the_order_is_drawn_fairly_and_the_same_everywhere(tmp_path: Path):
    found = [make_item([{"role": "user", "content": str(i)}], ["a", "b", "c"]) for i in range(600)]
    make(tmp_path / "x", found, seed=1)
    labels = Labels(tmp_path / "x")
    orders = {who: [tuple(labels.order(i.id, who)) for i in found] for who in ("ada", "grace")}
    assert all(sorted(o) == ["a0", "a1", "a2"] for o in orders["ada"]) and orders["ada"] == [tuple(Labels(tmp_path / "x").order(i.id, "ada")) for i in found]
    assert orders["ada"] != orders["grace"]
    counts = Counter(orders["ada"])
    assert len(counts) == 6 and max(counts.values()) < 140 and min(counts.values()) > 65  # 100 each; five standard deviations are 46


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"ranks": {"a0": 0}}, "every answer"),
        ({"ranks": {"a0": 0, "a1": 0, "a2": 2}}, "no gaps"),
        ({"ranks": {"a0": 0, "a1": 1, "x": 2}}, "every answer"),
        ({"scores": {"a0": 8}}, "from 1 to 7"),
        ({"scores": {"x": 1}}, "no answer 'x'"),
        ({}, "nothing in this judgement"),
    ],
)
def test_a_wrong_judgement_leaves_no_trace(tmp_path: Path, wrong, told):
    folder = folder_of(tmp_path)
    with at_work(folder, "ada") as desk:
        desk.draft(ITEM.id, {"text": "kept"})
        with pytest.raises(UserError, match=told):
            desk.judge(Judgement(ITEM.id, "ada", **wrong))
        assert not desk.path.exists() and desk.drafts and not desk.mine


def test_what_is_open_depends_on_the_task(tmp_path: Path):
    folder = folder_of(tmp_path, make_item([{"role": "user", "content": "Who?"}], ["a", "b"]))
    other = Labels(folder).items[list(Labels(folder).items)[1]]
    with at_work(folder, "ada") as desk:
        desk.judge(Judgement(ITEM.id, "ada", ranks={"a0": 0, "a1": 1, "a2": 1}))
        assert [desk.open_items(t) for t in ("rank", "write", "both")] == [[other.id], [ITEM.id, other.id], [ITEM.id, other.id]]
        desk.judge(Judgement(other.id, "ada", skipped=True))
        assert [desk.open_items(t) for t in ("rank", "write")] == [[], [ITEM.id]]


def test_sampled_answers_of_two_processes_are_the_first_ones(tmp_path: Path):
    folder = folder_of(tmp_path)
    one, other = Labels(folder), Labels(folder)
    one.add_answer(ITEM.id, Answer("s3", "first"), seed=1)
    other.add_answer(ITEM.id, Answer("s3", "second"), seed=2)
    with open(folder / "answers.jsonl", "ab") as file:
        file.write(b'{"item": "' + ITEM.id.encode() + b'", "id": "s4", "te')  # killed here
    one.add_answer(ITEM.id, Answer("s4", "whole"))
    for labels in (one, other, Labels(folder)):
        labels.read_answers()
        assert [a.text for a in labels.items[ITEM.id].answers] == ["one", "two", "three", "first", "whole"]


def test_folders_that_are_none(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="not a folder of labels"):
        make(tmp_path / "full", [ITEM])
    with pytest.raises(UserError, match="is no folder of labels"):
        Labels(tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    folder = folder_of(tmp_path)
    (folder / "judgements" / "ada.jsonl").write_text('{"item": 3}\n{}\n')
    with pytest.raises(UserError, match="line 1 is no judgement"):
        Labels(folder).last("ada")
    (folder / "judgements" / "ada.jsonl").write_text("half\n")
    with pytest.raises(UserError, match="line 1 is no JSON object"):
        Labels(folder).last("ada")


def test_guidelines(tmp_path: Path):
    ours = read_guidelines()
    assert all(word in ours for word in ("## Helpful", "## Truthful", "## Harmless", "tie"))
    folder = folder_of(tmp_path)
    assert Labels(folder).guidelines() == "# Be fair"
    name = work_by(folder, ours)
    assert name == guidelines_hash(ours) == Labels(folder).head["guidelines"] and Labels(folder).guidelines() == ours
    assert len(list((folder / "guidelines").iterdir())) == 2  # the old one is kept: judgements name it
    for wrong, told in ((tmp_path / "none.md", "could not be read"), (tmp_path / "empty.md", "empty"), (tmp_path / "binary.md", "UTF-8")):
        if "none" not in wrong.name:
            wrong.write_bytes(b"" if "empty" in wrong.name else b"\xff\xfe\x00")
        with pytest.raises(UserError, match=told):
            read_guidelines(wrong)


@given(st.text(max_size=80))
def test_names(text):
    name = clean_name(text)
    assert check_name(name) == name and "/" not in name and not name.startswith(".")
    assert clean_name(name) == name


@given(st.lists(st.integers(-5, 5), min_size=1))
def test_dense_ranks_keep_the_order_and_have_no_gaps(ranks):
    out = dense(ranks)
    assert sorted(set(out)) == list(range(len(set(ranks))))
    assert all((a < b) == (x < y) for a, x in zip(ranks, out) for b, y in zip(ranks, out))


ROWS = [
    ({"prompt": "Q"}, (["Q"], [], {})),
    ({"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]}, (["S", "Q"], [], {})),
    ({"prompt": "Q", "completions": ["a", "b"]}, (["Q"], ["a", "b"], {})),
    ({"prompt": "Q", "completions": [{"text": "a", "model": "m"}, [{"role": "assistant", "content": "b"}]], "ranks": [5, 2]}, (["Q"], ["a", "b"], {"a0": 1, "a1": 0})),
    ({"prompt": "Q", "chosen": "a", "rejected": "b"}, (["Q"], ["a", "b"], {"a0": 0, "a1": 1})),
    ({"chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}], "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "b"}]}, (["Q"], ["a", "b"], {"a0": 0, "a1": 1})),
    ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}]}, (["Q"], ["a"], {})),
    ({"messages": [{"role": "user", "content": "Q"}]}, (["Q"], [], {})),
    ({"instruction": "Q", "output": "a"}, (["Q"], ["a"], {})),
    ({"prompt": {"text": "Q", "role": "prompter", "replies": [{"text": "a", "role": "assistant", "rank": 1}, {"text": "b", "role": "assistant", "rank": 0}]}}, (["Q"], ["b", "a"], {"a0": 0, "a1": 1})),
    ({"prompt": {"text": "Q", "role": "prompter", "replies": []}}, (["Q"], [], {})),
]  # fmt: skip


@pytest.mark.parametrize("row, wanted", ROWS)
def test_items_of_rows(row, wanted):
    [(_, found)] = items([(1, row)])
    assert isinstance(found, list) and len(found) == 1
    item = found[0]
    assert ([m["content"] for m in item.prompt], [a.text for a in item.answers], item.ranks) == wanted
    assert Item.of_record(json.loads(json.dumps(item.record()))) == item


@pytest.mark.parametrize("row, told", [({"prompt": ""}, "empty"), ({"x": 1}, "needs 'messages'"), ({"prompt": "Q", "completions": ["a"], "ranks": [0, 1]}, "2 ranks"),
                                       ({"prompt": "Q", "completions": [3]}, "one text"), ({"messages": []}, "empty"), ({"chosen": "a", "rejected": "b"}, "in common"),
                                       ({"prompt": {"replies": 3}}, "a message of the tree"), ({"prompt": {"text": "Q", "replies": 3}}, "list of messages")])  # fmt: skip
def test_rows_that_are_none_are_told(row, told):
    [(_, found)] = items([(1, row)])
    assert isinstance(found, str) and told in found


@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=3)), min_size=1, max_size=6))
def test_every_row_is_an_item_of_its_own(rows):
    found = [i for _, told in items((n, {"prompt": q, "completions": texts}) for n, (q, texts) in enumerate(rows)) for i in told]
    assert len({i.id for i in found}) == len(found) == len(rows)
    with tempfile.TemporaryDirectory() as room:
        write(Path(room) / "x", found, [])
        assert list(Labels(Path(room) / "x").items.values()) == found
