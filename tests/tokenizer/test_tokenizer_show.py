"""`freedive tokens`: counts and ids are the encoding's, the mask is the renderer's, text cannot steer the terminal."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.cli import main
from freedive.tokenizer import byte_tokenizer, char_tokenizer, find, render, train_tokenizer
from freedive.tokenizer.colour import to_ansi
from freedive.tokenizer.show import chat_ids, difference, explain, puzzles


@pytest.fixture(scope="module")
def folders(tok, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizers")
    tok.save(out / "bpe")
    byte_tokenizer().save(out / "bytes")
    return out


def printed(capsys, *arguments) -> str:
    assert main(["tokens", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_pieces_ids_bytes_and_count(capsys, folders, tok):
    text = "the cats, 12\n你\x1b[31m"
    out = printed(capsys, text, "--encoding", folders / "bpe")
    ids = tok.encode(text)
    assert f"{len(ids)} tokens, {len(text.encode())} bytes" in out
    table = [line.split()[0] for line in out.splitlines()[3:]]
    assert table == [str(i) for i in ids]
    assert "\x1b" not in out and "↵" in out
    assert f"{len(ids) - 2} more" in printed(capsys, text, "--encoding", folders / "bpe", "--rows", 2)


def test_text_from_file_and_standard_input(capsys, folders, tmp_path, monkeypatch):
    import io

    (tmp_path / "t.txt").write_text("the cats", encoding="utf-8")
    assert "8 tokens" in printed(capsys, "--file", tmp_path / "t.txt", "--encoding", "bytes")
    monkeypatch.setattr("sys.stdin", io.StringIO("the"))
    assert "3 tokens" in printed(capsys, "-", "--encoding", folders / "bytes")


def test_chat_with_its_loss_mask(capsys, folders, tok):
    messages = [{"role": "user", "content": "the cats?"}, {"role": "assistant", "content": "the"}]
    ids, mask = render(tok, messages)
    for text in (json.dumps(messages), json.dumps({"messages": messages, "meta": {}})):
        assert chat_ids(tok, text) == (ids, mask)
        out = printed(capsys, text, "--chat", "--encoding", folders / "bpe")
        assert f"{len(ids)} tokens, {sum(mask)} of them trained" in out
        assert len(re.findall(r" yes  ", out)) == sum(mask)
    assert chat_ids(tok, "the cats?") == render(tok, messages[:1], add_generation_prompt=True)


def test_trained_tokens_are_underlined(tok):
    ids, mask = render(tok, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}])
    assert to_ansi(tok, ids, mask).count("\x1b[4m") == sum(mask) and "\x1b[4m" not in to_ansi(tok, ids)


@given(text=st.text(max_size=30))
def test_differences_are_where_the_cuts_differ(tok, text):
    other = byte_tokenizer()
    lines = difference(tok, "a", other, "b", text, most=1000)
    longer = [i for i in tok.encode(text) if len(tok.token_bytes(i)) > 1]
    assert f"cut differently in {len(longer)} place" in lines[0] and len(lines) == 1 + len(longer)
    assert "differently in 0 places" in difference(tok, "a", tok, "a", text)[0]


def test_compare(capsys, folders):
    out = printed(capsys, "the cats and the cats", "--encoding", folders / "bpe", "--compare", folders / "bytes", "--explain")
    assert "cut differently in" in out and "t|h|e" in out


def test_explanations_are_computed(published):
    tok = published("o200k_chatml")
    lines = explain(tok, "strawberry")
    assert "3 ids" in lines[0] and "0 in 'st', 1 in 'raw', 2 in 'berry'" in lines[1]
    assert "27 times '.' are 2 tokens of 24, 3" in explain(tok, "." * 27)[1]
    assert any("[13225, 2618]" in line and "[13225, 10880]" in line for line in puzzles(tok))


@given(text=st.text(min_size=1, max_size=20))
def test_any_text_has_an_explanation(tok, text):
    assert explain(tok, text) and explain(byte_tokenizer(), text)


def test_puzzles_of_any_encoding(tok):
    for any_tok in (tok, byte_tokenizer(()), byte_tokenizer(), train_tokenizer(["a b"], 269)):
        assert len(puzzles(any_tok)) >= 6


def test_export_for_hugging_face(capsys, folders, tok, tmp_path):
    out = printed(capsys, "--encoding", folders / "bpe", "--export", tmp_path / "hf")
    assert "written to" in out and find(tmp_path / "hf").encode("the cats") == tok.encode("the cats")
    assert main(["tokens", "--encoding", str(folders / "bpe"), "--export", str(folders / "bpe")]) == 2
    assert "already" in capsys.readouterr().err and find(folders / "bpe") == tok


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--encoding", "bytes"], "no text"),
        (["x", "--encoding", "gpt5"], "gpt5"),
        (["x", "--encoding", "bytes", "--compare", "gpt5"], "gpt5"),
        (["[x", "--chat", "--encoding", "bytes"], "not JSON"),
        (['[{"role": "x"}]', "--chat", "--encoding", "bytes"], "role"),
        (["", "--chat", "--explain", "--encoding", "bytes"], "no conversation"),
        (["x", "--chat", "--compare", "bytes", "--encoding", "bytes"], "one encoding"),
        (["x", "--file", "y", "--encoding", "bytes"], "both"),
        (["--file", "/no/such/file", "--encoding", "bytes"], "no/such"),
        (["x", "--rows", "-1", "--encoding", "bytes"], "rows"),
        (["--compare", "bytes", "--encoding", "bytes", "--explain"], "compare on"),
        (["--download", "nope"], "nope"),
    ],
)
def test_bad_input(capsys, arguments, what):
    assert main(["tokens", *arguments]) == 2
    assert what in capsys.readouterr().err


def test_a_character_outside_of_an_alphabet(capsys, tmp_path):
    char_tokenizer("abc").save(tmp_path)
    assert main(["tokens", "abd", "--encoding", str(tmp_path)]) == 2 and "'d'" in capsys.readouterr().err
