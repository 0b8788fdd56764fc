"""Saving, loading, and every way in which a folder can be damaged."""

import base64
import hashlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freedive.runs import UserError, folder_hash
from freedive.tokenizer import ChatConfig, Tokenizer, byte_tokenizer, char_tokenizer
from freedive.tokenizer.files import format_ranks, parse_ranks


def test_round_trip_of_every_kind(tok, tmp_path):
    for name, each in {
        "bpe": tok,
        "bytes": byte_tokenizer(),
        "chars": char_tokenizer("naïve 你好\n", ()),
        "none": byte_tokenizer(()),
    }.items():
        each.save(tmp_path / name)
        loaded = Tokenizer.load(tmp_path / name)
        assert loaded == each and loaded.encode("naïve\n") == each.encode("naïve\n")
        loaded.save(tmp_path / f"{name}-again")
        assert folder_hash(tmp_path / name) == folder_hash(tmp_path / f"{name}-again")


def test_holes_and_other_chat_forms_survive(tmp_path):
    chat = ChatConfig(start="<a>", sep="<b>", end="<c>", bos=False, roles=("human", "bot"), assistant="bot")
    tok = Tokenizer("bpe", {bytes((b,)): b for b in range(256)}, {"<a>": 300, "<c>": 302, "<b>": 310}, ".+", chat)
    tok.save(tmp_path)
    assert Tokenizer.load(tmp_path) == tok and tok.im_end == 302


def test_loads_from_inside_a_model_folder(tok, tmp_path):
    tok.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    assert Tokenizer.load(tmp_path) == tok


def edit(folder, **changes):
    path = folder / "tokenizer.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "(remove)"}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "freedive-tokenizer-9"}, "freedive-tokenizer-9"),
        ({"format": None, "model": {}}, "Hugging Face"),
        ({"kind": "words"}, "kind is 'words'"),
        ({"vocab_size": 601}, "vocab_size is 601"),
        ({"vocab_size": "600"}, "'vocab_size' must be int"),
        ({"pattern": "(remove)"}, "'pattern' is missing"),
        ({"pattern": "("}, "regular expression"),
        ({"special_tokens": ["<|endoftext|>"]}, "'special_tokens' must be dict"),
        ({"special_tokens": {"<|endoftext|>": 3}}, "id 3 stands for two"),
        ({"special_tokens": {"<|endoftext|>": 1.5}}, "1.5"),
        ({"special_tokens": {"<|endoftext|>": 10**15}}, "1000000000000000"),
        ({"special_tokens": {"\ud800": 588}}, "not valid Unicode"),
        ({"chat": {"start": "<|nowhere|>"}}, "nowhere"),
        ({"chat": {"begin": "<|im_start|>"}}, "begin"),
        ({"chat": {"roles": "user"}}, "roles"),
        ({"chat": {"start": "<|im_end|>"}}, "different"),
        ({"chat": []}, "chat"),
        ({"ranks_sha256": "0" * 64}, "sha256"),
    ],
)
def test_wrong_settings(tok, tmp_path, changes, message):
    tok.save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1' + b"0" * 5000 + b"}", b"[" * 100_000])
def test_json_that_is_none(tok, tmp_path, content):
    tok.save(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_missing_files(tok, tmp_path):
    with pytest.raises(UserError, match="missing"):
        Tokenizer.load(tmp_path / "nowhere")
    tok.save(tmp_path)
    (tmp_path / "ranks.tiktoken").unlink()
    with pytest.raises(UserError, match="ranks.tiktoken is missing"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"!!!! 5", "line 600"),
        (b"QUI= five", "line 600"),
        (b"QUI= -5", "line 600"),
        (b"QUI=", "line 600"),
        (b"QUI= 5 6", "line 600"),
        (b" 5", "line 600"),
        (base64.b64encode(b"a") + b" 900", "token occurs twice"),
        (base64.b64encode(b"never seen") + b" 5", "rank occurs twice"),
    ],
)
def test_wrong_rank_lines(tmp_path, line, message):
    data = format_ranks({bytes((b,)): b for b in range(256)} | {b"long" + bytes((b, 255 - b)): 256 + b for b in range(256)})
    data += format_ranks({b"longer" + bytes((b,)): 512 + b for b in range(87)}) + line + b"\n"
    with pytest.raises(UserError, match=message):
        parse_ranks(data, tmp_path / "ranks.tiktoken")


def test_a_file_of_ranks_that_is_whole_but_not_a_vocabulary(tok, tmp_path):
    tok.save(tmp_path)
    data = format_ranks({token: rank for token, rank in tok.tokens.items() if token != b"a"})
    (tmp_path / "ranks.tiktoken").write_bytes(data)
    edit(tmp_path, ranks_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(UserError, match="0x61"):
        Tokenizer.load(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_a_user_error_or_the_same_tokenizer(tok, tmp_path, data):
    """Truncate either file anywhere, or flip a byte: never a traceback, never other ids."""
    tok.save(tmp_path)
    path = tmp_path / data.draw(st.sampled_from(["ranks.tiktoken", "tokenizer.json"]))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        loaded = Tokenizer.load(tmp_path)
    except UserError:
        return
    assert path.name == "tokenizer.json", "damaged ranks were accepted"
    assert loaded.tokens == tok.tokens
