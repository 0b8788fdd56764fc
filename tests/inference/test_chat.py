"""The terminal chat, with its input scripted."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
from engine_cases import TOKENIZER

from freedive.inference import Engine, load
from freedive.inference.chat import Chat, ChatConfig, find_model, printable, read_message, run
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


def test_commands_and_messages_of_several_lines(monkeypatch, capsys, model_folder, asked, tmp_path):
    out = talk(monkeypatch, capsys, model_folder, "one\\", "two", '"""', "a", "", "b", '"""', "/temp 0.5", "/temp x", f"/save {tmp_path}/c.json",
               "/system Be.", "three", "/nonsense", "/save /nowhere/at/all.json")  # fmt: skip
    assert [turns(p)[-1][1] for p in asked[0]] == ["one\ntwo", "a\n\nb", "three"]
    assert turns(asked[0][2]) == [("system", "Be."), ("user", "three")]
    saved = json.loads((tmp_path / "c.json").read_text())["messages"]
    assert saved == [{"role": r, "content": c} for r, c in (("user", "one\ntwo"), ("assistant", "fine"), ("user", "a\n\nb"), ("assistant", "fine"))]
    assert "temperature 0.5" in out and "no number" in out and "could not be written" in out and out.count("/clear") == 1


def test_the_second_turn_is_made_of_the_ids_that_were_sampled_and_prefills_its_tail_only(model_folder):
    lm = load(model_folder, threads=1)
    chat = Chat(ChatConfig(temperature=1.0, max_new_tokens=40), lm, False)
    seen: list[list[int]] = []
    stream = lm.engine.stream
    lm.engine.stream = lambda ids, *a, **k: seen.append(list(ids)) or stream(ids, *a, **k)
    chat.say("Tell me about the town, please.")
    before = lm.engine.stats.prefilled_tokens
    sampled = lm.engine.stats.sampled_tokens
    chat.say("And?")
    assert seen[1][: len(seen[0])] == seen[0]
    tail = len(seen[1]) - (len(seen[0]) + sampled - 1) // 32 * 32
    assert lm.engine.stats.prefilled_tokens - before == tail < len(seen[1])


def test_a_tool_card(monkeypatch, capsys, model_folder):
    lm = load(model_folder, threads=1)
    chat = Chat(ChatConfig(tools=["calculator"]), lm, False)
    ids = [TOKENIZER.special("<|python_start|>"), *b"6*7", TOKENIZER.special("<|python_end|>"), *b"It is 42.\x1b", TOKENIZER.im_end]
    decode = lm.model.decode

    def scripted(cache, batch, *a, **k):
        tokens, logprobs = decode(cache, batch, *a, **k)
        return np.full(len(tokens), ids.pop(0), np.int32), logprobs

    monkeypatch.setattr(lm.model, "decode", scripted)
    chat.say("What is 6*7?")
    out = capsys.readouterr().out
    assert "┌ python" in out and "│ 6*7" in out and "│ 42" in out and "It is 42." in out and "\x1b" not in out
    assert TOKENIZER.special("<|output_start|>") in chat.conversation.exchanges[0].ids  # the next turn knows what the tool said
    for wrong in ("shell", "search"):
        with pytest.raises(UserError, match="unknown tool"):
            Chat(ChatConfig(tools=[wrong]), lm, False)


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


def test_a_message_may_begin_with_a_slash(monkeypatch, capsys, model_folder, asked):
    out = talk(monkeypatch, capsys, model_folder, "/etc/passwd is what?", "//help", "/clera", "/clear", '"""', "in a", "block")
    assert [turns(p)[-1] for p in asked[0]] == [("user", "/etc/passwd is what?"), ("user", "/help"), ("user", "in a\nblock")]
    assert out.count("/system TEXT") == 1 and "(the conversation is forgotten)" in out


def test_no_prompt_is_printed_into_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert read_message() == "hello"
    assert capsys.readouterr().out == ""
