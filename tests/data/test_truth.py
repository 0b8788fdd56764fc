"""On pages whose fate is known beforehand, every step removes what it should and nothing else."""

import dataclasses
import json

from freedive.data import DataConfig, run
from freedive.data.look import score
from freedive.tasks.crawl import SCALES, generate_crawl


def test_precision_and_recall_of_every_step(tmp_path):
    scale = dataclasses.replace(
        SCALES["demo"],
        known=40,
        rare=20,
        unseen=20,
        mentions=30,
        sum_bytes=30_000,
        letter_bytes=30_000,
        docs_bytes=30_000,
        junk=60,
        rl_train=200,
        rl_eval=50,
    )
    crawl = generate_crawl(tmp_path / "crawl", 1, scale)
    out = run(DataConfig((crawl.pages,), tmp_path / "out", near_dedup="on", decisions=True))
    # Sheets of sums are left out of the truth about near-duplicates: numbers count as 0 there, so they are each other's copies.
    truth = tmp_path / "truth.jsonl"
    truth.write_text("".join(line for line in crawl.truth.read_text().splitlines(True) if json.loads(line)["kind"] != "sums"))
    rows = {row["step"]: row for row in score(out, truth)}
    assert set(rows) >= {"keep", "language", "gopher_repetition", "gopher_quality", "c4", "exact_dedup", "near_dedup"}
    for step, row in rows.items():
        assert row["planted"] >= 60 and row["precision"] >= 0.99 and row["recall"] >= 0.99, (step, row)
