"""pretrain, sft and rl, tiny: two runs are bit-equal, a killed run ends as if nothing had happened, and no row makes a NaN."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import train_cases
from train_cases import chat_file, pretrain_config, problem_file, rl_config, sft_config, text_file

from freedive.inference import export
from freedive.model import load_pretrained
from freedive.objectives import PRESETS
from freedive.pretrain import stage as pretrain
from freedive.rl import stage as rl
from freedive.runs import folder_hash, read_json
from freedive.sft import stage as sft


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs and one whole run of each stage: base, base by Muon, chat, reasoner."""
    folder = tmp_path_factory.mktemp("stages")
    pretrain.run(pretrain_config(text_file(folder), folder / "base"))
    pretrain.run(pretrain_config(folder / "text.jsonl", folder / "base-muon", optimizer="muon"))
    sft.run(sft_config(folder / "base", chat_file(folder), folder / "chat"))
    rl.run(rl_config(folder / "chat", problem_file(folder), folder / "reasoner"))
    return folder


def arguments(room: Path, verb: str, out: Path) -> list[Path]:
    return {"pretrain": [room / "text.jsonl", out], "muon": [room / "text.jsonl", out], "sft": [room / "base", room / "chats.jsonl", out],
            "rl": [room / "chat", room / "problems.jsonl", out]}[verb]  # fmt: skip


WHOLE = {"pretrain": "base", "muon": "base-muon", "sft": "chat", "rl": "reasoner"}
every_verb = pytest.mark.parametrize("verb", WHOLE)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def finite(value: object) -> bool:
    return all(map(finite, value)) if isinstance(value, (list, tuple)) else not isinstance(value, float) or bool(np.isfinite(value))


@every_verb
def test_what_a_stage_leaves(room: Path, verb: str):
    folder = room / WHOLE[verb]
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer", "metrics.jsonl", "timings.jsonl", "samples.json", "run.json"} <= names
    assert not (room / f"{WHOLE[verb]}.partial").exists()
    assert all(finite(v) for row in lines(folder) for v in row.values())
    assert str(room) not in (folder / "run.json").read_text()  # nothing hashed knows where it lies
    model = load_pretrained(folder, max_tokens=64, max_seqs=4)
    assert all(np.isfinite(p).all() for p in model.parameters.values())


@every_verb
def test_twice_gives_the_same_bits(room: Path, verb: str, tmp_path: Path):
    train_cases.main(verb, *map(str, arguments(room, verb, tmp_path / "again")))
    assert folder_hash(tmp_path / "again") == folder_hash(room / WHOLE[verb])
    before = (tmp_path / "again" / "run.json").stat().st_mtime_ns
    train_cases.main(verb, *map(str, arguments(room, verb, tmp_path / "again")))  # a third time: nothing left to do
    assert (tmp_path / "again" / "run.json").stat().st_mtime_ns == before


def test_threads_change_no_bit(room: Path, tmp_path: Path):
    pretrain.run(pretrain_config(room / "text.jsonl", tmp_path / "two", threads=2))
    assert folder_hash(tmp_path / "two") == folder_hash(room / "base")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_pretraining_learns(room: Path, tmp_path: Path, optimizer: str):
    out = pretrain.run(pretrain_config(room / "text.jsonl", tmp_path / "longer", steps=60, optimizer=optimizer))
    losses = [row["loss"] for row in lines(out)]
    assert losses[0] > 5.0 and losses[-1] < 3.5
    metrics = read_json(out / "run.json")["metrics"]
    assert metrics["steps"] == 60 and metrics["val_bits_per_byte"] < 6


def test_held_out_text_is_evaluated_once_at_the_end(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls, evaluate = [], pretrain.held_out_loss
    monkeypatch.setattr(pretrain, "held_out_loss", lambda *a: calls.append(a) or evaluate(*a))
    out = pretrain.run(pretrain_config(room / "text.jsonl", tmp_path / "out", eval_every=5))
    assert len(calls) == 3  # after 5, 10 and all 14 steps
    evaluated = [row for row in lines(out) if "val_loss" in row]
    metrics = read_json(out / "run.json")["metrics"]
    assert [row["step"] for row in evaluated] == [5, 10, 14]
    assert all(metrics[key] == evaluated[-1][key] for key in ("val_loss", "val_bits_per_byte"))


@every_verb
def test_killed_at_three_random_moments(room: Path, verb: str, tmp_path: Path):
    """SIGKILL in a process of its own, once the run has begun to save; then the same call again, to the end."""
    out, chance = tmp_path / "out", random.Random(len(verb))
    command = [sys.executable, train_cases.__file__, verb, *map(str, arguments(room, verb, out))]
    partial, kills = tmp_path / "out.partial", 0
    for _ in range(20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        old = checkpoints(partial)
        while process.poll() is None and checkpoints(partial) == old:  # the first checkpoint after this start
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)  # nothing happens where it has ended by itself
        if process.wait() == -signal.SIGKILL:
            kills += 1
            if kills == 3:
                break
        else:  # it was quicker than we
            assert process.returncode == 0
            if kills:
                break
            shutil.rmtree(out)  # never killed: once more from the start
    assert kills > 0
    train_cases.main(verb, *map(str, arguments(room, verb, out)))
    assert folder_hash(out) == folder_hash(room / WHOLE[verb])
    assert not partial.exists()


def checkpoints(partial: Path) -> set[tuple[str, int]]:
    try:
        return {(p.name, p.stat().st_mtime_ns) for p in partial.rglob("checkpoint*")}
    except FileNotFoundError:  # replaced while we looked
        return set()


def test_conversations_longer_than_the_context_are_counted(room: Path, tmp_path: Path):
    assert read_json(room / "chat" / "run.json")["metrics"]["too_long"] == 1
    out = sft.run(sft_config(room / "base", room / "chats.jsonl", tmp_path / "out", context=64, batch_tokens=80, micro_tokens=64))
    assert all(finite(v) for row in lines(out) for v in row.values())


def test_batches_whose_rows_are_all_masked_make_no_nan(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every second row has no target at all, and a batch holds one row: no gradient, no loss, no NaN, and nothing moves without a gradient."""
    rows = sft.read_conversations(room / "chats.jsonl", sft.Tokenizer.load(room / "base" / "tokenizer"), 128)[0]
    masked = [(ids, np.full_like(t, -1), np.zeros_like(w)) for ids, t, w in rows]
    read = sft.read_data(sft.DataSource(str(room / "chats.jsonl")), sft.Tokenizer.load(room / "base" / "tokenizer"), 128)
    monkeypatch.setattr(sft, "read_data", lambda *_: replace(read, train=[r for pair in zip(rows, masked) for r in pair]))
    out = sft.run(sft_config(room / "base", room / "chats.jsonl", tmp_path / "half", batch_tokens=32, log_every=1))
    losses = [row["loss"] for row in lines(out)]
    assert all(finite(v) for row in lines(out) for v in row.values()) and 0.0 in losses and max(losses) > 0
    monkeypatch.setattr(sft, "read_data", lambda *_: replace(read, train=masked))
    out = sft.run(sft_config(room / "base", room / "chats.jsonl", tmp_path / "all", log_every=1))
    assert all(row["loss"] == 0.0 and row["grad_norm"] == 0.0 for row in lines(out))


def test_the_sampler_is_the_trainer(room: Path):
    """Log-probs of the rollouts, as sampled, equal those of the trainer's forward before the update, bit for bit."""
    gaps = [row["sampling/sampling_logp_difference/max"] for row in lines(room / "reasoner") if "sampling/sampling_logp_difference/max" in row]
    assert gaps and max(gaps) == 0.0


@pytest.mark.parametrize("algo", PRESETS)
def test_every_algorithm_runs(room: Path, tmp_path: Path, algo: str):
    """Two steps of each member of the family, those with a KL to the starting model included: finite numbers, and weights that moved."""
    out = rl.run(rl_config(room / "chat", room / "problems.jsonl", tmp_path / "out", algorithm=algo, steps=2, eval_data=None))
    assert all(finite(v) for row in lines(out) for v in row.values())
    weights = [load_pretrained(f, max_tokens=64, max_seqs=4).state()["parameters"] for f in (room / "chat", out)]
    assert np.isfinite(weights[1]).all()
    assert not np.array_equal(*weights) or all(row["frac_reward_zero_std"] == 1 for row in lines(out) if "frac_reward_zero_std" in row)


def test_muon_takes_a_learning_rate_of_its_own(room: Path, tmp_path: Path):
    for rate in (1e-4, 1e-2):
        pretrain.run(pretrain_config(room / "text.jsonl", tmp_path / str(rate), optimizer="muon", muon_lr=rate))
    weights = {rate: load_pretrained(tmp_path / str(rate), max_tokens=64, max_seqs=4).parameters for rate in (1e-4, 1e-2)}
    assert all(np.isfinite(p).all() for w in weights.values() for p in w.values())
    assert not np.array_equal(weights[1e-4]["layers.0.q_proj.weight"], weights[1e-2]["layers.0.q_proj.weight"])
    assert folder_hash(room / "base") != folder_hash(room / "base-muon")
    with pytest.raises(sft.UserError, match="sgd"):
        pretrain.run(pretrain_config(room / "text.jsonl", tmp_path / "bad", optimizer="sgd"))
    with pytest.raises(sft.UserError, match="--head-lr is a rate of --optimizer muon"):
        pretrain.run(pretrain_config(room / "text.jsonl", tmp_path / "bad", head_lr=0.1))
    assert not (tmp_path / "bad").exists()


def test_every_stage_takes_a_model_with_pairs_but_export(room: Path, tmp_path: Path):
    """A table of pairs of tokens (--bigram-rows): trained on, SFT, RL with its rows that share a beginning; its files are refused to others and nothing is written"""
    base = pretrain.run(pretrain_config(room / "text.jsonl", tmp_path / "base", bigram_rows=500, tie_embeddings=False, optimizer="muon"))
    again = pretrain.run(pretrain_config(room / "text.jsonl", tmp_path / "again", model=base, tokenizer="bpe", depth=None, max_positions=None))
    chat = sft.run(sft_config(again, room / "chats.jsonl", tmp_path / "chat"))
    solver = rl.run(rl_config(chat, room / "problems.jsonl", tmp_path / "solver"))
    tables = [load_pretrained(f, max_tokens=64, max_seqs=4).parameters["embed_bigrams.weight"] for f in (base, again, chat, solver)]
    assert all(len(t) == 500 and np.isfinite(t).all() for t in tables) and all(not np.array_equal(a, b) for a, b in zip(tables, tables[1:]))
    for to in ("gguf", "hf"):
        with pytest.raises(sft.UserError, match="freedive's own"):
            export.run(export.ExportConfig(model=solver, out=tmp_path / to, to=to))
        assert not (tmp_path / to).exists()


def test_a_changed_setting_is_named(room: Path, tmp_path: Path):
    shutil.copytree(room / "base", tmp_path / "base")
    with pytest.raises(sft.UserError, match="steps"):
        pretrain.run(pretrain_config(room / "text.jsonl", tmp_path / "base", steps=15))
