"""Argilla's client and Label Studio's SDK read our files, without a server; and a Label Studio that runs takes them in and gives them back.

The libraries live in an environment of their own, which this test starts as a program; Label Studio is started by hand:

    python3 -m venv .venv-labels && .venv-labels/bin/pip install argilla label-studio-sdk
    FREEDIVE_LABELS_PYTHON=.venv-labels/bin/python pytest tests/oracle/test_label_formats.py

    LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true label-studio start --username a@b.c --password secret --user-token TOKEN --no-browser --port 8124
    FREEDIVE_LABEL_STUDIO=http://TOKEN@127.0.0.1:8124 pytest tests/oracle/test_label_formats.py
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from freedive.cli import main
from freedive.sft.labels import label_studio
from freedive.sft.labels.store import FLAGS, Judgement, Labels, append

SCRIPT = Path(__file__).with_name("label_formats_side.py")


def folder_of(tmp_path: Path, shared_data: Path) -> Path:
    """OASST's trees (real), each prompt judged by the file, and by somebody who uses every field."""
    folder = tmp_path / "x"
    assert main(["label", "import", str(shared_data / "sft" / "oasst_en_100_trees.jsonl.gz"), "--out", str(folder)]) == 0
    for n, item in enumerate(Labels(folder).items.values()):
        ids = [a.id for a in item.answers]
        told = Judgement(item.id, "ada", n % 7 == 0, "Ideal.", dict.fromkeys(ids, 0) if n % 2 else {i: r for r, i in enumerate(ids)}, dict.fromkeys(ids[:2], 1 + n % 7),
                         {ids[0]: "a note"}, "notes", list(FLAGS[: n % 4]), ids, 12.5, "2026-11-28T07:00:00Z", "abc")  # fmt: skip
        append(folder / "judgements" / "ada.jsonl", asdict(told))
    return folder


@pytest.mark.skipif("FREEDIVE_LABELS_PYTHON" not in os.environ, reason="FREEDIVE_LABELS_PYTHON names no Python with argilla and label-studio-sdk")
def test_they_read_what_was_exported(tmp_path: Path, shared_data: Path):
    folder = folder_of(tmp_path, shared_data)
    for name, more in (("argilla", []), ("label-studio", []), ("pairs", ["--pairwise"])):
        kind = "label-studio" if name == "pairs" else name
        assert main(["label", "export", str(folder), "--format", kind, "--out", str(tmp_path / name), *more]) == 0
    sets = sorted(str(p) for p in (tmp_path / "argilla").glob("answers-*"))
    asked = {"argilla": sets, "label_studio": [str(tmp_path / "label-studio"), str(tmp_path / "pairs")]}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([os.environ["FREEDIVE_LABELS_PYTHON"], str(SCRIPT)], input=json.dumps(asked), text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    records = [r for name in sets for r in found["argilla"][name]["records"]]
    assert len(records) == 212
    by = {r["external_id"]: r for r in records}
    judged = {(j.item, j.labeller): j for j in Labels(folder).judgements()}
    for (item, who), j in judged.items():
        responses = by[item]["responses"]
        assert len(responses) == 2
        statuses = {r["status"] for r in responses}
        assert ("discarded" in statuses) == judged[item, "ada"].skipped
        if who == "file":
            response = next(r for r in responses if "ideal" not in r["values"])
            assert [v["rank"] - 1 for v in response["values"]["ranking"]["value"]] == sorted(j.ranks.values())
    ranker, pairs = (found["label_studio"][n] for n in asked["label_studio"])
    assert ranker["tasks"] == 212 and ranker["results"] > 212 * 6 and not ranker["problems"]
    # Label Studio names a Pairwise's result after itself on both sides, as the SDK's own `PairwiseTag.label` does; its validator looks for an object of that name
    assert pairs["tasks"] == 754 and all("'compare' not found" in p for p in pairs["problems"])
    print(f"argilla: {len(records)} records; label-studio-sdk: {ranker['tasks']} tasks, {ranker['results']:,} results without a problem; {pairs['tasks']} pairs")


@pytest.mark.skipif("FREEDIVE_LABEL_STUDIO" not in os.environ, reason="FREEDIVE_LABEL_STUDIO names no Label Studio, http://TOKEN@HOST:PORT")
def test_label_studio_gives_back_what_it_was_given(tmp_path: Path, shared_data: Path):
    """Two projects are made there, one to rank and one to compare; what they export is what was imported."""
    folder = folder_of(tmp_path, shared_data)
    at = urlsplit(os.environ["FREEDIVE_LABEL_STUDIO"])

    def call(method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Token {at.username}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{at.hostname}:{at.port}{path}", None if body is None else json.dumps(body).encode(), headers, method=method)
        return json.loads(urllib.request.urlopen(request, timeout=300).read())

    judged = {(j.item, j.labeller): j for j in Labels(folder).judgements()}
    for more in ([], ["--pairwise"]):
        out = tmp_path / f"out{len(more)}"
        assert main(["label", "export", str(folder), "--format", "label-studio", "--out", str(out), *more]) == 0
        project = call("POST", "/api/projects", {"title": "freedive's test", "label_config": (out / "config.xml").read_text()})["id"]
        tasks = json.loads((out / "tasks.json").read_text())
        told = call("POST", f"/api/projects/{project}/import", tasks)
        assert (told["task_count"], told["annotation_count"]) == (len(tasks), sum(len(t["annotations"]) for t in tasks))
        (out / "tasks.json").write_text(json.dumps(call("GET", f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")))
        items, found = label_studio.read(out)
        back = {(j.item, j.labeller): j for j in found}
        assert items == list(Labels(folder).items.values())
        if more:
            parts = lambda j: (j.ranks, j.notes, j.flags, j.seconds, j.skipped)
            assert all(parts(back[key]) == parts(j) for key, j in judged.items())
        else:
            assert back == judged
