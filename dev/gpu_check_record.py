"""pytest's side of dev/gpu_check: a line of JSON when a test begins and when it ends, so that nothing is lost when a kernel takes the process with it.

Tests that ended in an earlier process are left out. After an error that leaves the process without a usable device (CUDA calls them sticky) it stops;
dev/gpu_check starts the next.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

RECORD = Path(os.environ["GPU_CHECK_RECORD"])
STICKY = re.compile(r"illegal memory access|unspecified launch failure|misaligned address|illegal instruction|device-side assert|hardware stack error|"
                    r"invalid program counter|uncorrectable ECC|launch timed out|out of range shared or local address")  # fmt: skip


def write(**row: Any) -> None:
    with open(RECORD, "a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    ended = {row["id"] for row in map(json.loads, lines) if "outcome" in row}
    write(collected=len(items))
    again = [item for item in items if item.nodeid in ended]
    if again:
        config.hook.pytest_deselected(items=again)
    items[:] = [item for item in items if item.nodeid not in ended]


def pytest_runtest_logstart(nodeid: str) -> None:
    write(begins=nodeid)


told: dict[str, Any] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = (yield).get_result()
    row = told.setdefault(item.nodeid, {"outcome": "passed", "seconds": 0.0})
    row["seconds"] = round(row["seconds"] + report.duration, 3)
    if report.outcome != "passed" and row["outcome"] == "passed":
        row["outcome"] = report.outcome
        text = report.longreprtext
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            text = report.longrepr[2]
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line[1:].strip() for line in lines if line.startswith("E ")]
        row["why"] = (" ".join(errors[:3]) or (lines[-1] if lines else ""))[:400]
        if report.outcome == "failed" and STICKY.search(text):
            row["broken"] = True
            item.session.shouldstop = "the device is lost to this process"
    if report.when == "teardown":
        write(id=item.nodeid, **row, **({"properties": dict(item.user_properties)} if item.user_properties else {}))
        told.pop(item.nodeid)
