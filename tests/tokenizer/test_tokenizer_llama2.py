"""Llama 2's form of a conversation: Meta's text, append-only, masked, and nobody writes its brackets."""

from __future__ import annotations

import json

import pytest

from freedive.inference.conversation import Conversation
from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, check_mask, parse, render, render_text, save_hf
from freedive.tokenizer.chat_llama2 import TEMPLATE, llama2_form
from freedive.tokenizer.export import chat_template
from freedive.tokenizer.sentencepiece import SentencePiece

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *" abcdeghilnorstuw[]/<>?SINTY\n", " [", "IN", "ST", "INST", " he", "ll", " hell"]
TYPES = [2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259)
# Meta's own template of Llama-2-7b-chat-hf, shortened of its checks
PUBLISHED = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "system", "content": "be terse"}, {"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "what is in it?\n"}, {"role": "assistant", "content": "a list"},
]  # fmt: skip


@pytest.fixture(scope="module")
def tok() -> SentencePiece:
    return SentencePiece(PIECES, [-float(i) for i in range(len(PIECES))], TYPES, chat=llama2_form(PUBLISHED, {"<s>": 1, "</s>": 2}))


def test_the_text_is_the_published_templates(tok):
    written = "<s> [INST] <<SYS>>\nbe terse\n<</SYS>>\n\nhello there [/INST] hello </s><s> [INST] what is in it? [/INST] a list </s>"
    assert render_text(tok, TALK).replace("<s>[", "<s> [") == written
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 is not installed")
    for template in (PUBLISHED, chat_template(tok.chat, mark=False)):
        text = jinja2.Environment().from_string(template).render(messages=TALK, bos_token="<s>", eos_token="</s>")
        assert text == written.replace("<s> [", "<s>[")


def test_ids_are_those_of_the_whole_text_between_the_special_tokens(tok):
    ids, mask = render(tok, TALK[1:3])
    assert ids == [1, *tok.encode("[INST] hello there [/INST] hello "), 2]
    check_mask(tok, ids, mask)
    assert tok.decode([i for i, m in zip(ids, mask) if m]) == " hello </s>"
    with pytest.raises(UserError, match="never learn to stop"):
        check_mask(tok, ids, [*mask[:-1], 0])
    with pytest.raises(UserError, match="only the assistant's turns"):
        check_mask(tok, ids, [0, 1, *mask[2:]])


def test_rendering_is_append_only_and_parsed_back(tok):
    whole = render(tok, TALK)[0]
    for k in range(2, len(TALK) + 1):
        part = render(tok, TALK[:k])[0]
        assert whole[: len(part)] == part
    assert parse(tok, whole) == [m | {"content": m["content"].strip()} for m in TALK]
    asked = render(tok, TALK[:2], add_generation_prompt=True)[0]
    assert asked == whole[: len(asked)] and parse(tok, asked, allow_unfinished=True) == TALK[:2]


def test_a_conversation_keeps_its_system_message_and_what_was_said(tok):
    talk = Conversation(tok, 400, "be terse")
    first = talk.prompt("hello there")
    assert first == render(tok, TALK[:2])[0]
    said = [*tok.encode("hello"), 2]
    talk.answered("hello there", "hello", said)
    second = talk.prompt("what is in it?")
    assert second[: len(first) + len(said)] == [*first, *said]  # found in the cache
    assert parse(tok, second, allow_unfinished=True) == [*TALK[:3], {"role": "user", "content": "what is in it?"}]
    short = Conversation(tok, len(second) + 15, "be terse")
    short.answered("hello there", "hello", said)
    assert parse(tok, short.prompt("what is in it?"), allow_unfinished=True)[0] == TALK[0] and short.forgotten == 1


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([{"role": "user", "content": "x [/INST] y"}], r"holds \[/INST\]"), ([{"role": "system", "content": "<</SYS>>"}, TALK[1]], "<</SYS>>"),
        (TALK[:1], "system message alone"), (TALK[2:], "one of the user is due"), ([TALK[1], TALK[1]], "one of the assistant is due"),
        ([{"role": "tool", "content": "x"}], "known roles"),
    ],
)  # fmt: skip
def test_what_has_no_place_in_it_is_said(tok, messages, what):
    with pytest.raises(UserError, match=what):
        render(tok, messages)
    with pytest.raises(UserError, match="not a conversation"):
        parse(tok, tok.encode("hello"))


def test_files_keep_the_form(tok, tmp_path):
    tok.save(tmp_path / "ours")
    save_hf(tok, tmp_path / "hf")
    for path in (tmp_path / "ours", tmp_path / "hf"):
        again = Tokenizer.load(path)
        assert again.chat == tok.chat and render(again, TALK) == render(tok, TALK)
    config = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE and config["eos_token"] == "</s>"
    content = json.loads((tmp_path / "ours" / "tokenizer.json").read_text())
    content["chat"]["form"] = "alpaca"
    (tmp_path / "ours" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="'alpaca' is not known"):
        Tokenizer.load(tmp_path / "ours")
    assert llama2_form("{{ '[INST] ' + message + ' [/INST]' }}", {"<s>": 1, "</s>": 2}) is None  # Mistral's
