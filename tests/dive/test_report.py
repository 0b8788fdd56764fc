"""The report: every section from its inputs, nothing from elsewhere, and whatever a text holds stays text."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from html_page import Page

from freedive.dive.chart import chart, ticks
from freedive.dive.report import SECTIONS, write_report
from freedive.model import Model, from_depth, save_pretrained
from freedive.runs import UserError, stage
from freedive.tokenizer import train_tokenizer

EVIL = "<script>alert(1)</script><img src=x onerror='y'> & \"quoted\" \x07"


@dataclass(frozen=True)
class Config:
    note: str = EVIL
    micro_tokens: int = 256


def lines(path: Path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def dive(tmp_path_factory):
    """Folders as the stages leave them, with a hostile text wherever a text can be."""
    root = tmp_path_factory.mktemp("dive")
    words = [f"{EVIL} the cat sat on the mat number {i} " * 10 for i in range(30)]
    tok = train_tokenizer(words, vocab_size=300)
    model = Model(from_depth(1, tok.vocab_size, 64), max_tokens=256, max_seqs=16)
    model.init(0)

    def save_model(work):
        save_pretrained(model, work)
        tok.save(work / "tokenizer")

    with stage("crawl", Config(), out=root / "crawl") as run:
        lines(
            run.work / "truth.jsonl",
            [{"url": "u0", "kind": "town", "expected": "keep"}, {"url": "u1", "kind": EVIL, "expected": "c4"}],
        )
        talk = [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]
        lines(run.work / "tasks" / "sft_train.jsonl", [{"messages": talk}])
    with stage("data", Config(), out=root / "data") as run:
        rule = {"documents": 3, "bytes": 40}
        step = {
            "documents_in": 9,
            "documents_out": 6,
            "bytes_in": 900,
            "bytes_out": 500,
            "bytes_trimmed": 360,
            "removed": {EVIL: rule},
        }
        steps = [{"step": "extract", **step}]
        fall = {"documents_in": 9, "bytes_in": 900, "documents_out": 6, "bytes_out": 500, "steps": steps}
        (run.work / "waterfall.json").write_text(json.dumps(fall))
        lines(run.work / "rejected.jsonl", [{"reason": "c4/" + EVIL, "url": EVIL, "text": EVIL}])
        for split in ("train", "val"):
            lines(run.work / f"{split}-00000.jsonl", [{"text": w, "id": "0", "url": "u0", "source": "s"} for w in words[:3]])
    with stage("tokenizer", Config(), out=root / "tokenizer") as run:
        tok.save(run.work)
        run.summary(bytes_per_token=3.5)
    with stage("pretrain", Config(), out=root / "pretrain") as run:
        save_model(run.work)
        for i in range(1, 6):
            run.log(step=i, loss=6 / i, lr=0.1, **({"val_loss": 2.0} if i == 5 else {}))
            run.time(step=i, tokens_per_second=1000 + i, seconds=1.0, peak_share=0.1 * i)
        run.summary(val_loss=2.0, val_bits_per_byte=1.5, steps=5, train_tokens=4096)
        (run.work / "samples.json").write_text(json.dumps([{"prompt": EVIL, "text": EVIL, "stopped": False}]))
    with stage("sft", Config(), out=root / "sft") as run:
        save_model(run.work)
        run.log(step=1, loss=2.0)
        run.log(step=2, loss=float("nan"))
        prompt = f"<|im_start|>user<|im_sep|>{EVIL}<|im_end|><|im_start|>assistant<|im_sep|>"
        (run.work / "samples.json").write_text(json.dumps([{"prompt": prompt, "text": EVIL, "stopped": True}]))
    with stage("rl", Config(), out=root / "rl") as run:
        save_model(run.work)
        for i in range(4):
            numbers = {
                "reward": i / 4,
                "completions/mean_length": 9.0,
                "entropy": 0.5,
                "sampling/sampling_logp_difference/max": 0.0,
            }
            run.log(step=i, **numbers, **{"eval/pass@1": i / 4})
        run.summary(**{"before/pass@1": 0.25, "after/pass@1": 0.75, "before/mean_length": 4.0, "after/mean_length": 30.0})
        row = {"step": 1, "prompt": [{"role": "user", "content": EVIL}], "text": EVIL, "reward": 1.0}
        (run.work / "samples.json").write_text(json.dumps([row]))
    for name in ("base", "sft", "rl"):
        with stage("eval", Config(), out=root / f"eval-{name}") as run:
            lines(run.work / "answers.jsonl", answers(name))
            run.summary(accuracy=0.5)
    lines(root / "timings.jsonl", [{"machine": {"cpu": EVIL}}, {"stage": "data", "seconds": 1.0, "cpu_seconds": 2.0}] * 2)
    return root


def answers(name):
    for i in range(12):
        kind = ("known", "rare", "unseen")[i % 3]
        meta = {"task": "town", "class": kind, "split": "held", "template": f"t{i % 2}", "person": f"{EVIL}{i}"}
        if i % 4 == 3:
            meta = {"task": "arithmetic", "numbers": [1, 2]}
        said = "1+2+0=03. Answer 3" if name == "rl" else EVIL
        row = {"prompt": [{"role": "user", "content": f"{EVIL} {i}"}], "answer": EVIL, "replies": [said]}
        yield {**row, "right": [i % 2 == 0], "stopped": [name != "base"], "meta": meta}


def test_every_section_is_there_and_nothing_is_loaded(dive):
    text = write_report(dive).read_text()
    page = Page(text)
    page.is_self_contained()
    assert set(page.anchors) >= {anchor for anchor, _, _ in SECTIONS}
    assert text.count("<svg") >= 5
    assert "<script" not in text and "\x07" not in text
    assert "&lt;script&gt;" in text


def test_the_report_is_deterministic_and_no_part_of_the_artefact(dive):
    assert write_report(dive).read_bytes() == write_report(dive).read_bytes()


def test_what_the_report_says(dive):
    text = write_report(dive).read_text()
    assert "33.3 %" in text  # 3 of 9 pages removed by one rule
    assert "25.0 %" in text and "75.0 %" in text  # pass@1 before and after
    assert "base model" in text and "after RL" in text
    assert "ended its turn" in text


def test_the_share_of_the_peak_is_shown_with_its_spread(dive):
    text = write_report(dive).read_text()
    assert "% of the float32 peak" in text and "10th percentile" in text


@pytest.mark.parametrize("missing", ["crawl", "data", "tokenizer", "pretrain", "sft", "rl", "eval-base", "eval-sft", "eval-rl"])
def test_missing_inputs_leave_sections_out_and_break_nothing(dive, tmp_path, missing):
    for folder in dive.iterdir():
        if folder.is_dir() and folder.name != missing:
            (tmp_path / folder.name).symlink_to(folder)
    page = Page(write_report(tmp_path).read_text())
    page.is_self_contained()
    gone = {"data": "data", "pretrain": "training", "sft": "assistant", "rl": "practice"}.get(missing)
    assert gone not in page.anchors


@pytest.mark.parametrize("alone", ["data", "tokenizer", "pretrain", "sft", "rl", "eval-sft"])
def test_one_run_of_ones_own(dive, tmp_path, alone):
    page = Page(write_report(dive / alone, tmp_path / "mine.html").read_text())
    page.is_self_contained()
    assert "settings" in page.anchors and len(page.anchors) >= 2
    assert not (dive / alone / "report.html").exists()


def test_a_folder_without_runs_is_an_error_for_people(tmp_path):
    with pytest.raises(UserError, match="no finished freedive run"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        write_report(tmp_path / "nothing")


@pytest.mark.parametrize("low, high", [(0, 1), (0.123, 0.124), (-5, 12345), (3, 3), (0, 0), (1e-9, 2e-9), (7, 7e6)])
def test_ticks_enclose_the_values_and_are_few(low, high):
    found = ticks(low, high, 5)
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 9
    assert found == sorted(set(found))


def test_charts_of_odd_series():
    assert chart({"empty": [], "bad": [(1.0, float("nan"))]}, "x", "y") == ""
    for points in ([(1.0, 2.0)], [(0.0, 0.0), (1.0, 0.0)], [(float(i), np.sin(i)) for i in range(5000)]):
        drawing = chart({"<b>": points}, "x", "y")
        Page(drawing)
        assert "nan" not in drawing and "inf" not in drawing and "<b>" not in drawing.replace('<b style="', "")
        assert len(drawing) < 20_000
