"""Published evaluations: their forms, their scores against the model's own log-probs, resuming, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.cli import main
from freedive.eval.card import by_shots, lines
from freedive.eval.compare import comparison
from freedive.eval.stage import EvalConfig, run
from freedive.eval.statistics import bootstrap, interval
from freedive.eval.suites import KINDS, base, runner
from freedive.eval.suites.base import Asking, Item, TooLong, read_items
from freedive.eval.suites.rows import choices, code, pair, question
from freedive.eval.suites.scoring import continuation_logprobs, next_token_logprobs, split
from freedive.inference import LM, load
from freedive.model import DecoderConfig, Model, save_pretrained
from freedive.runs import UserError, json_line, read_json
from freedive.tokenizer import byte_tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Model(DecoderConfig(TOKENIZER.vocab_size, 2, 2, 1, 32, 16, 48, 512), threads=1, trainable=False).init(3)
    model.parameters["embed_tokens.weight"][...] *= 10
    out = tmp_path_factory.mktemp("model") / "sft"
    save_pretrained(model, out)
    TOKENIZER.save(out / "tokenizer")
    return out


@pytest.fixture(scope="module")
def lm(folder: Path) -> LM:
    return load(folder, threads=1, max_tokens=600, max_seqs=5)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def mc(n: int, subject: str = "s") -> list[dict[str, Any]]:
    return [{"subject": subject, "q": f"Question {i}?", "options": [f"a{i}", f"bb{i}", f"ccc{i}", "d"], "answer": "ABCD"[i % 4]} for i in range(n)]


# ---- forms -----------------------------------------------------------------------------------------------------------


def test_published_forms_of_choices_are_one():
    same = [
        {"q": "Q", "options": ["x", "y"], "answer": "B"},
        {"question": "Q", "choices": ["x", "y"], "answer": 1},
        {"question": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        {"goal": "Q", "sol1": "x", "sol2": "y", "label": 1},
        {"q": "Q", "options": ["x", "y"], "a": "y"},
    ]
    assert len({choices(row) for row in same}) == 1
    ending = choices({"ctx": "He", "endings": ["sat", "ran"], "label": "1", "activity_label": "sport"})
    assert ending.ending and ending.answer == 1 and ending.group == "sport"
    assert pair({"sentence_good": "a b", "sentence_bad": "b a", "UID": "order"}).group == "order"
    assert question({"question": "1+1?", "answer": "one and one\n#### 2"}).answer == "2"
    assert question({"prompt": "1+1?", "answer": 2}).answer == "2"


@pytest.mark.parametrize(
    ("read", "row", "says"),
    [
        (choices, {"q": "Q", "options": ["x"], "answer": "A"}, "2 to 26"),
        (choices, {"q": "Q", "options": ["x", "y"], "answer": "C"}, "letter or the number"),
        (choices, {"q": "Q", "options": ["x", "y"], "answer": True}, "letter or the number"),
        (choices, {"q": " ", "options": ["x", "y"], "answer": "A"}, "must be a text"),
        (choices, {"text": "no question"}, "needs 'question'"),
        (pair, {"good": "x"}, "bad"),
        (code, {"prompt": "def f():"}, "canonical_solution"),
        (question, {"prompt": "Q", "answer": ""}, "answer"),
        (question, {"prompt": "Q", "answer": "x", "meta": 3}, "meta"),
    ],
)
def test_rows_that_cannot_be_asked_say_why(read, row, says):
    with pytest.raises(ValueError, match=says):
        read(row)


def test_a_few_broken_rows_are_left_out_and_many_are_an_error(tmp_path, capsys):
    broken = {"q": "Q", "options": ["", "y"], "answer": "A"}
    assert len(read_items(KINDS["mmlu"], write(tmp_path / "few.jsonl", [*mc(200), broken]))) == 200
    assert "line 201" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"line 3.*2 rows of 4"):
        read_items(KINDS["mmlu"], write(tmp_path / "many.jsonl", [*mc(2), broken, broken]))


# ---- scores ----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.text("abc ", min_size=1, max_size=40), st.text("xyz", min_size=1, max_size=20)), min_size=1, max_size=9))
def test_continuations_are_what_the_model_says_of_the_whole_text(lm, texts):
    pairs = [split(lm, a, b) for a, b in texts]
    found = continuation_logprobs(lm, pairs)
    for (a, b), value, (context, continuation) in zip(texts, found, pairs):
        whole = np.array([*context, *continuation])
        ids, logprobs = lm.score(a + b)
        assert list(whole[-len(ids) :]) == ids
        assert value == pytest.approx(float(logprobs[-len(continuation) :].astype(np.float64).sum()), abs=1e-4)


def test_letters_by_logits_are_letters_by_continuation(lm):
    prompts = [TOKENIZER.document_ids(f"text {i} " * (i + 1)) for i in range(12)]
    candidates = [[65, 66, 67], [68, 69]] * 6
    found = next_token_logprobs(lm, prompts, candidates)
    flat = iter(continuation_logprobs(lm, [(p, [c]) for p, cs in zip(prompts, candidates) for c in cs]))
    for row, cs in zip(found, candidates):
        np.testing.assert_allclose(row, [next(flat) for _ in cs], atol=1e-5)


def test_shots_come_from_the_same_subject_and_give_way_to_the_context(lm):
    examples = [Item(i, choices(r), r["subject"]) for i, r in enumerate([*mc(4, "one"), *mc(4, "two")], 1)]
    suite = KINDS["mmlu"](lm, Asking(shots=3), examples)
    ask = Item(9, choices({"q": "New?", "options": ["x", "y"], "answer": 0}), "two")
    assert [e.line for e in suite.shown(ask)] == [5, 6, 7]
    assert [e.line for e in suite.shown(Item(9, ask.value, "other"))] == [1, 2, 3]
    assert [e.line for e in suite.shown(Item(5, examples[4].value, "two"))] == [6, 7, 8], "the question itself is no example"
    prompt, letters, shots = suite.ask(ask)
    assert shots == 3 and len(letters) == 2 and "about two" in TOKENIZER.decode(prompt)
    long = Item(9, choices({"q": "word " * 70, "options": ["x", "y"], "answer": 0}), "two")
    assert suite.ask(long)[2] < 3
    with pytest.raises(TooLong):
        suite.ask(Item(9, choices({"q": "word " * 200, "options": ["x", "y"], "answer": 0}), "two"))


def test_records_do_not_depend_on_their_neighbours(lm, tmp_path):
    for kind, rows in {"mmlu": mc(7), "multiple_choice": mc(7), "minimal_pairs": [{"good": f"a{i}", "bad": f"b{i} c"} for i in range(7)]}.items():
        items = read_items(KINDS[kind], write(tmp_path / f"{kind}.jsonl", rows))
        suite = KINDS[kind](lm, Asking())
        together = runner.measured(suite, items)
        assert together == [r for item in items for r in runner.measured(suite, [item])]
        assert [r["line"] for r in together] == list(range(1, 8))


def test_an_accuracy_of_choices_is_that_of_the_likeliest(lm):
    item = Item(1, choices({"q": "Q", "options": ["x", "yy"], "answer": 0}))
    (record,) = runner.measured(KINDS["multiple_choice"](lm, Asking()), [item])
    head = lm.tokenizer.document_ids("Question: Q\nAnswer:")
    by_hand = continuation_logprobs(lm, [(head, lm.tokenizer.encode(" x")), (head, lm.tokenizer.encode(" yy"))])
    assert record["scores"]["accuracy"] == float(by_hand[0] > by_hand[1])
    assert record["scores"]["accuracy_norm"] == float(by_hand[0] > by_hand[1] / 2)


# ---- the verb --------------------------------------------------------------------------------------------------------


def evaluate(folder: Path, out: Path, *suites: str, **more: Any) -> dict[str, Any]:
    return read_json(run(EvalConfig(path=folder, suite=list(suites), out=out, threads=1, max_new_tokens=4, **more)) / "eval.json")


def test_suites_with_shots_groups_and_a_page(tmp_path, folder):
    file = write(tmp_path / "choice.jsonl", [*mc(6, "one"), *mc(5, "two")])
    words = write(tmp_path / "words.jsonl", [{"prompt": f"Say {i}", "answer": str(i)} for i in range(5)])
    found = evaluate(folder, tmp_path / "out", f"mmlu:{file}", f"generation:{words}", shots=[0, 1], examples=[f"mmlu:{file}"])
    assert list(found["suites"]) == ["mmlu-choice-0shot", "mmlu-choice-1shot", "generation-words-0shot", "generation-words-1shot"]
    assert {k: v["items"] for k, v in found["suites"]["mmlu-choice-0shot"]["groups"].items()} == {"one": 6, "two": 5}
    assert [found["suites"][f"generation-words-{k}shot"]["items"] for k in (0, 1)] == [4, 4], "the first row is the example, and left out of both"
    assert set(by_shots(found)) == {"mmlu: choice.jsonl", "generation: words.jsonl"}
    assert any("mmlu-choice-1shot, accuracy" in line for line in lines(found))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page and "In-context learning" in page
    records = [json.loads(line) for line in (tmp_path / "out" / "items" / "mmlu-choice-0shot.jsonl").read_text().splitlines()]
    assert [r["line"] for r in records] == list(range(1, 12))
    assert found["suites"]["mmlu-choice-0shot"]["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean([r["scores"]["accuracy"] for r in records]))


def test_a_stopped_evaluation_goes_on_with_the_same_result(tmp_path, folder, monkeypatch):
    file = write(tmp_path / "choice.jsonl", mc(20))
    monkeypatch.setattr(KINDS["mmlu"], "chunk", 4)
    whole = evaluate(folder, tmp_path / "whole", f"mmlu:{file}", f"multiple_choice:{file}")
    real, calls = runner.measured, []

    def stops(suite, items):
        calls.append(len(items))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(suite, items)

    monkeypatch.setattr(runner, "measured", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, tmp_path / "cut", f"mmlu:{file}", f"multiple_choice:{file}")
    assert not (tmp_path / "cut").exists()
    assert evaluate(folder, tmp_path / "cut", f"mmlu:{file}", f"multiple_choice:{file}") == whole
    assert sum(calls) == 40 + 4, "only the part that was cut is measured again"


def test_comparison_is_paired(tmp_path, folder, capsys):
    file = write(tmp_path / "choice.jsonl", mc(12))
    evaluate(folder, tmp_path / "a", f"mmlu:{file}")
    evaluate(folder, tmp_path / "b", f"mmlu:{file}", limit=6)
    (row,) = comparison([tmp_path / "a", tmp_path / "b"])
    assert row["differences"][0] == {"mean": 0.0, "interval_95": [0.0, 0.0], "items": 6}
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    assert ", 6 items)" in told and "note: they were made with different --limit: " in told


def test_records_with_line_separators_in_them_are_read_back(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(json_line({"reply": "one\u2028two\x85three"}) + json_line({"reply": "four"}))
    assert [r["reply"] for r in runner._records(tmp_path / "r.jsonl")] == ["one\u2028two\x85three", "four"]


def test_bad_input_is_told(tmp_path, folder, capsys):
    file = str(write(tmp_path / "choice.jsonl", mc(3)))
    out = ["--out", str(tmp_path / "out"), "--threads", "1"]
    for arguments, says in [
        (["eval", str(folder), *out], "nothing to measure"),
        (["eval", *out, "--suite", f"mmlu:{file}"], "give the model"),
        (["eval", str(folder), *out, "--suite", file], "no KIND:FILE"),
        (["eval", str(folder), *out, "--suite", f"mmmu:{file}"], "no suite of the kind"),
        (["eval", str(folder), *out, "--suite", "mmlu:none.jsonl"], "is no file"),
        (["eval", str(folder), *out, "--suite", f"mmlu:{file}", f"mmlu:{file}"], "two suites"),
        (["eval", str(folder), *out, "--suite", f"mmlu:{file}", "--shots", "3"], "examples were asked"),
        (["eval", str(folder), *out, "--suite", f"mmlu:{file}", "--shots", "-1"], "at least 0"),
        (["eval", str(folder), *out, "--suite", f"multiple_choice:{file}", "--chat"], "no --chat"),
        (["eval", str(folder), *out, "--suite", f"mmlu:{file}", "--examples", "none.jsonl"], "is no file"),
        (["eval", "compare"], "no evaluation to compare"),
        (["eval", "compare", str(tmp_path)], "one evaluation alone"),
        (["eval", "compare", str(tmp_path), str(tmp_path)], "holds no eval.json"),
    ]:
        assert main(arguments) == 2, arguments
        assert says in capsys.readouterr().err, arguments
        assert not (tmp_path / "out").exists()


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_bootstrap_covers():
    rng = np.random.default_rng(0)
    hits = sum(low <= 0.3 <= high for low, high in (bootstrap((rng.random(120) < 0.3).astype(float), seed=i, resamples=400) for i in range(200)))
    assert 0.88 <= hits / 200 <= 0.99
    assert bootstrap([1.0, 1.0]) == [1.0, 1.0] and bootstrap([]) == [0.0, 1.0]
    assert interval([0.0] * 20) == [0.0, pytest.approx(0.139, abs=1e-3)] and interval([1.0] * 20)[0] == pytest.approx(0.861, abs=1e-3)  # 1 - 0.05^(1/20)
    assert interval([0.5, 0.5]) == [0.5, 0.5] and interval([0.0, 1.0, 1.0]) == bootstrap([0.0, 1.0, 1.0]) and interval([]) == [0.0, 1.0]


def test_kinds_are_registered_under_their_names():
    assert set(KINDS) >= {"mmlu", "multiple_choice", "minimal_pairs", "generation", "gsm8k", "humaneval"}
    assert base.named(f"mmlu:{__file__}").name == "mmlu-test_suites"


def test_what_texts_begin_with_alike_is_read_once_and_changes_no_bit(folder):
    lm = load(folder, threads=1)
    rng = np.random.default_rng(3)
    contexts = [rng.integers(0, 200, n).tolist() for n in (40, 40, 3, 17)]
    contexts[1] = contexts[0][:30] + contexts[1][30:]
    pairs = [(c, rng.integers(0, 200, n).tolist()) for c in contexts for n in (1, 4, 2, 7)]
    seen = []
    score = lm.model.score
    lm.model.score = lambda batch, *a: seen.append(batch.n_tokens) or score(batch, *a)  # type: ignore[method-assign]
    together = continuation_logprobs(lm, pairs)
    shared = sum(seen)
    assert together == [continuation_logprobs(lm, [pair])[0] for pair in pairs]
    assert shared < sum(len(a) + len(b) - 1 for a, b in pairs) / 2.2
    prompts, candidates = [c + [i] for c in contexts for i in (1, 2)], [[5, 9]] * 8
    for a, b in zip(next_token_logprobs(lm, prompts, candidates), [next_token_logprobs(lm, [p], [[5, 9]])[0] for p in prompts]):
        assert a.tobytes() == b.tobytes()
    assert continuation_logprobs(lm, []) == []


def test_one_cluster_is_no_certainty():
    values = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    low, high = bootstrap(values, ["the same"] * 7)
    assert [low, high] == bootstrap(values) and low < np.mean(values) < high
