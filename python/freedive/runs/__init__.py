"""Artefact folders: atomic writes, run.json, metrics, checkpoints, progress, errors for people. Knows no models and no data."""

from .artefact import Artefact, stage
from .atomic import json_line, plain, read_json, write_atomic, write_json_atomic
from .config import check_at_least, config_json, load_toml, option, read_toml
from .errors import UserError, human_bytes, notes
from .hashing import file_hash, folder_hash
from .lock import locked
from .machine import available_memory, default_threads, usable_cores
from .plugins import find_function, function_file
from .progress import progress

__all__ = [
    "Artefact", "UserError", "available_memory", "check_at_least", "config_json", "default_threads", "file_hash", "find_function", "folder_hash",
    "function_file", "human_bytes", "json_line", "load_toml", "locked", "notes", "option", "plain", "progress", "read_json", "read_toml", "stage",
    "usable_cores", "write_atomic", "write_json_atomic",
]  # fmt: skip
