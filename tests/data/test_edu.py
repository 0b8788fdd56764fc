"""The educational score: the regression is the closed form, a scorer learns what there is to learn, and the stage keeps and counts by it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from data_pages import adds_up, reasons, story
from hypothesis import example, given, settings
from hypothesis import strategies as st

from freedive.cli import main
from freedive.data import DataConfig, edu, edu_train, run
from freedive.data.edu_train import Dense, EduTrainConfig, Sparse
from freedive.inference import save_model_folder
from freedive.model import Batch, DecoderConfig, Model
from freedive.reference.decoder import Decoder
from freedive.runs import UserError, folder_hash
from freedive.tokenizer import byte_tokenizer, char_tokenizer

SCHOOL = "energy fraction cell equation climate verb treaty atom angle vowel empire enzyme orbit".split()
CHATTER = "discount click party outfit bonus selfie gossip jackpot coupon basket trailer lounge".split()


def document(seed: int, share: float, words: int = 120) -> str:
    """Words of which this share are a school's; the others are chatter, with common words between."""
    draw = random.Random(seed)
    return " ".join(f"the {draw.choice(SCHOOL if draw.random() < share else CHATTER)} of" for _ in range(words // 3))


def annotations(folder: Path, count: int = 300, seed: int = 0, name: str = "annotations.jsonl") -> Path:
    draw = random.Random(seed)
    rows = [(score, document(1000 * seed + i, score / 5)) for i, score in enumerate(draw.choices(range(6), k=count))]
    (folder / name).write_text("".join(json.dumps({"text": text, "score": score}) + "\n" for score, text in rows))
    return folder / name


def decoder(folder: Path, tok=None) -> Path:
    tok = tok or byte_tokenizer()
    config = DecoderConfig(vocab_size=tok.vocab_size, n_layer=2, n_head=2, n_kv_head=1, d_model=48, head_dim=24, d_ff=64, max_positions=128)
    model = Model(config, max_tokens=128, max_seqs=1, threads=1).init(3)
    folder.mkdir()
    save_model_folder(model, tok, folder, tok.bos_id)
    return folder


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return decoder(tmp_path_factory.mktemp("body") / "body")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edu")
    return edu_train.run(EduTrainConfig((annotations(folder),), folder / "edu"))


# The regression


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 30), st.floats(-5, 0), st.booleans())
@example(527964, 9, -4.0, False)
def test_ridge_is_the_closed_form(seed, rows, log_ridge, dense):
    draw = np.random.default_rng(seed)
    truth, ridge = draw.normal(2, 1, rows), 10.0**log_ridge
    if dense:
        x = Dense(draw.normal(1, 3, (rows, 7)).astype(np.float32))
        plain = x._plain
    else:
        columns = [np.sort(draw.choice(9, draw.integers(1, 6), replace=False)).astype(np.uint32) for _ in range(rows)]
        x = Sparse(np.concatenate(columns), draw.random(sum(map(len, columns))).astype(np.float32), np.cumsum([0, *map(len, columns)]))
        plain = np.stack([x.take(np.array([i])).back(np.ones(1))[:9] for i in range(rows)])
    ((weight, bias),) = edu_train.fit(x, truth, [ridge])
    centred = plain - plain.mean(0)
    best = np.linalg.solve(centred.T @ centred / rows + ridge * np.eye(plain.shape[1]), centred.T @ (truth - truth.mean()) / rows)

    def loss(w, b):
        return np.mean((plain @ w + b - truth) ** 2) + ridge * w @ w

    weight = weight[: plain.shape[1]]
    assert loss(weight, bias) <= loss(best, truth.mean() - plain.mean(0) @ best) + 1e-4 * truth.var()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 20))
def test_products_of_sparse_rows_are_those_of_the_matrix(seed, rows):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(0, 5, rows)
    columns = draw.integers(0, edu.BUCKETS, sizes.sum()).astype(np.uint32)
    values = draw.normal(size=sizes.sum()).astype(np.float32)
    x = Sparse(columns, values, np.concatenate([[0], np.cumsum(sizes)]))
    weight, residual = draw.normal(size=edu.BUCKETS), draw.normal(size=rows)
    of_row = np.repeat(np.arange(rows), sizes)
    np.testing.assert_allclose(x.dot(weight), np.bincount(of_row, values * weight[columns], rows), atol=1e-9)
    assert np.isclose(x.dot(weight) @ residual, weight @ x.back(residual))
    chosen = draw.integers(0, rows, 7)
    np.testing.assert_allclose(x.take(chosen).dot(weight), x.dot(weight)[chosen], atol=1e-9)


def test_features_are_words_and_pairs_without_case_and_of_length_one():
    a, b = edu.ngram_features("The Cell, the cell!", 100), edu.ngram_features("the cell the cell", 100)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    assert len(a[0]) == 4 and np.isclose(a[1] @ a[1], 1)  # the, cell, the cell, cell the
    assert len(edu.ngram_features("", 100)[0]) == len(edu.ngram_features("!?", 100)[0]) == 0
    assert np.array_equal(edu.ngram_features("one two three", 7)[0], edu.ngram_features("one two", 100)[0])


@given(st.floats(-10, 10))
@example(2.5)
def test_whole_scores(value):
    whole = edu.int_score(value)
    assert 0 <= whole <= 5 and (abs(whole - value) <= 0.5 or not 0 <= value <= 5)
    assert (whole >= 3) == (value >= 2.5)  # FineWeb-Edu's cut


def test_a_body_gives_the_mean_of_the_hidden_states(body):
    read = edu.Body(body, 50, 200, 2)
    texts = ["One text.", "x", "A longer text than the fifty tokens that are read, so that its end has no influence.", "", "é" * 30]
    rows = read.features(texts)
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_array_equal(read.features([text])[0], row)  # whatever stands beside it
        ids = [read.tok.bos_id, *read.tok.encode(text)][:50]
        batch = Batch.next_token([ids])
        reference = Decoder(read.model.config, read.model.parameters)
        expected = reference.norm("final_norm", reference.hidden(batch)[0])[0].mean(0)
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-4)


# Training


def test_what_is_there_is_learned_and_reported(scorer):
    told = json.loads((scorer / "report.json").read_text())
    assert told["f1"] > 0.9 and told["mae"] < 0.6 < 1 < told["mae_of_the_mean"] and told["correlation"] > 0.9
    assert told["held_out"] + told["learned_from"] == 300 and np.sum(told["confusion"]) == told["held_out"]
    metrics = json.loads((scorer / "run.json").read_text())["metrics"]
    assert metrics["f1"] == told["f1"]
    loaded = edu.load(scorer, 0)
    low, high = loaded.score([document(10**6 + i, share) for share in (0.0, 1.0) for i in range(20)]).reshape(2, 20).mean(1)
    assert low < 1 and high > 4


def test_equal_annotations_give_equal_bytes(scorer, tmp_path):
    again = edu_train.run(EduTrainConfig((annotations(tmp_path),), tmp_path / "again"))
    assert folder_hash(again) == folder_hash(scorer)


def test_a_head_on_a_decoder_learns_and_goes_on_from_its_checkpoint(body, tmp_path, monkeypatch):
    settings = EduTrainConfig((annotations(tmp_path, 250),), tmp_path / "edu", body=body)
    made = edu_train.run(settings)
    told = json.loads((made / "report.json").read_text())
    assert told["mae"] < told["mae_of_the_mean"] and told["correlation"] > 0.5
    texts = [document(7, 1.0), document(8, 0.0)]
    one, two = edu.load(made, 1).score(texts), [float(edu.load(made, 2).score([text])[0]) for text in texts]
    assert one.tolist() == two and one[0] > one[1]
    monkeypatch.setattr(edu_train, "CHECKPOINT_ROWS", 64)
    features, calls = edu.Body.features, []

    def stopped(self, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return features(self, rows)

    monkeypatch.setattr(edu.Body, "features", stopped)
    other = EduTrainConfig(settings.inputs, tmp_path / "killed", body=body)
    with pytest.raises(KeyboardInterrupt):
        edu_train.run(other)
    assert not other.out.exists()
    assert folder_hash(edu_train.run(other)) == folder_hash(made) and sum(calls) < 2 * 250


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"text": "a"}] * 30, '"score" is None'),
        ([{"text": "a", "score": "3"}] * 30, "\"score\" is '3'"),
        ([{"text": "a", "score": 6}] * 30, '"score" is 6'),
        ([{"text": "a", "score": float("nan")}] * 30, '"score" is nan'),
        ([{"score": 1}] * 30, "has no text"),
        ([{"text": "a b", "score": 1}] * 5, "there are 5 documents"),
        ([{"text": f"a {i}", "score": 2} for i in range(40)], "all scores are 2"),
        ([{"text": "the same", "score": i % 5} for i in range(40)], "none can be held out"),
    ],
)
def test_bad_annotations_are_told_before_a_folder_is_made(tmp_path, rows, told, capsys):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "edu-train", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_wrong_settings_are_told(tmp_path, scorer):
    good = annotations(tmp_path, 60)
    (tmp_path / "notes.txt").write_text("no rows")
    for wrong in (
        EduTrainConfig(()),
        EduTrainConfig((tmp_path / "absent",)),
        EduTrainConfig((tmp_path / "notes.txt",)),
        EduTrainConfig((good,), minimum=0),
        EduTrainConfig((good,), characters=0),
        EduTrainConfig((good,), tmp_path / "x", body=tmp_path),
        EduTrainConfig((good,), tmp_path / "y", body=decoder(tmp_path / "chars", char_tokenizer("abc def"))),
    ):
        with pytest.raises(UserError):
            edu_train.run(wrong)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "edu.json").write_text(json.dumps({**json.loads((scorer / "edu.json").read_text()), "format": "another"}))
    for model, column, minimum in ((tmp_path, None, 3), (broken, None, 3), (None, None, 3), (scorer, "score", 3), (scorer, None, 6)):
        with pytest.raises(UserError):
            edu.find(model, column, minimum)
    assert edu.find(None, None, None) is None


# In the stage


def write_pages(folder: Path) -> Path:
    rows = [{"text": document(5000 + i, share), "int_score": 5 * share, "id": str(i)} for i in range(40) for share in (0.0, 1.0)]
    rows.append({"text": story(1)})
    folder.mkdir()
    for part in range(2):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[part::2]))
    return folder


def stage(tmp_path: Path, name: str, **more) -> Path:
    folder = tmp_path / "pages" if (tmp_path / "pages").exists() else write_pages(tmp_path / "pages")
    return run(DataConfig((folder,), tmp_path / name, preset="none", languages=(), exact_dedup=False, **more))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for file in sorted(folder.glob("*-0*.jsonl")) for line in file.read_text().splitlines()]


def test_the_stage_keeps_what_is_above_and_says_the_score(scorer, body, tmp_path):
    out = stage(tmp_path, "out", edu_model=scorer, edu_min=3)
    found = reasons(adds_up(out))
    assert found["edu/below_3"] >= 40
    kept = rows_of(out)
    assert 35 <= len(kept) <= 42 and all(row["edu_int_score"] >= 3 and row["edu_score"] >= 2.5 for row in kept)
    assert json.loads((out / "rejected.jsonl").read_text().splitlines()[0])["why"].startswith("score ")
    only = rows_of(stage(tmp_path, "scored", edu_model=scorer))
    assert len(only) == 81 and all("edu_score" in row for row in only)
    for rank in range(2):
        stage(tmp_path, "ranks", edu_model=scorer, edu_min=3, rank=rank, world=2)
    assert folder_hash(stage(tmp_path, "ranks", edu_model=scorer, edu_min=3)) == folder_hash(out)
    recipe = json.loads((out / "waterfall.json").read_text())["recipe"]
    assert recipe != json.loads((stage(tmp_path, "four", edu_model=scorer, edu_min=4) / "waterfall.json").read_text())["recipe"]
    with pytest.raises(UserError, match="other settings"):
        stage(tmp_path, "out", edu_model=scorer, edu_min=2)


def test_scores_that_come_with_the_pages(tmp_path):
    out = stage(tmp_path, "out", edu_column="int_score", edu_min=3)
    assert reasons(adds_up(out)) == {"edu/below_3": 40, "edu/no_score": 1}
    assert {row["edu_int_score"] for row in rows_of(out)} == {5}


def test_a_decoder_scores_in_worker_processes(body, tmp_path):
    made = edu_train.run(EduTrainConfig((annotations(tmp_path, 120),), tmp_path / "edu", body=body, tokens=64))
    out = stage(tmp_path, "out", edu_model=made)
    loaded = edu.load(made, 3)
    rows = rows_of(out)
    assert [row["edu_score"] for row in rows] == [round(float(v), 4) for v in loaded.score([row["text"] for row in rows])]
    assert folder_hash(stage(tmp_path, "two", edu_model=made, workers=2)) == folder_hash(out)
