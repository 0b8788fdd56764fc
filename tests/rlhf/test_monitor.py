"""Practice for a reward model, and the monitor of over-optimisation: its rule on curves that are known, and a run that is stopped, resumed, and games
its reward."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from freedive.cli import main
from freedive.inference import load_model, load_tokenizer
from freedive.rl import stage as rl
from freedive.rl.config import RLConfig
from freedive.rl.rollouts import Rollout
from freedive.rl.scoring import Scorer
from freedive.rlhf import reward_stage
from freedive.rlhf.judge import Judged, parse_mark
from freedive.rlhf.monitor import Monitor, StopRule, distinct, fit, kl_of
from freedive.rlhf.reward_model import RewardModel
from freedive.rlhf.reward_stage import RewardConfig
from freedive.runs import Artefact, UserError, folder_hash

GOLD = "def short(completions, **columns):\n    return [1.0 - abs(len(c) - 3) / 4 for c in completions]\ndef long(completions, **columns):\n    return [len(c) / 4 for c in completions]\n"


def rising_and_falling(peak: int, n: int = 100, steps: int = 30, noise: float = 1.0, seed: int = 0):
    """Gold of n prompts over steps, highest at `peak`; prompts differ by more than the curve moves."""
    rng = np.random.default_rng(seed)
    prompts = rng.normal(0, 3, n)
    return [prompts + 2 * (1 - ((t - peak) / 10) ** 2) + rng.normal(0, noise, n) for t in range(steps)]


@pytest.mark.parametrize("seed", range(8))
def test_the_rule_fires_behind_the_peak_and_near_it(seed: int):
    rule = StopRule(3)
    curve = rising_and_falling(10, seed=seed)
    for t, gold in enumerate(curve):
        rule.see(t, gold.tolist())
    assert rule.stop_step is not None and 10 < rule.stop_step <= 18 and abs(rule.peak_step - 10) <= 3
    gain = lambda t: 2 * (1 - ((t - 10) / 10) ** 2) - 2 * (1 - 1)
    assert gain(rule.peak_step) >= 0.8 * gain(10)


def test_the_rule_is_silent_where_gold_rises_or_stays():
    fired = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rule, prompts = StopRule(3), rng.normal(0, 3, 64)
        for t in range(30):
            rule.see(t, (prompts + rng.normal(0, 1, 64)).tolist())
        fired += rule.stop_step is not None
        rising = StopRule(3)
        for t in range(30):
            rising.see(t, (prompts + 0.3 * t + rng.normal(0, 1, 64)).tolist())
        assert rising.stop_step is None
    assert fired <= 8  # a flat curve's highest point of thirty is a lucky one


def test_the_laws_of_gold_over_the_root_of_kl():
    d = np.linspace(0.2, 4, 20)
    assert fit(d**2, d * (1.5 - 0.7 * np.log(d))) == pytest.approx({"alpha": 1.5, "beta": 0.7, "r2": 1.0})
    assert fit(d**2, d * (1.5 - 0.3 * d), "bon") == pytest.approx({"alpha": 1.5, "beta": 0.3, "r2": 1.0})
    assert fit([0.0, 1.0], [0.0, 1.0]) == {}


def test_an_answer_that_games_the_reward_is_high_here_and_low_there():
    said = iter([[(1.0, 1.0), (2.0, 2.0), (1.5, 1.2)], [(5.0, 0.5), (9.0, 0.1), (1.0, 0.1)], [(9.0, 9.0), (1.0, 0.0), (0.0, 0.0)]])
    now: list[tuple[float, float]] = []

    def answer() -> list[Rollout]:
        now[:] = next(said)
        return [Rollout([1], [2, 3, 2, 3], np.zeros(4, np.float32), str(p), True, reward=p) for p, _ in now]

    monitor = Monitor(answer, lambda _: [g for _, g in now], lambda r: np.full(len(r), 4.0), 1, StopRule())
    assert monitor.measure(0)[0]["sqrt_kl"] == 2.0 and monitor.gamed() is None
    monitor.measure(1)
    assert monitor.gamed() == 1
    again = Monitor(answer, monitor.gold, monitor.kl, 1, StopRule())
    again.load_state(json.loads(json.dumps(monitor.state())))
    assert again.gamed() == 1 and again.rule == monitor.rule
    again.measure(2)
    assert again.gamed() is None  # what is high in both is no game
    assert distinct([[2, 3, 2, 3]]) == pytest.approx(2 / 3)


@pytest.fixture(scope="module")
def practice(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("practice")
    (folder / "gold.py").write_text(GOLD)
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": f"Say {a}"}) + "\n" for a in range(12)))
    (folder / "text.txt").write_text("Some text to learn from, again and again. " * 20)
    reward_stage.run(RewardConfig(model=room / "chat", data=[str(room / "lists.jsonl")], out=folder / "rm", context=64, steps=8, batch=4, lr=2e-3, micro_tokens=256, threads=1))
    return folder


def config(room: Path, practice: Path, out: Path, **changes: Any) -> RLConfig:
    small: dict[str, Any] = dict(model=room / "chat", data=practice / "p.jsonl", eval_data=practice / "p.jsonl", out=out, reward=[str(practice / "rm")], algorithm="ppo",
                                 gold_reward=f"{practice}/gold.py:short", reward_timeout=0, steps=6, prompts_per_step=4, num_generations=4, max_completion_length=12, eval_every=2, eval_problems=6,
                                 save_every=2, micro_tokens=512, threads=1, lr=1e-3, beta=0.05)  # fmt: skip
    return RLConfig(**(small | changes))


KINDS: dict[str, dict[str, Any]] = {
    "ppo": {"whiten_rewards": True, "missing_eos_penalty": 1.0, "target_kl": 1.0, "horizon": 100, "ptx_coef": 0.5, "ptx_tokens": 64},
    "lora": {"lora_rank": 4, "beta": 0.0, "early_stop": 1, "monitor_samples": 2},
    "grpo": {"algorithm": "grpo", "gold_reward": "", "max_kl": 1e-4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_ends_as_if_nothing_had_happened(room: Path, practice: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    more = KINDS[kind] | ({"ptx_data": practice / "text.txt"} if kind == "ppo" else {})
    whole = rl.run(config(room, practice, tmp_path / "whole", **more))
    log, stops = Artefact.log, {3, 5}

    def stop(self: Artefact, **numbers: Any) -> None:
        if numbers.get("step") in stops and "lr" in numbers:
            stops.discard(numbers["step"])
            raise KeyboardInterrupt
        log(self, **numbers)

    monkeypatch.setattr(Artefact, "log", stop)
    for _ in range(2):
        try:
            rl.run(config(room, practice, tmp_path / "stopped", **more))
        except KeyboardInterrupt:
            pass
    assert folder_hash(rl.run(config(room, practice, tmp_path / "stopped", **more))) == folder_hash(whole)
    points = [json.loads(line) for line in (whole / "monitor.jsonl").read_text().splitlines()]
    assert points[0]["step"] == 0 and points[0]["kl"] == pytest.approx(0, abs=1e-5) and {"proxy", "sqrt_kl", "length", "stop_rate", "distinct_2"} <= points[-1].keys()
    told = json.loads((whole / "run.json").read_text())["metrics"]
    if kind == "grpo":  # out of the budget at the first measurement: the weights are those of the start
        assert told["monitor/stop_step"] == 2 == points[-1]["step"]
        tok = load_tokenizer(whole)
        before, after = (load_model(p, tok, threads=1, max_tokens=64) for p in (room / "chat", whole))
        np.testing.assert_array_equal(before.trained(), after.trained())
    else:
        assert told["monitor/gold"][0] == points[0]["gold"] and told["monitor/peak_gold"] >= points[0]["gold"]
    if kind == "ppo":
        rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
        assert any("loss/ptx" in r for r in rows) and any(r.get("beta", 0.05) != 0.05 for r in rows)


def test_the_peak_is_kept_beside_the_end(room: Path, practice: Path, tmp_path: Path):
    """Paid for length alone, where three letters are best: the proxy goes on, gold does not, and an answer tells how."""
    out = rl.run(config(room, practice, tmp_path / "out", algorithm="dr_grpo", beta=0.0, reward=[f"{practice}/gold.py:long"], steps=40, eval_every=2, monitor_samples=8, lr=3e-3,
                        max_completion_length=24))  # fmt: skip
    points = [json.loads(line) for line in (out / "monitor.jsonl").read_text().splitlines()]
    gold = [p["gold"] for p in points]
    assert points[-1]["proxy"] > points[0]["proxy"] and points[-1]["kl"] > 0
    if max(gold) > gold[-1]:
        peak = int(np.argmax(gold))
        told = json.loads((out / "run.json").read_text())["metrics"]
        assert (out / "peak" / "model.safetensors").is_file() and abs(told["monitor/peak_step"] - points[peak]["step"]) <= 6


def test_kl_of_is_nought_to_oneself(room: Path):
    tok = load_tokenizer(room / "chat")
    model = load_model(room / "chat", tok, max_tokens=64, max_seqs=8, threads=1)
    r = Rollout([1, 2, 3], [4, 5], np.array([-1.0, -2.0], np.float32), "", True)
    shifted = kl_of([r, r], model, 1.0, False, 64)
    from freedive.rl.rollouts import lay_out

    scored = model.score(lay_out([r], [0.0]).batch).logprobs
    assert shifted == pytest.approx([-3.0 - float(scored[-2:].sum())] * 2, abs=1e-5)


def test_a_reward_model_is_a_reward_and_what_did_not_end_pays(room: Path, practice: Path):
    model = RewardModel.load(practice / "rm", threads=1, dtype="float32")
    said = [Rollout([1], [2], np.zeros(1, np.float32), "aa", ended) for ended in (True, False)]
    rows = [{"prompt": "Say 3"}] * 2
    scorer = Scorer([str(practice / "rm")], missing_eos_penalty=2.0, threads=1, dtype="float32")
    found = scorer(said, rows)
    want = float(model.rewards(["Say 3"], ["aa"])[0])
    assert found[0].reward == pytest.approx(want, abs=1e-5) and found[1].reward == pytest.approx(min(want, 0.0) - 2.0, abs=1e-5)
    as_messages = [{"prompt": [{"role": "user", "content": "Say 3"}]}] * 2
    assert scorer(said, as_messages)[0].reward == pytest.approx(want, abs=1e-5)


class Scripted:
    """A judge that likes what stands first, unless one answer is "good"."""

    def ask(self, conversations, *, n=1, temperature=0.0, max_new_tokens=64, seeds=None):
        out = []
        for ((message),) in conversations:
            text = message["content"]
            if "[Answer A]" in text:
                a, b = (text.index(f"[Answer {x}]") for x in "AB")
                good = text.find("good")
                out.append(["[[A]]" if good < 0 or a < good < b else "[[B]]"])
            else:
                out.append(["Fine. [[10]]" if "good" in text else "hm" if "{answer}" in text else "[[1]]"])
        return out


def test_a_judge_marks_or_compares_in_both_orders():
    judge = Judged(Scripted())
    assert judge(["q"] * 3, ["good", "bad", "{answer}"]) == [1.0, 0.0, None]
    pytest.importorskip("freedive.eval.pairwise")
    assert judge(["q"] * 3, ["good", "bad", "bad"], reference=["bad", "good", "worse"]) == [1.0, 0.0, 0.5]
    assert [parse_mark(t) for t in ("[[5]] no, [[7]]", "I say 10", "7 of 10", "[[12]]", "")] == [6 / 9, 1.0, None, None, None]


@pytest.mark.parametrize("changes, words", [
    ({"gold_reward": "", "early_stop": 3}, "something to stop by"), ({"eval_data": None}, "held-out"), ({"eval_every": 0}, "eval-every"), ({"ptx_coef": 1.0}, "go together"),
    ({"algorithm": "grpo", "whiten_rewards": True}, "PPO's"), ({"reward": ["nowhere:f"]}, "imported"), ({"reward": ["judge:"]}, "which judge"), ({"horizon": 0}, "horizon is 0"),
])  # fmt: skip
def test_wrong_settings_are_one_sentence(room: Path, practice: Path, tmp_path: Path, changes: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        rl.run(config(room, practice, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no reward model"):
        rl.run(config(room, practice, tmp_path / "out", reward=[str(room)]))


def test_loss_of_equal_scores_is_log_2_at_the_start(room: Path, practice: Path):
    assert json.loads((practice / "rm" / "run.json").read_text())["metrics"]["lists"] == 40 and math.isfinite(json.loads((practice / "rm" / "reward.json").read_text())["std"])


def test_the_best_of_n_is_the_one_with_the_highest_reward(room: Path, practice: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["generate", "best", str(room / "chat"), "--prompt", "Say 3", "--n", "6", "--max-new-tokens", "8", "--threads", "1"]
    assert main([*arguments, "--reward", str(practice / "rm"), "--jsonl"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["reward"] == max(a["reward"] for a in row["answers"]) and len(row["answers"]) == 6 and row["kl"] == pytest.approx(math.log(6) - 5 / 6)
    assert main([*arguments, "--reward", f"{practice}/gold.py:long"]) == 0 and "reward" in capsys.readouterr().out
    assert main([*arguments, "--reward", "gone"]) == 2 and main([*arguments, "--reward", str(practice / "rm"), "--temperature", "0"]) == 2


def test_the_step_that_spends_the_budget_is_no_peak_and_gold_stops_only_where_it_may():
    told = {0: (0.0, 1.0), 1: (1.0, 2.0), 2: (9.0, 3.0)}
    now = [0]
    rollout = SimpleNamespace(reward=1.0, length=3, stopped=True, ids=[1, 2, 3], text="x")
    monitor = Monitor(lambda: [rollout] * 4, lambda r: [told[now[0]][1]] * 4, lambda r: np.full(4, told[now[0]][0]), 2, StopRule(3), max_kl=5.0)  # type: ignore[arg-type, list-item]
    best = []
    for now[0] in told:
        best.append(monitor.measure(now[0])[1])
    assert best == [True, True, False] and monitor.rule.peak_step == 1 and monitor.kl_stop == monitor.stop_step == 2 and monitor.rule.stop_step is None
    again = Monitor(monitor.answer, monitor.gold, monitor.kl, 2, StopRule(3), max_kl=5.0)
    again.load_state(monitor.state())
    assert again.stop_step == 2 and again.rule.peak_step == 1
