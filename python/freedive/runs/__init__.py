"""Artefact folders: atomic writes, run.json, metrics, checkpoints, progress, errors for people. Knows no models and no data."""

from .artefact import Artefact, stage
from .atomic import json_line, plain, read_json, write_atomic, write_json_atomic
from .config import check_at_least, config_json, load_toml, option, read_toml
from .errors import UserError, human_bytes
from .hashing import file_hash, folder_hash
from .lock import locked
from .progress import progress

__all__ = [
    "Artefact", "UserError", "check_at_least", "config_json", "file_hash", "folder_hash", "human_bytes", "json_line", "load_toml", "locked",
    "option", "plain", "progress", "read_json", "read_toml", "stage", "write_atomic", "write_json_atomic",
]  # fmt: skip
