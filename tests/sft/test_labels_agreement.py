"""Agreement: published examples, closed forms, and what must not change a number."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.cli import main
from freedive.sft.labels.agreement import agreement, cohen, kendall, krippendorff
from freedive.sft.labels.importing import write
from freedive.sft.labels.items import dense, make_item
from freedive.sft.labels.store import Judgement

_ = None
# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units
OBSERVERS = [[1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3], [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _]]


@pytest.mark.parametrize("metric, published", [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorff_s_own_example(metric, published):
    units = {n: [[v for v in unit if v is not None]] for n, unit in enumerate(zip(*OBSERVERS))}
    found = krippendorff(units, metric)
    assert found is not None and round(found["alpha"], 3) == published and found["units"] == 11
    together = krippendorff({0: [u[0] for u in units.values()]}, metric)  # clusters change the interval, and not the value
    assert together is not None and together["alpha"] == pytest.approx(found["alpha"], abs=1e-12)


def test_cohen_s_kappa():
    a, b = ["yes"] * 25 + ["no"] * 25, ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15  # 20, 5, 10, 15: 0.7 seen, 0.5 by chance
    assert cohen(a, b) == pytest.approx(0.4)
    assert cohen(["x"], ["x"]) is None


@pytest.mark.parametrize("a, b, tau", [([0, 1, 2], [0, 1, 2], 1), ([0, 1, 2], [2, 1, 0], -1), ([0, 1, 2, 3], [0, 2, 1, 3], 4 / 6), ([0, 0, 1], [0, 1, 1], 0.5), ([0, 0], [0, 1], None)])
def test_kendall_s_tau_b(a, b, tau):
    assert kendall(a, b) == (None if tau is None else pytest.approx(tau))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=8))
def test_tau_is_scipy_s(pairs):
    stats = pytest.importorskip("scipy.stats", reason="compares with scipy where it is installed")
    a, b = zip(*pairs)
    theirs = stats.kendalltau(a, b).statistic
    ours = kendall(a, b)
    assert ours is None and theirs != theirs or ours == pytest.approx(theirs)


def folder(noise: dict[str, float], n: int = 60, k: int = 4, seed: int = 5):
    """Labellers who each say the true order of an item, but for a share of items at which they guess."""
    rng = random.Random(seed)
    items = [make_item([{"role": "user", "content": f"{i}"}], [f"{i} {j}" for j in range(k)]) for i in range(n)]
    truth = {i.id: rng.sample(range(k), k) for i in items}
    said = lambda i, p: truth[i.id] if rng.random() >= p else rng.sample(range(k), k)
    judgements = [Judgement(i.id, who, ranks={f"a{j}": r for j, r in enumerate(said(i, p))}, order=[f"a{j}" for j in range(k)], seconds=1.0) for who, p in noise.items() for i in items]
    return {i.id: i for i in items}, judgements


def test_who_agrees_agrees():
    items, judgements = folder({"a": 0.0, "b": 0.0, "c": 1.0})
    found = agreement(items, judgements)
    by = {tuple(p["labellers"]): p for p in found["pairs_of_labellers"]}
    assert by["a", "b"]["agreement"]["share"] == 1 and by["a", "b"]["kappa"] == by["a", "b"]["tau"] == 1
    low, high = by["a", "c"]["tau_interval_95"]
    assert low < 0 < high and by["a", "c"]["pairs"] == 360 and abs(by["a", "c"]["agreement"]["share"] - 0.5) < 0.1
    alpha = found["alpha"]["pairs_nominal"]
    assert 0.2 < alpha["alpha"] < 0.5 and alpha["interval_95"][0] < alpha["alpha"] < alpha["interval_95"][1]  # one of three pairs of people agrees
    only = agreement(items, [j for j in judgements if j.labeller != "c"])["alpha"]
    assert only["pairs_nominal"]["alpha"] == only["pairs_ordinal"]["alpha"] == 1 and only["scores_interval"] is None


@given(st.randoms(use_true_random=False))
def test_the_names_of_things_change_nothing(rng):
    items, judgements = folder({"a": 0.3, "b": 0.6}, n=8, k=3)
    mixed = list(judgements)
    rng.shuffle(mixed)
    one, other = agreement(items, judgements), agreement(items, mixed)
    assert one["alpha"]["pairs_nominal"]["alpha"] == pytest.approx(other["alpha"]["pairs_nominal"]["alpha"])
    assert one["pairs_of_labellers"][0]["kappa"] == pytest.approx(other["pairs_of_labellers"][0]["kappa"])


def test_the_file_s_own_order_is_one_more_labeller(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    items = [make_item([{"role": "user", "content": f"{i}"}], ["x", "y", "z"], [0, 1, 2]) for i in range(10)]
    write(tmp_path / "x", items, [Judgement(i.id, "ada", ranks={"a0": 0, "a1": 2, "a2": 1}) for i in items])
    assert main(["label", "agreement", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "ada and file" in out and "67 %" in out and "0.33" in out  # two of three pairs; (2 - 1) / 3
    assert main(["label", "agreement", str(tmp_path / "x"), "--no-with-file"]) == 2


def test_the_table_and_the_portraits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    items, judgements = folder({"ada": 0.2, "grace": 0.2}, n=20)
    skipped = Judgement(next(iter(items)), "grace", skipped=True, order=["a0"])
    ties = [Judgement(j.item, "ties", ranks=dict.fromkeys(j.ranks, 0), scores={"a0": 4}) for j in judgements[:5]]
    write(tmp_path / "x", list(items.values()), [*judgements[1:], skipped, *ties])
    assert main(["label", "agreement", str(tmp_path / "x"), "--out", str(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    assert "ada and grace" in out and "Krippendorff's alpha, pairs, nominal" in out and "100 %" in out
    found = agreement(items, [*judgements, skipped, *ties])
    assert found["labellers"]["grace"]["skipped"] == 1 and found["labellers"]["ties"]["ties"] == 1
    first = found["labellers"]["ada"]["shown_first_above_last"]
    assert first["n"] == 20 and 0.2 < first["share"] < 0.8
    assert dense([3, 1, 3]) == [1, 0, 1]
