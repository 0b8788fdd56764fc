"""The peak kept per host: measured once, raised by more, done without where nothing can be kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freedive import _core
from freedive.runs import peak


@pytest.fixture
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A cache of its own, and a list that grows with every probe; each finds 1e9 FLOP/s a thread."""
    calls: list[int] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_core, "measure_peak", lambda threads, repeats=8, compute=0: calls.append(threads) or 1e9 * threads * (1 + compute))
    return calls


def test_measured_once_for_each_number_of_threads_and_dtype(probes: list[int]):
    for _ in range(3):
        assert peak.machine_peak(1) == 1e9
        assert peak.machine_peak(2) == 2e9
        assert peak.machine_peak(2, "bfloat16") == 4e9
    assert probes == [1, 2, 2]


def test_more_is_kept_less_is_not(probes: list[int]):
    peak.machine_peak(1)
    assert peak.seen(1, "float32", 0.5e9) == 1e9
    assert peak.seen(1, "float32", 3e9) == 3e9
    assert peak.machine_peak(1) == 3e9 and probes == [1]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"x": "much"}', '{"x": -1}'])
def test_a_damaged_cache_is_measured_over(probes: list[int], content: str):
    peak.cache_file().parent.mkdir(parents=True)
    peak.cache_file().write_text(content)
    assert peak.machine_peak(1) == 1e9
    assert 1e9 in json.loads(peak.cache_file().read_text()).values()


def test_without_a_place_to_keep_it(probes: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder
    assert peak.machine_peak(1) == peak.machine_peak(1) == 1e9
    assert probes == [1, 1]
