"""A model folder as one object, and what is said about folders that are none."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from engine_cases import TOKENIZER, make_model

from freedive.inference import load
from freedive.model import Batch
from freedive.runs import UserError
from freedive.tokenizer import char_tokenizer, render


def test_generate_chat_and_score_are_the_models_own(model_folder):
    lm, model = load(model_folder), make_model()
    prompt = [TOKENIZER.bos_id, *b"Once"]
    assert lm.generate("Once", max_new_tokens=8, temperature=1.0, seed=3) == lm.engine.generate(
        [prompt], max_new_tokens=8, temperature=1.0, seeds=[3], stop_ids=(TOKENIZER.bos_id, TOKENIZER.im_end))[0].text  # fmt: skip
    asked = render(TOKENIZER, [{"role": "user", "content": "Hi"}], add_generation_prompt=True)[0]
    answer = lm.engine.generate([asked], max_new_tokens=8, temperature=0.0, seeds=[0], stop_ids=(TOKENIZER.im_end,))[0].text
    assert lm.chat("Hi", max_new_tokens=8, temperature=0.0) == lm.chat([{"role": "user", "content": "Hi"}], max_new_tokens=8, temperature=0.0) == answer
    ids, logprobs = lm.score("Once")
    expected = model.score(Batch.pack([(prompt[:-1], prompt[1:])])).logprobs
    assert ids == list(b"Once") and np.array_equal(logprobs, expected)
    assert len(lm.score("")[1]) == 0


def test_forward_and_backward_reach_the_gradients(model_folder):
    lm = load(model_folder, trainable=True)
    out = lm.forward(Batch.next_token([[1, 2, 3, 4]]))
    lm.model.zero_grad()
    lm.backward(np.array([-1, -1, -1, 0], np.float32))
    assert any(np.abs(g).max() > 0 for g in lm.model.gradients.values())
    assert out.logprobs.shape == (4,)


def test_holes_and_padding_of_the_vocabulary_are_never_sampled(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "tokenizer")
    char_tokenizer("abc").save(tmp_path / "m" / "tokenizer")
    lm = load(tmp_path / "m")
    outs = lm.engine.generate([[0]] * 8, max_new_tokens=50)
    assert max(i for o in outs for i in o.ids) < lm.tokenizer.vocab_size < lm.model.config.vocab_size


def test_what_is_no_model_is_said(model_folder, tmp_path):
    (tmp_path / "late.partial").mkdir()
    (tmp_path / "empty").mkdir()
    shutil.copytree(model_folder, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "tokenizer")
    shutil.copytree(model_folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for name, said in (("late", "unfinished"), ("absent", "no such"), ("empty", "no config.json"), ("bare", "tokenizer"), ("cut", "cannot be read")):
        with pytest.raises(UserError, match=said):
            load(tmp_path / name)


def test_what_is_no_model_is_told_before_its_tokenizer(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "x.bin").write_bytes(b"hello")
    (tmp_path / "empty").mkdir()
    for name in ("notes.txt", "x.bin", "empty"):
        with pytest.raises(UserError) as told:
            load(tmp_path / name)
        assert "tokenizer" not in str(told.value) and "tok*" not in str(told.value), name


def test_one_sentence_for_a_value_of_the_wrong_type(model_folder):
    lm = load(model_folder)
    for bad in ({"top_k": 1.5}, {"max_new_tokens": 2.5}, {"max_new_tokens": "2"}, {"stop": [3]}, {"stop": 3}, {"logit_bias": [1]}, {"seeds": ["a"]}, {"n": 1.5}):
        with pytest.raises(UserError):
            lm.engine.generate([[1, 2]], **bad)
    with pytest.raises(UserError, match="list of messages"):
        lm.chat(3)
    with pytest.raises(UserError, match="one answer"):
        lm.generate("a", n=3)
    with pytest.raises(UserError, match="threads"):
        load(model_folder, threads=100000)
