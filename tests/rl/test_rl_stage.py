"""`freedive rl` as a whole, tiny: stopped at any step it ends as if nothing had happened, whatever learns and whatever samples; a step does not
depend on how it is cut; a gradient that is no number moves nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freedive.cli import main
from freedive.inference import load_tokenizer
from freedive.model import Model, from_depth, load_pretrained, read_adapter
from freedive.objectives import PRESETS
from freedive.pretrain import stage as pretrain
from freedive.rl import stage as rl
from freedive.rl.config import RLConfig, policy_spec, unused
from freedive.rl.evaluate import evaluate
from freedive.rl.problems import Problem, made_problems
from freedive.rl.rewards import BUILT_IN, call
from freedive.rl.rollouts import Rollout
from freedive.rl.update import Learner
from freedive.runs import Artefact, UserError, folder_hash
from freedive.sft import stage as sft

REWARD = "def score(completions, answer, **columns):\n    return [None if len(c) % 7 == 6 else float(len(set(c)) % 5) for c in completions]\n"
ENVIRONMENT = '''
class Talk:
    def reset(self, **row):
        self.turns = self.last = 0
    def step(self, text):
        self.turns += 1
        self.last = len(text)
        return None if self.turns > 2 else "go on"
    def get_reward(self):
        return float(self.turns + self.last % 3)
'''


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl")
    (folder / "t.txt").write_text("Some text to learn from, again and again. " * 200)
    base = pretrain.run(pretrain.PretrainConfig(text=folder / "t.txt", out=folder / "base", tokenizer="bytes", depth=1, context=32, optimizer="adamw", batch_tokens=128, micro_tokens=128, steps=4,
                                                samples=0, max_positions=512, threads=1))  # fmt: skip
    rows = [{"messages": [{"role": "user", "content": f"Say {a}"}, {"role": "assistant", "content": "ab"[: 1 + a % 2]}]} for a in range(8)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sft.run(sft.SFTConfig(model=base, data=[str(folder / "chats.jsonl")], out=folder / "chat", context=128, steps=30, batch_tokens=256, micro_tokens=256, lr=5e-3, samples=[], threads=1))
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": f"Say {a}", "answer": str(a)}) + "\n" for a in range(12)))
    (folder / "r.py").write_text(REWARD)
    (folder / "e.py").write_text(ENVIRONMENT)
    return folder


def config(room: Path, out: Path, **changes: Any) -> RLConfig:
    small: dict[str, Any] = dict(model=room / "chat", data=room / "p.jsonl", eval_data=room / "p.jsonl", out=out, reward=[f"{room}/r.py:score"], steps=5, prompts_per_step=4,
                                 num_generations=4, max_completion_length=16, eval_every=2, eval_problems=4, save_every=2, micro_tokens=512, threads=1, lr=1e-3)  # fmt: skip
    return RLConfig(**(small | changes))


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 4, "algorithm": "grpo", "log_completions": True},
    "ppo": {"algorithm": "ppo", "target_kl": 0.5, "num_mini_batches": 2},
    "ppo_lora": {"algorithm": "ppo", "lora_rank": 4, "num_generations": 1, "prompts_per_step": 8, "dtype": "bfloat16", "weights": "bfloat16", "vf_coef": 0.5},
    "dapo": {"algorithm": "dapo", "overlong_cache": 8, "num_mini_batches": 2},
    "environment": {"environment": "e.py:Talk", "reward": [], "max_completion_length": 24, "beta": 0.01, "kl_in": "reward"},
    "task": {"data": None, "eval_data": None, "task": ["sorting", "parity"], "task_size": 20, "eval_size": 6, "eval_samples": 4, "reward": ["task", "r.py:score"]},
}


def settings(room: Path, kind: str) -> dict[str, Any]:
    placed = {k: f"{room}/{v}" if k == "environment" else v for k, v in KINDS[kind].items()}
    return placed | ({"reward": [f"{room}/{r}" if r.endswith(":score") else r for r in placed["reward"]]} if "reward" in placed else {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_ends_as_if_nothing_had_happened(room: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    whole = rl.run(config(room, tmp_path / "whole", **settings(room, kind)))
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 1, 2, 3, 4, 5, 5]
    gaps = [r["sampling/sampling_logp_difference/max"] for r in rows if "sampling/sampling_logp_difference/max" in r]
    assert gaps and max(gaps) == 0.0
    log, left = Artefact.log, [3]

    def stop(self: Artefact, **numbers: Any) -> None:
        if numbers.get("step") in (1, 3, 5) and "lr" in numbers and left[0] and numbers["step"] == 7 - 2 * left[0]:
            left[0] -= 1
            raise KeyboardInterrupt
        log(self, **numbers)

    monkeypatch.setattr(Artefact, "log", stop)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            rl.run(config(room, tmp_path / "again", **settings(room, kind)))
    rl.run(config(room, tmp_path / "again", **settings(room, kind)))
    assert left == [0] and folder_hash(tmp_path / "again") == folder_hash(whole)


def test_what_a_run_with_an_adapter_leaves(room: Path, tmp_path: Path):
    out = rl.run(config(room, tmp_path / "a", **settings(room, "lora")))
    assert not (out / "model.safetensors").exists() and any(np.any(t) for n, t in read_adapter(out, load_pretrained(room / "chat", max_tokens=64, max_seqs=4).config).tensors.items() if "lora_B" in n)
    kept = [json.loads(line) for line in (out / "completions.jsonl").read_text().splitlines()]
    assert len(kept) == 5 * 16 and all(len(r["completion_ids"]) == len(r["logprobs"]) == len(r["mask"]) for r in kept)
    assert any(r["reward"] is None for r in kept)  # the function says None of some
    shown = [json.loads(line) for line in (out / "trajectories.jsonl").read_text().splitlines()]
    assert [r["step"] for r in shown] == [s for s in (0, 2, 4, 5) for _ in range(4)] and len({r["prompt"] for r in shown}) == 4
    again = rl.run(config(room, tmp_path / "b", model=out, steps=2))  # an adapter trains on
    assert (again / "adapter_config.json").is_file()


SILENT = """
import os
def none(completions, **columns):
    return [None] * len(completions)
def dead(completions, **columns):
    os._exit(3)
def slow(completions, **columns):
    while True: pass
class Talk:
    def reset(self, **row):
        pass
    def step(self, text):
        return None
    def get_reward(self):
        return None
"""


@pytest.mark.parametrize("changes, why", [
    ({"reward": ["none"]}, "`none`: 4 got None"), ({"reward": ["dead"]}, "`dead`: 4 ended their process"), ({"reward": ["slow"], "reward_timeout": 0.2}, "`slow`: 4 timed out"),
    ({"reward": [], "environment": "Talk"}, "`environment`: 4 got None"), ({"reward": ["none"], "algorithm": "dapo"}, "`none`: 16 got None"),
])  # fmt: skip
def test_where_nothing_is_rewarded_there_is_no_reward_and_that_is_said(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], why: str):
    (tmp_path / "s.py").write_text(SILENT)
    placed = {k: f"{tmp_path}/s.py:{v}" if k == "environment" else [f"{tmp_path}/s.py:{r}" for r in v] if k == "reward" else v for k, v in changes.items()}
    out = rl.run(config(room, tmp_path / "out", steps=2, prompts_per_step=2, num_generations=2, max_completion_length=8, eval_data=None, **placed))
    told = capsys.readouterr().out
    assert told.count("note: step 1: nothing was rewarded") == 1 and f"({why})" in told and "step 2: nothing" not in told and "in 2 of 2 steps nothing was rewarded" in told
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["reward"], r["reward_std"], r["frac_reward_zero_std"]) for r in rows] == [(None, None, 1.0)] * 2
    assert json.loads((out / "run.json").read_text())["metrics"]["unrewarded_steps"] == 2
    before, after = (load_pretrained(folder, max_tokens=64, max_seqs=4).state()["parameters"] for folder in (room / "chat", out))
    assert np.array_equal(before, after)


def test_a_learning_rate_of_0_changes_nothing(room: Path, tmp_path: Path):
    out = rl.run(config(room, tmp_path / "out", lr=0.0, steps=2, eval_data=None))
    before, after = (load_pretrained(folder, max_tokens=64, max_seqs=4).state()["parameters"] for folder in (room / "chat", out))
    assert np.array_equal(before, after)


def test_the_first_problems_made_are_of_all_tasks(room: Path):
    rows = [p.row for p in made_problems(["parity", "sorting", "reverse"], 0, 20, "held_out", load_tokenizer(room / "chat"))]
    assert len(rows) == 20 and len({r["meta"]["task"] for r in rows[:3]}) == 3


def learner(spec_changes: dict[str, Any], **changes: Any) -> tuple[Learner, Model]:
    model = Model(from_depth(1, 32, 64), max_tokens=changes.pop("max_tokens", 256), max_seqs=16, threads=1).init(3)
    c = RLConfig(model=Path("m"), data=Path("d"), num_generations=4, prompts_per_step=2, **changes)
    return Learner(c, dataclasses.replace(PRESETS["dr_grpo"], max_completion_length=8, **spec_changes), model), model


def test_mistakes_are_learned_from_and_what_was_cut_at_the_limit_is_not():
    made, model = learner({"mask_truncated_completions": True})
    cut, forged = (dataclasses.replace(r, stopped=False, finish_reason=reason, reward=1.0) for r, reason in zip(rollouts(model, [1, 1]), ("length", "forged")))
    for other, learns in ((cut, False), (forged, True)):
        group = [other, *rollouts(model, [0, 0, 0])]
        parts = made._mini_batches(group, np.array([[1.0, 0, 0, 0]]), np.array([[1.0, -1, -1, -1]]), np.ones((1, 4), bool))
        assert any(r is other for batch, _ in parts for r in batch) == learns


def rollouts(model: Model, rewards: list[float]) -> list[Rollout]:
    rng = np.random.default_rng(0)
    out = []
    for i, r in enumerate(rewards):
        ids, n = rng.integers(0, 32, 12).tolist(), 3 + i % 5
        mask = tuple(int(k % 3 != 1) for k in range(n))
        out.append(Rollout(ids[:5], ids[5 : 5 + n], np.where(mask, rng.normal(-3, 0.2, n), 0).astype(np.float32), "", True, 0, r, mask=mask))
    return out


@pytest.mark.parametrize("aggregation", ["grpo", "token", "dr_grpo", "sum"])
def test_how_a_step_is_cut_changes_nothing(aggregation: str):
    found = []
    for max_tokens in (256, 20):
        made, model = learner({"aggregation": aggregation, "entropy_coef": 0.01}, max_tokens=max_tokens)
        metrics = made.update(rollouts(model, [1, 0, 0, 1, 0.5, 0, 0, 0]), 1e-3)
        found.append((metrics, model.trained().copy()))
    assert found[0][0].keys() == found[1][0].keys()
    for name in found[0][0]:
        assert found[0][0][name] == pytest.approx(found[1][0][name], rel=1e-5, abs=1e-6), name
    np.testing.assert_allclose(found[0][1], found[1][1], atol=2e-5)


def test_what_has_no_reward_or_no_rival_moves_nothing():
    nan = float("nan")
    made, model = learner({})
    before = model.trained().copy()
    metrics = made.update(rollouts(model, [nan, nan, nan, 1, 1, 1, nan, 1]), 1e-2)
    assert np.array_equal(model.trained(), before) and "loss" not in metrics and metrics["frac_reward_zero_std"] == 1 and metrics["reward"] == 1
    a, model_a = learner({})
    a.update(rollouts(model_a, [1, nan, 0, 1, 0, 0, 0, 0]), 1e-2)
    b, model_b = learner({})
    changed = [dataclasses.replace(r, logprobs=r.logprobs - 9) if i == 1 else r for i, r in enumerate(rollouts(model_b, [1, nan, 0, 1, 0, 0, 0, 0]))]
    b.update(changed, 1e-2)
    assert np.array_equal(model_a.trained(), model_b.trained()) and not np.array_equal(model_a.trained(), before)


def test_a_gradient_that_is_no_number_is_skipped_and_ten_end_the_run():
    made, model = learner({})
    before = model.trained().copy()
    broken = [dataclasses.replace(r, logprobs=np.full(len(r.ids), -1e9, np.float32)) for r in rollouts(model, [1, 0, 0, 1, 0, 1, 0, 0])]
    for _ in range(9):
        assert made.update(broken, 1e-2)["skipped"] == 1 and np.array_equal(model.trained(), before)
    with pytest.raises(UserError, match="10 updates in a row"):
        made.update(broken, 1e-2)
    made.bad = 0
    assert "skipped" not in made.update(rollouts(model, [1, 0, 0, 1, 0, 1, 0, 0]), 1e-2)


def test_mini_batches_make_as_many_updates():
    made, model = learner({"num_iterations": 3}, num_mini_batches=2)
    made.update(rollouts(model, [1, 0, 0, 1, 0.5, 0, 0, 0]), 1e-3)
    assert model.step_count == 6


def test_a_correction_is_1_where_sampler_and_trainer_are_one():
    found = []
    for correction in ("none", "token_truncate", "sequence_mask"):
        made, model = learner({"correction": correction, "aggregation": "token"})
        chosen = rollouts(model, [1, 0, 0, 1, 0.5, 0, 0, 0])
        from freedive.rl.rollouts import lay_out

        b = lay_out(chosen, [0.0] * 8)
        own = model.score(b.batch).logprobs
        at = [(int(s) + len(r.prompt_ids) - 1, len(r.ids)) for s, r in zip(b.batch.cu_seqlens, chosen)]
        chosen = [dataclasses.replace(r, logprobs=own[a : a + n]) for r, (a, n) in zip(chosen, at)]
        made.update(chosen, 1e-2)
        found.append(model.trained().copy())
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_pass_at_k_and_its_interval():
    problems = [Problem({"prompt": str(i)}, [1]) for i in range(40)]

    def solve(chosen, n, seeds):
        assert len(seeds) == len(set(seeds)) == len(chosen) * n
        return [Rollout([1], [2], np.zeros(1, np.float32), "", True, 0, float((int(p.row["prompt"]) + j) % 4 == 0)) for p in chosen for j in range(n)]

    found, outs = evaluate(solve, problems, 4, 0)
    assert found["pass@1"] == 0.25 and found["pass@2"] == 0.5 and found["pass@4"] == 1.0 and len(outs) == 160
    assert found["pass@2_interval_95"] == [0.5, 0.5]
    one, _ = evaluate(lambda c, n, s: solve(c, n, s), problems, 1, 0)
    low, high = one["pass@1_interval_95"]
    assert one["pass@1"] == 0.25 and 0.1 < low < 0.25 < high < 0.42


def test_what_nobody_judged_is_in_no_mean_and_counted():
    """Four problems, four answers each: one all right, one half right and half unjudged, one unjudged, one with a single judged answer."""
    nan = np.nan
    rewards = {"0": [1.0, 1.0, 1.0, 1.0], "1": [1.0, 0.0, nan, nan], "2": [nan] * 4, "3": [nan, 0.0, nan, nan]}
    solve = lambda chosen, n, seeds: [Rollout([1], [2], np.zeros(1, np.float32), "", True, 0, rewards[p.row["prompt"]][j]) for p in chosen for j in range(n)]
    found, outs = evaluate(solve, [Problem({"prompt": k}, [1]) for k in rewards], 4, 0)
    assert found["unjudged"] == 9 and found["pass@1"] == pytest.approx((1 + 0.5 + 0) / 3) and found["pass@2"] == 1.0 and found["pass@4"] == 1.0 and found["reward"] == pytest.approx(5 / 7)
    one, _ = evaluate(solve, [Problem({"prompt": k}, [1]) for k in rewards], 1, 0)
    assert one["unjudged"] == 2 and one["pass@1"] == 1.0 and one["reward"] == 1.0
    none, _ = evaluate(solve, [Problem({"prompt": "2"}, [1])], 1, 0)
    assert none["unjudged"] == 1 and np.isnan(none["pass@1"]) and np.isnan(none["reward"]) and len(outs) == 16


def test_every_field_of_a_preset_can_be_replaced():
    c = RLConfig(model=Path("m"), data=Path("d"), algorithm="grpo", loss_type="dapo", scale_rewards="batch", epsilon=0.1, delta=4.0, importance_sampling_level="sequence", kl="k2",
                 correction="token_mask", correction_low=0.5, correction_high=3.0, num_iterations=2, mask_truncated_completions=True, beta=0.0)  # fmt: skip
    s = policy_spec(c)
    assert (s.loss, s.aggregation, s.advantage, s.epsilon, s.epsilon_high, s.delta, s.ratio, s.kl, s.correction) == ("clip", "token", "batch", 0.1, 0.1, 4.0, "sequence", "k2", "token_mask")
    assert (s.correction_low, s.correction_high, s.num_iterations, s.mask_truncated_completions, s.beta) == (0.5, 3.0, 2, True, 0.0)


@pytest.mark.parametrize("changes, named", [
    ({}, []), ({"gamma": 0.9, "lam": 0.5}, ["--gamma, --lam (of a value model"]), ({"algorithm": "ppo", "gamma": 0.9, "lam": 0.5}, []), ({"algorithm": "rloo", "epsilon": 0.1}, ["--epsilon"]),
    ({"is_clip_max": 3.0, "kl": "k2"}, ["--is-clip-max", "--kl (of a KL"]), ({"algorithm": "grpo", "kl": "k2"}, []), ({"max_tool_calls": 2, "monitor_samples": 3, "lora_alpha": 4.0}, ["--monitor-samples", "--max-tool-calls", "--lora-alpha"]),
    ({"correction_high": 3.0, "horizon": 7}, ["--horizon", "--correction-high"]), ({"correction": "token_mask", "correction_high": 3.0}, []), ({"eval_data": None, "eval_samples": 4}, ["--eval-samples (of held-out"]),
])  # fmt: skip
def test_settings_that_have_no_part_in_a_run_are_named(room: Path, changes: dict[str, Any], named: list[str]):
    c = config(room, Path("out"), **({"eval_every": 20, "eval_problems": 128} | changes)) if "eval_data" in changes else config(room, Path("out"), **changes)
    found = unused(c, policy_spec(c))
    assert len(found) == len(named) and all(any(f.startswith(n) for f in found) for n in named)


@pytest.mark.parametrize("flags, says", [
    (["--task", "chess"], "no task 'chess'"), ([], "no problems"), (["--task", "parity", "--data", "x.jsonl"], "one of them"), (["--task", "parity", "--loss-type", "mse"], "mse"),
    (["--task", "parity", "--algorithm", "trpo"], "trpo"), (["--task", "parity", "--advantage", "luck"], "luck"), (["--task", "parity", "--delta", "0.5"], "delta"),
    (["--task", "parity", "--overlong-cache", "99"], "overlong_cache"), (["--task", "parity", "--target-kl", "6"], "target_kl"), (["--task", "parity", "--num-mini-batches", "99"], "num_mini_batches"),
    (["--task", "parity", "--reward-weights", "1", "2"], "2 weights"), (["--task", "parity", "--environment", "none.py:X"], "none.py"), (["--task", "parity", "--eval-samples", "4", "--eval-temperature", "0"], "eval_samples"),
])  # fmt: skip
def test_what_cannot_be_is_said_and_leaves_nothing(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str):
    assert main(["rl", str(room / "chat"), "--out", str(tmp_path / "out"), *flags]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


ASK = {"role": "user", "content": "2+2"}


@pytest.mark.parametrize("row, says", [
    ({"answer": "4"}, "needs 'prompt'"), ({"prompt": None, "answer": "4"}, "the prompt is null"), ({"prompt": 7, "answer": "4"}, "the prompt is 7"), ({"prompt": "", "answer": "4"}, "the prompt is empty"),
    ({"prompt": [], "answer": "4"}, "the prompt is empty"), ({"prompt": [{"role": "user"}], "answer": "4"}, "message 1 has the keys"), ({"prompt": ["2+2"], "answer": "4"}, "message 1 is str"),
    ({"prompt": [ASK, {"role": "assistant", "content": "It is"}], "answer": "4"}, "ends in a turn of the assistant"),
    ({"prompt": "2+2"}, "`answer`, a text or a number, and it is missing"), ({"prompt": "2+2", "answer": None}, "it is None"), ({"prompt": "2+2", "answer": ["4"]}, "it is ['4']"),
    ({"prompt": "2+2", "answer": "4", "meta": {"check": "luck"}}, "there is no check 'luck'"),
])  # fmt: skip
@pytest.mark.parametrize("where", ["data", "eval_data"])
def test_a_problem_that_cannot_be_practised_is_told_with_its_line(room: Path, tmp_path: Path, row: dict[str, Any], says: str, where: str):
    """Before anything is sampled, and by --dry-run too; a number is a right answer as its text is."""
    good = {"prompt": [ASK], "answer": 4}
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (good, row, good)))
    with pytest.raises(UserError) as told:
        rl.run(config(room, tmp_path / "out", reward=["answer"], dry_run=True, **{where: tmp_path / "p.jsonl"}))
    assert "p.jsonl, line 2: " in told.value.message and says in told.value.message


def test_which_rewards_need_an_answer(room: Path, tmp_path: Path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "2+2", "meta": {"task": "chess"}}) + "\n")
    run = lambda **changes: rl.run(config(room, tmp_path / "out", dry_run=True, **({"data": tmp_path / "p.jsonl", "eval_data": None} | changes)))
    for good in ({"reward": ["form"]}, {}):
        run(**good)
    for changes, says in (({"reward": ["form", "cosine"]}, "asks the row's task"), ({"reward": ["task"]}, "meta.task is 'chess'"), ({"reward": ["form"], "eval_data": tmp_path / "p.jsonl", "eval_reward": "answer"}, "is missing"),
                          ({"reward": ["form"], "eval_data": tmp_path / "p.jsonl", "gold_reward": "answer"}, "is missing")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            run(**changes)
    for meta, says in (({"task": "countdown"}, "whole numbers is wanted in meta.numbers, which is None"), ({"task": "countdown", "numbers": [1, "2"], "target": 3}, "meta.numbers"),
                       ({"task": "countdown", "numbers": [1, 2], "target": "3"}, "a number is wanted in meta.target, which is '3'"), ({"task": "reasoning_gym"}, "meta.family")):  # fmt: skip
        (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": "1, 2 -> 3", "answer": "3", "meta": meta}) + "\n")
        with pytest.raises(UserError, match=f"line 1: the reward `task` asks the row's task, and .*{says}"):
            run(reward=["task"], data=tmp_path / "c.jsonl")
    (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": "1, 2 -> 3", "answer": "3", "meta": {"task": "countdown", "numbers": [1, 2], "target": 3}}) + "\n")
    run(reward=["task"], data=tmp_path / "c.jsonl")
    texts, columns = ["Answer: 4", "Answer: 5"], {"answer": [4, 4.0]}
    assert call("answer", BUILT_IN["answer"], ["2+2"] * 2, texts, [[1]] * 2, columns) == [1, 0]
    assert call("task", BUILT_IN["task"], ["q"] * 2, ["Answer: 4 7", "7 4"], [[1]] * 2, {"answer": ["4 7", 47], "meta": [{"task": "sorting"}] * 2}) == [1, 0]
    with pytest.raises(UserError, match="1 of 2 rows have no such `answer`"):
        call("answer", BUILT_IN["answer"], ["2+2"] * 2, texts, [[1]] * 2, {"answer": ["4", None]})


def test_the_verb(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["rl", str(room / "chat"), "--data", str(room / "p.jsonl"), "--lam", "0.5", "--dry-run", "--threads", "1"]) == 0
    assert "note: these change nothing in this run: --lam (of a value model: --algorithm ppo)" in capsys.readouterr().out
    flags = ["rl", str(room / "chat"), "--task", "parity:length=6", "--task-size", "20", "--eval-size", "5", "--algorithm", "rft", "--steps", "2", "--prompts-per-step", "2",
             "--max-completion-length", "8", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main([*flags, "--dry-run"]) == 0 and not (tmp_path / "out").exists()
    assert "20 problems, 5 held out" in capsys.readouterr().out
    assert main(flags) == 0 and (tmp_path / "out" / "model.safetensors").is_file()
