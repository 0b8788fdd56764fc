"""Published vocabularies: the known ids, and what happens when a file is absent or wrong. Nothing here uses the network."""

import hashlib

import pytest

from freedive.runs import UserError
from freedive.tokenizer import download, get, known

LINES = ["Hello world!\n\n", "They'LL  pay 12345.67€ ", "你好, Привет 🙂", "  def f(x):\r\n\treturn x", "." * 27]


@pytest.fixture
def no_files(monkeypatch, tmp_path):
    """A machine without any rank file; returns a folder that TIKTOKEN_CACHE_DIR names."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr(known.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(known, "_CARRIERS", (("no_such_package", "x"),))
    get.cache_clear()
    yield tmp_path
    get.cache_clear()


@pytest.mark.parametrize(
    ("name", "vocab_size", "holes"), [("cl100k_base", 100277, 16), ("o200k_base", 200019, 19), ("o200k_chatml", 200267, 264)]
)
def test_sizes_are_the_highest_id_plus_one_with_holes(published, name, vocab_size, holes):
    tok = published(name)
    assert tok.vocab_size == vocab_size and int((tok.vocab_mask == 0).sum()) == holes
    for line in LINES:
        assert tok.decode(tok.encode(line)) == line


def test_counting_and_spelling(published):
    tok = published("o200k_chatml")
    assert len(tok.encode("." * 27)) == 2
    assert [tok.decode([i]) for i in tok.encode("strawberry")] == ["st", "raw", "berry"]
    assert len(tok.encode("<|iam_start|>")) == 6 and tok.im_start not in tok.encode("<|im_start|>")


def test_gpt2_from_the_files_it_was_published_with(shared_data, no_files):
    folder = shared_data / "tok" / "gpt2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    for name in ("vocab.bpe", "encoder.json"):
        (no_files / known._cache_name(name)).write_bytes((folder / f"gpt2_{name}").read_bytes())
    tok = get("gpt2")
    assert tok.vocab_size == 50257 and tok.bos_id == 50256
    assert tok.encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]


def test_absent_files_say_what_to_do(no_files):
    for name in ("gpt2", "cl100k_base", "o200k_chatml"):
        with pytest.raises(UserError, match="not on this machine") as error:
            get(name)
        assert "pip install" in error.value.hint and "TIKTOKEN_CACHE_DIR" in error.value.hint


def test_a_wrong_file_is_neither_used_nor_deleted(no_files):
    path = no_files / known._cache_name("cl100k")
    path.write_bytes(b"YQ== 0\n")
    with pytest.raises(UserError, match="not on this machine"):
        get("cl100k_base")
    assert path.read_bytes() == b"YQ== 0\n"


def test_unknown_names():
    with pytest.raises(UserError, match="'gpt5'") as error:
        get("gpt5")
    assert "o200k_chatml" in error.value.hint


def test_cache_names_are_tiktokens():
    assert known._cache_name("cl100k") == "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    assert (
        known._cache_name("r50k")
        == hashlib.sha1(b"https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken").hexdigest()
    )


def test_download_by_hash(shared_data, no_files, tmp_path_factory):
    """From any address, here a folder: what has the published sha256 is kept under tiktoken's name, anything else is not."""
    folder = shared_data / "tok" / "gpt2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    for name in ("vocab.bpe", "encoder.json"):
        (no_files / known._cache_name(name)).write_bytes((folder / f"gpt2_{name}").read_bytes())
    ranks = known.format_ranks(known._gpt2_ranks())  # r50k, byte for byte OpenAI's file
    mirror = tmp_path_factory.mktemp("mirror")
    (mirror / "encodings").mkdir()
    for data, good in ((ranks[:-9], False), (ranks, True)):
        (mirror / "encodings" / "r50k_base.tiktoken").write_bytes(data)
        if good:
            path = download("gpt2", base=mirror.as_uri() + "/")
            assert path == no_files / known._cache_name("r50k") and path.read_bytes() == ranks
        else:
            with pytest.raises(UserError, match="nothing was written"):
                download("gpt2", base=mirror.as_uri() + "/")
            assert not (no_files / known._cache_name("r50k")).exists()
    assert download("gpt2", base="http://127.0.0.1:9/") == path, "what is there is not fetched again"
    with pytest.raises(UserError, match="could not be fetched"):
        download("o200k_base", base="http://127.0.0.1:9/")
    with pytest.raises(UserError, match="'gpt5'"):
        download("gpt5")


def test_a_model_row_of_a_hole_is_never_sampled(published):
    """Holes have no bytes, so a model with this vocabulary must not be able to say them: its head is masked there."""
    np = pytest.importorskip("numpy")
    model_room = pytest.importorskip("freedive.model")
    from freedive.tokenizer import Tokenizer

    tokens = {bytes((b,)): b for b in range(256)}
    tok = Tokenizer("bpe", tokens, {"<|endoftext|>": 300}, r"[\s\S]")
    config = model_room.DecoderConfig(vocab_size=320, n_layer=1, n_head=2, n_kv_head=1, d_model=16, head_dim=8, d_ff=32, max_positions=64)
    model = model_room.Model(config, max_tokens=64, max_seqs=8)
    model.init(0)
    mask = np.zeros(320, np.uint8)
    mask[: tok.vocab_size] = tok.vocab_mask
    model.set_vocab_mask(mask)
    from freedive.inference import Engine

    outs = Engine(model, tok).generate([[300]] * 8, max_new_tokens=50, temperature=5.0)
    assert all(tok.vocab_mask[i] for out in outs for i in out.ids) and {i for out in outs for i in out.ids} - set(range(256)) <= {300}
