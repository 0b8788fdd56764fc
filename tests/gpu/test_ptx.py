"""Each PTX wrapper and each intrinsic that kernels use, on the GPU and in the emulator (ptx_conformance.cu), beside NumPy's own reading of the PTX ISA.

What moves or rounds in a way the ISA fixes must agree to the bit; the order in which a tensor core adds is the hardware's own, and its exp another
library's: those have a tolerance. FREEDIVE_PTX is the folder of `_ptx_cuda_emu.so` and, where there is a GPU, `_ptx_cuda.so` (target
ptx_conformance; dev/gpu_check builds both).
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FREEDIVE_PTX", ROOT / "build" / "emulation"))
LIBRARIES = {name: FOLDER / f"_ptx_{name.replace('-', '_')}.so" for name in ("cuda", "cuda-emu")}
EMULATOR_IS_THE_DEVICE = os.environ.get("FREEDIVE_GPU_DEVICE") == "cuda-emu"
HERE = [pytest.mark.gpu] if shutil.which("nvidia-smi") else []  # the check of a GPU tries both, and without one the emulator is tried all the same
DEVICES = ["cuda-emu"] if EMULATOR_IS_THE_DEVICE else [pytest.param("cuda-emu", marks=HERE), "cuda"]
LANES = np.arange(32)


class Conformance:
    """The cases of one library: run(name, input) -> the bytes it wrote"""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.ptx_case.restype = ctypes.c_bool
        self.library.ptx_run.restype = ctypes.c_char_p
        self.cases: dict[str, tuple[int, int, int]] = {}
        name, size_in, size_out, i = ctypes.c_char_p(), ctypes.c_int64(), ctypes.c_int64(), 0
        while self.library.ptx_case(i, ctypes.byref(name), ctypes.byref(size_in), ctypes.byref(size_out)):
            self.cases[(name.value or b"").decode()] = (i, size_in.value, size_out.value)
            i += 1

    def run(self, name: str, *inputs: np.ndarray) -> np.ndarray:
        index, size_in, size_out = self.cases[name]
        given = b"".join(np.ascontiguousarray(x).tobytes() for x in inputs)
        assert len(given) == size_in, f"{name} takes {size_in} bytes"
        out = ctypes.create_string_buffer(size_out)
        error = self.library.ptx_run(index, given, out)
        if error is not None and b"needs compute capability" in error:
            pytest.skip(error.decode())
        assert error is None, f"{name}: {error.decode()}"
        return np.frombuffer(out.raw, np.uint8)


opened: dict[str, Conformance] = {}


def conformance(device: str) -> Conformance:
    if not LIBRARIES[device].exists():
        pytest.skip(f"no {LIBRARIES[device].name}: dev/gpu_check builds it, or cmake --build build/emulation --target ptx_conformance")
    if device not in opened:
        opened[device] = Conformance(LIBRARIES[device])
    return opened[device]


@pytest.fixture(params=DEVICES)
def on(request: pytest.FixtureRequest) -> Conformance:
    return conformance(request.param)


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 14]))


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint8).ravel()


def numbers(seed: int) -> np.ndarray:
    """float32[65536]: normal, of all sizes, halfway cases of bfloat16, denormal, infinite, not a number"""
    r = rng(seed)
    x = r.standard_normal(1 << 16).astype(np.float32)
    x[: 1 << 14] = r.integers(0, 1 << 32, 1 << 14, dtype=np.uint32).view(np.float32)  # any bits
    x[1 << 14 : 1 << 15] = (r.integers(0, 1 << 16, 1 << 14, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    x[np.isnan(x)] = np.nan  # quiet ones: what a signalling one does is each library's own
    x[:10] = [0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3.4e38, -3.4e38, 1]
    return x


def test_every_wrapper_has_a_case():
    """Each function of ptx.cuh and ptx_sm90.cuh that is not a helper of another is called in ptx_conformance.cu"""
    wrappers = "".join((ROOT / "csrc" / "cuda" / name).read_text() for name in ("ptx.cuh", "ptx_sm90.cuh"))
    declared = set(re.findall(r"__device__ __forceinline__ \w+ (\w+)\(", wrappers))
    called = set(re.findall(r"ptx::(\w+)", (Path(__file__).parent / "ptx_conformance.cu").read_text()))
    assert {"mma_bf16", "wgmma_bf16", "wgmma_bf16_rs"} <= declared
    assert declared - called - {"shared_address"} == set()


def test_shuffles_and_votes(on: Conformance):
    r = rng(1)
    v, w = r.integers(0, 1 << 32, 32, dtype=np.uint32), r.integers(0, 1 << 62, 32, dtype=np.uint64)
    v[4] = v[4] & ~np.uint32(0xFF) | np.uint32(7)
    in_eight, in_sixteen, in_four = LANES & ~7, LANES & ~15, LANES & ~3
    down, up = LANES + 3, LANES - 5
    sources = [
        (LANES * 7 + 3) % 32,
        in_eight + 5,
        LANES ^ 1,
        LANES ^ 16,
        LANES ^ 3,
        np.where(down < 32, down, LANES),
        np.where(down < in_sixteen + 16, down, LANES),
        np.where(up >= 0, up, LANES),
        np.where(LANES - 2 >= in_four, LANES - 2, LANES),
    ]
    votes = [np.sum((v & 1).astype(np.uint64) << LANES.astype(np.uint64)), 1, 0]
    want32 = np.array([v[s] for s in sources] + [np.full(32, x) for x in votes], np.uint32)
    want64 = np.array([w[LANES ^ 8], w[31 - LANES], w[np.where(LANES + 2 < 32, LANES + 2, LANES)]], np.uint64)
    np.testing.assert_array_equal(on.run("shuffles", v, w), np.concatenate([bits(want32), bits(want64)]))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_barriers_that_vote(on: Conformance, share: float):
    p = (rng(2).random(96) < share).astype(np.int32) * 6
    want = np.repeat(np.array([[(p != 0).sum()], [(p != 0).all()], [(p != 0).any()]], np.int32), 96, axis=1)
    np.testing.assert_array_equal(on.run("barriers", p).view(np.int32).reshape(3, 96), want)


def test_cp_async(on: Conformance):
    x = rng(3).integers(0, 256, (64, 16), dtype=np.uint8)
    want = np.where(np.arange(16) < (np.arange(64) % 17)[:, None], x, 0)[::-1]
    np.testing.assert_array_equal(on.run("cp_async", x).reshape(64, 16), want)


def test_cp_async_groups(on: Conformance):
    x = rng(4).integers(0, 256, (96, 16), dtype=np.uint8)
    np.testing.assert_array_equal(on.run("cp_async_groups", x).reshape(96, 16), x)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(on: Conformance, transposed: bool):
    x = rng(5).integers(0, 1 << 16, (4, 8, 8), dtype=np.uint16)  # [matrix, row, column]; lane l gives row l % 8 of matrix l / 8
    m = x.swapaxes(1, 2) if transposed else x
    want = np.stack([m[:, LANES // 4, 2 * (LANES % 4) + half] for half in (0, 1)], axis=-1)  # [matrix, lane, half]
    name = "ldmatrix_x4_trans" if transposed else "ldmatrix_x4"
    np.testing.assert_array_equal(on.run(name, x).view(np.uint16).reshape(4, 32, 2), want)


def fragments(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
    """a [16, 16], b [16, 8] bfloat16 and c [16, 8] float32 as lanes hold them (PTX ISA, matrix fragments of mma.m16n8k16)"""
    group, four = LANES // 4, LANES % 4
    half = np.arange(2)
    rows_a = np.array([0, 8, 0, 8])[None, :, None] + group[:, None, None]
    columns_a = (2 * four)[:, None, None] + np.array([0, 0, 8, 8])[None, :, None] + half
    rows_b = (2 * four)[:, None, None] + np.array([0, 8])[None, :, None] + half
    return [a[rows_a, columns_a], b[rows_b, group[:, None, None]], c[fragment_of_c()]]


def fragment_of_c() -> tuple[np.ndarray, np.ndarray]:
    i = np.arange(4)
    return LANES[:, None] // 4 + 8 * (i // 2), 2 * (LANES % 4)[:, None] + i % 2


def products(on: Conformance, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    given = [np.concatenate([bits(f) for f in fragments(*abc)]) for abc in zip(a, b, c)]
    return on.run("mma_bf16", *given).view(np.float32).reshape(len(a), 32, 4)


def test_mma_of_small_integers_is_exact(on: Conformance):
    """Whatever the order of the sums"""
    r = rng(6)
    a, b = (r.integers(-8, 9, (48, 16, n)).astype(ml_dtypes.bfloat16) for n in (16, 8))
    c = r.integers(-99, 99, (48, 16, 8)).astype(np.float32)
    want = a.astype(np.float32) @ b.astype(np.float32) + c
    np.testing.assert_array_equal(products(on, a, b, c), np.stack([d[fragment_of_c()] for d in want]))


def test_mma_of_any_numbers(on: Conformance):
    """Within what adders that cut off bits below the largest of 17 terms can do, in two steps of 8"""
    r = rng(7)
    a, b = (r.standard_normal((48, 16, n)).astype(ml_dtypes.bfloat16) for n in (16, 8))
    c = (10 * r.standard_normal((48, 16, 8))).astype(np.float32)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    want, largest = a64 @ b64 + c, (np.abs(a64[..., :, :, None]) * np.abs(b64[..., None, :, :])).max(-2) + np.abs(c)
    got = products(on, a, b, c)
    where = fragment_of_c()
    for d, w, most in zip(got, want, largest):
        assert (np.abs(d - w[where]) <= 2 * 17 * 2.0**-23 * most[where]).all()


def test_tma_brings_a_box_and_stores_one(on: Conformance):
    """0 outside of the tensor; pieces of 16 bytes of row r exchanged by r % 8; nothing is written outside of the tensor"""
    x = rng(16).integers(0, 1 << 16, (40, 72), dtype=np.uint16)
    box = np.zeros((64, 64), np.uint16)
    box[5:45, :46] = x[:, 24:70]
    pieces = np.arange(8) ^ (np.arange(64) % 8)[:, None]  # at place p of row r lies piece p ^ r % 8
    swizzled = np.take_along_axis(box.reshape(64, 8, 8), pieces[:, :, None], 1)
    stored = np.full((64, 72), 0xFFFF, np.uint16)
    stored[3:60, 8:70] = ~box[:57, :62]
    got = on.run("tma", x).view(np.uint16)
    np.testing.assert_array_equal(got[: 64 * 64].reshape(64, 8, 8), swizzled)
    np.testing.assert_array_equal(got[64 * 64 :].reshape(64, 72), stored)


def test_a_cluster_shares_a_tile(on: Conformance):
    """Each of two blocks loads half of the rows for both; both wait for all bytes and for each other's arrival; ranks are 0 and 1"""
    x = rng(19).integers(0, 1 << 16, (64, 64), dtype=np.uint16)
    pieces = np.arange(8) ^ (np.arange(64) % 8)[:, None]
    swizzled = np.take_along_axis(x.reshape(64, 8, 8), pieces[:, :, None], 1)
    for rank, got in enumerate(on.run("cluster", x).reshape(2, -1)):
        np.testing.assert_array_equal(got[: 64 * 128].view(np.uint16).reshape(64, 8, 8), swizzled)
        assert (got[64 * 128 :].view(np.uint32) == rank).all()


def test_tma_stores_float32(on: Conformance):
    x = rng(20).standard_normal((64, 32), dtype=np.float32)
    got = on.run("store_f32", x).view(np.float32).reshape(70, 36)
    want = np.full((70, 36), np.nan, np.float32)
    want[5:67, 4:35] = x[:62, :31]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("kernel", "n", "a_by_k", "b_by_k"), [("wgmma", 64, True, True), ("wgmma", 128, True, False), ("wgmma", 256, False, True),
                                                               ("wgmma_rs", 64, True, True), ("wgmma_rs", 128, True, False)])  # fmt: skip
def test_wgmma_of_small_integers_is_exact(on: Conformance, kernel: str, n: int, a_by_k: bool, b_by_k: bool):
    """Both layouts of each operand, every width, a from registers; the accumulators as the ISA spreads them over a warpgroup"""
    r = rng(17)
    a, b = (r.integers(-8, 9, (rows, 64)).astype(ml_dtypes.bfloat16) for rows in (64, n))
    got = on.run(f"{kernel}_{n}", a if a_by_k else a.T, b if b_by_k else b.T).view(np.float32).reshape(128, n // 2)
    t, e = np.arange(128)[:, None], np.arange(n // 2)
    want = 2 * a.astype(np.float32) @ b.astype(np.float32).T
    np.testing.assert_array_equal(got, want[t // 32 * 16 + t % 32 // 4 + e // 2 % 2 * 8, e // 4 * 8 + t % 4 * 2 + e % 2])


def test_an_error_names_the_kernel_and_its_shapes(on: Conformance):
    on.library.ptx_refused.restype = ctypes.c_char_p
    assert on.library.ptx_refused().startswith(b"gelu_forward, 7 blocks of 2000 out [3,5] x [3,5]: ")


def test_conversions(on: Conformance):
    x, y = numbers(8), numbers(19)[::-1].copy()
    got = on.run("conversions", x, y, x).view(np.uint32).reshape(4, -1)
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        want = x.astype(ml_dtypes.bfloat16).view(np.uint16), every.view(ml_dtypes.bfloat16).astype(np.float32), every.view(np.float16).astype(np.float32)
    no_number = np.isnan(x)
    np.testing.assert_array_equal(got[0][~no_number], want[0][~no_number])
    np.testing.assert_array_equal(got[0][no_number], 0x7FFF)  # the hardware's
    halves = got[3].view(np.uint16).reshape(-1, 2)  # the pair: low, high
    for half, (number, rounded) in enumerate(((x, want[0]), (y, y.astype(ml_dtypes.bfloat16).view(np.uint16)))):
        np.testing.assert_array_equal(halves[:, half], np.where(np.isnan(number), 0x7FFF, rounded))
    for row, w in zip(got[1:3], want[1:]):
        row = row.view(np.float32)
        np.testing.assert_array_equal(np.isnan(row), np.isnan(w))
        np.testing.assert_array_equal(row[~np.isnan(w)].view(np.uint32), w[~np.isnan(w)].view(np.uint32))


def same_numbers(got: np.ndarray, want: np.ndarray, what: str) -> None:
    """To the bit, and not-a-number where that is; its payload is nobody's business"""
    known = ~np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), ~known, err_msg=what)
    np.testing.assert_array_equal(got[known].view(np.uint32), want[known].view(np.uint32), err_msg=what)


def test_arithmetic_is_ieee(on: Conformance):
    """What nvcc does by default with -fmad=false: denormals, correctly rounded division and root, fused where the source says so"""
    x, y, z = numbers(9), numbers(10)[::-1].copy(), numbers(11)
    got = on.run("arithmetic", x, y, z).view(np.float32).reshape(8, -1)
    with np.errstate(all="ignore"):
        same_numbers(got[1], x * y + z, "multiply, then add")
        same_numbers(got[2], x / y, "division")
        same_numbers(got[3], np.sqrt(np.abs(x)), "root")
        same_numbers(got[4], np.rint(x), "rint")
        exact = x.astype(np.float64) * y + z  # the product is exact in double, so this rounds twice at most
        same_numbers(got[6], exact.astype(np.float32), "double")
        same_numbers(got[7], np.float32(1) / np.sqrt(np.abs(x)), "1 / root")
        twice_rounded = np.abs(got[0].astype(np.float64) - exact) <= np.spacing(np.abs(got[0])).astype(np.float64) * 0.5000001
        assert (twice_rounded | ~np.isfinite(got[0]) | ~np.isfinite(exact)).all()
    ordered = ~(np.isnan(x) | np.isnan(y))
    np.testing.assert_array_equal(got[5][ordered], np.maximum(x, y)[ordered])
    np.testing.assert_array_equal(np.isnan(got[5]), np.isnan(x) & np.isnan(y))


FUNCTIONS = {"exp": (np.exp, 2), "log": (lambda x: np.log(np.abs(x)), 2), "tanh": (np.tanh, 3),
             "exp2_approx": (lambda x: np.where(x < -126, 0, np.exp2(x)), 4)}  # fmt: skip
"""and units in the last place CUDA's guide allows, or the PTX ISA: 2^-22 of the result"""


def test_functions(on: Conformance, record_property):
    """Within CUDA's documented error (CUDA C++ Programming Guide, mathematical functions), not to the bit"""
    x = numbers(12)
    got = on.run("functions", x, x, x).view(np.float32).reshape(4, -1)
    with np.errstate(all="ignore"):
        for row, (name, (f, ulps)) in zip(got, FUNCTIONS.items()):
            want = f(x.astype(np.float64))
            nearest = want.astype(np.float32)
            np.testing.assert_array_equal(np.isnan(row), np.isnan(nearest), err_msg=name)
            known = np.isfinite(nearest) & np.isfinite(row)
            np.testing.assert_array_equal(row[~known & ~np.isnan(row)], nearest[~known & ~np.isnan(row)], err_msg=name)
            error = np.abs(row - want)[known] / np.spacing(np.abs(nearest[known]))
            record_property(f"{name}_ulp", round(float(error.max()), 3))
            assert error.max() <= ulps, f"{name}: {error.max():.2f} units at {x[known][error.argmax()]}"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["shuffles", "barriers", "cp_async", "cp_async_groups", "ldmatrix_x4", "ldmatrix_x4_trans", "mma_bf16", "tma", "cluster",
                                  "store_f32", "wgmma_64", "wgmma_128", "wgmma_256", "wgmma_rs_64", "wgmma_rs_128", "conversions", "arithmetic",
                                  "functions"])  # fmt: skip
def test_the_emulator_is_the_hardware(name: str, record_property):
    """The same bytes in, the same bytes out; of what hardware may round its own way, how far apart is recorded and bounded by the tests above"""
    ours, theirs = conformance("cuda-emu"), conformance("cuda-emu" if EMULATOR_IS_THE_DEVICE else "cuda")
    assert list(ours.cases) == list(theirs.cases)
    size = ours.cases[name][1]
    given = bits(numbers(13))
    given = np.resize(given, size)
    if name == "mma_bf16":  # any bits would make not-a-numbers of everything
        given = bits(np.resize(rng(15).standard_normal(size // 4), size // 4).astype(np.float32))
    if name.startswith("wgmma"):
        given = bits(rng(18).standard_normal(size // 2).astype(ml_dtypes.bfloat16))
    a, b = ours.run(name, given), theirs.run(name, given)
    differ = int((a.view(np.uint32) != b.view(np.uint32)).sum())
    record_property("words", a.size // 4)
    record_property("words_that_differ", differ)
    if name in ("shuffles", "barriers", "cp_async", "cp_async_groups", "ldmatrix_x4", "ldmatrix_x4_trans", "tma", "cluster", "store_f32"):
        assert differ == 0
    elif name in ("conversions", "arithmetic"):
        known = np.isfinite(a.view(np.float32)) & np.isfinite(b.view(np.float32))
        assert (a.view(np.uint32) == b.view(np.uint32))[known].all()
