"""LoRA: gradients against NumPy float64, the sampler's log-probs equal to the trainer's bit for bit, a packed base as good as its float32 copy,
and adapters on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_cases import CONFIGS, DEVICE, generator, gradients, make_batch, make_model, relative, same_bits
from test_open_weights import folder

import freedive
from freedive.inference import Engine
from freedive.inference.export import ExportConfig
from freedive.inference.export import run as export
from freedive.model import Batch, LoRA, Model, init_adapter, load_pretrained, open_weights, plan, read_adapter, save_adapter
from freedive.model.lora import ATTENTION, MLP, peft_name
from freedive.reference.decoder import Decoder
from freedive.runs import UserError

KINDS = {"all": LoRA(3, 6.0), "attention": LoRA(4, 4.0, ATTENTION), "some": LoRA(5, 2.0, ("k_proj", "up_proj", "down_proj")), "rs": LoRA(1, 3.0, ("v_proj", "gate_proj", "up_proj"), rslora=True)}
GATED = [name for name, c in CONFIGS.items() if c.mlp == "swiglu"]


def adapted(name: str, lora: LoRA, **arguments: Any) -> Model:
    """A model whose adapter is no longer fresh: both halves random."""
    model = make_model(CONFIGS[name], lora=lora, **arguments)
    rng = generator(5)
    for view in model.adapter.values():
        view[...] = 0.3 * rng.standard_normal(view.shape)
    model.touch()
    return model


def derivatives(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = generator(3)
    return rng.standard_normal(batch.targets.shape).astype(np.float32), *rng.standard_normal((2, batch.n_tokens)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients_are_the_references(name: str, kind: str):
    model, batch = adapted(name, KINDS[kind]), make_batch(CONFIGS[name])
    base = {key: p.copy() for key, p in model.parameters.items()}
    reference = Decoder(CONFIGS[name], model.parameters, model.adapter, model.lora.scale)
    out, want = model.forward(batch, 0.8), reference.forward(batch, 0.8)
    for field in ("logprobs", "entropy", "lse"):
        assert relative(getattr(out, field), getattr(want, field)) < 1e-5
    d = derivatives(batch)
    model.zero_grad()
    model.backward(*d)
    expected = reference.backward(*d)
    assert set(model.gradients) == set(model.adapter) and len(model.adapter) == 2 * CONFIGS[name].n_layer * len(model.lora.targets)
    whole = np.sqrt(sum(np.linalg.norm(expected[key]) ** 2 for key in model.adapter))
    for key in model.adapter:
        assert np.linalg.norm(model.gradients[key] - expected[key]) < 3e-5 * max(np.linalg.norm(expected[key]), 1e-2 * whole), key
    model.adamw(1e-2)
    assert all(same_bits(base[key], p) for key, p in model.parameters.items())  # frozen


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_the_references_adapter_gradients_are_finite_differences(name: str):
    model, batch = adapted(name, LoRA(2, 3.0)), make_batch(CONFIGS[name], lengths=(5, 3))
    d = derivatives(batch)
    pairs = {key: a.astype(np.float64) for key, a in model.adapter.items()}

    def loss() -> float:
        out = Decoder(CONFIGS[name], model.parameters, pairs, model.lora.scale).forward(batch)
        return float((out.logprobs * d[0]).sum() + (out.entropy * d[1]).sum() + (out.lse * d[2]).sum())

    reference = Decoder(CONFIGS[name], model.parameters, pairs, model.lora.scale)
    reference.forward(batch)
    g, rng = reference.backward(*d), generator(8)
    for key, view in pairs.items():
        direction = rng.standard_normal(view.shape)
        view += 1e-5 * direction
        up = loss()
        view -= 2e-5 * direction
        down = loss()
        view += 1e-5 * direction
        assert abs((up - down) / 2e-5 - float((g[key] * direction).sum())) < 1e-5 * (1 + abs(float((g[key] * direction).sum()))), key


def test_one_call_gives_the_bits_of_two_and_micro_batches_add_up():
    model, batch = adapted("qwen3_tied", KINDS["all"]), make_batch(CONFIGS["qwen3_tied"])
    d = derivatives(batch)[0]
    model.zero_grad()
    a = model.forward(batch)
    model.backward(d)
    two = gradients(model)
    model.zero_grad()
    b = model.forward_backward(batch, d)
    assert same_bits(a.logprobs, b.logprobs) and all(same_bits(two[key], g) for key, g in model.gradients.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_switched_off_it_is_the_frozen_model(name: str):
    model, plain, batch = adapted(name, KINDS["all"]), make_model(CONFIGS[name]), make_batch(CONFIGS[name])
    on, version = model.score(batch), model.weight_version
    with model.without_adapter():
        assert model.weight_version > version  # what caches hold of before is stale
        assert same_bits(model.score(batch).logprobs, plain.score(batch).logprobs)
        model.zero_grad()
        model.forward_backward(batch, derivatives(batch)[0])
        assert not any(g.any() for g in model.gradients.values())
    assert same_bits(model.score(batch).logprobs, on.logprobs) and not same_bits(on.logprobs, plain.score(batch).logprobs)


def test_a_fresh_adapter_changes_no_bit():
    model, plain, batch = make_model(CONFIGS["odd"], lora=LoRA(4)), make_model(CONFIGS["odd"]), make_batch(CONFIGS["odd"])
    init_adapter(model, 3)
    assert any(a.any() for a in model.adapter.values())
    assert np.array_equal(model.score(batch).logprobs, plain.score(batch).logprobs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama_gqa", "qwen3_tied", "odd", "swiglu_biases"])
def test_the_samplers_log_probs_are_the_trainers(name: str, dtype: str):
    """Bit for bit, whatever shares the batch; before and after a step of the optimizer"""
    model = adapted(name, KINDS["all"], dtype=dtype)
    config, rng = model.config, generator(9)
    prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in (1, 7, 20)]
    for _ in range(2):
        for got, prompt in zip(Engine(model).generate(prompts, max_new_tokens=9, temperature=0.9, seeds=[1, 2, 3]), prompts, strict=True):
            whole = [*prompt, *got.ids]
            logprobs = model.score(Batch.pack([(whole[:-1], whole[1:])]), 0.9).logprobs[len(prompt) - 1 :]
            assert same_bits(np.asarray(got.logprobs, np.float32), logprobs)
        batch = make_batch(config)
        model.zero_grad()
        model.forward_backward(batch, derivatives(batch)[0])
        model.adamw(1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "f16", "bf16"])
@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_a_packed_base_gives_the_bits_of_its_float32_copy(name: str, kind: str, dtype: str, tmp_path: Path):
    """Outputs, gradients and three steps, with the base held in the file's own type"""
    path, _ = folder(tmp_path, name)
    export(ExportConfig(path, tmp_path / "m.gguf", type=kind))
    weights, got = open_weights(tmp_path / "m.gguf"), []
    for held in ("float32", "auto"):
        model = weights.to_model(weights=held, lora=LoRA(3, 9.0), dtype=dtype, max_tokens=256, max_seqs=8, device=DEVICE)
        assert bool(model.packed) == (held == "auto")
        init_adapter(model, 1)
        rows = []
        for step in range(3):
            batch = make_batch(model.config, seed=step)
            d, e, f = derivatives(batch)
            model.zero_grad()
            rows += [model.forward_backward(batch, d).logprobs, *gradients(model).values()]
            model.forward(batch)
            model.backward(d, e, f)
            rows += [*gradients(model).values()]
            model.adamw(1e-2)
        got.append([*rows, *(a.copy() for a in model.adapter.values())])
    assert all(same_bits(a, b) for a, b in zip(*got, strict=True))


def test_memory_is_the_adapters(tmp_path: Path):
    config = CONFIGS["llama_gqa"]
    rows = dict(plan(config, 64, 4, lora=LoRA(4)).rows)
    size = sum(a.size for a in make_model(config, lora=LoRA(4)).adapter.values()) * 4
    assert size <= rows["adapter"] < 1.2 * size and rows["gradients"] == rows["adapter"] and rows["AdamW moments"] == 2 * rows["adapter"]
    state = make_model(config, lora=LoRA(4)).state()
    assert set(state) == {"adapter", "step_count", "m", "v"} and state["m"].nbytes == rows["adapter"]


def test_a_resumed_adapter_goes_on_with_the_same_bits():
    config, batches = CONFIGS["qwen3_tied"], [make_batch(CONFIGS["qwen3_tied"], seed=s) for s in range(6)]

    def steps(model: Model, which: list[Batch]) -> Model:
        for batch in which:
            model.zero_grad()
            model.forward_backward(batch, derivatives(batch)[0])
            model.adamw(3e-3)
        return model

    whole = steps(adapted("qwen3_tied", KINDS["all"]), batches)
    first = steps(adapted("qwen3_tied", KINDS["all"]), batches[:3])
    second = make_model(config, lora=KINDS["all"])
    second.load_state(first.state())
    steps(second, batches[3:])
    assert all(same_bits(a, second.adapter[key]) for key, a in whole.adapter.items())


# ---- on disk -------------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, name: str = "qwen3", lora: LoRA | None = None) -> tuple[Path, Path, Model]:
    path, _ = folder(tmp_path, name)
    model = load_pretrained(path, lora=lora or LoRA(3, 6.0), max_tokens=256, max_seqs=8, device=DEVICE)
    rng = generator(11)
    for view in model.adapter.values():
        view[...] = 0.2 * rng.standard_normal(view.shape)
    model.touch()
    save_adapter(model, tmp_path / "adapter", str(path))
    return path, tmp_path / "adapter", model


@pytest.mark.parametrize("name", ["qwen3", "llama3", "qwen2.5"])
def test_round_trip_and_merged_model(name: str, tmp_path: Path):
    path, where, model = saved(tmp_path, name)
    found = read_adapter(where, model.config)
    assert found.lora == model.lora and found.base == str(path)
    assert all(same_bits(found.tensors[key], a) for key, a in model.adapter.items())
    batch = make_batch(model.config)
    merged = found.merged(open_weights(path)).to_model(max_tokens=256, max_seqs=8, device=DEVICE)
    assert relative(merged.score(batch).logprobs, model.score(batch).logprobs) < 1e-5
    loaded = freedive.load(where, max_tokens=256, max_seqs=8, device=DEVICE)  # the folder names its base
    assert same_bits(loaded.model.score(batch).logprobs, model.score(batch).logprobs)
    beside = freedive.load(path, adapter=where, max_tokens=256, max_seqs=8, device=DEVICE)
    assert same_bits(beside.model.score(batch).logprobs, model.score(batch).logprobs)


def test_peft_names():
    assert peft_name("layers.3.q_proj.lora_A") == "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"
    assert peft_name("layers.0.down_proj.lora_B") == "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"


def edited(where: Path, **changes: Any) -> None:
    config = json.loads((where / "adapter_config.json").read_text()) | changes
    (where / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("change, said", [({"use_dora": True}, "use_dora"), ({"r": "x"}, "needs r"), ({"target_modules": ["c_attn"]}, "not known"),
                                          ({"r": 4}, "shape"), ({"target_modules": ["q_proj"]}, "no part"), ({"lora_alpha": -1}, "alpha"),
                                          ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"), ({"bias": "all"}, "bias")])  # fmt: skip
def test_what_is_no_adapter_of_this_model_is_told(change: dict[str, Any], said: str, tmp_path: Path):
    _, where, model = saved(tmp_path)
    edited(where, **change)
    with pytest.raises(UserError, match=said):
        read_adapter(where, model.config)


def test_damaged_files_are_told(tmp_path: Path):
    _, where, model = saved(tmp_path)
    file = where / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match="cannot be read"):
        read_adapter(where, model.config)
    file.unlink()
    with pytest.raises(UserError, match="holds no"):
        read_adapter(where, model.config)


@pytest.mark.parametrize("lora, said", [(LoRA(0), "rank"), (LoRA(10**6), "rank"), (LoRA(2, 0.0), "alpha"), (LoRA(2, targets=("lm_head",)), "lm_head"), (LoRA(2, targets=()), "at least one")])
def test_adapters_that_cannot_be(lora: LoRA, said: str):
    with pytest.raises(UserError, match=said):
        make_model(CONFIGS["llama_gqa"], lora=lora)


def test_a_plain_packed_model_is_still_not_trainable(tmp_path: Path):
    path, _ = folder(tmp_path, "qwen3")
    export(ExportConfig(path, tmp_path / "m.gguf", type="q8_0"))
    with pytest.raises(UserError, match="adapter"):
        open_weights(tmp_path / "m.gguf").to_model(weights="auto")
    with pytest.raises(ValueError, match="adamw"):
        model = adapted("llama_gqa", KINDS["all"])
        model.zero_grad()
        model.muon(1e-3, adamw_lr=1e-3)


def test_targets_of_the_gated_mlp():
    assert GATED and "gate_proj" in make_model(CONFIGS[GATED[0]], lora=LoRA(2, targets=MLP)).lora.targets
    assert "gate_proj" not in make_model(CONFIGS["gpt2"], lora=LoRA(2, targets=MLP)).lora.targets
