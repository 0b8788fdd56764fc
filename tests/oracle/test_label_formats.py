"""Argilla's client and Label Studio's SDK read our files, without a server.

They live in an environment of their own, which this test starts as a program:

    python3 -m venv .venv-labels && .venv-labels/bin/pip install argilla label-studio-sdk
    FREEDIVE_LABELS_PYTHON=.venv-labels/bin/python pytest tests/oracle/test_label_formats.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif("FREEDIVE_LABELS_PYTHON" not in os.environ, reason="FREEDIVE_LABELS_PYTHON names no Python with argilla and label-studio-sdk")
SCRIPT = Path(__file__).with_name("label_formats_side.py")


def test_they_read_what_was_exported(tmp_path: Path, shared_data: Path):
    """OASST's trees (real), each prompt judged by the file, and by somebody who uses every field."""
    from freedive.cli import main
    from freedive.sft.labels.store import FLAGS, Judgement, Labels, append

    folder = tmp_path / "x"
    assert main(["label", "import", str(shared_data / "sft" / "oasst_en_100_trees.jsonl.gz"), "--out", str(folder)]) == 0
    labels = Labels(folder)
    for n, item in enumerate(labels.items.values()):
        ids = [a.id for a in item.answers]
        told = Judgement(item.id, "ada", n % 7 == 0, "Ideal.", dict.fromkeys(ids, 0) if n % 2 else {i: r for r, i in enumerate(ids)}, dict.fromkeys(ids[:2], 1 + n % 7),
                         {ids[0]: "a note"}, "notes", list(FLAGS[: n % 4]), ids, 12.5, "2026-11-28T07:00:00Z", "abc")  # fmt: skip
        append(folder / "judgements" / "ada.jsonl", vars(told))
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
