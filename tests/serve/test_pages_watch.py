"""`freedive watch`: files that grow, are cut back and move; the page follows them, is clean, and fits a phone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from freedive.cli import main
from freedive.runs.follow import find_runs, ordered


def lines(path: Path, rows: list[dict[str, Any]], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, mode) as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)


def steps(first: int, last: int) -> list[dict[str, Any]]:
    return [{"step": s, "loss": 1 / s, "lr": 0.1, "reward": s / 100, "name": "x", "odd": None, "clip_ratio/low_mean": 0.0} for s in range(first, last + 1)]


def test_files_that_grow_are_cut_back_and_move(tmp_path: Path):
    out, partial = tmp_path / "a", tmp_path / "a.partial"
    lines(partial / "metrics.jsonl", steps(1, 5))
    with open(partial / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "loss"')  # is being written
    for given in (out, partial, tmp_path):
        [run] = find_runs([given])
        assert run.out == out and run.look() and not run.look()
        assert run.step() == 5 and run.state() == "running" and run.curves()["loss"] == [(s, 1 / s) for s in range(1, 6)] and "name" not in run.curves()
    with open(partial / "metrics.jsonl", "a") as file:
        file.write(': 0.5}\n{"step": 6, "eval/pass@1": 0.25}\n')
    assert run.look() and run.curves()["loss"][-1] == (6, 0.5) and run.curves()["eval/pass@1"] == [(6, 0.25)]
    lines(partial / "metrics.jsonl", steps(1, 3))  # gone on from a checkpoint
    assert run.look() and run.step() == 3
    (partial / "run.json").write_text("{}")
    lines(partial / "metrics.jsonl", steps(4, 9), "a")
    partial.rename(out)
    assert run.look() and run.step() == 9 and run.state() == "finished" and [s for s, _ in run.curves()["loss"]] == list(range(1, 10))
    os.utime(out / "metrics.jsonl", (1, 1))
    (out / "run.json").unlink()
    assert run.state() == "stopped"
    assert ordered(["zeta", "lr", "eval/x", "loss", "loss"]) == ["loss", "lr", "eval/x", "zeta"]


@pytest.mark.parametrize("arguments, told", [(["none"], "none does not exist"), (["empty"], "empty holds no run"), ([], "no run is named"), (["empty", "--every", "0"], "every is 0")])
def test_what_is_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("nicegui", reason="the pages need nicegui: pip install 'freedive[serve]'")
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["watch", *arguments]) == 2
    assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """open(**context options) -> a watched page of the runs below tmp_path."""
    pytest.importorskip("nicegui", reason="the pages need nicegui: pip install 'freedive[serve]'")
    sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install 'freedive[test]'")
    from browser import CHROMIUM, Server, Watch

    if not os.path.exists(CHROMIUM):
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")

    class WatchServer(Server):
        def words(self) -> list[str]:
            return ["watch", str(self.folder), "--port", str(self.port), "--every", "0.3"]

    server = WatchServer(tmp_path, tmp_path)
    server.start()
    made = []
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_(**options: Any) -> Any:
            page = browser.new_context(viewport=options.pop("viewport", {"width": 1440, "height": 900}), **options).new_page()
            page.set_default_timeout(20_000)
            made.append(Watch(page, server.base))
            page.goto(server.base)
            page.wait_for_selector("[data-metric=loss] svg")
            return page

        yield open_
        browser.close()
    server.kill(signal.SIGINT)
    assert not [w.problems for w in made if w.problems]


def prepare(folder: Path) -> None:
    lines(folder / "base" / "metrics.jsonl", steps(1, 40))
    (folder / "base" / "run.json").write_text("{}")
    lines(folder / "thinker.partial" / "metrics.jsonl", steps(1, 10))
    lines(folder / "thinker.partial" / "timings.jsonl", [{"step": 10, "tokens_per_second": 1234.5, "peak_share": 0.5}])
    said = [{"step": s, "prompt": [{"role": "user", "content": "What is 2 + 2?"}], "text": f"answer <b>{s}</b>", "reward": 1.0, "length": 5} for s in (0, 5, 10)]
    lines(folder / "thinker.partial" / "trajectories.jsonl", said)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare(tmp_path)
    return tmp_path


def test_the_page_follows(prepared: Path, watched: Callable[..., Any]):
    from playwright.sync_api import expect

    page = watched()
    row = page.locator("[data-run=thinker]")
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("1,234 tokens/s, 50 % of peak")
    expect(page.locator("[data-run=base]")).to_contain_text("finished")
    expect(page.locator("[data-metric=loss] svg")).to_have_attribute("aria-label", "loss by step. base: from 1 to 0.025; thinker: from 1 to 0.1")
    expect(page.get_by_text("answer <b>10</b>")).to_be_visible()
    lines(prepared / "thinker.partial" / "metrics.jsonl", steps(11, 20), "a")
    expect(page.locator("[data-metric=loss] svg")).to_have_attribute("aria-label", "loss by step. base: from 1 to 0.025; thinker: from 1 to 0.05")
    page.get_by_role("button", name="Earlier").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("answer <b>5</b>")).to_be_visible()
    (prepared / "thinker.partial" / "run.json").write_text("{}")
    (prepared / "thinker.partial").rename(prepared / "thinker")
    expect(row).to_contain_text("finished")
    expect(page.locator("[data-metric='clip_ratio/low_mean'] svg")).to_be_hidden()
    page.get_by_text("All other metrics").click()
    expect(page.locator("[data-metric='clip_ratio/low_mean'] svg")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_clean_by_axe_and_on_a_phone(prepared: Path, watched: Callable[..., Any], scheme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python: pip install 'freedive[test]'").Axe()
    from browser import ROOT

    (ROOT / "build" / "screenshots").mkdir(parents=True, exist_ok=True)
    bad = {}
    for width in (1440, 390):
        page = watched(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.wait_for_timeout(400)
        page.screenshot(path=ROOT / "build" / "screenshots" / f"watch-{scheme}-{width}.png", full_page=True)
        bad[width] = [(v["id"], v["nodes"][0]["html"][:160]) for v in axe.run(page).response["violations"] if v["impact"] in ("serious", "critical")]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not any(bad.values()), bad
