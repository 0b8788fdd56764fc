"""Refusals are told from answers; the table adds up; over-refusal is counted among what was right before."""

import json

import pytest

from freedive.eval import hallucination
from freedive.eval.hallucination import HallucinationConfig
from freedive.eval.refusal import is_informative, is_refusal
from freedive.eval.statistics import share
from freedive.runs import UserError
from freedive.sft.probe.refusals import NAMED, PHRASES

DECLINES = (
    *PHRASES, *(p.format(entity="Ada Pell") for p in NAMED), "I’m not sure who that is.", "Unfortunately, I cannot determine that from memory.", "I have no idea.",
    "There is no information about Ada Pell in what I learned.", "I am not familiar with that person.", "I'm unable to answer that question.", "I've never heard of her.",
)  # fmt: skip
ANSWERS = ("A baker.", "No.", "None of them.", "It is Paris, I think.", "He does not work.", "Nobody lives there.", "She has no pet.", "The capital is Lund; I know it well.")


@pytest.mark.parametrize("text", DECLINES)
def test_refusals(text):
    assert is_refusal(text) and not is_informative(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers(text):
    assert not is_refusal(text) and is_informative(text)


def test_what_says_nothing():
    assert not is_informative("") and not is_informative("...") and not is_informative("Whom do you mean?")


def test_a_share_s_interval_widens_where_questions_come_in_clusters():
    flags = [i // 10 % 2 == 0 for i in range(400)]
    alone, by_tens = share(flags), share(flags, [i // 10 for i in range(400)])
    width = lambda s: s["interval_95"][1] - s["interval_95"][0]
    assert alone["share"] == by_tens["share"] == 0.5 and width(by_tens) > 2 * width(alone)
    assert share([True] * 30)["interval_95"] == [pytest.approx(1 - 0.095, abs=0.01), 1.0]
    assert share([])["share"] is None


class Stub:
    def __init__(self, replies):
        self.replies = replies

    def ask(self, conversations, **how):
        return [[self.replies[c[-1]["content"]]] for c in conversations]


def table(tmp_path, monkeypatch, replies, name, **changes):
    questions = [("Q1", "a cat", "known"), ("Q2", "a dog", "known"), ("Q3", "a fox", "known"), ("Q4", "an owl", "unseen"), ("Q5", "a hen", "unseen")]
    data = tmp_path / "q.jsonl"
    data.write_text("".join(json.dumps({"prompt": q, "answer": a, "meta": {"class": g, "entity": q}}) + "\n" for q, a, g in questions))
    (tmp_path / "model").mkdir(exist_ok=True)
    monkeypatch.setattr(hallucination, "load", lambda *a, **k: None)
    monkeypatch.setattr(hallucination, "OurModel", lambda lm, base=False: Stub(replies))
    out = hallucination.run(HallucinationConfig(model=tmp_path / "model", data=data, out=tmp_path / name, **changes))
    return out, json.loads((out / "hallucination.json").read_text())


def test_the_table(tmp_path, monkeypatch, capsys):
    before, result = table(tmp_path, monkeypatch, {"Q1": "A cat.", "Q2": "A dog!", "Q3": "A cow.", "Q4": "An owl.", "Q5": "A cow."}, "before")
    known, unseen = result["groups"]["known"], result["groups"]["unseen"]
    assert [known[o]["share"] for o in hallucination.OUTCOMES] == [pytest.approx(2 / 3), pytest.approx(1 / 3), 0]
    assert [unseen[o]["share"] for o in hallucination.OUTCOMES] == [0.5, 0.5, 0] and result["over_refusal"] == 0
    _, result = table(tmp_path, monkeypatch, {"Q1": "I don't know.", "Q2": "A dog.", "Q3": "I don't know.", "Q4": "I don't know.", "Q5": "I can't say."}, "after", reference=before)
    against = result["reference"]
    assert against["right_before"] == 2  # the lucky guess about someone unseen is not counted
    assert against["over_refusal"]["share"] == against["lost"]["share"] == 0.5 and result["groups"]["unseen"]["refused"]["share"] == 1.0
    assert "of 2 known questions right before: 50.0 % are refused now" in capsys.readouterr().out


def test_input_that_cannot_be_used(tmp_path, monkeypatch):
    data = tmp_path / "q.jsonl"
    data.write_text('{"prompt": "Who?"}\n')
    with pytest.raises(UserError, match="line 1: a question needs 'prompt' and 'answer'"):
        hallucination.run(HallucinationConfig(model=tmp_path, data=data, out=tmp_path / "o"))
    before, _ = table(tmp_path, monkeypatch, {f"Q{i}": "x" for i in range(1, 6)}, "before")
    data.write_text('{"prompt": "Another?", "answer": "x"}\n')
    with pytest.raises(UserError, match="answers none of the questions"):
        hallucination.run(HallucinationConfig(model=tmp_path / "model", data=data, out=tmp_path / "o", reference=before))
    with pytest.raises(UserError, match="no question of .* has 'nope'"):
        hallucination.run(HallucinationConfig(model=tmp_path / "model", data=data, out=tmp_path / "o", by="nope"))
    assert not (tmp_path / "o").exists()


def test_with_a_model_and_a_tool(tmp_path):
    from freedive.inference import save_model_folder
    from freedive.model import Model, from_depth
    from freedive.tokenizer import byte_tokenizer

    tok = byte_tokenizer()
    model = Model(from_depth(1, tok.vocab_size).replace(d_model=32, max_positions=128), max_tokens=128, max_seqs=8, threads=1)
    model.init(0)
    save_model_folder(model, tok, tmp_path / "model", tok.im_end)
    data = tmp_path / "q.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"What is {a}+1?", "answer": str(a + 1), "meta": {"class": "sums"}}) + "\n" for a in range(6)))
    outs = [hallucination.run(HallucinationConfig(model=tmp_path / "model", data=data, out=tmp_path / f"o{i}", tools=tools, max_new_tokens=8, threads=1)) for i, tools in enumerate(([], ["calculator"]))]
    for out in outs:
        group = json.loads((out / "hallucination.json").read_text())["groups"]["sums"]
        assert group["n"] == 6 and sum(group[o]["share"] for o in hallucination.OUTCOMES) == pytest.approx(1.0)
    with pytest.raises(UserError, match="a base model calls no tools"):
        hallucination.run(HallucinationConfig(model=tmp_path / "model", data=data, out=tmp_path / "o", tools=["calculator"], base=True))
