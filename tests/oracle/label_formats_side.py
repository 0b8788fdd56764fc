"""Argilla's and Label Studio's own libraries read the folders named: prints what they found as JSON. Run by test_label_formats.py, elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock


def argilla_of(folder: Path) -> dict[str, Any]:
    """Settings, dataset and records of one dataset, through Argilla's own readers and its models of what goes to the server."""
    import argilla as rg
    from argilla._models import DatasetModel
    from argilla.client import Argilla
    from argilla.records._io import JsonIO

    with mock.patch.object(Argilla, "_get_default", return_value=mock.MagicMock()):  # no server
        settings = rg.Settings.from_json(folder / ".argilla" / "settings.json")
        settings.validate()
        DatasetModel(**json.loads((folder / ".argilla" / "dataset.json").read_text()))
        records = JsonIO._records_from_json(folder / "records.json")
        sent = []
        for record in records:
            record.dataset = SimpleNamespace(settings=settings, name="x")
            sent.append(record.api_model().model_dump(mode="json"))
    return {"questions": [q.name for q in settings.questions], "fields": [f.name for f in settings.fields], "records": sent}


def label_studio_of(folder: Path) -> dict[str, Any]:
    """Problems that the SDK's validator finds, by what it says; and what its own Pairwise control makes."""
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface((folder / "config.xml").read_text())
    interface.validate()
    tasks = json.loads((folder / "tasks.json").read_text())
    problems: list[str] = []
    for task in tasks:
        if not interface.validate_task({"data": task["data"]}):
            problems.append("task")
        for one in [*task["annotations"], *task.get("predictions", [])]:
            problems += interface._validate_object(one, return_errors=True)
    return {"tasks": len(tasks), "results": sum(len(a["result"]) for t in tasks for a in t["annotations"]), "problems": problems}


if __name__ == "__main__":
    asked = json.loads(sys.stdin.read())
    print(json.dumps({"argilla": {n: argilla_of(Path(n)) for n in asked["argilla"]}, "label_studio": {n: label_studio_of(Path(n)) for n in asked["label_studio"]}}))
