"""The terminal chat, with its input scripted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from engine_cases import TOKENIZER

from freedive.inference import Engine
from freedive.inference.chat import ChatConfig, find_model, printable, run
from freedive.runs import UserError
from freedive.tokenizer import parse


@pytest.fixture
def asked(monkeypatch):
    """What each answer was asked for, as ids; the answers are scripted."""
    prompts: list[list[int]] = []
    answers: list[object] = []

    def stream(self, prompt, *a, **k) -> Iterator[str]:
        prompts.append(list(prompt))
        if len(prompt) >= self.model.config.max_positions:
            raise UserError("too long")
        for piece in answers.pop(0) if answers else ["fi", "ne"]:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    monkeypatch.setattr(Engine, "stream", stream)
    return prompts, answers


def talk(monkeypatch, capsys, folder, *lines: object, **settings):
    todo = list(lines)

    def read(prompt: str = "") -> str:
        line = todo.pop(0) if todo else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    assert run(ChatConfig(model=folder, threads=1, **settings)) == 0
    return capsys.readouterr().out


def turns(prompt: list[int]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in parse(TOKENIZER, prompt)]


def test_a_conversation_grows_and_is_forgotten(monkeypatch, capsys, model_folder, asked):
    out = talk(monkeypatch, capsys, model_folder, "one", "", "/help", "two", "/clear", "three", "/quit", "never", system="Be.")
    assert [turns(p) for p in asked[0]] == [
        [("system", "Be."), ("user", "one")],
        [("system", "Be."), ("user", "one"), ("assistant", "fine"), ("user", "two")],
        [("system", "Be."), ("user", "three")],
    ]
    assert out.count("fine\n") == 3 and "/clear" in out


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(monkeypatch, capsys, model_folder, asked):
    asked[1].append(["half ", KeyboardInterrupt()])
    out = talk(monkeypatch, capsys, model_folder, "one", "two")
    assert turns(asked[0][1]) == [("user", "one"), ("assistant", "half "), ("user", "two")]
    assert "(stopped)" in out


def test_an_empty_answer_leaves_no_turn(monkeypatch, capsys, model_folder, asked):
    asked[1].append([])
    talk(monkeypatch, capsys, model_folder, "one", "two")
    assert turns(asked[0][1]) == [("user", "two")]


def test_a_full_context_drops_the_oldest_turns_and_says_so(monkeypatch, capsys, model_folder, asked):
    out = talk(monkeypatch, capsys, model_folder, "a" * 50, "b" * 50, "c" * 50, "d" * 500, "e")
    assert turns(asked[0][2])[-1] == ("user", "c" * 50)
    assert turns(asked[0][2])[0] == ("user", "b" * 50) or turns(asked[0][2])[0][1] == "c" * 50
    assert "too long" in out  # 500 characters cannot fit; the chat goes on
    assert turns(asked[0][-1])[-1] == ("user", "e")


def test_one_question_prints_the_answer_only(capsys, model_folder, asked):
    assert run(ChatConfig(model=model_folder, prompt="one", threads=1)) == 0
    assert capsys.readouterr().out == "fine\n"
    assert turns(asked[0][0]) == [("user", "one")]


def test_a_base_model_continues_text(monkeypatch, capsys, model_folder, asked):
    out = talk(monkeypatch, capsys, model_folder.parent / "pretrain", "Once", "upon")
    assert asked[0] == [[TOKENIZER.bos_id, *b"Once"], [TOKENIZER.bos_id, *b"upon"]]
    assert "base model" in out


def test_the_same_seed_gives_the_same_answer(capsys, model_folder):
    said = []
    for seed in (1, 1, 2):
        assert run(ChatConfig(model=model_folder, prompt="Hello", temperature=1.0, max_new_tokens=20, seed=seed, threads=1)) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_the_model_is_found(monkeypatch, tmp_path, model_folder):
    assert find_model(model_folder) == model_folder
    assert find_model(model_folder.parent) == model_folder  # a dive's folder: the model trained last
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="freedive dive"):
        find_model(None)
    (tmp_path / "freedive-dive").symlink_to(model_folder.parent)
    assert find_model(None).name == "sft"
    with pytest.raises(UserError, match="no such"):
        run(ChatConfig(model=tmp_path / "absent"))


def test_escape_sequences_do_not_reach_the_terminal():
    assert printable("a\x1b[31mé\x07\n\t\x9b你🙂\u200d") == "a[31mé\n\t你🙂\u200d"


def test_the_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ChatConfig().seed = 1  # type: ignore[misc]
