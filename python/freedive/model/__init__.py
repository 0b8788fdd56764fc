"""The decoder: configuration, flat batches, weights in and out (talk 1.4)."""

from freedive.model.batch import Batch
from freedive.model.config import PRESETS, DecoderConfig, from_depth, preset
from freedive.model.model import Model, Outputs, Plan, check_device, check_fits, plan
from freedive.model.pretrained import load_pretrained, read_config, save_pretrained
from freedive.model.weights import Weights, open_weights

__all__ = [
    "PRESETS", "Batch", "DecoderConfig", "Model", "Outputs", "Plan", "Weights", "check_device", "check_fits", "from_depth", "load_pretrained",
    "open_weights", "plan", "preset", "read_config", "save_pretrained",
]  # fmt: skip
