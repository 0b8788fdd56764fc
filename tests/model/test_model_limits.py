"""Capacities, the memory plan, and what is said when a batch or a configuration does not fit."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from model_cases import CONFIGS, make_batch, make_model

from freedive.model import Batch, DecoderConfig, Model, check_fits, from_depth, plan, preset
from freedive.runs import UserError

QWEN = CONFIGS["qwen3_tied"]


def of(tokens: list[int], targets: list[int] | None = None, positions: list[int] | None = None, cu: list[int] | None = None) -> Batch:
    n = len(tokens)
    i32 = lambda a: np.array(a, np.int32)
    return Batch(i32(tokens), i32(targets or [1] * n), i32(list(range(n)) if positions is None else positions), i32(cu or [0, n]))


@pytest.mark.parametrize("batch, says", [
    (of([1] * 33), r"33 tokens.*max_tokens=32"),
    (of([1, 2, 3], cu=[0, 1, 2, 3], positions=[0, 0, 0]), r"3 sequences.*max_seqs=2"),
    (of([1, 64]), r"token id 64 at 1.*vocabulary of 64"),
    (of([1, -1]), r"token id -1"),
    (of([1, 2], [1, 64]), r"target id 64"),
    (of([1, 2], [1, -2]), r"target id -2"),
    (of([1, 2], positions=[0, 64]), r"position 64.*max_positions = 64"),
    (of([1, 2], positions=[-1, 0]), r"position -1"),
    (of([1, 2], cu=[0, 1]), r"cu_seqlens.*end with N = 2"),
    (of([1, 2], cu=[1, 2]), r"cu_seqlens must begin with 0"),
    (of([1, 2, 3], cu=[0, 4, 3], positions=[0, 0, 0]), r"cu_seqlens must not decrease"),
    (of([1, 2], [1, 2, 3]), r"targets must be"),
    (of([1, 2], positions=[0]), r"positions must be"),
    (Batch(*(np.zeros(0, np.int32),) * 3, np.zeros(1, np.int32)), r"N >= 1"),
])  # fmt: skip
def test_a_bad_batch_is_a_value_error(batch: Batch, says: str):
    model = make_model(QWEN, max_tokens=32, max_seqs=2)
    for call in (model.forward, model.score, lambda b: model.forward_backward(b, np.zeros(len(b.tokens), np.float32))):
        with pytest.raises(ValueError, match=says):
            call(batch)


def test_more_candidates_than_planned():
    model = make_model(QWEN, max_targets=2)
    model.score(make_batch(QWEN, k=2))
    with pytest.raises(ValueError, match="max_targets=2"):
        model.score(make_batch(QWEN, k=3))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(temperature: float):
    with pytest.raises(ValueError, match="temperature"):
        make_model(QWEN).score(make_batch(QWEN), temperature)


def test_a_vocabulary_mask_set_by_another_thread_waits_for_the_call_that_runs():
    """Every batch is of one mask, or the other, not of both; the memory of a mask in use is not given back."""
    model, batch = make_model(QWEN), make_batch(QWEN)
    masks = [np.ones(QWEN.vocab_size, np.uint8), np.array([1] * 40 + [0] * (QWEN.vocab_size - 40), np.uint8)]
    wanted = []
    for mask in masks:
        model.set_vocab_mask(mask)
        wanted.append(model.score(batch).lse.tobytes())
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            for mask in masks:
                model.set_vocab_mask(mask)

    other = threading.Thread(target=change)
    other.start()
    try:
        assert {model.score(batch).lse.tobytes() for _ in range(300)} <= set(wanted)
    finally:
        over.set()
        other.join()


def test_derivatives_must_fit_the_last_forward():
    model, batch = make_model(QWEN), make_batch(QWEN)
    with pytest.raises(RuntimeError, match="needs a forward"):
        model.backward()
    model.forward(batch)
    with pytest.raises(ValueError, match="dlogprobs must have one entry per token"):
        model.backward(np.zeros(batch.n_tokens - 1, np.float32))
    model.backward(np.zeros(batch.n_tokens, np.float32))
    with pytest.raises(RuntimeError, match="each forward serves one backward"):
        model.backward(np.zeros(batch.n_tokens, np.float32))
    model.forward(batch)
    model.score(batch)  # overwrites what forward kept
    with pytest.raises(RuntimeError, match="needs a forward"):
        model.backward(np.zeros(batch.n_tokens, np.float32))


def test_an_untrainable_model_scores_only():
    trainable, frozen, batch = make_model(QWEN), make_model(QWEN, trainable=False), make_batch(QWEN)
    assert trainable.score(batch).logprobs.tobytes() == frozen.score(batch).logprobs.tobytes()
    assert frozen.gradients == {} and set(frozen.state()) == {"parameters", "step_count"}
    for call in (lambda: frozen.forward(batch), frozen.zero_grad, lambda: frozen.adamw(1e-3)):
        with pytest.raises((ValueError, RuntimeError), match="trainable=False"):
            call()


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("config", [QWEN, CONFIGS["gpt2"], from_depth(4, 2048), from_depth(2, 259)], ids=["qwen3", "gpt2", "depth4", "depth2"])
def test_plan_is_what_is_taken(config: DecoderConfig, trainable: bool):
    """The plan against the growth of this process's address space: within 3 % and 256 KiB (tables, page rounding)."""
    rows = dict(plan(config, 2048, 64, trainable, threads=1).rows)
    total, before = sum(rows.values()), address_space()
    model = Model(config, max_tokens=2048, max_seqs=64, threads=1, trainable=trainable)
    taken = address_space() - before
    assert abs(taken - total) < 0.03 * total + 2**18, (taken, rows)
    floats = sum(p.size for p in model.parameters.values())
    assert 4 * floats <= rows["parameters"] < 4 * floats + 64 * len(model.parameters)
    assert rows["gradients"] == (rows["parameters"] if trainable else 0) and rows["AdamW moments"] == 2 * rows["gradients"]


def address_space() -> int:
    """Bytes of virtual memory of this process."""
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[0]) * 4096
    except OSError:
        pytest.skip("no /proc here to read this process's memory from")


def test_plan_allocates_nothing_and_says_what_fits(monkeypatch: pytest.MonkeyPatch):
    big = preset("llama3")
    assert plan(big, 8192, 64).total > 4 * 4 * 8.0e9  # weights, gradients and two moments of eight billion
    monkeypatch.setattr("freedive.model.model.available_memory", lambda: 10**9)
    with pytest.raises(UserError, match="GiB of memory.*953.7 MiB are available") as caught:
        Model(big)
    assert "smaller model" in caught.value.hint
    with pytest.raises(UserError) as caught:
        check_fits(from_depth(4, 2048), 1 << 20, 64, True)
    assert "tokens at a time would fit" in caught.value.hint


def test_rows_to_sample_from_are_planned():
    few, many = (dict(plan(QWEN, 256, seqs, trainable=False).rows)["activations"] for seqs in (16, 256))
    assert many - few == 240 * QWEN.d_model * 4


def test_what_fits_depends_on_the_threads(monkeypatch: pytest.MonkeyPatch):
    """Each thread has work space of its own: with memory for exactly the plan of k threads, k fit and k + 1 do not."""
    config = from_depth(4, 2048)
    plans = [plan(config, 2048, 64, threads=threads).total for threads in (1, 2, 8)]
    assert plans == sorted(plans) and len(set(plans)) == 3
    for total, threads in zip(plans, (1, 2, 8)):
        monkeypatch.setattr("freedive.model.model.available_memory", lambda total=total: total)
        assert check_fits(config, 2048, 64, threads=threads).total == total
        with pytest.raises(UserError, match="of memory"):
            check_fits(config, 2048, 64, threads=threads + 1)
        with pytest.raises(UserError, match="of memory"):
            Model(config, max_tokens=2048, max_seqs=64, threads=threads + 1)


@pytest.mark.parametrize("changes, says", [
    ({"n_kv_head": 3}, "not a multiple"), ({"head_dim": 7}, "must be even"), ({"n_layer": 0}, "n_layer is 0"), ({"norm": "batchnorm"}, "batchnorm"),
    ({"position": "alibi"}, "alibi"), ({"mlp": "relu"}, "relu"), ({"norm": "layernorm"}, "qk_norm needs"), ({"vocab_size": -5}, "vocab_size is -5"),
])  # fmt: skip
def test_bad_configurations(changes: dict, says: str):
    with pytest.raises(UserError, match=says):
        QWEN.replace(**changes)


def test_bad_devices_presets_and_depths():
    for call, says in ((lambda: Model(QWEN, device="abacus"), "abacus"), (lambda: preset("gpt5"), "gpt5"), (lambda: from_depth(0, 100), "depth is 0")):
        with pytest.raises(UserError, match=says):
            call()


@pytest.mark.parametrize("arguments", [{"max_tokens": 0}, {"max_seqs": 0}, {"max_targets": 0}, {"threads": -1}])
def test_capacities_must_be_positive(arguments: dict):
    with pytest.raises((ValueError, UserError), match="at least 1"):
        Model(QWEN, **arguments)


def test_a_checkpoint_of_another_model_is_refused():
    with pytest.raises(UserError, match="numbers"):
        make_model(QWEN).load_state(make_model(CONFIGS["odd"]).state())


def test_state_round_trip_continues_bit_equal():
    batch = make_batch(QWEN)
    d = np.full(batch.n_tokens, -0.01, np.float32)
    first, second = make_model(QWEN), make_model(QWEN, seed=9)
    for step in range(6):
        if step == 3:
            second.load_state(first.state())
        for model in (first, second) if step >= 3 else (first,):
            model.zero_grad()
            model.forward_backward(batch, d)
            model.adamw(1e-2)
    assert first.state()["parameters"].tobytes() == second.state()["parameters"].tobytes() and second.step_count == 6


def test_from_depth_is_a_sane_dial():
    for depth in range(1, 33):
        config = from_depth(depth, 4096)
        assert config.n_layer == depth and config.n_head % config.n_kv_head == 0 and config.d_ff % 32 == 0
        assert config.n_head * config.head_dim <= config.d_model + config.head_dim
    sizes = [from_depth(d, 4096).n_params() for d in range(1, 33)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 32
