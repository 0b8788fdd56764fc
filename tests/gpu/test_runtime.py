"""The device's stream, its copies and snapshots. Under emulation nothing on a stream is done before somebody waits for it, so a wait that is missing is a wrong
number here, and one that is too many is counted.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import freedive
from freedive import _core
from freedive.model import Batch, DecoderConfig, Model, check_checkpoint_fits, plan
from freedive.runs import UserError, human_bytes

DEVICE = os.environ.get("FREEDIVE_GPU_DEVICE", "cuda")
HERE = [name for name in dict.fromkeys((DEVICE, "cuda-emu", "cpu")) if _core.device_error(name) is None]
CONFIG = DecoderConfig(64, 2, 4, 2, 32, 8, 64, 64)
emulated = pytest.mark.skipif(_core.device_error("cuda-emu") is not None, reason="no cuda-emu: csrc/emulation/README.md")
LATE = os.environ.get("FREEDIVE_EMU_STREAMS", "late") == "late"


def batch(seed: int = 1) -> Batch:
    r = np.random.Generator(np.random.Philox(key=[seed, 15]))
    return Batch.pack([(r.integers(0, 64, n), r.integers(0, 64, n)) for n in (17, 1, 33)])


def made(device: str, **more: object) -> Model:
    return Model(CONFIG, max_tokens=64, max_seqs=4, threads=1, device=device, **more).init(3)  # type: ignore[arg-type]


def step(model: Model, seed: int = 1, update: bool = True) -> None:
    b = batch(seed)
    model.zero_grad()
    model.forward_backward(b, np.full(b.n_tokens, -1 / b.n_tokens, np.float32))
    if update:
        model.adamw(1e-2)


@emulated
def test_a_call_waits_once_or_not_at_all():
    library = ctypes.CDLL(str(Path(freedive.__file__).with_name("_cuda_emu.so")))
    library.emulation_waits.restype = ctypes.c_uint64
    model, b = made("cuda-emu"), batch()
    cache = model.new_cache(4)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.int32)
    d = np.full(b.n_tokens, -0.1, np.float32)
    table = np.arange(6, dtype=np.int32).reshape(3, 2) % 4
    calls = {
        "zero_grad": (model.zero_grad, 0),
        "forward": (lambda: model.forward(b), 1),
        "backward": (lambda: model.backward(d), 0),
        "forward_backward": (lambda: model.forward_backward(b, d), 0),
        "adamw": (lambda: model.adamw(1e-3), 1),
        "muon": (lambda: model.muon(1e-3, adamw_lr=1e-3), 1),
        "decode": (lambda: model.decode(cache, b, zeros, table, temperature=ones, top_k=zeros, top_p=ones, min_p=ones * 0, seeds=zeros.astype(np.uint64),
                                        counters=zeros.astype(np.uint64)), 1),
    }  # fmt: skip
    for round_ in range(3):  # what is copied through is as large as a call needs after it has been called once; the calls that leave work behind wait for the turn before
        for name, (call, most) in calls.items():
            before = library.emulation_waits()
            call()
            if round_ > 0:
                assert library.emulation_waits() - before <= most + (name in ("backward", "forward_backward")), name


@emulated
@pytest.mark.skipif(not LATE, reason="another schedule")
def test_what_is_looked_at_too_early_is_old():
    model = made("cuda-emu")
    step(model)  # a call that needs more memory for copies than any before it waits
    model.zero_grad()
    view = model.gradients["layers.0.q_proj.weight"]
    step(model, update=False)
    assert not view.any()  # nobody has waited for the backward pass: a view that was kept may show anything
    assert model.gradients["layers.0.q_proj.weight"] is view and view.any()


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_snapshot_is_of_its_moment(device: str, optimizer: str):
    model = made(device)
    step(model)
    taken = []
    for seed in range(3):
        taken.append((model.state(), model.snapshot()))
        step(model, seed, update=optimizer == "adamw")
        if optimizer == "muon":
            model.muon(1e-2, adamw_lr=1e-2)
    for state, snapshot in taken:
        got = snapshot()
        assert state.keys() == got.keys() and all(state[key].tobytes() == got[key].tobytes() for key in state)
    assert taken[0][0]["parameters"].tobytes() != model.state()["parameters"].tobytes()


@pytest.mark.parametrize("device", HERE)
def test_what_is_written_over_is_in_the_snapshot(device: str):
    """Python's own writes come after it, too"""
    model = made(device)
    before, snapshot = model.state(), model.snapshot()
    model.parameters["final_norm.weight"][...] = 7
    assert snapshot()["parameters"].tobytes() == before["parameters"].tobytes()


def trained_by_a_process(device: str, **environment: str) -> str:
    """All bits after a step and a snapshot of it"""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_runtime import *; m = made({device!r}); step(m); print(m.trained().tobytes().hex(), m.snapshot()()['v'].tobytes().hex())"
    return subprocess.run([sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("device", [name for name in HERE if name != "cpu"])
def test_waiting_after_each_kernel_changes_nothing(device: str):
    assert trained_by_a_process(device, FREEDIVE_CUDA_SYNC="1") == trained_by_a_process(device, FREEDIVE_CUDA_SYNC="0") != ""


@emulated
def test_a_gpu_whose_managed_memory_the_host_may_not_touch_beside_kernels():
    """As under WSL: parameters lie in the host's pinned memory then, and no bit changes"""
    assert trained_by_a_process("cuda-emu", FREEDIVE_EMU_MANAGED="0") == trained_by_a_process("cuda-emu") != ""


@pytest.mark.parametrize("device", HERE)
def test_memory_that_is_not_there_is_told(device: str):
    with pytest.raises(MemoryError, match=r"no \d{10,} bytes of memory left"):
        made(device).new_cache(1 << 40)


def test_a_plugin_of_another_build_is_refused(tmp_path: Path):
    """Its ops may take other arguments. Without a compiler there is none to be made"""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no cc")
    shutil.copy(_core.__file__, tmp_path)
    source = "const void* freedive_device(const char** why) { *why = 0; return why; }\n"
    for more in ("", "unsigned long long freedive_plugin_layout(void) { return 1; }\n"):
        (tmp_path / "plugin.c").write_text(source + more)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "_cuda.so", tmp_path / "plugin.c"], check=True)
        told = subprocess.run([sys.executable, "-c", "import _core; print(_core.device_error('cuda'))"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "built from other sources" in told.stdout


@emulated
def test_the_plan_is_the_devices():
    """Its kernels have work space of their own"""
    rows = dict(plan(CONFIG, 512, 4, device="cuda-emu").rows)
    assert rows["workspace"] != dict(plan(CONFIG, 512, 4, threads=1).rows)["workspace"]
    assert rows["parameters"] == dict(plan(CONFIG, 512, 4).rows)["parameters"]


@emulated
def test_a_checkpoint_has_its_place_in_the_plan(monkeypatch: pytest.MonkeyPatch):
    """Beside the device's memory: a copy of all that is trained, in the host's. A model that nobody saves needs none"""
    planned = plan(CONFIG, 64, 4, device="cuda-emu")
    taken = sum(array.nbytes for name, array in made("cuda-emu").snapshot()().items() if name != "step_count")
    assert planned.snapshot == taken and human_bytes(taken) in str(planned)
    assert plan(CONFIG, 64, 4, trainable=False).snapshot == 0
    monkeypatch.setattr("freedive.model.model.available_memory", lambda: taken - 1)
    model = made("cuda-emu")
    with pytest.raises(UserError, match="a checkpoint of this model is .* of the host's memory, but"):
        check_checkpoint_fits(model.plan)
    check_checkpoint_fits(plan(CONFIG, 64, 4))  # the CPU's own is not kept
