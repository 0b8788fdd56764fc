"""A user's function by name: found, or a UserError that says what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from freedive.runs import UserError, find_function, function_file

DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Score:
    value: int

def score(x):
    return Score(x).value
"""


def test_built_in_module_and_file(tmp_path: Path):
    assert find_function("length", {"length": len}, "reward") is len
    assert find_function("os.path:basename", {}, "reward")("a/b") == "b"
    (tmp_path / "mine.py").write_text(DATACLASS)  # dataclasses look up the module they are in
    assert find_function(f"{tmp_path}/mine.py:score", {}, "reward")(3) == 3
    (tmp_path / "mine.py").write_text("def score(x):\n    return 7\n")
    assert find_function(f"{tmp_path}/mine.py:score", {}, "reward")(3) == 7  # as the file is now


@pytest.mark.parametrize("text", ["def score(:\n", "import no_such_package\n", "1 / 0\n", "raise SystemExit(3)\n"])
def test_a_file_that_cannot_be_run(tmp_path: Path, text: str):
    (tmp_path / "bad.py").write_text(text)
    before = set(sys.modules)
    with pytest.raises(UserError, match="the checker's file .*bad.py cannot be imported"):
        find_function(f"{tmp_path}/bad.py:score", {}, "checker")
    assert not {name for name in set(sys.modules) - before if name.startswith("freedive_user")}


@pytest.mark.parametrize("name, says", [
    ("nothing", "no checker 'nothing'"), ("no.such.module:f", "no.such.module"), ("json:nothing", "no function 'nothing'"),
    ("none.py:f", "no such checker file"), ("json:", "no function ''"), (":f", "no checker ':f'"),
])  # fmt: skip
def test_what_is_not_there(name: str, says: str):
    with pytest.raises(UserError, match=says):
        find_function(name, {"match": len}, "checker")


def test_only_files_are_inputs():
    assert function_file("a/b.py:score") == Path("a/b.py") and function_file("match") is None and function_file("a.b:score") is None
