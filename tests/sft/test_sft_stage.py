"""`freedive sft` with adapters, held-out loss and early stopping, from a chat model trained here: what is written, resumed, merged, and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import freedive
from freedive.inference.export import ExportConfig
from freedive.inference.export import run as export
from freedive.inference.folder import save_model_folder
from freedive.model import Batch, DecoderConfig, Model, open_weights
from freedive.rl.stage import RLConfig
from freedive.rl.stage import run as practise
from freedive.runs import UserError, read_json
from freedive.sft.stage import SFTConfig, run
from freedive.tokenizer import byte_tokenizer, render


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small chat model (random weights), its GGUF file, and conversations."""
    folder, tok = tmp_path_factory.mktemp("sft"), byte_tokenizer()
    model = Model(DecoderConfig(tok.vocab_size, 2, 2, 1, 32, 16, 64, 256), max_tokens=256, max_seqs=8, threads=1).init(1)
    save_model_folder(model, tok, folder / "base", tok.im_end)
    export(ExportConfig(folder / "base", folder / "base.gguf", type="q8_0"))
    rows = [{"messages": [{"role": "user", "content": f"What is {a}+{b}?"}, {"role": "assistant", "content": str(a + b)}]} for a in range(6) for b in range(6)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def config(room: Path, out: Path, model: str = "base", **changes) -> SFTConfig:
    return SFTConfig(**({"model": room / model, "data": [str(room / "chats.jsonl")], "out": out, "context": 96, "batch_tokens": 256, "micro_tokens": 128, "steps": 12, "lr": 5e-3,
                         "save_every": 4, "log_every": 3, "samples": ["What is 1+1?"], "lora_rank": 4, "threads": 1} | changes))  # fmt: skip


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def batch(tok) -> Batch:
    ids, _ = render(tok, [{"role": "user", "content": "What is 2+3?"}, {"role": "assistant", "content": "5"}])
    return Batch.next_token([ids])


@pytest.mark.parametrize("model", ["base", "base.gguf"])
def test_an_adapter_learns_is_loaded_merged_and_trained_on(model: str, room: Path, tmp_path: Path):
    out = run(config(room, tmp_path / "a", model, dtype="bfloat16"))
    assert losses(out)[-1] < losses(out)[0] and (out / "adapter_model.safetensors").is_file() and not (out / "model.safetensors").exists()
    lm, base = freedive.load(out), freedive.load(room / model)
    assert lm.model.packed == base.model.packed and bool(lm.model.packed) == (model == "base.gguf")
    b = batch(lm.tokenizer)
    adapted = lm.model.score(b).logprobs
    with lm.model.without_adapter():
        assert np.array_equal(lm.model.score(b).logprobs, base.model.score(b).logprobs)
    assert not np.array_equal(adapted, base.model.score(b).logprobs)
    assert np.array_equal(freedive.load(room / model, adapter=out).model.score(b).logprobs, adapted)
    merged = freedive.load(export(ExportConfig(room / model, adapter=out, out=tmp_path / "hf", to="hf")))
    assert np.abs(merged.model.score(b).logprobs - adapted).max() < 1e-4
    again = freedive.load(export(ExportConfig(out, out=tmp_path / "m.gguf", to="gguf")))  # the adapter names its base
    assert np.abs(again.model.score(b).logprobs - adapted).max() < 1e-4
    on = run(config(room, tmp_path / "b", lora_rank=0, dtype="bfloat16", **{"model": out}))
    assert losses(on)[0] < losses(out)[0] and read_json(on / "adapter_config.json")["r"] == 4
    int8 = freedive.load(room / model, adapter=out, dtype="int8")
    assert np.abs(int8.model.score(b).logprobs - adapted).max() < 0.1
    with pytest.raises(UserError, match="not a whole model"):
        open_weights(out)
    with pytest.raises(UserError, match="adapter already"):
        run(config(room, tmp_path / "c", **{"model": out}))


def test_practice_of_an_adapter_moves_it_alone(room: Path, tmp_path: Path):
    out = run(config(room, tmp_path / "a", steps=2))
    problems = tmp_path / "p.jsonl"
    problems.write_text("".join(json.dumps({"prompt": f"What is {a}+1?", "answer": str(a + 1)}) + "\n" for a in range(6)))
    reward = tmp_path / "odd.py"  # below zero, for what is cut off gets no more than 0
    reward.write_text("def score(prompts, completions, completion_ids, **columns):\n    return [-float(sum(i) % 2) for i in completion_ids]\n")
    practised = practise(RLConfig(model=out, data=problems, out=tmp_path / "b", reward=f"{reward}:score", steps=3, prompts_per_step=2, num_generations=4, max_completion_length=8,
                                  micro_tokens=256, lr=1e-2, threads=1))  # fmt: skip
    a, b = freedive.load(out).model, freedive.load(practised).model
    assert any(not np.array_equal(x, b.adapter[name]) for name, x in a.adapter.items()) and not (practised / "model.safetensors").exists()
    assert all(np.array_equal(x, b.parameters[name]) for name, x in a.parameters.items())


def test_killed_and_resumed_it_ends_with_the_same_bytes(room: Path, tmp_path: Path):
    whole = run(config(room, tmp_path / "x" / "a", val_fraction=0.2, eval_every=3))
    script = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" "from pathlib import Path; import freedive.sft.stage as s; import freedive.train.loop as loop\nimport os\nsave = loop._save\n"
              "def once(*a, **k):\n    save(*a, **k)\n    os._exit(9)\nloop._save = once\nimport test_sft_stage as t\ns.run(t.config(Path(sys.argv[1]), Path(sys.argv[2]), val_fraction=0.2, eval_every=3))\n")  # fmt: skip
    where = tmp_path / "y" / "a"
    for _ in range(2):  # dies right after each of its first two checkpoints
        assert subprocess.run([sys.executable, "-c", script, str(room), str(where)]).returncode == 9
    run(config(room, where, val_fraction=0.2, eval_every=3))
    for name in ("adapter_model.safetensors", "metrics.jsonl", "samples.json", "conversations.jsonl", "data.json"):
        assert (whole / name).read_bytes() == (where / name).read_bytes(), name


@pytest.mark.parametrize("rank", [0, 4])
def test_early_stopping_keeps_the_best_weights(rank: int, room: Path, tmp_path: Path):
    """At a learning rate far too high the held-out loss soon rises: the run ends, with the weights that had the lowest."""
    out = run(config(room, tmp_path / "a", lora_rank=rank, steps=200, lr=0.3, val_fraction=0.25, eval_every=2, patience=3, warmup=20))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    metrics = read_json(out / "run.json")["metrics"]
    best = min(measured, key=lambda step: measured[step])
    assert metrics["best_step"] == best and rows[-1]["step"] == best + 6 < 200
    from freedive.inference import load_model
    from freedive.sft.data import DataSource, read_data
    from freedive.train.evaluate import rows_loss

    tok = freedive.load(room / "base").tokenizer
    held = read_data(DataSource(str(room / "chats.jsonl")), tok, 96, 0.25).held_out
    assert abs(rows_loss(load_model(out, tok, max_tokens=128, max_seqs=64), held) - measured[best]) < 1e-6
    said = [json.loads(line) for line in (out / "conversations.jsonl").read_text().splitlines()]
    assert [s["step"] for s in said] == list(measured) and all("What is 1+1?" in s["prompt"] for s in said)


def test_samples_without_held_out_conversations_and_a_rate_that_ruins_the_weights(room: Path, tmp_path: Path):
    out = run(config(room, tmp_path / "a", eval_every=2))
    said = [json.loads(line) for line in (out / "conversations.jsonl").read_text().splitlines()]
    assert len(said) >= 2 and said[0]["step"] == 2 and "val_loss" not in said[0]
    with pytest.raises(UserError, match="not finite in the last"):
        run(config(room, tmp_path / "b", lr=1e30, steps=6, lora_rank=0))
    assert not (tmp_path / "b").exists()


def test_several_files_with_weights_and_a_report(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "b.jsonl"
    other.write_text(json.dumps({"prompt": "Hi", "completion": "Hello!"}) + "\n" + json.dumps({"prompt": "Bye", "completion": "x" * 300}) + "\n")
    out = run(config(room, tmp_path / "a", data=[f"{room / 'chats.jsonl'}:0.5", f"{other}:0.5"]))
    told = json.loads((out / "data.json").read_text())
    assert [t["weight"] for t in told] == [0.5, 0.5] and told[1]["too_long"] == 1 and "% full" in capsys.readouterr().out
    with pytest.raises(UserError, match="other settings"):  # another weight is another run
        run(config(room, tmp_path / "a", data=[f"{room / 'chats.jsonl'}:0.9", f"{other}:0.1"]))


@pytest.mark.parametrize("changes, said", [({"lora_targets": "lm_head"}, "lm_head"), ({"lora_rank": 4096}, "rank"), ({"patience": 2}, "held-out"), ({"weights": "int3"}, "int3"),
                                           ({"val_fraction": 1.5}, "val_fraction"), ({"val_fraction": 0.1, "val_data": ["x"]}, "not both"), ({"data": ["a:1", "b"]}, "some of the data")])  # fmt: skip
def test_bad_settings_write_nothing(changes, said, room: Path, tmp_path: Path):
    with pytest.raises(UserError, match=said):
        run(config(room, tmp_path / "a", **changes))
    assert not (tmp_path / "a").exists() and not any((tmp_path / "a.partial").glob("adapter*"))


def test_a_dry_run_checks_and_writes_nothing(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(config(room, tmp_path / "a", dry_run=True))
    assert "36 conversations" in capsys.readouterr().out and not list(tmp_path.iterdir())
