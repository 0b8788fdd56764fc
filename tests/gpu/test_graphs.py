"""CUDA graphs (csrc/model/commands.h): a call that repeats is launched as a graph, and nothing that comes out shows it. Under emulation what a graph names is
looked at again at every launch, and the host's calls are counted.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest

import freedive
from freedive import _core
from freedive.model import Batch, DecoderConfig, Model

DEVICE = os.environ.get("FREEDIVE_GPU_DEVICE", "cuda")
HERE = [name for name in dict.fromkeys((DEVICE, "cuda-emu")) if _core.device_error(name) is None]
pytestmark = pytest.mark.skipif(not HERE, reason="no GPU and no cuda-emu: csrc/emulation/README.md")
CONFIG = DecoderConfig(64, 2, 4, 2, 32, 8, 64, 64)
GPT = DecoderConfig(64, 2, 4, 4, 32, 8, 64, 64, norm="layernorm", position="learned", mlp="gelu_tanh", qk_norm=False)
LENGTHS = (17, 1, 9)


def batch(seed: int, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    r = np.random.Generator(np.random.Philox(key=[seed, 16]))
    return Batch.pack([(r.integers(0, 64, n), r.integers(0, 64, n)) for n in lengths])


def made(device: str, config: DecoderConfig = CONFIG, **more: object) -> Model:
    return Model(config, max_tokens=64, max_seqs=4, threads=1, device=device, **more).init(3)  # type: ignore[arg-type]


def launched(model: Model) -> tuple[int, int]:
    return model._core.launches()  # as graphs, op by op


def train(model: Model, seeds: range, lengths: tuple[int, ...] = LENGTHS) -> list[bytes]:
    """Steps of pretraining and of RL, everything that comes out."""
    out = []
    for seed in seeds:
        b = batch(seed, lengths)
        d = np.linspace(-1, 1, b.n_tokens).astype(np.float32) / b.n_tokens
        temperature = 1 + seed / 10
        model.zero_grad()
        first = model.forward_backward(b, d, temperature=temperature)
        second = model.forward(b, temperature=temperature)
        model.backward(d, dentropy=d * np.float32(seed))
        out += [x.tobytes() for r in (first, second) for x in (r.logprobs, r.entropy, r.lse)]
        out += [model.gradients["layers.0.q_proj.weight"].tobytes(), np.float32(model.adamw(1e-2 / (1 + seed))).tobytes()]
    return [*out, model.trained().tobytes()]


def decode(model: Model, steps: int) -> list[bytes]:
    """Greedy and drawn tokens of two sequences, one after the other."""
    cache, table = model.new_cache(4), np.arange(4, dtype=np.int32).reshape(2, 2)
    past, tokens, out = np.zeros(2, np.int32), np.array([5, 9], np.int32), []
    for step in range(steps):
        b = Batch(tokens, tokens[:0], past.copy(), np.arange(3, dtype=np.int32))
        tokens, logprobs = model.decode(
            cache, b, past, table, temperature=np.array([0, 0.9], np.float32), top_k=np.array([0, 20], np.int32), top_p=np.array([1, 0.9], np.float32),
            min_p=np.zeros(2, np.float32), seeds=np.array([1, 2], np.uint64), counters=np.full(2, step + 1, np.uint64),
        )  # fmt: skip
        past = past + 1
        out += [tokens.tobytes(), logprobs.tobytes()]
    return out


def without(monkeypatch: pytest.MonkeyPatch, device: str, run, **more: object) -> list[bytes]:
    with monkeypatch.context() as m:
        m.setenv("FREEDIVE_CUDA_GRAPHS", "0")
        model = made(device, **more)
        out = run(model)
    assert launched(model)[0] == 0
    return out


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize("more", [{}, {"config": GPT}, {"dtype": "bfloat16"}, {"recompute": "block"}], ids=["llama", "gpt2", "bf16", "recompute"])
def test_graphs_change_no_bit(monkeypatch: pytest.MonkeyPatch, device: str, more: dict):
    """Tokens, temperature, derivatives, learning rate: all differ from step to step, and none is an argument of a kernel"""
    model = made(device, **more)
    run = lambda m: [*train(m, range(6)), *decode(m, 5)]
    assert run(model) == without(monkeypatch, device, run, **more)
    assert launched(model)[0] >= 6


@pytest.mark.parametrize("device", HERE)
def test_a_size_that_changes_is_another_graph(monkeypatch: pytest.MonkeyPatch, device: str):
    """Sizes come and go, more of them than graphs are held"""

    def run(model: Model) -> list[bytes]:
        out = []
        for turn in range(2):
            for n in (3, 4, 5, 6, 7, 8):
                out += train(model, range(turn, turn + 2), (n, 2))
        return out

    model = made(device)
    assert run(model) == without(monkeypatch, device, run)
    assert launched(model)[0] > 0


@pytest.mark.parametrize("device", HERE)
def test_memory_that_is_gone_is_in_no_graph(monkeypatch: pytest.MonkeyPatch, device: str):
    """A cache is given back and another taken, a call grows what is copied through, targets become several: graphs held name memory of before"""

    def run(model: Model) -> list[bytes]:
        out = decode(model, 4)
        other = model.new_cache(7)  # so that the next cache lies elsewhere
        out += decode(model, 4)
        del other
        out += train(model, range(3), (5, 2)) + decode(model, 3) + train(model, range(3), (30, 20, 14)) + train(model, range(3), (5, 2))
        return out

    assert run(made(device)) == without(monkeypatch, device, run)


@pytest.mark.parametrize("device", HERE)
def test_weights_that_change_are_seen(monkeypatch: pytest.MonkeyPatch, device: str):
    """Decoding reads packed copies of weights, made anew within the call after each step"""

    def run(model: Model) -> list[bytes]:
        out = []
        for seed in range(4):
            out += train(model, range(seed, seed + 1)) + decode(model, 3)
        return out

    assert run(made(device, dtype="bfloat16")) == without(monkeypatch, device, run, dtype="bfloat16")


@pytest.mark.skipif("cuda-emu" not in HERE, reason="the emulator counts the host's calls")
def test_calls_of_a_step(capsys: pytest.CaptureFixture[str]):
    library = ctypes.CDLL(str(Path(freedive.__file__).with_name("_cuda_emu.so")))
    counted = (ctypes.c_uint64 * 4)()

    def calls(run) -> int:  # kernels, copies and graphs that the host put on a stream
        library.emulation_calls(counted)
        before = sum(counted[:3]) - counted[3]
        run()
        library.emulation_calls(counted)
        return sum(counted[:3]) - counted[3] - before

    model, b = made("cuda-emu"), batch(1)
    d = np.full(b.n_tokens, -0.1, np.float32)
    step = {"forward_backward": lambda: model.forward_backward(b, d), "forward": lambda: model.forward(b), "backward": lambda: model.backward(d), "adamw": lambda: model.adamw(1e-3)}
    first = {name: calls(run) for name, run in step.items()}
    for _ in range(4):
        for run in step.values():
            run()
    after = {name: calls(run) for name, run in step.items()}
    assert after["forward_backward"] == 2 and after["forward"] == after["backward"] == 1, (first, after)  # its two halves: outputs come back between
    assert first["forward_backward"] > 60
    with capsys.disabled():
        print(f"\ncalls of the host, 2 layers: {first} the first time, {after} from then on")
