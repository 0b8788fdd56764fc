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
from freedive.eval.asker import OurModel, Reply
from freedive.inference import load, load_model, load_tokenizer
from freedive.rl import stage as rl
from freedive.rl.config import RLConfig
from freedive.rl.rewards import call
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


def test_what_gold_says_nothing_of_is_in_no_mean():
    """None is not 0: a prompt, or an answer, of which nothing is said changes neither means, nor the peak, nor the rule."""
    nan = math.nan
    full, gaps = StopRule(2), StopRule(2)
    for t, gold in enumerate(rising_and_falling(6, n=40, steps=16)):
        full.see(t, gold.tolist())
        gaps.see(t, [*gold.tolist(), nan])
    assert (gaps.peak_step, gaps.stop_step, gaps.peak[:-1]) == (full.peak_step, full.stop_step, full.peak) and math.isnan(gaps.average[-1])
    rule = StopRule(1)
    assert not rule.see(0, [nan, nan]) and rule.see(1, [5.0, nan]) and rule.see(2, [nan, 7.0]) is False and rule.average == [5.0, 7.0] and rule.stop_step is None
    values = [(1.0, 1.0), (nan, 3.0), (2.0, nan), (3.0, 5.0)]
    rollouts = [Rollout([1], [2, 3], np.zeros(2, np.float32), "x", True, reward=p) for p, _ in values]
    monitor = Monitor(lambda: rollouts, lambda _: [g for _, g in values], lambda r: np.zeros(len(r)), 2, StopRule())
    point, best = monitor.measure(0)
    assert best and (point["proxy"], point["gold"], point["proxy_none"], point["gold_none"]) == (2.0, 3.0, 1, 1)
    assert point["gold_se"] == pytest.approx(np.std([2.0, 5.0], ddof=1) / math.sqrt(2)) and monitor.rule.peak == [2.0, 5.0] and monitor.gamed() is None
    unknown = Monitor(lambda: rollouts, lambda _: [nan] * 4, monitor.kl, 2, StopRule())
    point, best = unknown.measure(0)
    assert not best and math.isnan(point["gold"]) and math.isnan(point["gold_se"]) and unknown.gamed() is None and math.isnan(unknown.peak_gold)
    assert fit([1.0, 4.0, 9.0, 16.0], [1.0, nan, 2.0, 2.5]) == fit([1.0, 9.0, 16.0], [1.0, 2.0, 2.5]) != {}


def test_the_peaks_gold_is_that_of_the_rule():
    """The highest of many noisy measurements is a lucky one: the moving average at the peak is less."""
    curve = iter(rising_and_falling(10, n=20, noise=3.0, seed=1))
    now: list[float] = []

    def answer() -> list[Rollout]:
        now[:] = next(curve).tolist()
        return [Rollout([1], [2], np.zeros(1, np.float32), "x", True, reward=g) for g in now]

    monitor = Monitor(answer, lambda _: now, lambda r: np.zeros(len(r)), 1, StopRule(3))
    for step in range(30):
        monitor.measure(step)
    assert monitor.peak_gold == pytest.approx(np.mean(monitor.rule.peak)) and monitor.peak_gold < max(p["gold"] for p in monitor.points)


def test_the_laws_of_gold_over_the_root_of_kl():
    d = np.linspace(0.2, 4, 20)
    assert fit(d**2, d * (1.5 - 0.7 * np.log(d))) == pytest.approx({"alpha": 1.5, "beta": 0.7, "r2": 1.0})
    assert fit(d**2, d * (1.5 - 0.3 * d), "bon") == pytest.approx({"alpha": 1.5, "beta": 0.3, "r2": 1.0})
    assert fit([0.0, 1.0], [0.0, 1.0]) == {}


def test_an_answer_that_games_the_reward_is_high_here_and_low_there():
    said = iter([[(1.0, 1.0), (2.0, 2.0), (1.5, 1.2)], [(5.0, 0.5), (9.0, 0.9), (1.0, 0.4)], [(5.0, 0.5), (9.0, 0.4), (1.0, 0.1)], [(9.0, 9.0), (1.0, 0.0), (0.0, 0.0)]])
    now: list[tuple[float, float]] = []

    def answer() -> list[Rollout]:
        now[:] = next(said)
        return [Rollout([1], [2, 3, 2, 3], np.zeros(4, np.float32), str(p), True, reward=p) for p, _ in now]

    monitor = Monitor(answer, lambda _: [g for _, g in now], lambda r: np.full(len(r), 4.0), 1, StopRule())
    assert monitor.measure(0)[0]["sqrt_kl"] == 2.0 and monitor.gamed() is None
    monitor.measure(1)
    monitor.measure(2)
    assert monitor.gamed() == 1 and monitor.rule.since > 0
    again = Monitor(answer, monitor.gold, monitor.kl, 1, StopRule())
    again.load_state(json.loads(json.dumps(monitor.state())))
    assert again.gamed() == 1 and again.rule == monitor.rule
    again.measure(3)
    assert again.gamed() is None  # what is high in both is no game
    assert distinct([[2, 3, 2, 3]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_while_gold_only_rises_nothing_is_a_game(seed: int):
    """Noise gives some answer with a high proxy and a low gold in any run."""
    rng, now, step = np.random.default_rng(seed), [], [0]

    def answer() -> list[Rollout]:
        now[:] = rng.normal(0.3 * step[0], 1, (64, 2)).tolist()
        return [Rollout([1], [2], np.zeros(1, np.float32), "", True, reward=p) for p, _ in now]

    monitor = Monitor(answer, lambda _: [g for _, g in now], lambda r: np.zeros(len(r)), 1, StopRule())
    for step[0] in range(4):
        monitor.measure(step[0])
    assert (monitor.rule.since, monitor.gamed()) == (0, None)
    monitor.rule.since = 1  # as if it had fallen: there are such answers
    assert monitor.gamed() is not None


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
        shown = [json.loads(line) for line in (whole / "trajectories.jsonl").read_text().splitlines()]
        logged = [r for line in (whole / "metrics.jsonl").read_text().splitlines() if "eval/pass@1" in (r := json.loads(line))]
        steps = [0, 2, 4, 6] if not more.get("early_stop") else [s for s in (0, 2, 4, 6) if s <= points[-1]["step"]]
        assert sorted({r["step"] for r in shown}) == sorted({r["step"] for r in logged}) == steps  # with a monitor too
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


def test_gold_that_never_says_anything(room: Path, practice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """No peak, no error, nothing to stop by: null, and told in the beginning and in the end."""
    (tmp_path / "g.py").write_text("def silent(completions, **columns):\n    return [None] * len(completions)\n")
    out = rl.run(config(room, practice, tmp_path / "out", gold_reward=f"{tmp_path}/g.py:silent", algorithm="dr_grpo", beta=0.0, steps=2, early_stop=2))
    told = capsys.readouterr().out
    assert "note: --gold-reward says nothing (None) of any of 6 answers" in told and "--early-stop cannot act" in told and "could not act" in told
    points = [json.loads(line) for line in (out / "monitor.jsonl").read_text().splitlines()]
    assert all(p["gold"] is None and p["gold_se"] is None and p["gold_none"] == 6 for p in points)
    metrics = json.loads((out / "run.json").read_text())["metrics"]
    assert metrics["monitor/peak_step"] is None and metrics["monitor/peak_gold"] is None and metrics["monitor/stop_step"] is None


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
    assert judge(["q"] * 3, ["good", "bad", "bad"], reference=["bad", "good", "worse"]) == [1.0, 0.0, 0.5]
    assert [parse_mark(t) for t in ("[[5]] no, [[7]]", "I say 10", "7 of 10", "[[12]]", "")] == [6 / 9, 1.0, None, None, None]
    assert [parse_mark(t) for t in ("[[9.5]]", "[[ 1.0 ]]", "[[10.0]]", "[[10.5]]", "[[0.5]]", "I say 9.5.", "9.5 or 8")] == [8.5 / 9, 0.0, 1.0, None, None, 8.5 / 9, None]
    assert judge(["q"] * 2, ["good", "bad"], reference=[4, [{"role": "assistant", "content": "good"}]]) == [1.0, 0.0]
    with pytest.raises(UserError, match="reference is {'text': 'x'}; the judge compares with a text"):
        call("judge", judge, ["q"], ["good"], [[1]], {"reference": [{"text": "x"}]})


def test_what_is_too_long_for_a_judge_has_no_reward_and_is_counted(room: Path, capsys: pytest.CaptureFixture[str]):
    """256 positions, bytes: our form alone takes more, so the judge's own is shortened; an answer that does not fit is None, the others are asked."""
    judge = Judged(OurModel(load(room / "chat", threads=1)), max_new_tokens=4)
    noted: dict[str, float] = {}
    said = judge(["q"] * 2, ["x", "y" * 300], log_metric=noted.__setitem__)
    assert said == [None, None] and noted == {"judge/too_long": 2.0} and "2 of 2 answers are too long for the judge" in capsys.readouterr().err
    assert judge(["q"], ["y" * 300], reference=["z"], log_metric=noted.__setitem__) == [None] and not capsys.readouterr().err  # told once

    class Short(Scripted):
        def replies(self, conversations, *, temperature, max_new_tokens, seeds):
            return [Reply("", "refused") if len(c[0]["content"]) > 900 else Reply(self.ask([c])[0][0]) for c in conversations]

    assert Judged(Short())(["q"] * 3, ["good", "bad" * 300, "bad"], log_metric=noted.__setitem__) == [1.0, None, 0.0] and noted == {"judge/too_long": 1.0}


def test_a_reward_model_or_judge_that_is_named_thrice_is_in_memory_once(room: Path, practice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loads: list[Path] = []
    load_one = RewardModel.load
    monkeypatch.setattr(RewardModel, "load", staticmethod(lambda folder, *a, **k: (loads.append(folder), load_one(folder, *a, **k))[1]))
    p = rl._load(config(room, practice, tmp_path / "out", gold_reward=str(practice / "rm"), eval_reward=str(practice / "rm")))
    assert len(loads) == 1 and p.gold is not None and p.scorer.functions[0] is p.judge.functions[0] is p.gold.functions[0]


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


def test_train_on_the_best_of_n_and_measure_its_choice(room: Path, practice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The lines of `generate best --least` are rows for sft, only those that are good enough; `eval --reward` says how often the choice among n is right."""
    reward = f"{practice}/gold.py:long"
    arguments = ["generate", "best", str(room / "chat"), "--file", str(practice / "p.jsonl"), "--n", "4", "--max-new-tokens", "8", "--threads", "1", "--reward", reward, "--jsonl"]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 12 and all(r["completion"] in [a["text"] for a in r["answers"]] and r["reward"] == max(a["reward"] for a in r["answers"]) for r in rows)
    least = sorted(r["reward"] for r in rows)[6]
    assert main([*arguments, "--least", str(least)]) == 0
    told = capsys.readouterr()
    kept = [json.loads(line) for line in told.out.splitlines()]
    assert kept == [r for r in rows if r["reward"] >= least] and (len(kept) == 12 or f"{12 - len(kept)} of 12 questions have no answer" in told.err)
    (tmp_path / "best.jsonl").write_text(told.out)
    assert main(["sft", "--model", str(room / "chat"), "--data", str(tmp_path / "best.jsonl"), "--context", "128", "--steps", "2", "--batch-tokens", "256", "--micro-tokens", "256", "--threads", "1",
                 "--out", str(tmp_path / "better")]) == 0  # fmt: skip
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": f"Say {a}", "answer": "a"}) + "\n" for a in range(6)))
    ask = ["eval", str(room / "chat"), "--data", str(tmp_path / "q.jsonl"), "--max-new-tokens", "8", "--threads", "1", "--reward", reward, "--out", str(tmp_path / "eval")]
    assert main([*ask, "--samples", "4", "--temperature", "1"]) == 0
    found = json.loads((tmp_path / "eval" / "eval.json").read_text())
    items = [json.loads(line) for line in (tmp_path / "eval" / "answers.jsonl").read_text().splitlines()]
    assert found["best_of_4"] == pytest.approx(np.mean([r["right"][int(np.argmax(r["rewards"]))] for r in items])) and "best of 4" in capsys.readouterr().out
    says = lambda: " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert main([*ask, "--force"]) == 2 and "chooses among several answers" in says()
    assert main([*ask, "--force", "--samples", "4", "--temperature", "1", "--reward", "task", "--dry-run"]) == 2 and "line 1: the reward `task` asks the row's task" in says()


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
