"""A tiny dive (pretrain, SFT, GRPO) on every device that is not the CPU: its losses are the CPU's, and two runs are one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from train_cases import chat_file, pretrain_config, problem_file, rl_config, sft_config, text_file

from freedive import ops
from freedive.pretrain import stage as pretrain
from freedive.rl import stage as rl
from freedive.runs import UserError, folder_hash
from freedive.sft import stage as sft

OTHERS = [device for device in ops.devices() if device != "cpu"]


def losses(folder: Path) -> np.ndarray:
    return np.array([json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines() if "loss" in json.loads(line)])


@pytest.mark.skipif(not OTHERS, reason="no device but the CPU: cuda-emu is built with -DFREEDIVE_CUDA_EMULATION=ON (csrc/emulation/README.md)")
@pytest.mark.parametrize("device", OTHERS)
def test_a_tiny_dive_agrees_with_the_cpu(device: str, tmp_path: Path):
    text, chats, problems = text_file(tmp_path), chat_file(tmp_path), problem_file(tmp_path)
    for where in ("cpu", device):
        pretrain.run(pretrain_config(text, tmp_path / f"base-{where}", device=where))
        sft.run(sft_config(tmp_path / "base-cpu", chats, tmp_path / f"chat-{where}", device=where))
    for stage in ("base", "chat"):
        want, got = (losses(tmp_path / f"{stage}-{where}") for where in ("cpu", device))
        assert len(got) > 3
        np.testing.assert_allclose(got, want, rtol=1e-5)
    for name in ("first", "again"):  # what is sampled may part from the CPU's where two ids are nearly equal: the device must agree with itself
        rl.run(rl_config(tmp_path / "chat-cpu", problems, tmp_path / name, device=device))
    assert np.isfinite(losses(tmp_path / "first")).all()
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
    assert folder_hash(tmp_path / "first") == folder_hash(tmp_path / "again")


def test_a_device_that_is_not_there_is_a_sentence(tmp_path: Path):
    with pytest.raises(UserError, match="device 'abacus' cannot be used here: there is no such device"):
        pretrain.run(pretrain_config(text_file(tmp_path), tmp_path / "base", device="abacus"))
