"""Configurations: what identifies a run, and TOML files whose mistakes are told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from freedive.runs import UserError, config_json, load_toml, option
from freedive.runs.config import differences


@dataclass(frozen=True)
class Inner:
    beta: float = option(0.9, "momentum")
    verbose: bool = option(False, "talk", hash=False)


@dataclass(frozen=True)
class Config:
    data: Path = option(help="required")
    learning_rate: float = option(1e-3, "rate")
    steps: int | None = option(None, "steps")
    kind: Literal["rms", "layer"] = option("rms", "norm")
    text: tuple[Path, ...] = option((), "files")
    pair: tuple[int, float] = option((1, 2.0), "pair")
    extra: list[str] = option([], "extra")
    fast: bool = option(False, "fast")
    inner: Inner = option(Inner(), "inner")
    threads: int | None = None
    out: Path = Path("out")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_load_toml(tmp_path):
    text = 'data = "d"\nlearning-rate = 1\nsteps = 5\nkind = "layer"\ntext = ["a", "b"]\n'
    text += 'pair = [3, 4]\nextra = ["x"]\nfast = true\n[inner]\nbeta = 0.5\n'
    config = load_toml(write(tmp_path, text), Config)
    assert config == Config(Path("d"), 1.0, 5, "layer", (Path("a"), Path("b")), (3, 4.0), ["x"], True, Inner(0.5))
    assert isinstance(config.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat = 1", r"unknown key learning_rat\n.*did you mean learning_rate\? allowed keys: data, learning_rate"),
        ("[inner]\nbta = 1", r"unknown key inner\.bta\ndid you mean beta"),
        ("zzz = 1", r"unknown key zzz\nallowed keys"),
        ('learning_rate = "fast"', r'learning_rate must be a number; found "fast"'),
        ("steps = 1.5", r"steps must be a whole number; found 1\.5"),
        ("steps = true", r"steps must be a whole number; found true"),
        ('kind = "batch"', r'kind must be one of "rms", "layer"; found "batch"'),
        ("fast = 1", r"fast must be true or false; found 1"),
        ("data = 3", r"data must be a path"),
        ('text = "a"', r'text must be a list \(a path \(a string\) each\); found "a"'),
        ("text = [1]", r"text must be a list"),
        ("pair = [1]", r"pair must be a list"),
        ("inner = 3", r"inner must be a table"),
        ("[inner]\nbeta = 'x'", r"inner\.beta must be a number"),
        ("steps = 1979-05-27", r"steps must be a whole number; found \"1979-05-27\""),
        ("steps = ", r"is not valid TOML"),
        ("steps = 3", r"lacks data"),
    ],
)
def test_toml_mistakes_are_told(tmp_path, text, says):
    with pytest.raises(UserError, match=r"settings\.toml") as error:
        load_toml(write(tmp_path, text), Config)
    import re

    assert re.search(says, str(error.value)), str(error.value)


def test_toml_missing_folder_binary(tmp_path):
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(UserError):
            load_toml(path, Config)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid TOML"):
        load_toml(tmp_path / "b.toml", Config)


def test_identity_leaves_out_what_does_not_matter(tmp_path):
    config = Config(data=tmp_path / "data")
    same = replace(config, threads=3, out=Path("elsewhere"), inner=Inner(verbose=True), data=Path("/other/place/data"))
    assert config_json(config) == config_json(same)
    assert "threads" not in config_json(config) and "out" not in config_json(config)
    assert config_json(config)["data"] == "data"
    by_content = config_json(config, {"corpus": tmp_path / "data", "text": ["a", "b"]})
    assert by_content["data"] == "(input corpus)" and by_content["text"] == "(input text)"


def test_differences_name_the_field(tmp_path):
    old = config_json(Config(data=tmp_path))
    new = config_json(Config(data=tmp_path, steps=3, inner=Inner(beta=0.5)))
    assert differences(old, new) == ["steps was null, now 3", "inner.beta was 0.9, now 0.5"]
    assert differences(old, old) == []
    assert differences({"a": 1}, {"a": 1.0, "b": 2}) == ['b was "(absent)", now 2']


def test_mutable_defaults_are_copied():
    one, two = Config(data=Path("x")), Config(data=Path("x"))
    one.extra.append("y")
    assert two.extra == []
