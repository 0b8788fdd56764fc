"""Rewards in processes of their own: what hangs, dies, prints or starts children ends no run, and costs its own completions only."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from freedive.rl.rollouts import Rollout
from freedive.rl.scoring import Scorer
from freedive.rl.workers import Workers
from freedive.runs import UserError

FILE = '''
import os, subprocess, sys, time
def score(prompts, completions, completion_ids, answer, log_metric=None, **columns):
    out = []
    for c in completions:
        print("noise on standard output", c[:5])
        if c == "hang":
            while True: pass
        if c == "sleep":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            open(os.environ["CHILD"], "w").write(str(child.pid))
            time.sleep(600)
        if c == "die":
            os._exit(3)
        if c == "raise":
            raise ValueError("a bug of mine")
        out.append(None if c == "skip" else float(len(c)))
        if log_metric: log_metric("length", len(c))
    return out
def broken(prompts, completions, completion_ids, **columns):
    return [0.0]
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def score(workers: Workers, completions: list[str], group: int = 4) -> tuple[list[float | None], int]:
    n = len(completions)
    try:
        values, late = workers.score(["p"] * n, completions, [[1]] * n, {"answer": ["x"] * n}, group)
    finally:
        workers.close()
    return [None if math.isnan(v) else v for v in values], late


def test_what_hangs_has_no_reward_and_the_others_have_theirs(file: Path):
    began = time.monotonic()
    values, late = score(Workers(f"{file}:score", 2, 0.5), ["a", "hang", "ccc", "dddd", "ee", "f", "gg", "skip"])
    assert values == [1, None, 3, 4, 2, 1, 2, None] and late == 1
    assert time.monotonic() - began < 30


def test_a_process_that_dies_takes_only_its_completion(file: Path):
    assert score(Workers(f"{file}:score", 1, 20), ["a", "die", "bb", "ccc"]) == ([1, None, 2, 3], 1)


def test_what_it_started_dies_with_it(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHILD", str(tmp_path / "pid"))
    assert score(Workers(f"{file}:score", 1, 3), ["sleep"]) == ([None], 1)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:1]:
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("the child lives on")


@pytest.mark.parametrize("name, completion, says", [("score", "raise", "a bug of mine"), ("broken", "a", "one finite number"), ("nobody", "a", "nobody")])
def test_a_mistake_is_the_users(file: Path, name: str, completion: str, says: str):
    with pytest.raises(UserError, match=says):
        score(Workers(f"{file}:{name}", 2, 20), [completion, "b"])


def test_a_file_that_is_slow_to_import_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("freedive.rl.workers.START", 0.2)
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\ndef score(completions, **columns):\n    return [0.0] * len(completions)\n")
    with pytest.raises(UserError, match="not ready after 0.2 seconds"):
        score(Workers(f"{tmp_path}/slow.py:score", 1, 20), ["a"])
    monkeypatch.setattr("freedive.rl.workers.START", 60.0)
    (tmp_path / "dead.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(UserError, match="ended before it was ready"):
        score(Workers(f"{tmp_path}/dead.py:score", 1, 20), ["a"])


def test_more_than_a_pipe_holds(file: Path):
    values, _ = score(Workers(f"{file}:score", 2, 30), ["x" * 300_000] * 6, group=3)
    assert values == [300_000] * 6


def test_the_same_as_in_this_process(file: Path):
    rollouts = [Rollout([1], [2] * n, [0.0] * n, "x" * n, True) for n in range(1, 9)]
    rows = [{"prompt": "p", "answer": "1"}] * 8
    here, there = Scorer([f"{file}:score", "coin"], [2.0, 0.5]), Scorer([f"{file}:score", "coin"], [2.0, 0.5], timeout=30)
    try:
        a, b = here.score(rollouts, rows, 4), there.score(rollouts, rows, 4)
    finally:
        there.close()
    assert [r.reward for r in a[0]] == [r.reward for r in b[0]] == [2 * n + 0.5 * r.parts["coin"] for n, r in enumerate(a[0], 1)]
    assert a[1]["length"] == b[1]["length"] == 4.5 and b[1]["rewards/score/timeouts"] == 0
    assert a[1]["rewards/score/mean"] == 4.5 and "rewards/score/none" not in a[1]


def test_where_no_function_applies_there_is_no_reward(file: Path):
    rollouts = [Rollout([1], [2], [0.0], text, True) for text in ("skip", "aa")]
    out, metrics = Scorer([f"{file}:score"]).score(rollouts, [{"prompt": "p", "answer": ""}] * 2)
    assert math.isnan(out[0].reward) and out[1].reward == 2 and metrics["rewards/score/none"] == 0.5
    both, _ = Scorer([f"{file}:score", "coin"]).score(rollouts, [{"prompt": "p", "answer": ""}] * 2)
    assert both[0].reward == both[0].parts["coin"]


def test_functions_of_one_name_are_told_apart(tmp_path: Path):
    for n in "abc":
        (tmp_path / f"{n}.py").write_text(f"def compute_score(completions, **kw):\n    return [{ord(n)}.0] * len(completions)\n")
    scorer = Scorer([f"{tmp_path / n}.py:compute_score" for n in "abc"])
    out, metrics = scorer.score([Rollout([1], [2], [0.0], "x", True)], [{"prompt": "p"}])
    assert out[0].reward == sum(map(ord, "abc")) and len(set(scorer.labels)) == 3
    assert metrics["rewards/compute_score_3/mean"] == ord("c")


def test_a_judge_leaves_out_what_the_environment_gives():
    class Generous:
        def get_reward(self):
            return 1.0

    rollout = Rollout([1], [2], [0.0], "wrong", True, environment=Generous())
    rows = [{"prompt": "p", "answer": "right"}]
    assert Scorer(["answer"])([rollout], rows)[0].reward == 1
    assert Scorer(["answer"], environment=False)([rollout], rows)[0].reward == 0


def test_long_completions_pay(file: Path):
    rollouts = [Rollout([1], [2] * n, [0.0] * n, "a", True) for n in (80, 81, 90, 100)]
    out, _ = Scorer(["answer"], overlong=(100, 20)).score(rollouts, [{"prompt": "p", "answer": "a"}] * 4)
    assert [r.reward for r in out] == pytest.approx([1, 0.95, 0.5, 0])
    cut, _ = Scorer(["answer"], overlong=(100, 20)).score([Rollout([1], [2] * 100, [0.0] * 100, "a", False)], [{"prompt": "p", "answer": "a"}])
    late, _ = Scorer(["answer"], overlong=(100, 20)).score([Rollout([1], [2] * 99, [0.0] * 99, "b", True)], [{"prompt": "p", "answer": "a"}])
    assert cut[0].reward == -1 < late[0].reward, "an unfinished answer, even a right one, is never better than a finished one"
    with pytest.raises(UserError, match="2 weights"):
        Scorer(["answer"], [1.0, 2.0])
