"""LoRA adapters: what they are, and on disk, in the files of the library PEFT (adapter_config.json, adapter_model.safetensors).

An adapter is a pair of skinny matrices beside a frozen one, out = x W^T + scale (x A^T) B^T (Hu et al. 2021, arXiv:2106.09685). csrc/model/lora.cpp
computes with it unmerged, in trainer and sampler alike; W may be float32 or packed in 16, 8 or 4 bits. It is merged (W + scale B A) on
export only. A begins uniform as in PEFT, B at zero: a fresh adapter changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from freedive.model.config import DecoderConfig, family
from freedive.runs import UserError, write_json_atomic

if TYPE_CHECKING:
    from freedive.model.model import Model
    from freedive.model.weights import Weights

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoRA:
    """Rank, scale and place of an adapter. scale = alpha / rank, or with rslora alpha / sqrt(rank) (arXiv:2312.03732)."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ATTENTION + MLP
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def core_dict(self) -> dict[str, Any]:
        """The form the compiled core takes."""
        return {"rank": self.rank, "scale": self.scale, "targets": list(self.targets)}


def check_lora(lora: LoRA, config: DecoderConfig) -> LoRA:
    """`lora` with the targets that such a model has, in order; UserError for a rank, alpha or target that cannot be."""
    if lora.rank < 1 or lora.rank > min(config.d_model, config.d_ff):
        raise UserError(f"the adapter's rank is {lora.rank}; it must be between 1 and the width, {min(config.d_model, config.d_ff)}")
    if not 0 < lora.alpha < math.inf:
        raise UserError(f"the adapter's alpha is {lora.alpha}; it must be positive", hint="twice the rank is usual")
    there = [t for t in ATTENTION + MLP if t != "gate_proj" or config.mlp == "swiglu"]
    if unknown := [t for t in lora.targets if t not in ATTENTION + MLP]:
        raise UserError(f"adapters beside {unknown[0]!r} are not known", hint=f"targets: {', '.join(there)}")
    targets = tuple(t for t in there if t in lora.targets)
    if not targets:
        raise UserError("an adapter needs at least one target", hint=f"targets: {', '.join(there)}")
    return replace(lora, targets=targets)


def parse_targets(text: str) -> tuple[str, ...]:
    """"all", "attention", "mlp", or names with commas between."""
    named = {"all": ATTENTION + MLP, "attention": ATTENTION, "mlp": MLP}
    return named.get(text) or tuple(part.strip() for part in text.split(",") if part.strip())


def init_adapter(model: Model, seed: int) -> None:
    """A uniform in +-1/sqrt(columns) (PEFT's, which is PyTorch's for a linear layer), B zero."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 23]))
    for name, view in model.adapter.items():
        bound = 1 / math.sqrt(view.shape[1])
        view[...] = rng.uniform(-bound, bound, view.shape).astype(np.float32) if name.endswith("lora_A") else 0.0
    model.touch()


# ---- on disk -------------------------------------------------------------------------------------------------------


def peft_name(name: str) -> str:
    """"layers.3.q_proj.lora_A" as PEFT has it for llama, qwen2 and qwen3."""
    _, layer, module, matrix = name.split(".")
    return f"{_PREFIX}model.layers.{layer}.{'self_attn' if module in ATTENTION else 'mlp'}.{module}.{matrix}.weight"


def check_saveable(config: DecoderConfig) -> None:
    """UserError for a model whose adapters PEFT could not read: gpt2's q, k and v are one matrix there."""
    if family(config) == "gpt2":
        raise UserError("adapters for gpt2 models are not written", hint="fine-tune all weights (leave --lora-rank out)")


def save_adapter(model: Model, folder: Path, base: str) -> None:
    """Write the adapter into `folder`, as PEFT does. base: path or name of the model it belongs to."""
    from safetensors.numpy import save_file

    lora = model.lora
    assert lora is not None
    check_saveable(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({peft_name(name): np.ascontiguousarray(a) for name, a in model.adapter.items()}, str(folder / FILE), metadata={"format": "pt"})
    write_json_atomic(folder / CONFIG, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank, "lora_alpha": lora.alpha,
        "target_modules": list(lora.targets), "lora_dropout": 0.0, "bias": "none", "use_rslora": lora.rslora, "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "modules_to_save": None,
    })  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, checked against a model's configuration."""

    lora: LoRA
    tensors: dict[str, np.ndarray]  # our names -> float32
    base: str  # what adapter_config.json says it belongs to

    def into(self, model: Model) -> None:
        """Copy into a model made with this `lora`."""
        for name, view in model.adapter.items():
            view[...] = self.tensors[name]
        model.touch()

    def merged(self, weights: Weights) -> Weights:
        """`weights` with W + scale B A in place of W, in float32; what a merged model file holds."""
        def read(name: str) -> np.ndarray:
            plain, stem = weights.read(name), name.removesuffix(".weight")
            if f"{stem}.lora_A" not in self.tensors:
                return plain
            a, b = (self.tensors[f"{stem}.{m}"].astype(np.float64) for m in ("lora_A", "lora_B"))
            return (plain + self.lora.scale * (b @ a)).astype(np.float32)

        return replace(weights, read=read, stored=None, types=None)


def is_adapter(path: Path) -> bool:
    """Whether a path is an adapter's folder: one with adapter_config.json and no whole model."""
    return path.is_dir() and (path / CONFIG).is_file() and not (path / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The base that an adapter's folder names; "" for none. Raises UserError."""
    return str(_config(folder).get("base_model_name_or_path") or "")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} holds no {CONFIG}", hint=f"an adapter's folder has {CONFIG} and {FILE}; `freedive sft --lora-rank 16` writes one")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} could not be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


# What PEFT has beside plain LoRA, and what it must be here.
_PLAIN: dict[str, tuple[Any, ...]] = {"peft_type": ("LORA",), "bias": ("none",), "use_dora": (False, None), "fan_in_fan_out": (False, None), "modules_to_save": (None, []),
          "rank_pattern": (None, {}), "alpha_pattern": (None, {}), "layers_to_transform": (None, []), "layer_replication": (None, []),
          "lora_bias": (False, None), "trainable_token_indices": (None, [])}  # fmt: skip


def read_adapter(folder: Path, config: DecoderConfig) -> Adapter:
    """The adapter of a folder, for a model of this configuration. Raises UserError for what is missing, damaged, of another model, or more than LoRA."""
    from safetensors import SafetensorError, safe_open

    d = _config(folder)
    for key, allowed in _PLAIN.items():
        if key in d and d[key] not in allowed:
            raise UserError(f"{folder / CONFIG} has {key} = {d[key]!r:.60}, which freedive does not compute", hint="plain LoRA adapters are read")
    rank, alpha, targets = d.get("r"), d.get("lora_alpha"), d.get("target_modules")
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or isinstance(targets, str) and targets != "all-linear" or not targets:
        raise UserError(f"{folder / CONFIG} needs r, lora_alpha and a list target_modules")
    names = ATTENTION + MLP if targets == "all-linear" else tuple(str(t) for t in _listed(targets))
    lora = check_lora(LoRA(rank, float(alpha), names, bool(d.get("use_rslora"))), config)
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no {FILE}", hint="pickled adapters (.bin) can run code and are never read; save them as safetensors")
    shapes = adapter_shapes(config, lora)
    tensors = {}
    try:
        import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16)

        with safe_open(str(path), framework="np") as file:
            keys = set(file.keys())
            for name, shape in shapes.items():
                key = peft_name(name)
                if key not in keys:
                    raise UserError(f"{path} lacks the tensor {key!r}", hint="is it an adapter of this model?")
                if tuple(file.get_slice(key).get_shape()) != shape:
                    raise UserError(f"{path}: {key} has shape {file.get_slice(key).get_shape()}, this model wants {list(shape)}", hint="it is another model's adapter")
                tensors[name] = file.get_tensor(key).astype(np.float32)
            if more := sorted(keys - {peft_name(name) for name in shapes}):
                raise UserError(f"{path} has the tensor {more[0]!r:.80}, which is no part of this adapter", hint="it is another model's adapter, or more than LoRA")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", hint="the file may be truncated") from None
    return Adapter(lora, tensors, base_of(folder))


def _listed(targets: Any) -> Sequence[Any]:
    if not isinstance(targets, list):
        raise UserError(f"target_modules is {targets!r:.60}, it must be a list")
    return targets


def adapter_shapes(config: DecoderConfig, lora: LoRA) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every matrix of the adapter; allocates nothing."""
    from freedive import _core

    return {name: tuple(shape) for name, shape, _, _ in _core.adapter_table(config.core_dict(), lora.core_dict())}
