"""The report: every section from its inputs, nothing from elsewhere, and whatever a text holds stays text."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from html_page import Page

from freedive.dive.found import Found
from freedive.dive.report import SECTIONS, write_report
from freedive.eval.statistics import wilson
from freedive.model import Model, from_depth, save_pretrained
from freedive.runs import UserError, stage
from freedive.runs.chart import chart, ticks
from freedive.tokenizer import train_tokenizer

EVIL = "<script>alert(1)</script><img src=x onerror='y'> & \"quoted\" \x07"
RECITED, DREAMT = "This sentence stands in the training pages.", "This sentence stands in none of the pages."


@dataclass(frozen=True)
class EvalConfig:
    group_by: tuple[str, ...] = ("class",)


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
    words = [RECITED + " " + f"{EVIL} the cat sat on the mat number {i} " * 10 for i in range(30)]
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
        dreamt = {"prompt": "", "text": f"{RECITED} {DREAMT}", "stopped": False}
        (run.work / "samples.json").write_text(json.dumps([{"prompt": EVIL, "text": EVIL, "stopped": False}, dreamt]))
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
                "frac_reward_zero_std": i / 4,
            }
            run.log(step=i, **numbers, **{"eval/pass@1": i / 4})
            run.time(step=i, sampling_seconds=1.0, step_seconds=2.0, tokens=100)
        run.summary(**{"before/pass@1": 0.25, "after/pass@1": 0.75, "before/mean_length": 4.0, "after/mean_length": 30.0})
        row = {"prompt": [{"role": "user", "content": EVIL}], "text": EVIL, "reward": 1.0}
        (run.work / "samples.json").write_text(json.dumps([{"step": 1, **row}, {"step": 2, **row, "reward": None}, {"step": 4, **row}]))
    (root / "dive.json").write_text(json.dumps({"tier": "smoke", "source": "town"}))
    for name in ("base", "sft", "rl"):
        with stage("eval", Config(), out=root / f"eval-{name}") as run:
            lines(run.work / "answers.jsonl", answers(name))
            run.summary(accuracy=0.5)
    lines(root / "timings.jsonl", [{"machine": {"cpu": EVIL}}, {"stage": "data", "seconds": 1.0, "cpu_seconds": 2.0}] * 2)
    return root


def answers(name):
    for i in range(40):
        kind = ("known", "rare", "unseen")[i % 3]
        split = "held_template" if kind == "known" and i % 2 else "held_person"
        meta = {"task": "town", "class": kind, "split": split, "template": f"t{i % 2}", "person": f"{EVIL}{i}"}
        if i % 4 == 3:
            meta = {"task": ("arithmetic", "spell", "count")[i // 4 % 3], "numbers": [1, 2], "split": "held_out"}
        said = "1+2+0=03. Answer 3" if name == "rl" else EVIL
        row = {"prompt": [{"role": "user", "content": f"{EVIL} {i}"}], "answer": EVIL, "replies": [said]}
        yield {**row, "right": [i % 2 == 0], "stopped": [name != "base"], "meta": meta}


def test_every_section_is_there_and_nothing_is_loaded(dive):
    text = write_report(dive).read_text()
    page = Page(text)
    page.is_self_contained()
    assert set(page.anchors) >= {anchor for anchor, _, _ in SECTIONS}
    assert text.count("<svg") >= 6
    assert "no reward" in text  # of an attempt of which the reward said nothing
    assert "<script" not in text and "\x07" not in text
    assert "&lt;script&gt;" in text


def test_the_report_is_deterministic_and_no_part_of_the_artefact(dive):
    assert write_report(dive).read_bytes() == write_report(dive).read_bytes()


def test_a_browser_is_told_to_load_and_run_nothing(dive):
    text = write_report(dive).read_text()
    head = text[: text.index("<body>")]
    assert "Content-Security-Policy" in head and "default-src 'none'" in head
    assert not re.search(r"\bhttps?:|//[a-z]+\.|data:", re.sub(r"<pre.*?</pre>", "", text, flags=re.S))


def test_whoever_does_not_see_the_page_can_follow_it(dive):
    text = write_report(dive).read_text()
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:])), "a heading skips a level"
    charts = re.findall(r"<svg [^>]*>", text)
    assert charts and all('role="img"' in svg and 'aria-label="' in svg for svg in charts)
    assert '<nav aria-label="Contents">' in text and '<html lang="en">' in text
    assert all("scope=" in th for th in re.findall(r"<th\b[^>]*>", text))


def test_what_the_report_says(dive):
    text = write_report(dive).read_text()
    assert "33.3 %" in text  # 3 of 9 pages removed by one rule
    assert "25.0 %" in text and "75.0 %" in text  # pass@1 before and after
    assert "base model" in text and "after RL" in text
    assert "ended by themselves" in text
    for words in ("told nowhere", "The same question, before and after", "nothing to learn", "step 1", "step 4", "The same sums"):
        assert words in text, words


def test_sentences_of_the_training_text_are_marked_in_dreams_and_others_are_not(dive):
    text = write_report(dive).read_text()
    assert f"<mark>{RECITED}</mark>" in text
    assert DREAMT in text and f"<mark>{DREAMT}" not in text
    assert "Of 2 whole sentences above, 1 stand" in text


def test_shares_have_wilsons_interval(dive):
    text = write_report(dive).read_text()
    exam = Found(dive).exam("sft")
    share, count = exam.share({"class": "unseen"})
    low, high = wilson(round(share * count), count)
    assert f"{100 * low:.1f} to {100 * high:.1f}, of {count}" in text
    for width, left in re.findall(r'<u style="left:([\d.]+)%;width:([\d.]+)%"', text):
        assert 0 <= float(left) + float(width) <= 100.01


@pytest.mark.parametrize("dive_json", [{"source": "own"}, None])
def test_a_report_of_ones_own_files_says_nothing_of_the_town(dive, tmp_path, dive_json):
    """The folders of a dive on a user's files: no crawl, questions of classes that only they know."""
    for name in ("data", "tokenizer", "pretrain", "sft", "rl"):
        (tmp_path / name).symlink_to(dive / name)
    for name in ("base", "sft", "rl"):
        with stage("eval", EvalConfig(), out=tmp_path / f"eval-{name}") as run:
            kinds = [{"class": "question" if i % 3 else "problem"} for i in range(20)]
            rows = [{"prompt": f"{EVIL} {i}", "answer": "42", "replies": [EVIL], "right": [i % 4 == 0], "stopped": [True]} for i in range(20)]
            lines(run.work / "answers.jsonl", [{**row, "meta": kind} for row, kind in zip(rows, kinds)])
    if dive_json:
        (tmp_path / "dive.json").write_text(json.dumps(dive_json))
    text = write_report(tmp_path).read_text()
    Page(text).is_self_contained()
    assert not re.search(r"\btown\b|\bsums?\b|invented", re.sub(r"<(pre|details).*?</\1>", "", text, flags=re.S))
    assert ">question</th>" in text and ">problem</th>" in text and "Wrong answers" in text


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
