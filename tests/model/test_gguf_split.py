"""A model in several GGUF files, as llama-gguf-split writes them: the same weights, tokenizer and answers as in one; parts that do not fit are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from model_cases import make_model

from freedive.inference import load
from freedive.inference.export import ExportConfig
from freedive.inference.export import run as export
from freedive.model import open_weights, preset, save_pretrained
from freedive.model.gguf import GGUF, map_gguf, read_gguf
from freedive.model.gguf_write import OutTensor, write_gguf
from freedive.model.weights import parameter_shapes
from freedive.runs import UserError
from freedive.tokenizer import train_tokenizer


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def split(file: GGUF, folder: Path, bounds: list[int], **more) -> list[Path]:
    """Part i holds tensors bounds[i]..bounds[i+1]; the first has the metadata. `more` overrides what parts say of themselves."""
    data, names, count = map_gguf(file)[0], list(file.tensors), len(bounds) - 1
    out = []
    for i in range(count):
        about = {"split.no": i, "split.count": count, "split.tensors.count": len(names)} | more
        tensors = []
        for name in names[bounds[i] : bounds[i + 1]]:
            t = file.tensors[name]
            tensors.append(OutTensor(name, t.shape, t.type, lambda t=t: data[t.offset : t.offset + t.nbytes].view("<f4").reshape(t.shape)))
        out.append(folder / f"m-{i + 1:05d}-of-{count:05d}.gguf")
        write_gguf(out[-1], ({k: plain(v) for k, v in file.metadata.items()} if i == 0 else {}) | about, tensors)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    room = tmp_path_factory.mktemp("split")
    tok = train_tokenizer(["the town lies on a river, and 12 boats lie there " * 20], 280)
    config = preset("llama3", vocab_size=tok.vocab_size, n_layer=2, max_positions=32, n_head=2, n_kv_head=1, d_model=32, head_dim=16, d_ff=32)
    save_pretrained(make_model(config), room / "ours")
    tok.save(room / "ours" / "tokenizer")
    export(ExportConfig(room / "ours", room / "m.gguf"))
    return room / "m.gguf"


@pytest.fixture
def parts(whole, tmp_path) -> list[Path]:
    file = read_gguf(whole)
    return split(file, tmp_path, [0, 0, 7, len(file.tensors)])  # the first without a tensor, as --no-tensor-first-split has it


def test_parts_are_the_whole(whole, parts):
    one = open_weights(whole)
    for named in (*parts, parts[0].parent):
        several = open_weights(named)
        assert several.config == one.config
        for name in parameter_shapes(one.config):
            np.testing.assert_array_equal(several.read(name), one.read(name))
    said = [load(path, threads=1, max_tokens=64).generate("the town", max_new_tokens=8, temperature=0) for path in (whole, parts[1], parts[0].parent)]
    assert said[0] == said[1] == said[2]


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        open_weights(path)
    return str(error.value)


def test_what_does_not_fit_together_is_named(whole, parts, tmp_path):
    file = read_gguf(whole)
    kept = parts[1].read_bytes()
    parts[1].unlink()
    assert "part 2 of 3 is missing" in refused(parts[0]) and "part 2 of 3 is missing" in refused(parts[2])
    shutil.copy(parts[2], parts[1])
    assert "says that it is part 3 of 3, its name that it is 2 of 3" in refused(parts[0])
    parts[1].write_bytes(kept)
    shutil.move(parts[2], tmp_path / "other.gguf")
    assert "says that it is one of 3 parts" in refused(tmp_path / "other.gguf")
    shutil.move(tmp_path / "other.gguf", parts[2])
    open_weights(parts[0])
    twice = tmp_path / "twice"
    twice.mkdir()
    again = split(file, twice, [0, 7, len(file.tensors)])
    lone = split(file, tmp_path, [5, 5, 9])  # parts of two as well; its second begins with what the first has
    shutil.move(lone[1], again[1])
    assert "is in an earlier part too" in refused(again[0])
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    assert f"{len(file.tensors) + 1} are promised" in refused(split(file, fewer, [0, 3, len(file.tensors)], **{"split.tensors.count": len(file.tensors) + 1})[0])
    shutil.copy(parts[0], tmp_path / "m-00001-of-00004.gguf")
    assert "one of 3 parts" in refused(tmp_path / "m-00001-of-00004.gguf")
