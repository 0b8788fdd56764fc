"""Model folders as the stages write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_cases import TOKENIZER, make_model

from freedive.model import save_pretrained


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dive's folder with an assistant and a base model of random weights; the assistant's."""
    dive = tmp_path_factory.mktemp("dive")
    for name in ("pretrain", "sft"):
        save_pretrained(make_model(), dive / name)
        TOKENIZER.save(dive / name / "tokenizer")
        (dive / name / "run.json").write_text(json.dumps({"stage": name}))
    return dive / "sft"
