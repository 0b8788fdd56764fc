"""`freedive reward` and `freedive dpo`, tiny: they learn what the preferences say, end the same when they are stopped, and say what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from freedive.cli import main
from freedive.inference import load_model, load_tokenizer
from freedive.model import Batch
from freedive.rl.values import ValueModel
from freedive.rlhf import dpo, reward_stage
from freedive.rlhf.dpo import DPOConfig, DPOLearner, pairs_of
from freedive.rlhf.loop import chosen_of, micro_batches
from freedive.rlhf.preferences import read_preferences
from freedive.rlhf.reward_model import RewardModel
from freedive.rlhf.reward_stage import LearnedScores, RewardConfig
from freedive.runs import Artefact, UserError, folder_hash


def reward_config(room: Path, out: Path, **changes: Any) -> RewardConfig:
    small: dict[str, Any] = dict(model=room / "chat", data=[str(room / "lists.jsonl")], out=out, context=64, steps=12, batch=4, lr=5e-3, val_fraction=0.3, eval_every=4, save_every=3,
                                 log_every=2, micro_tokens=256, threads=1)  # fmt: skip
    return RewardConfig(**(small | changes))


def dpo_config(room: Path, out: Path, **changes: Any) -> DPOConfig:
    small: dict[str, Any] = dict(model=room / "chat", data=[str(room / "pairs.jsonl")], out=out, context=64, steps=12, batch=4, lr=1e-3, val_fraction=0.3, eval_every=4, save_every=3,
                                 log_every=2, micro_tokens=256, threads=1)  # fmt: skip
    return DPOConfig(**(small | changes))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


RUNS = {
    "reward": lambda room, out: reward_stage.run(reward_config(room, out)),
    "reward_lora": lambda room, out: reward_stage.run(reward_config(room, out, lora_rank=4, loss="plackett_luce", center="std", patience=1, steps=30, dtype="bfloat16")),
    "reward_frozen": lambda room, out: reward_stage.run(reward_config(room, out, freeze=True, weights="int8", center_rewards_coefficient=0.01)),
    "dpo": lambda room, out: dpo.run(dpo_config(room, out)),
    "dpo_lora": lambda room, out: dpo.run(dpo_config(room, out, lora_rank=4, loss_type="ipo", rpo_alpha=0.1, data=[str(room / "lists.jsonl")])),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_stopped_run_ends_as_if_nothing_had_happened(room: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    whole = RUNS[kind](room, tmp_path / "whole")
    log, stops = Artefact.log, {0, 4, 8}

    def stop(self: Artefact, **numbers: Any) -> None:
        if numbers["step"] in stops:
            stops.discard(numbers["step"])
            raise KeyboardInterrupt
        log(self, **numbers)

    monkeypatch.setattr(Artefact, "log", stop)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            RUNS[kind](room, tmp_path / "stopped")
    assert folder_hash(RUNS[kind](room, tmp_path / "stopped")) == folder_hash(whole)


@pytest.mark.parametrize("more", [{"lr": 2e-3, "steps": 80}, {"lora_rank": 4, "lr": 2e-2}, {"freeze": True, "lr": 3e-2}])
def test_a_reward_model_learns_the_order_and_gives_the_same_numbers_when_loaded(room: Path, tmp_path: Path, more: dict[str, Any]):
    out = reward_stage.run(reward_config(room, tmp_path / "rm", **({"steps": 30} | more)))
    told = json.loads((out / "run.json").read_text())["metrics"]
    assert told["before/eval_accuracy"] == 0.5 and told["before/eval_loss"] == pytest.approx(math.log(2))
    assert told["eval_accuracy"] > 0.9 and told["eval_accuracy_interval_95"][1] <= 1.0 and told["eval_loss"] <= told["before/eval_loss"]
    model = RewardModel.load(out, threads=1, dtype="float32")
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    for s in samples:
        np.testing.assert_allclose(model.rewards([s["prompt"]] * len(s["ranks"]), s["completions"]), s["rewards"], atol=2e-3)
    train, _, _ = read_preferences([str(room / "lists.jsonl")], model.tok, 64, 0.3)
    assert abs(float(np.mean(model.score([s for r in train for s in r.sequences])))) < 1e-3  # centred
    assert model(["Say 1"], ["a" * 300]) == [None]  # longer than it can read


def test_k_answers_are_k_sequences_and_padding_or_neighbours_change_nothing(room: Path):
    tok = load_tokenizer(room / "chat")
    lists, _, _ = read_preferences([str(room / "lists.jsonl")], tok, 64)
    c = reward_config(room, room / "none", micro_tokens=64)
    gradients = []
    for max_tokens in (100, 2000):
        value = ValueModel(load_model(room / "chat", tok, max_tokens=max_tokens, max_seqs=64, threads=1))
        value.head.row[:] = np.random.default_rng(0).normal(size=len(value.head.row)) / 10
        scores = LearnedScores(c, value, lists)
        read = []
        values = value.values
        value.values = lambda batch, keep=False, values=values, read=read: read.append(batch.n_seqs) or values(batch, keep)  # type: ignore[method-assign]
        value.step = lambda *a, **k: 0.0  # type: ignore[method-assign]
        told = scores.step(range(6), 1e-3, 6)
        assert sum(read) == 18  # 3 answers of 6 lists, not 2 for each of 3 pairs
        gradients.append((told["loss"], value.head.gradient.copy(), {k: g.copy() for k, g in value.model.gradients.items()}))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    np.testing.assert_allclose(gradients[0][1], gradients[1][1], atol=1e-6)
    for name, g in gradients[0][2].items():
        np.testing.assert_allclose(g, gradients[1][2][name], atol=1e-6)


def test_dpo_starts_at_log_2_and_learns(room: Path, tmp_path: Path):
    out = dpo.run(dpo_config(room, tmp_path / "dpo", steps=40, lr=3e-3))
    rows = lines(out)
    assert rows[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-9) and rows[0]["eval_rewards/margins"] == 0.0  # policy and reference, bit for bit
    told = json.loads((out / "run.json").read_text())["metrics"]
    assert told["eval_rewards/accuracies"] > 0.9 and told["eval_loss"] < 0.5
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected", "loss", "grad_norm"} <= rows[-1].keys()


def test_the_reference_is_the_model_before_the_first_step(room: Path):
    tok = load_tokenizer(room / "chat")
    pairs = pairs_of(read_preferences([str(room / "pairs.jsonl")], tok, 64)[0])[:5]
    model = load_model(room / "chat", tok, max_tokens=256, max_seqs=16, threads=1)
    learner = DPOLearner(dpo_config(room, room / "none"), model, pairs, 5)
    learner.refer()
    prompt, chosen, _, _ = pairs[0]
    ids = [*prompt, *chosen]
    alone = model.score(Batch.pack([(ids[:-1], ids[1:])])).logprobs[len(prompt) - 1 :]
    assert learner.reference[0, 0] == alone.astype(np.float64).sum()
    before = learner.reference.copy()
    for _ in range(3):
        learner.update([0, 1, 2], 1e-2)
    np.testing.assert_array_equal(learner.reference, before)
    assert learner.update([0, 1, 2], 0.0)["rewards/margins"] > 0


def test_every_epoch_has_every_list_once():
    seen = [i for step in range(7) for i in chosen_of(step, 3, 7, 5)]
    assert sorted(seen[:7]) == sorted(seen[7:14]) == list(range(7)) and seen[:7] != seen[7:14]
    assert micro_batches([0, 1, 2], [5, 6, 20], [2, 2, 2], 11, 8) == [[0, 1], [2]] and micro_batches([0, 1], [1, 1], [2, 2], 99, 3) == [[0], [1]]


def test_an_adapters_folder_stays_small_and_a_frozen_row_stands_on_its_base(room: Path, tmp_path: Path):
    frozen = reward_stage.run(reward_config(room, tmp_path / "frozen", freeze=True))
    assert not (frozen / "model.safetensors").exists() and load_file(str(frozen / "reward_head.safetensors"))["score.weight"].shape[0] == 1
    told = json.loads((frozen / "reward.json").read_text())
    assert told["kind"] == "head" and Path(told["base_model_name_or_path"]) == (room / "chat").resolve()
    (frozen / "reward.json").write_text(json.dumps(told | {"base_model_name_or_path": "gone"}))
    with pytest.raises(UserError, match="gone"):
        RewardModel.load(frozen)
    lora = reward_stage.run(reward_config(room, tmp_path / "lora", lora_rank=2))
    assert (lora / "adapter_model.safetensors").is_file() and not (lora / "model.safetensors").exists()


@pytest.mark.parametrize("verb, arguments, words", [
    ("reward", ["--patience", "2"], "held out"), ("reward", ["--freeze", "--lora-rank", "4"], "one of them"), ("reward", ["--batch", "0"], "batch is 0"),
    ("reward", ["--val-fraction", "1.5"], "below 1"), ("dpo", ["--beta", "0"], "beta is 0"), ("dpo", ["--label-smoothing", "0.5"], "below 0.5"),
    ("dpo", ["--loss-type", "ipo", "--label-smoothing", "0.1"], "sigmoid"), ("reward", ["--context", "4"], "longer than 4"), ("dpo", ["--val-fraction", "0.000001"], "none is held out"),
])  # fmt: skip
def test_wrong_settings_are_one_sentence_and_write_nothing(room: Path, tmp_path: Path, verb: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main([verb, str(room / "chat"), "--data", str(room / "lists.jsonl"), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


def test_a_dry_run_says_what_is_there(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for verb in ("reward", "dpo"):
        assert main([verb, str(room / "chat"), "--data", str(room / "lists.jsonl"), "--out", str(tmp_path / "out"), "--dry-run", "--threads", "1"]) == 0
        assert "40 lists" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert main(["dpo", str(room / "base"), "--data", str(room / "pairs.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "never seen a conversation" in capsys.readouterr().err
