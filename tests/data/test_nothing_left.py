"""What is said when no document is left: the reasons, and the setting that would keep most of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from freedive.data.merge import nothing_left
from freedive.data.stage import DataConfig, run
from freedive.data.waterfall import Waterfall
from freedive.runs import UserError

GERMAN = "Der Fluss fliesst durch die Stadt, und am Morgen gehen die Leute \u00fcber die Br\u00fccke zur Arbeit. "


def test_the_hint_follows_the_commonest_reason():
    waterfall = Waterfall()
    for removed, count in ((("language", "is_de"), 5), (("language", "is_fr"), 2), (("read", "empty"), 3)):
        for _ in range(count):
            waterfall.add(100, [], removed)
    error = nothing_left(waterfall)
    assert "5 language/is_de, 3 read/empty, 2 language/is_fr" in error.message and "--languages de fr" in error.hint
    for _ in range(5):
        waterfall.add(100, [], ("c4", "too_short"))
    assert "--preset none" in nothing_left(waterfall).hint


@pytest.mark.parametrize("raw", [b"caf\xe9 " * 200, b"ab\x00\x01" * 200])
def test_what_is_no_text(tmp_path: Path, raw: bytes):
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(UserError, match="no document was left: 1 extract/b") as caught:
        run(DataConfig(inputs=(tmp_path / "a.txt",), out=tmp_path / "out", workers=1))
    assert "UTF-8" in caught.value.hint and "preset" not in caught.value.hint


def test_text_in_another_language(tmp_path: Path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(GERMAN * 20 + name, encoding="utf-8")
    with pytest.raises(UserError, match="no document was left: 2 language/is_de") as caught:
        run(DataConfig(inputs=(tmp_path / "a.txt", tmp_path / "b.txt"), out=tmp_path / "out", workers=1))
    assert "--languages de" in caught.value.hint and not (tmp_path / "out").exists()
