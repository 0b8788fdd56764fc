"""An open model goes through every stage like one of ours: from a GGUF file and from a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from train_cases import chat_file, pretrain_config, problem_file, rl_config, sft_config, text_file

import freedive
from freedive.eval.stage import EvalConfig
from freedive.eval.stage import run as evaluate
from freedive.inference.export import ExportConfig
from freedive.inference.export import run as export
from freedive.inference.folder import chat_tokens_untrained
from freedive.model import load_pretrained, open_weights
from freedive.model.weights import parameter_shapes
from freedive.pretrain import stage as pretrain
from freedive.rl import stage as rl
from freedive.runs import UserError
from freedive.sft import stage as sft


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as somebody would publish it: assistant.gguf and assistant-hf."""
    room = tmp_path_factory.mktemp("open")
    pretrain.run(pretrain_config(text_file(room), room / "base"))
    sft.run(sft_config(room / "base", chat_file(room), room / "chat"))
    export(ExportConfig(room / "chat", room / "assistant.gguf"))
    export(ExportConfig(room / "chat", room / "assistant-hf", to="hf"))
    return room


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.mark.parametrize("form", ["assistant.gguf", "assistant-hf"])
def test_an_open_model_goes_through_every_stage(room: Path, form: str):
    published, out = room / form, room / f"out-{form}"
    assert not chat_tokens_untrained(published) and chat_tokens_untrained(room / "base")
    sft.run(sft_config(published, room / "chats.jsonl", out / "sft", steps=20))
    assert losses(out / "sft")[-1] < losses(out / "sft")[0]
    rl.run(rl_config(published, problem_file(room), out / "rl"))
    pretrain.run(pretrain_config(room / "text.jsonl", out / "pretrain", model=published, tokenizer="bpe", depth=None, max_positions=None))
    assert losses(out / "pretrain")[-1] < losses(out / "pretrain")[0] and not chat_tokens_untrained(out / "pretrain")
    questions = room / "questions.jsonl"
    questions.write_text('{"prompt": "What is 1+1?", "answer": "2"}\n' * 3)
    evaluate(EvalConfig(model=published, data=questions, out=out / "eval"))
    assert json.loads((out / "eval" / "run.json").read_text())["metrics"]
    for name in ("sft", "rl", "pretrain"):
        lm = freedive.load(out / name)
        assert lm.tokenizer.encode("What is 1+1?") == freedive.load(published).tokenizer.encode("What is 1+1?")
        assert isinstance(lm.chat("What is 1+1?"), str)


def test_the_first_step_begins_where_the_published_model_is(room: Path):
    """Weights read from the file are the model's own, bit for bit."""
    ours, theirs = load_pretrained(room / "chat", trainable=False), open_weights(room / "assistant.gguf")
    assert all(np.array_equal(ours.parameters[name], theirs.read(name)) for name in parameter_shapes(theirs.config))


def test_what_belongs_to_the_model_cannot_be_chosen_again(room: Path):
    for changes in (dict(depth=2), dict(tokenizer="bytes"), dict(max_positions=64)):
        config = pretrain_config(room / "text.jsonl", room / "never", **({"model": room / "assistant.gguf", "tokenizer": "bpe", "depth": None, "max_positions": None} | changes))
        with pytest.raises(UserError, match="the model's own"):
            pretrain.run(config)
