"""Progress shows and changes nothing."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from freedive.runs import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_silent_without_a_terminal(capsys):
    assert list(progress(range(5), 5, "count")) == list(range(5))
    with progress.bar(3, "x") as bar:
        bar.advance(2, text="loss 1")
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_bars_nest_and_end(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    outer = progress.bar(2, "dive")
    for _ in progress(iter(range(3)), 3, "pretrain"):
        outer.advance(1, text="loss 2.31")
    with pytest.raises(ValueError):
        for _ in progress(range(3), 3, "sft"):
            raise ValueError
    outer.close()
    outer.close()
    text = screen.getvalue()
    assert "dive" in text and "pretrain" in text and "loss 2.31" in text
    assert progress._display is None or progress._open > 0  # nothing is left running once the generators are gone


def test_quiet(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "quiet", True)
    assert list(progress([1, 2])) == [1, 2]
    assert screen.getvalue() == ""


def test_rich_is_imported_late():
    loaded = subprocess.check_output([sys.executable, "-c", "import freedive.runs, sys; print(*sys.modules)"], text=True)
    assert not {"rich", "numpy"} & set(loaded.split())
