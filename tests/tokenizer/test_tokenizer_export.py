"""The Hugging Face export: equal ids in `tokenizers`, and a chat template that renders what our renderer renders."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, render, render_text, save_hf, to_hf
from freedive.tokenizer.export import byte_characters, chat_template, recover_merges

MESSAGES = [
    {"role": "user", "content": "it's 'quoted'\n{{ x }}"},
    {"role": "assistant", "content": "naïve 你好"},
    {"role": "user", "content": "ok"},
]
LINES = [
    "Hello world!\n\n",
    "They'LL  pay 12345.67€ ",
    "naïve café 你好, Привет 🙂",
    "  def f(x):\r\n\treturn x   ",
    "the cats and the with\n \n x",
]


def in_hugging_face(tok: Tokenizer):
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    return tokenizers.Tokenizer.from_str(json.dumps(to_hf(tok)["tokenizer.json"]))


@given(text=st.text(st.characters(blacklist_categories=["Cs"]), max_size=60))
def test_equal_ids_for_any_text(tok, text):
    theirs = in_hugging_face(tok) if not hasattr(test_equal_ids_for_any_text, "cache") else test_equal_ids_for_any_text.cache
    test_equal_ids_for_any_text.cache = theirs
    if not any(name in text for name in tok.special_tokens):  # they read a special token's name in a text as the token; we never do
        assert theirs.encode(text).ids == tok.encode(text)
    assert theirs.decode(tok.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_equal_ids_of_the_other_kinds(kind):
    tok = byte_tokenizer() if kind == "bytes" else char_tokenizer("".join(LINES))
    theirs = in_hugging_face(tok)
    for line in LINES:
        assert theirs.encode(line).ids == tok.encode(line)
        assert theirs.decode(tok.encode(line)) == line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cl100k_chatml", "o200k_chatml"])
def test_equal_ids_of_published_vocabularies(published, name):
    tok = published(name)
    theirs = in_hugging_face(tok)
    for line in LINES:
        assert theirs.encode(line).ids == tok.encode(line)
    messages = MESSAGES[1:2]
    assert theirs.encode(render_text(tok, messages)).ids == render(tok, messages)[0]


def test_special_tokens_have_their_ids(tok):
    theirs = in_hugging_face(tok)
    ids, _ = render(tok, MESSAGES, add_generation_prompt=True)
    assert theirs.encode(render_text(tok, MESSAGES, add_generation_prompt=True)).ids == ids
    assert theirs.get_vocab_size() == tok.vocab_size


def test_the_chat_template_is_the_renderer(tok):
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 is not installed")
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):  # transformers has the same tag
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller):
            return f"[trained]{caller()}[/trained]"

    config = to_hf(tok)["tokenizer_config.json"]
    template = jinja2.Environment(extensions=[Generation]).from_string(config["chat_template"])
    for generate in (False, True):
        text = template.render(messages=MESSAGES, add_generation_prompt=generate, bos_token=config["bos_token"])
        assert text.replace("[trained]", "").replace("[/trained]", "") == render_text(tok, MESSAGES, generate)
        assert "[trained]naïve 你好<|im_end|>[/trained]" in text and text.count("[trained]") == 1
    assert "bos_token" not in chat_template(type(tok.chat)(bos=False))


def test_merges_make_every_token_once(tok):
    merges = recover_merges(tok.tokens)
    assert [left + right for left, right in merges] == [
        t for t, _ in sorted(tok.tokens.items(), key=lambda x: x[1]) if len(t) > 1
    ]


def test_ranks_without_merges_are_refused():
    with pytest.raises(UserError, match="b'abc'"):
        recover_merges({bytes((b,)): b for b in range(256)} | {b"abc": 256})


def test_possessive_patterns_are_refused(tok):
    with pytest.raises(UserError, match="possessive"):
        to_hf(Tokenizer("bpe", tok.tokens, {}, r"\p{L}++|\s|."))


def test_byte_characters_are_gpt2s():
    characters = byte_characters()
    assert len(set(characters)) == 256
    assert characters[ord(" ")] == "Ġ" and characters[ord("\n")] == "Ċ" and characters[ord("A")] == "A" and characters[0] == "Ā"


def test_files(tok, tmp_path):
    save_hf(tok, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["eos_token"] == "<|im_end|>" and config["bos_token"] == "<|endoftext|>"
