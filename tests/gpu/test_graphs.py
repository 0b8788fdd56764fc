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
from freedive.model import Batch, DecoderConfig, LoRA, Model

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
def test_more_lists_in_turn_than_graphs(device: str):
    """Batches of 40 shapes in turn: 32 keep their graphs, and nothing is captured to be thrown away. Others that come for good take the places."""
    model = Model(DecoderConfig(8, 1, 1, 1, 4, 4, 4, 128), max_tokens=128, max_seqs=16, threads=1, device=device).init(3)
    shapes = [(rows, seqs) for rows in range(16, 129, 16) for seqs in (1, 2, 4, 8, 16)]

    def turn(some: list[tuple[int, int]]) -> tuple[int, int]:
        before = launched(model)
        for rows, seqs in some:
            sequence = np.zeros(rows // seqs, np.int32)
            d = np.zeros(rows // seqs * seqs, np.float32)
            model.forward_backward(Batch.pack([(sequence, sequence)] * seqs), d)
        return launched(model)[0] - before[0], launched(model)[1] - before[1]

    assert [turn(shapes) for _ in range(4)][-1] == (32, 8)
    assert [turn(shapes[-6:]) for _ in range(5)][-1] == (6, 0)


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


def lengths_of(seed: int, most: int = 64) -> tuple[int, ...]:
    """One to four sequences, of `most` tokens at most"""
    r = np.random.Generator(np.random.Philox(key=[seed, 19]))
    return tuple(np.diff(np.sort(r.choice(most, r.integers(2, 6), replace=False))).tolist())


def learn(model: Model, batches: list[Batch], first: int = 0) -> list[list[bytes]]:
    """A micro-step of pretraining and one of RL for each batch, and all that comes out of each"""
    outs = []
    for number, b in enumerate(batches, first):
        r = np.random.Generator(np.random.Philox(key=[number, 21]))
        d = r.standard_normal(b.n_tokens, dtype=np.float32)
        model.zero_grad()
        late = model.forward_backward(b, d, temperature=1 + number / 9)
        forward = model.forward(b, temperature=0.7)
        model.backward(d, dentropy=d * np.float32(0.1), dlse=d * np.float32(0.3))
        gradients = [v + np.float32(0) for v in model.gradients.values()]  # -0 is 0
        outs.append([x.tobytes() for o in (forward, model.score(b), late) for x in (o.logprobs, o.entropy, o.lse)] + [g.tobytes() for g in gradients])
    return outs


def adapted(model: Model) -> Model:
    """With an adapter that does something, if it has one"""
    for name, view in model.adapter.items():
        view[...] = np.random.Generator(np.random.Philox(key=[len(name), 22])).standard_normal(view.shape) * 0.1
    model.touch()
    return model


def exactly(device: str, batches: list[Batch], **more: object) -> list[list[bytes]]:
    """As by models that have room for a batch and no more, so that none is padded"""
    fit = lambda b: Model(**({"config": CONFIG} | more), max_tokens=b.n_tokens, max_seqs=b.n_seqs, threads=1, device=device).init(3)  # type: ignore[arg-type]
    return [learn(adapted(fit(b)), [b], number)[0] for number, b in enumerate(batches)]


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize("more", [{}, {"config": GPT}, {"dtype": "bfloat16"}, {"recompute": "ffn"}, {"lora": LoRA(2, 4.0)}], ids=["llama", "gpt2", "bf16", "recompute", "lora"])
def test_batches_of_any_size_share_graphs(device: str, more: dict):
    """Padded to sizes that come again: outputs are those of the batch as it is, and the rows behind it add nothing to any gradient"""
    batches = [batch(seed, lengths_of(seed)) for seed in range(12)]
    assert len({(b.n_tokens, b.n_seqs) for b in batches}) > 9
    model = adapted(made(device, **more))
    assert learn(model, batches) == exactly(device, batches, **more)
    learn(model, batches)
    before = launched(model)
    learn(model, batches)  # now all memory it needs is there, and no list is new: four sizes of tokens, three of sequences
    after = launched(model)
    assert after[0] - before[0] >= 3.5 * len(batches), (before, after)  # forward_backward, forward, backward, score; zero_grad is too short


@pytest.mark.parametrize("device", HERE)
def test_batches_that_share_a_prompt(device: str):
    """GRPO's: a prompt once, then its completions. What attention sees is padded, too, where it is seen at once"""

    def group(seed: int) -> Batch:
        r = np.random.Generator(np.random.Philox(key=[seed, 20]))
        ids = lambda n: (r.integers(0, 64, n), r.integers(-1, 64, n))
        shared = int(r.integers(2, 8))
        said = [ids(int(n)) for n in r.integers(1, 6, r.integers(1, 4))]
        return Batch.pack([ids(shared + 3), *said], [(0, 0)] + [(0, shared)] * len(said))

    batches = [group(seed) for seed in range(6)]
    want = exactly(device, batches)  # in pieces, as there is no room for the copies
    model = made(device)
    outputs = lambda all_of_it: [x[:9] for x in all_of_it]  # gradients of keys and values are the same sums in another order
    got = learn(model, batches)
    assert outputs(got) == outputs(want)
    for mine, other in zip(got, want):
        for x, y in zip(mine[9:], other[9:]):
            np.testing.assert_allclose(np.frombuffer(x, np.float32), np.frombuffer(y, np.float32), rtol=1e-4, atol=1e-6)
    learn(model, batches)  # from now on all memory it needs is there
    before = launched(model)
    learn(model, batches)
    assert launched(model)[0] - before[0] >= 3.5 * len(batches)


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


def counter():
    """Counts what a call puts on a stream: kernels, copies and graphs"""
    library = ctypes.CDLL(str(Path(freedive.__file__).with_name("_cuda_emu.so")))
    counted = (ctypes.c_uint64 * 4)()

    def calls(run) -> int:
        library.emulation_calls(counted)
        before = sum(counted[:3]) - counted[3]
        run()
        library.emulation_calls(counted)
        return sum(counted[:3]) - counted[3] - before

    library.emulation_waits.restype = ctypes.c_uint64
    return calls, library.emulation_waits


emulated = pytest.mark.skipif("cuda-emu" not in HERE, reason="the emulator counts the host's calls")


@emulated
def test_calls_of_a_step(capsys: pytest.CaptureFixture[str]):
    calls, _ = counter()
    model, b = made("cuda-emu"), batch(1)
    d = np.full(b.n_tokens, -0.1, np.float32)
    step = {"forward_backward": lambda: model.forward_backward(b, d), "forward": lambda: model.forward(b), "backward": lambda: model.backward(d), "adamw": lambda: model.adamw(1e-3)}
    first = {name: calls(run) for name, run in step.items()}
    for _ in range(4):
        for run in step.values():
            run()
    after = {name: calls(run) for name, run in step.items()}
    assert after["forward_backward"] == after["forward"] == after["backward"] == 1, (first, after)
    assert first["forward_backward"] > 60
    with capsys.disabled():
        print(f"\ncalls of the host, 2 layers: {first} the first time, {after} from then on")


@emulated
def test_calls_of_steps_of_varying_batches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """No two batches have as many tokens; steps of four micro-batches, whose losses are looked at after the optimizer"""
    calls, waits = counter()
    sizes = [(n // 2, n - n // 2) for n in range(49, 65)]

    def steps(model: Model) -> tuple[list[int], list[int]]:
        made_, waited = [], []
        for at in range(0, len(sizes), 4):
            outs = []
            for lengths in sizes[at : at + 4]:
                b, before = batch(at, lengths), waits()
                d = np.full(b.n_tokens, -0.1, np.float32)
                made_.append(calls(lambda: outs.append(model.forward_backward(b, d))))
                waited.append(waits() - before)
            model.adamw(1e-3)
            assert all(np.isfinite(o.logprobs).all() for o in outs)
        return made_, waited

    model = made("cuda-emu")
    steps(model)
    after, waited = steps(model)
    with monkeypatch.context() as m:
        m.setenv("FREEDIVE_CUDA_GRAPHS", "0")
        before, _ = steps(made("cuda-emu"))
    assert set(after) == {1} and max(waited) <= 1, (after, waited)  # a wait for the turn before the last, whose pinned memory it is
    with capsys.disabled():
        print(f"\ncalls of the host in a forward_backward of 2 layers, 16 batches of 49 to 64 tokens: {max(before)} without graphs, {max(after)} with; waits for the device in it: {max(waited)}")


@emulated
def test_calls_of_a_visit(capsys: pytest.CaptureFixture[str]):
    """8 tokens of 3 sequences: from the third time on one graph, and nobody waits until somebody looks"""
    calls, waits = counter()
    model = made("cuda-emu")
    cache, table, n = model.new_cache(6), np.arange(6, dtype=np.int32).reshape(3, 2), 3
    one, zero = np.ones(n, np.float32), np.zeros(n, np.int32)
    start = lambda: model.decode_steps(cache, 8, zero, zero, table, temperature=one, top_k=zero, top_p=one, min_p=one * 0, seeds=zero, counters=zero, stop_ids=zero[:, None] - 1, remaining=zero + 40)
    first = calls(lambda: start().wait())
    for _ in range(4):
        model.decode_on(start(), table).wait()
    visit = start()
    on, before = [], waits()
    assert calls(lambda: on.append(model.decode_on(visit, table))) == 1 and waits() - before <= 1
    with capsys.disabled():
        print(f"\ncalls of the host for 8 tokens of 3 sequences, 2 layers: {first} op by op, 1 as a graph")
