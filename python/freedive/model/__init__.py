"""The decoder: configuration, flat batches, weights in and out (talk 1.4)."""

from freedive.model.batch import Batch, alike
from freedive.model.config import PRESETS, DecoderConfig, from_depth, preset
from freedive.model.lora import LoRA, init_adapter, is_adapter, parse_targets, read_adapter, save_adapter
from freedive.model.model import Model, Outputs, Plan, check_checkpoint_fits, check_device, check_fits, check_training, plan
from freedive.model.pretrained import load_pretrained, read_config, save_pretrained
from freedive.model.weights import Weights, open_weights

__all__ = [
    "PRESETS", "Batch", "DecoderConfig", "LoRA", "Model", "Outputs", "Plan", "Weights", "alike", "check_checkpoint_fits", "check_device",
    "check_fits", "check_training", "from_depth", "init_adapter", "is_adapter", "load_pretrained", "open_weights", "parse_targets", "plan", "preset", "read_adapter", "read_config", "save_adapter", "save_pretrained",
]  # fmt: skip
