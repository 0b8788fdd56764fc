"""Annotation: scores are read out of answers and nothing else is, what cannot be read is counted, long documents are cut to fit, a stopped
run goes on."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_pages import story
from hypothesis import given
from hypothesis import strategies as st

from freedive.data import annotate
from freedive.data.annotate import AnnotateConfig, parse_score, run
from freedive.data.edu_train import EduTrainConfig
from freedive.data.edu_train import run as train
from freedive.inference import save_model_folder
from freedive.model import DecoderConfig, Model
from freedive.runs import UserError, folder_hash
from freedive.tokenizer import byte_tokenizer, parse

POSITIONS = 2400


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("It teaches fractions.\nEducational score: 4", 4),
        ("educational SCORE: **3**", 3),
        ("I give it a score of 2/5.", 2),
        ("A score of 1 would be harsh. Educational score: 2.5", 2.5),
        ("Score: 3 out of 5", 3),
        ("4", 4),
        (" 5/5. ", 5),
        ("Educational score: N", None),
        ("Educational score: 6", None),
        ("Educational score: 10", None),
        ("Educational score: -1", None),
        ("Score: 7 out of 10", None),
        ("Score: 3/10", None),
        ("It has 3 points.", None),
        ("The score\n4 people came", None),
        ("", None),
    ],
)
def test_scores_in_answers(answer, score):
    assert parse_score(answer) == score


@given(st.text(max_size=60), st.integers(0, 5), st.sampled_from(["", "\n", " "]))
def test_the_asked_form_is_always_read(reasons, score, end):
    assert parse_score(f"{reasons}\nEducational score: {score}{end}") == score


@given(st.text(st.sampled_from("score: 0123456789/.-\nof ut"), max_size=40))
def test_no_answer_gives_a_score_out_of_range(answer):
    score = parse_score(answer)
    assert score is None or 0 <= score <= 5


class FakeEngine:
    """Answers by the first letter of the document; keeps what it was asked."""

    def __init__(self, tok, stop_after: int = 10**9):
        self.tok, self.asked, self.stop_after = tok, [], stop_after

    def generate(self, prompts, max_new_tokens, temperature, stop_ids, seeds):
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        answers = []
        for prompt in prompts:
            assert len(prompt) + max_new_tokens <= POSITIONS and temperature == 0.0
            text = parse(self.tok, prompt, allow_unfinished=True)[0]["content"]
            document = text.split("The extract:\n\n")[1].split("\n\nGive your reasons")[0]
            self.asked.append(document)
            number = len(document) % 7  # 6: no score
            answers.append(SimpleNamespace(text="Who knows." if number == 6 else f"Because.\nEducational score: {number}"))
        return answers


def fake(monkeypatch, **more) -> FakeEngine:
    tok = byte_tokenizer()
    engine = FakeEngine(tok, **more)
    lm = SimpleNamespace(tokenizer=tok, engine=engine, model=SimpleNamespace(config=SimpleNamespace(max_positions=POSITIONS)))
    monkeypatch.setattr(annotate, "load", lambda folder, threads=None: lm)
    return engine


@pytest.fixture
def pages(tmp_path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    rows = [{"text": story(i, 1 + i % 12) + "!" * (i % 7) + ("é" * 3000 if i == 5 else "")} for i in range(200)]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_documents_are_scored_and_the_rest_is_counted(pages, monkeypatch, capsys):
    engine = fake(monkeypatch)
    out = run(AnnotateConfig(pages / "pages.jsonl", pages / "model", pages / "out"))
    scored = [json.loads(line) for line in (out / "annotations.jsonl").read_text().splitlines()]
    not_scored = [json.loads(line) for line in (out / "unparsed.jsonl").read_text().splitlines()]
    assert len(scored) + len(not_scored) == len(engine.asked) == 200 and len(not_scored) > 0
    assert all(row["score"] == len(row["text"]) % 7 for row in scored) and all(len(row["text"]) % 7 == 6 for row in not_scored)
    assert engine.asked[5].endswith("é") and len(engine.asked[5]) < 2000  # cut to the model's context
    metrics = json.loads((out / "run.json").read_text())["metrics"]
    assert metrics["unparsed"] == len(not_scored) and sum(metrics["scores"]) == metrics["scored"] == len(scored)
    assert f"{len(not_scored)} answers held no score" in capsys.readouterr().out
    assert (train(EduTrainConfig((out,), pages / "edu")) / "edu.json").is_file()  # the folder as it is


def test_a_stopped_run_goes_on(pages, monkeypatch):
    config = AnnotateConfig(pages / "pages.jsonl", pages / "model", pages / "whole")
    fake(monkeypatch)
    whole = run(config)
    fake(monkeypatch, stop_after=128)
    other = AnnotateConfig(config.data, config.model, pages / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(other)
    assert not other.out.exists()
    engine = fake(monkeypatch)
    assert folder_hash(run(other)) == folder_hash(whole) and len(engine.asked) == 200 - 128


def test_a_sample_does_not_depend_on_the_order(pages, monkeypatch):
    engine = fake(monkeypatch)
    run(AnnotateConfig(pages / "pages.jsonl", pages / "model", pages / "some", count=20))
    lines = (pages / "pages.jsonl").read_text().splitlines(True)
    (pages / "turned.jsonl").write_text("".join(reversed(lines)))
    again = fake(monkeypatch)
    run(AnnotateConfig(pages / "turned.jsonl", pages / "model", pages / "turned", count=20))
    assert len(engine.asked) == 20 and again.asked == engine.asked[::-1]


def test_a_model_that_cannot_is_told(pages, monkeypatch):
    engine = fake(monkeypatch)
    monkeypatch.setattr(engine, "generate", lambda prompts, *a, **k: [SimpleNamespace(text="Blub.") for _ in prompts])
    with pytest.raises(UserError, match="none of the 200 answers"):
        run(AnnotateConfig(pages / "pages.jsonl", pages / "model", pages / "none"))
    for wrong in ({"max_new_tokens": POSITIONS}, {"count": -1}, {"characters": 0}, {"data": pages / "absent"}):
        with pytest.raises(UserError):
            run(AnnotateConfig(**{"data": pages / "pages.jsonl", "model": pages / "model", "out": pages / "x", **wrong}))
    assert not (pages / "x").exists()


def test_a_real_decoder_is_asked(pages):
    tok = byte_tokenizer()
    config = DecoderConfig(vocab_size=tok.vocab_size, n_layer=1, n_head=2, n_kv_head=1, d_model=32, head_dim=16, d_ff=32, max_positions=POSITIONS)
    model = Model(config, max_tokens=64, max_seqs=1, threads=1).init(1)
    save_model_folder(model, tok, pages / "real", tok.im_end)
    (pages / "two.jsonl").write_text("".join(json.dumps({"text": story(i)}) + "\n" for i in range(2)))
    with pytest.raises(UserError, match="none of the 2 answers"):  # random weights
        run(AnnotateConfig(pages / "two.jsonl", pages / "real", pages / "out", max_new_tokens=8))
